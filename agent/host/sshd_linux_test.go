// SPDX-License-Identifier: Apache-2.0

package host

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// newKey is a private key, and its public half as files have it.
func newKey(t *testing.T) (private ed25519.PrivateKey, line string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return private, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// HostKey of sshd_config(5) names a private key, with or without a public file beside it, or a public key that an agent has.
func TestPublicHalfOfAHostKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	private, want := newKey(t)
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"alone": string(pem.EncodeToMemory(block)), "beside": "no key", "beside.pub": want + " root@backup\n", "agent.pub": want + "\n",
		"locked": string(pem.EncodeToMemory(locked)), "locked.pub": want, "rubbish": "x", "lonely": string(pem.EncodeToMemory(locked)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"alone": want, "beside": want, "agent.pub": want, "locked": want, "rubbish": "", "lonely": "", "missing": ""} {
		if got := publicHalf(filepath.Join(dir, name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
