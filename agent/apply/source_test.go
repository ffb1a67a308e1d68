// SPDX-License-Identifier: Apache-2.0

package apply_test

import (
	"context"
	"crypto/hpke"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/apply"
	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// The agent deletes nothing while another directory is at the source path, and somebody has to say which is meant.
func TestAnotherDirectoryAtTheSourcePathIsAProblem(t *testing.T) {
	t.Parallel()
	const file, known = plan.StateDir + "/data/source.json", `{"path": "/srv/data", "identity": "a"}`
	is := func(identity string, err error) func(string) (string, error) {
		return func(string) (string, error) { return identity, err }
	}
	for _, tt := range []struct {
		name, file string
		identity   func(string) (string, error)
		problem    bool
	}{
		{"never started", "", is("b", nil), false},
		{"the same", known, is("a", nil), false},
		{"another", known, is("b", nil), true},
		{"of a definition with another path", `{"path": "/srv/mail", "identity": "a"}`, is("b", nil), false},
		{"not to be read now", known, is("", errors.New("gone")), false}, // a problem of its own
		{"damaged", "{", is("b", nil), false},                            // the agent tells
		{"nobody can tell", known, nil, false},
	} {
		h, m := one()
		mustExchange(t, m, plan.Request{Pair: dataPair()})
		if tt.file != "" {
			h.Put(file, tt.file)
		}
		reply := apply.Run(t.Context(), m.source, apply.Command{Verb: plan.Plan, Role: plan.Source, Identity: tt.identity}, plan.Request{Pair: dataPair()})
		switch {
		case !tt.problem && len(reply.Problems) > 0:
			t.Errorf("%s: %v", tt.name, problems(reply))
		case tt.problem && (len(reply.Problems) != 1 || reply.Problems[0].Path != "source_dir" || !strings.Contains(reply.Problems[0].Hint, "lockstep approve data") ||
			!strings.Contains(reply.Checks["source_dir"], "unmounted or replaced")):
			t.Errorf("%s: %v, %v", tt.name, problems(reply), reply.Checks)
		}
	}
}

// unwell is a host whose logins get an answer that says little.
type unwell struct{ host.System }

func (unwell) Login(context.Context, host.Login) error {
	return &host.LoginError{Reply: "chroot failed"}
}

func TestAnAnswerThatSaysLittleLeadsToTheLog(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		_, _, m := two()
		key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey
		box := mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: key}).SealedPassword
		m.source.System = unwell{m.source.System}
		reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, SealedPassword: box})
		if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Msg, "chroot failed") || !strings.Contains(reply.Problems[0].Hint, "journalctl -") {
			t.Errorf("%v", problems(reply))
		}
	})
}

// busy is a host whose units run and have not got ready.
type busy struct {
	host.Units
	status string
}

func (b busy) Unit(ctx context.Context, name string) (host.Unit, error) {
	u, err := b.Units.Unit(ctx, name)
	u.Ready, u.State, u.Status = false, "activating (start)", b.status
	return u, err
}

func TestAgentThatIsNotReadyIsNotInSync(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]string{
		"":                        "the agent is not ready: activating (start)",
		"waiting for /srv/data":   "the agent is not ready: activating (start): waiting for /srv/data",
		"watching: 7 directories": "the agent is not ready: activating (start): watching: 7 directories",
	} {
		_, m := one()
		mustExchange(t, m, plan.Request{Pair: dataPair()})
		m.source.Units = busy{m.source.Units, status}
		if reply := mustRun(t, m.source, plan.Read, plan.Source, plan.Request{Pair: dataPair()}); reply.Checks["service"] != want {
			t.Errorf("service: %s, want %s", reply.Checks["service"], want)
		}
	}
}

// Who relays knows the key that is sealed to. What comes out of the box becomes lines of files all the same.
func TestSealedTextThatIsNoPasswordIsRefused(t *testing.T) {
	t.Parallel()
	h, m := one()
	p := dataPair()
	raw, err := base64.StdEncoding.DecodeString(mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := hpke.MLKEM768X25519().NewPublicKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	before, count := h.Snapshot(), h.Changes()
	for text, want := range map[string]string{
		"not JSON, and s3cret":                      "not what a backup host seals",
		`{"user": "a", "password": ""}`:             "not a user and a password that rsync can read",
		`{"user": "a\nb", "password": "s3cret"}`:    "not a user and a password that rsync can read",
		`{"user": "a", "password": "s3cret\nroot"}`: "not a user and a password that rsync can read",
		`{"user": "a", "password": "s3cret", "host_keys": ["ssh-ed25519 AAAA\nbackup ssh-ed25519 BBBB"]}`: "not keys of an ssh server",
		`{"user": "a", "password": "s3cret", "host_keys": ["ssh-ed25519"]}`:                               "not keys of an ssh server",
	} {
		box, err := hpke.Seal(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(p.Name), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, SealedPassword: base64.StdEncoding.EncodeToString(box)})
		if len(reply.Problems) != 1 || reply.Problems[0].Path != "secret" || reply.Problems[0].Msg != "--sealed-password: "+want {
			t.Errorf("%s: %v", text, problems(reply))
		}
	}
	if h.Changes() != count {
		t.Errorf("changed: before %v, now %v", before, h.Snapshot())
	}
}
