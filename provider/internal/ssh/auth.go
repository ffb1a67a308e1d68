// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// maxIdentities is the MaxAuthTries 6 of sshd_config(5), less the "none" that opens every log-in: with
// more, the server hangs up before it has seen the right key.
const maxIdentities = 5

// identities are the keys that are offered to one host, and what to say about them when none is taken.
type identities struct {
	signers []gossh.Signer
	offered []string
	skipped []string
}

func (i *identities) add(s gossh.Signer, from string) {
	id := string(s.PublicKey().Marshal())
	for _, have := range i.signers {
		if string(have.PublicKey().Marshal()) == id {
			return
		}
	}
	if len(i.signers) == maxIdentities {
		i.skipped = append(i.skipped, from+" (more than "+fmt.Sprint(maxIdentities)+" keys; name one in private_key_file)")
		return
	}
	i.signers = append(i.signers, s)
	i.offered = append(i.offered, from)
}

// describe says which keys were offered, for the error after a refused log-in.
func (i *identities) describe() string {
	s := "no key was found to offer"
	if len(i.offered) > 0 {
		s = "offered " + strings.Join(i.offered, ", ")
	}
	if len(i.skipped) > 0 {
		s += "; left out " + strings.Join(i.skipped, ", ")
	}
	return s
}

// identities gathers the keys for r: those that the configuration names, else the agent's and the
// identity files of ssh_config. A named key that cannot be used is an error; a file of ssh_config is left out.
// The agent, which signs too, can be asked until ctx ends.
func (p *Pool) identities(ctx context.Context, r *resolved) (*identities, error) {
	ids := &identities{}
	var agentSigners []gossh.Signer
	askAgent := sync.OnceValue(func() error {
		if r.agentSocket == "" {
			return nil
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", r.agentSocket)
		if err != nil {
			return fmt.Errorf("ssh-agent: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		if agentSigners, err = agent.NewClient(conn).Signers(); err != nil {
			return fmt.Errorf("ssh-agent %s: list keys: %w", r.agentSocket, cmp.Or(context.Cause(ctx), err))
		}
		return nil
	})
	held := func(key gossh.PublicKey) gossh.Signer {
		for _, s := range agentSigners {
			if string(s.PublicKey().Marshal()) == string(key.Marshal()) {
				return s
			}
		}
		return nil
	}
	addFile := func(name string) error {
		pem, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		signer, err := gossh.ParsePrivateKey(pem)
		var locked *gossh.PassphraseMissingError
		if errors.As(err, &locked) {
			key := locked.PublicKey
			if key == nil {
				key = readPublic(name + ".pub")
			}
			if err := askAgent(); err == nil && key != nil {
				if s := held(key); s != nil {
					ids.add(s, "the agent's "+name)
					return nil
				}
			}
			return fmt.Errorf("%s is protected by a passphrase and ssh-agent does not hold it: ssh-add it first", name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if cert, ok := readPublic(name + "-cert.pub").(*gossh.Certificate); ok {
			if s, err := gossh.NewCertSigner(cert, signer); err == nil {
				ids.add(s, "the certificate of "+name)
			}
		}
		ids.add(signer, fmt.Sprintf("%s (%s)", name, gossh.FingerprintSHA256(signer.PublicKey())))
		return nil
	}

	if r.privateKey != "" {
		signer, err := gossh.ParsePrivateKey([]byte(r.privateKey))
		var locked *gossh.PassphraseMissingError
		switch {
		case errors.As(err, &locked):
			return ids, errors.New("private_key is protected by a passphrase; give it without, or add it to ssh-agent and set agent = true")
		case err != nil:
			return ids, fmt.Errorf("private_key: %w; it must be the content of a private key file, beginning with -----BEGIN", err)
		}
		ids.add(signer, fmt.Sprintf("private_key (%s)", gossh.FingerprintSHA256(signer.PublicKey())))
	}
	if r.privateKeyFile != "" {
		if err := addFile(r.privateKeyFile); err != nil {
			return ids, fmt.Errorf("private_key_file: %w", err)
		}
	}
	if r.agent {
		if err := askAgent(); err != nil {
			if r.privateKey == "" && r.privateKeyFile == "" && ctx.Err() == nil {
				ids.skipped = append(ids.skipped, err.Error())
			} else {
				return ids, err
			}
		}
		wanted := map[string]bool{}
		for _, f := range r.identityFiles {
			if key := readPublic(f + ".pub"); key != nil {
				wanted[string(key.Marshal())] = true
			}
		}
		for pass := range 2 { // the keys that ssh_config names come first
			for _, s := range agentSigners {
				named := wanted[string(s.PublicKey().Marshal())]
				if named == (pass == 0) && (named || !r.identitiesOnly) {
					ids.add(s, "the agent's "+gossh.FingerprintSHA256(s.PublicKey()))
				}
			}
		}
	}
	if r.privateKey == "" && r.privateKeyFile == "" {
		for _, f := range r.identityFiles {
			if err := addFile(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				ids.skipped = append(ids.skipped, err.Error())
			}
		}
	}
	return ids, nil
}

// readPublic reads a .pub file; nil if there is none.
func readPublic(name string) gossh.PublicKey {
	line, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	key, _, _, _, err := gossh.ParseAuthorizedKey(line)
	if err != nil {
		return nil
	}
	return key
}
