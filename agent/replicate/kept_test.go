// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// To rsync this daemon is a filesystem that does not keep modes, and all is well.
func TestBackupThatDoesNotKeepWhatItIsGiven(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.do(s.daemon.Configure("pre-xfer exec = chmod -R o-rwx " + s.dst))
	s.write("d/a", "1")
	s.write("b", "1")
	s.start()
	st := s.untilState(Degraded)
	if !strings.Contains(st.Reason, "what was sent still differs on the backup: 2 paths") || !strings.Contains(st.Reason, `"b" (mode)`) || !strings.Contains(st.Hint, "--no-perms") {
		t.Errorf("%s; hint: %s", st.Reason, st.Hint)
	}
	s.write("c", "1") // goes on
	s.wait()
	if !s.onBackup("c") {
		t.Error("nothing is sent any more")
	}
	s.do(s.daemon.Configure())
	s.full()
	s.untilState(InStep)
	s.equal()
}

// What changes while the second look is under way differs, too.
func TestChangeDuringTheSecondLookIsNoFault(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.src.put("log", node{data: "1"})
		r.e.answer = func(what string, _ []string) *transfer.Result {
			if what == "look" {
				r.e.set(func() { // its event is yet to come
					r.e.src.put("log", node{data: r.e.src["log"].data + "2"})
					r.e.changed = map[string]time.Time{"log": time.Now()}
				})
			}
			return nil
		}
		r.start()
		r.after(time.Second)
		r.wantState(InStep)
		if r.e.count("look") != 1 {
			t.Error("nothing was looked at")
		}
	})
}
