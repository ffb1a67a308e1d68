// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"go/ast"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// sent is what a handler gives to the journal.
type sent struct {
	message  string
	priority journal.Priority
	vars     map[string]string
}

func TestTheJournalGetsASentenceFieldsAndAnID(t *testing.T) {
	t.Parallel()
	var got []sent
	var below bytes.Buffer
	log := slog.New(newJournalHandler(slog.NewTextHandler(&below, nil), func(m string, p journal.Priority, v map[string]string) error {
		got = append(got, sent{m, p, v})
		return nil
	})).With("pair", "data")
	log.Warn("state", "state", "failing", "was", "behind", "reason", "no connection", "hint", "")
	log.Warn("deletions are held", "reason", "2 of 3", "entries", 2, "path", "a\nb", "hint", "lockstep approve data")
	log.With("hook", "cdn").Info("the hook works again")
	log.Error("something new", "err", errors.New("with \"quotes\""), "next", time.Second, "strange-key", "two words")
	log.Debug("not wanted")

	id := func(text, state string) string {
		for _, m := range messages() {
			if m.text == text && m.state == state {
				return m.id
			}
		}
		t.Errorf("no id for %q %q", text, state)
		return ""
	}
	want := []sent{
		{"failing: no connection (was=behind)", journal.PriWarning, map[string]string{"MESSAGE_ID": id("state", "failing"), "PAIR": "data",
			"LOCKSTEP_STATE": "failing", "LOCKSTEP_WAS": "behind", "LOCKSTEP_REASON": "no connection"}},
		{`deletions are held: "a\nb": 2 of 3 (entries=2); hint: lockstep approve data`, journal.PriWarning, map[string]string{"MESSAGE_ID": id("deletions are held", ""), "PAIR": "data",
			"PATH": "a\nb", "LOCKSTEP_REASON": "2 of 3", "LOCKSTEP_ENTRIES": "2", "LOCKSTEP_HINT": "lockstep approve data"}},
		{"the hook works again (hook=cdn)", journal.PriInfo, map[string]string{"MESSAGE_ID": id("the hook works again", ""), "PAIR": "data", "LOCKSTEP_HOOK": "cdn"}},
		{`something new: with "quotes" (next=1s strange-key="two words")`, journal.PriErr, map[string]string{"PAIR": "data",
			"LOCKSTEP_ERR": `with "quotes"`, "LOCKSTEP_NEXT": "1s", "LOCKSTEP_STRANGE_KEY": "two words"}},
	}
	for i := range want {
		want[i].vars["SYSLOG_IDENTIFIER"] = "lockstep"
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sent{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if below.Len() > 0 {
		t.Errorf("standard error got %s", &below)
	}
}

// What the journal does not take is not lost.
func TestWithoutAJournalTheLogGoesToStandardError(t *testing.T) {
	t.Parallel()
	var below bytes.Buffer
	log := slog.New(newJournalHandler(slog.NewTextHandler(&below, nil), func(string, journal.Priority, map[string]string) error {
		return errors.New("no such socket")
	})).With("pair", "data")
	log.Info("watching", "backend", "fanotify")
	if got := below.String(); !strings.Contains(got, "msg=watching pair=data backend=fanotify") {
		t.Errorf("standard error got %q", got)
	}
}

// Every message of the table is logged somewhere, has an id of its own, an entry in the catalog and one in lockstep(8);
// and neither of those has more.
func TestMessagesCatalogManualAndCodeAgree(t *testing.T) {
	t.Parallel()
	logged := map[string]bool{}
	inspect(t, []string{"agent/replicate", "agent/hooks", "cmd/lockstep"}, func(n ast.Node) {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !regexp.MustCompile(`^(Info|Warn|Error|Log)$`).MatchString(method.Sel.Name) {
			return
		}
		for _, arg := range call.Args {
			if text, ok := literal(arg); ok {
				logged[text] = true
				break // what follows are keys and values
			}
		}
	})
	catalog := read(t, "packaging/systemd/lockstep.catalog")
	manual := manPage(t, "lockstep.8")
	ids, seen := map[string]bool{}, map[[2]string]bool{}
	for _, m := range messages() {
		key := [2]string{m.text, m.state}
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(m.id) || ids[m.id] || seen[key] {
			t.Errorf("%q %q: id %q is no id, or one of the two is there twice", m.text, m.state, m.id)
		}
		ids[m.id], seen[key] = true, true
		if !logged[m.text] {
			t.Errorf("%q is logged nowhere", m.text)
		}
		entry := regexp.MustCompile(`(?m)^-- ` + m.id + `\nSubject: .*@PAIR@.*\nDefined-By: lockstep\nSupport: https://\S+\n(Documentation: \S+\n)+\n\S`)
		if !entry.MatchString(catalog) {
			t.Errorf("lockstep.catalog does not explain %s, %q %q", m.id, m.text, m.state)
		}
		words := m.text
		if m.state != "" {
			words = "state: " + m.state
		}
		if !strings.Contains(strings.ReplaceAll(manual, "\n", " "), " .It Li "+m.id+" "+words+" .") {
			t.Errorf("lockstep.8 does not list %s, %q", m.id, words)
		}
	}
	for _, s := range replicate.States() {
		if !seen[[2]string{"state", string(s)}] {
			t.Errorf("state %q has no id", s)
		}
	}
	for what, found := range map[string][][]string{
		"lockstep.catalog": regexp.MustCompile(`(?m)^-- (\S+)$`).FindAllStringSubmatch(catalog, -1),
		"lockstep.8":       regexp.MustCompile(`(?m)^\.It Li ([0-9a-f]{32})$`).FindAllStringSubmatch(manual, -1),
	} {
		if len(found) != len(ids) {
			t.Errorf("%s has %d ids, want %d", what, len(found), len(ids))
		}
		for _, m := range found {
			if !ids[m[1]] {
				t.Errorf("%s: %s is no id of ours", what, m[1])
			}
		}
	}
}
