// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skeema/knownhosts"
	gossh "golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
)

// HostKeyError is why a host key was refused.
type HostKeyError struct {
	Changed bool   // another key is known for this host
	Line    string // what the host offered, as the line of a .pub file; empty when no key was shown
	Print   string // its fingerprint
	Known   []string
	Err     error
}

func (e *HostKeyError) Error() string {
	switch {
	case e.Line == "":
		return "the host has no key of the kind that is known for it: " + e.Err.Error()
	case e.Changed:
		return fmt.Sprintf("THE HOST KEY IS NOT THE KNOWN ONE. Offered: %s (%s); known: %s", e.Line, e.Print, strings.Join(e.Known, ", "))
	default:
		return fmt.Sprintf("the host key is not known. Offered: %s (%s)", e.Line, e.Print)
	}
}

func (e *HostKeyError) Unwrap() error { return e.Err }

// verifier checks the key of one host.
type verifier struct {
	r      *resolved
	policy Policy
	db     *knownhosts.HostKeyDB
	record string // accept-new: the file that takes a new key
	seen   string // the key that was accepted, as the line of a .pub file
	err    error  // what check refused; the handshake's own error only quotes it
}

// newVerifier reads the known keys: those given for the host alone or, if there are none, the known_hosts files.
func (p *Pool) newVerifier(r *resolved) (*verifier, error) {
	v := &verifier{r: r, policy: p.cfg.Policy}
	if v.policy == Insecure {
		return v, nil
	}
	var content string
	var files []string
	if r.hostKeys != "" {
		keys, err := ParseHostKeys(r.hostKeys)
		if err != nil {
			return nil, fmt.Errorf("host_key: %w", err)
		}
		for _, key := range keys {
			content += knownhosts.Line([]string{r.lookupAddress()}, key) + "\n"
		}
	} else {
		content = p.cfg.KnownHosts
		for _, f := range r.knownHosts {
			if _, err := os.Stat(f); err == nil {
				files = append(files, f)
			}
		}
		if len(r.knownHosts) > 0 {
			v.record = r.knownHosts[0]
		}
	}
	if content != "" { // the parser reads files only
		dir, err := os.MkdirTemp("", "lockstep-known-hosts-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // in the directory for temporary files
		name := filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			return nil, err
		}
		files = append([]string{name}, files...)
	}
	db, err := knownhosts.NewDB(files...)
	if err != nil {
		return nil, fmt.Errorf("read known host keys: %w", err)
	}
	v.db = db
	return v, nil
}

// ParseHostKeys reads keys as .pub files and known_hosts files write them, one a line.
func ParseHostKeys(text string) ([]gossh.PublicKey, error) {
	var keys []gossh.PublicKey
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, _, _, _, err := gossh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			if _, _, key, _, _, err = gossh.ParseKnownHosts([]byte(line)); err != nil {
				return nil, fmt.Errorf("%q is not a public key; write it as in /etc/ssh/ssh_host_ed25519_key.pub: \"ssh-ed25519 AAAA…\"", shorten(line))
			}
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it; write it as in /etc/ssh/ssh_host_ed25519_key.pub: \"ssh-ed25519 AAAA…\"")
	}
	return keys, nil
}

func shorten(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// algorithms limits the handshake to keys of the kinds that are known: a server with several keys would
// otherwise show another one, and a good host would look changed. Unknown hosts are asked for Ed25519 first,
// since that is the key people compare and paste.
func (v *verifier) algorithms() []string {
	supported := gossh.SupportedAlgorithms().HostKeys
	if v.db != nil {
		known := slices.DeleteFunc(v.db.HostKeyAlgorithms(v.r.lookupAddress()),
			func(a string) bool { return !slices.Contains(supported, a) })
		if len(known) > 0 {
			return known
		}
	}
	order := []string{gossh.KeyAlgoED25519}
	for _, a := range supported {
		if a != gossh.KeyAlgoED25519 && !strings.Contains(a, "-cert-") {
			order = append(order, a)
		}
	}
	return order
}

// check is the HostKeyCallback.
func (v *verifier) check(_ string, remote net.Addr, key gossh.PublicKey) error {
	line := strings.TrimSpace(string(gossh.MarshalAuthorizedKey(key)))
	v.seen = line
	if v.policy == Insecure {
		return nil
	}
	err := v.db.HostKeyCallback()(v.r.lookupAddress(), remote, key)
	if err == nil {
		return nil
	}
	if knownhosts.IsHostUnknown(err) && v.policy == AcceptNew && v.r.hostKeys == "" {
		if err := v.remember(key); err != nil {
			v.err = fmt.Errorf("host_key_policy = \"accept-new\": record the key: %w", err)
			return v.err
		}
		return nil
	}
	refused := &HostKeyError{Changed: knownhosts.IsHostKeyChanged(err), Line: line, Print: gossh.FingerprintSHA256(key), Err: err}
	if keyErr, ok := errors.AsType[*xknownhosts.KeyError](err); ok {
		for _, k := range keyErr.Want {
			where := fmt.Sprintf(" (%s:%d)", k.Filename, k.Line)
			if v.r.hostKeys != "" {
				where = " (host_key)"
			} else if strings.Contains(k.Filename, "lockstep-known-hosts-") {
				where = fmt.Sprintf(" (known_hosts, line %d)", k.Line)
			}
			refused.Known = append(refused.Known, k.Key.Type()+" "+gossh.FingerprintSHA256(k.Key)+where)
		}
	}
	v.err = refused
	return refused
}

// remember appends a new host's key to the known_hosts file.
func (v *verifier) remember(key gossh.PublicKey) error {
	if v.record == "" {
		return errors.New("there is no known_hosts file to write to; set known_hosts_file")
	}
	if err := os.MkdirAll(filepath.Dir(v.record), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(v.record, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	line := knownhosts.Line([]string{v.r.lookupAddress()}, key) + "\n"
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			line = "\n" + line // the file's last line has no end
		}
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

// hint is how to make a refused key known.
func (v *verifier) hint(e *HostKeyError) string {
	if e.Line == "" {
		return "compare with the keys in /etc/ssh/ssh_host_*_key.pub on the host, and correct host_key or known_hosts"
	}
	check := "Compare the fingerprint on the host itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub (or the file of the key's type).\n"
	paste := fmt.Sprintf("    hosts = { %q = { host_key = %q } }", v.r.name, e.Line)
	known := knownhosts.Line([]string{v.r.lookupAddress()}, mustKey(e.Line))
	if e.Changed {
		return check + "If the host was reinstalled, replace the known key. If it was not, somebody may be listening: do not go on.\n" +
			"The new key in the provider block:\n" + paste + "\nor in known_hosts, instead of the old line:\n    " + known
	}
	return check + "If it is the same, put the key into the provider block:\n" + paste + "\nor this line into known_hosts:\n    " + known
}

func mustKey(line string) gossh.PublicKey {
	key, _, _, _, err := gossh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		panic("bug: our own key line does not parse: " + err.Error())
	}
	return key
}
