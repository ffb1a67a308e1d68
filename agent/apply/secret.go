// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

// The password crosses from host to host sealed with HPKE (RFC 9180) to the source host's key, with the name of
// the pair as info, so that an answer for one pair does not open as one for another.
var (
	kem  = hpke.MLKEM768X25519()
	kdf  = hpke.HKDFSHA256()
	aead = hpke.ChaCha20Poly1305()
)

// sealed is what is in a sealed password.
type sealed struct {
	User     string `json:"user"`
	Password string `json:"password"`
	Key      string `json:"key"`
	// HostKeys are those of the backup host's sshd, for a pair with transport ssh.
	HostKeys []string `json:"host_keys,omitempty"`
}

func seal(recipient, pairName string, s plan.Secret, hostKeys []string) (string, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(recipient))
	var key hpke.PublicKey
	if err == nil {
		key, err = kem.NewPublicKey(raw)
	}
	if err != nil {
		return "", errors.New("--recipient is not a public key of a source host")
	}
	text, err := json.Marshal(sealed{s.User, s.Password, s.Key, hostKeys})
	if err != nil {
		return "", err
	}
	box, err := hpke.Seal(key, kdf, aead, []byte(pairName), text)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(box), nil
}

func open(key hpke.PrivateKey, pairName, box string) (secret plan.Secret, hostKeys []string, err error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(box))
	if err != nil {
		return secret, nil, fmt.Errorf("not base64: %w", err)
	}
	text, err := hpke.Open(key, kdf, aead, []byte(pairName), raw)
	if err != nil {
		return secret, nil, errors.New("sealed to another key or for another pair")
	}
	var s sealed
	if err := json.Unmarshal(text, &s); err != nil {
		return secret, nil, errors.New("not what a backup host seals") // without the cause: it may quote the text
	}
	secret = plan.Secret{User: s.User, Password: s.Password, Key: s.Key}
	if _, err := rsyncd.RenderSecrets([]plan.Secret{secret}); err != nil {
		return plan.Secret{}, nil, errors.New("not a user and a password that rsync can read")
	}
	for _, k := range s.HostKeys {
		if words := strings.Fields(k); len(words) != 2 || strings.Join(words, " ") != k {
			return plan.Secret{}, nil, errors.New("not keys of an ssh server")
		}
	}
	return secret, s.HostKeys, nil
}

// newSecret makes the next generation; an empty password is replaced by 32 random bytes.
func newSecret(user, password string) plan.Secret {
	random := func() string {
		b := make([]byte, 32)
		rand.Read(b) // never fails, see crypto/rand
		return base64.RawURLEncoding.EncodeToString(b)
	}
	if password == "" {
		password = random()
	}
	return plan.Secret{User: user, Password: password, Key: random()}
}

// fingerprint lets the two hosts, and who relays between them, compare the password. Its key is random, travels
// sealed with the password and is known to the two hosts only, so that even a weak password given by the user
// cannot be guessed from it. Without a key there is no fingerprint.
func fingerprint(pairName string, s plan.Secret, more ...string) string {
	if s.Key == "" {
		return ""
	}
	h := hmac.New(sha256.New, []byte(s.Key))
	fmt.Fprintf(h, "lockstep fingerprint 1\x00%s\x00%s\x00%s", pairName, s.User, s.Password)
	for _, m := range more {
		fmt.Fprintf(h, "\x00%s", m)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// compareFingerprints adds to a check that the other host has another password than this one.
func (s *session) compareFingerprints(object string) {
	if theirs, ours := s.req.Fingerprint, s.reply.Fingerprint; theirs == "" || ours == "" || theirs == ours {
		return
	}
	words := fmt.Sprintf("the %s host has another password", otherRole(s.cmd.Role))
	if plan.BySSH(s.req.Pair) {
		words += ", or other ssh keys"
	}
	s.differs(object, words)
}

// hostKeyText is the host key file's content.
func hostKeyText(key hpke.PrivateKey) ([]byte, error) {
	raw, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	return append([]byte(plan.Header("")), base64.StdEncoding.EncodeToString(raw)+"\n"...), nil
}

func parseHostKey(data []byte) (hpke.PrivateKey, error) {
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	raw, err := base64.StdEncoding.DecodeString(string(lines[len(lines)-1]))
	if err != nil {
		return nil, err
	}
	return kem.NewPrivateKey(raw)
}

func publicKey(key hpke.PrivateKey) string {
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
}

// parseSecrets reads a secrets file; one that cannot be read has none, and they are made anew.
func parseSecrets(data []byte) []plan.Secret {
	secrets, err := rsyncd.ParseSecrets(data)
	if err != nil {
		return nil
	}
	return secrets
}

func checkPassword(password string) error {
	if err := rsyncd.CheckPassword(password); err != nil {
		return stop("password", err.Error(), "give one without control characters")
	}
	return nil
}

// hostKey reads the source host's key; nil when there is none.
func (s *session) hostKey() (hpke.PrivateKey, error) {
	f, err := s.m.Files.Read(plan.HostKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no key yet is not an error
	}
	if err != nil {
		return nil, err
	}
	key, err := parseHostKey(f.Data)
	if err != nil {
		return nil, stop("secret", fmt.Sprintf("%s: %v", plan.HostKeyFile, err),
			"lockstep apply --role source --definition FILE --prepare makes a new one; seal the password anew with it")
	}
	return key, nil
}

// prepare makes sure that there is a host key and, with transport ssh, the pair's ssh key.
func (s *session) prepare(ctx context.Context) error {
	p := s.req.Pair
	key, err := s.hostKey()
	if err != nil || key == nil {
		// An unreadable key is of no use to anybody; what was sealed to it is sealed anew.
		if key, err = kem.GenerateKey(); err != nil {
			return err
		}
	}
	data, err := hostKeyText(key)
	if err != nil {
		return err
	}
	var private []byte
	if plan.BySSH(p) {
		if private, err = s.sshKey(); err != nil {
			return err
		}
		if private == nil {
			if private, err = newSSHKey(p.Name); err != nil {
				return err
			}
		}
	}
	desired := plan.PreparedState(p, data, private)
	before, err := s.current(ctx, desired, plan.State{})
	if err != nil {
		return err
	}
	if problems := foreign(before, desired); len(problems) > 0 {
		return plan.Problems(problems)
	}
	if err := s.execute(ctx, plan.Diff(before, desired), before); err != nil {
		return err
	}
	s.reply.PublicKey = answer(publicKey(key), publicSSHKey(private))
	return nil
}
