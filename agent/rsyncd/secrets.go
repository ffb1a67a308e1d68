// SPDX-License-Identifier: Apache-2.0

package rsyncd

import (
	"fmt"
	"strings"
)

// Secret is one user of a module and the password. Its text never shows the password.
type Secret struct {
	User     string
	Password string
	// Key is a line of comment to the daemon: what both hosts use to compare the password without showing it.
	Key string
}

func (s Secret) String() string   { return s.User + ":(redacted)" }
func (s Secret) GoString() string { return s.String() }

// maxSecretLine is less than what the daemon reads of a line (authenticate.c: 1024 bytes) and the
// client of a password file (512 bytes).
const maxSecretLine = 400

const keyComment = "# key of "

// ParseSecrets reads a secrets file. Of two lines for one user the daemon knows only the first, and so does this.
func ParseSecrets(data []byte) ([]Secret, error) {
	keys := map[string]string{}
	seen := map[string]bool{}
	var secrets []Secret
	for n, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if rest, ok := strings.CutPrefix(line, keyComment); ok {
			if user, key, ok := strings.Cut(rest, ": "); ok {
				keys[user] = key
			}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		user, password, ok := strings.Cut(line, ":")
		s := Secret{User: user, Password: password, Key: keys[user]}
		if !ok || s.check() != nil {
			return nil, fmt.Errorf("line %d is not USER:PASSWORD", n+1) // without the line: it may be a password
		}
		if !seen[user] {
			secrets = append(secrets, s)
		}
		seen[user] = true
	}
	return secrets, nil
}

// RenderSecrets writes a secrets file.
func RenderSecrets(secrets []Secret) ([]byte, error) {
	var b strings.Builder
	seen := map[string]bool{}
	for _, s := range secrets {
		if err := s.check(); err != nil {
			return nil, err
		}
		if seen[s.User] {
			return nil, fmt.Errorf("user %q: listed twice", s.User)
		}
		seen[s.User] = true
		if s.Key != "" {
			fmt.Fprintf(&b, "%s%s: %s\n", keyComment, s.User, s.Key)
		}
		fmt.Fprintf(&b, "%s:%s\n", s.User, s.Password)
	}
	return []byte(b.String()), nil
}

func (s Secret) check() error {
	switch {
	case s.User == "" || strings.ContainsAny(s.User, ":#@, \t") || hasControl(s.User):
		return fmt.Errorf("user %q: white space and : # @ , are not possible", s.User)
	case hasControl(s.Key) || strings.TrimSpace(s.Key) != s.Key:
		return fmt.Errorf("key of user %q: a control character, or white space at an end", s.User)
	}
	if err := CheckPassword(s.Password); err != nil {
		return fmt.Errorf("user %q: %w", s.User, err)
	}
	return nil
}

// CheckPassword says why the rsync client or the daemon could not read this password from its file.
func CheckPassword(password string) error {
	switch {
	case password == "":
		return fmt.Errorf("password is empty")
	case len(password) > maxSecretLine:
		return fmt.Errorf("password is longer than %d bytes", maxSecretLine)
	case hasControl(password):
		return fmt.Errorf("password has a control character or a line break")
	}
	return nil
}
