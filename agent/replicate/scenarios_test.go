// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"github.com/lockstep-sync/lockstep/agent/pair"
)

func TestDaemonThatIsDownForAWhile(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.start()
	s.equal()
	s.do(s.daemon.Stop())
	s.write("b", "2")
	s.rm("a")
	s.write("c/d", "3")
	st := s.untilState(Failing)
	if st.Outage == nil || st.Outage.Class != "transient" || !strings.Contains(st.Reason, "refused") {
		t.Errorf("while the daemon is down: %s: %s, outage %+v", st.State, st.Reason, st.Outage)
	}
	st = s.until("tried several times", func(st Status) bool { return st.Outage != nil && st.Outage.Failures > 3 })
	if n := strings.Count(s.log.String(), "level=WARN"); n > 3 {
		t.Errorf("%d warnings for one outage", n)
	}
	if st.Backlog.Paths == 0 {
		t.Error("the backlog is said to be empty")
	}
	s.do(s.daemon.Start())
	s.equal()
	if s.onBackup("a") {
		t.Error("a deletion from the time of the outage was lost")
	}
}

func TestWrongPasswordThatIsMended(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	right, err := os.ReadFile(s.daemon.PasswordFile)
	s.do(err)
	s.do(os.WriteFile(s.daemon.PasswordFile, []byte("wrong\n"), 0o600))
	s.start()
	st := s.untilState(Failing)
	if st.Outage.Class != "permanent" || !strings.Contains(st.Reason, "password") || st.Hint == "" {
		t.Errorf("%s: %q, hint %q, %+v", st.State, st.Reason, st.Hint, st.Outage)
	}
	if strings.Contains(s.log.String(), strings.TrimSpace(string(right))) {
		t.Error("the password is in the log")
	}
	s.do(os.WriteFile(s.daemon.PasswordFile, right, 0o600))
	s.equal()
}

// C17: what the backup host cannot write is named, does not hold back the rest, and goes through when mended.
func TestPathThatTheBackupCannotWrite(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	if os.Getuid() == 0 {
		s.do(s.daemon.Configure("uid = nobody", "gid = nogroup"))
		s.do(os.Chown(s.dst, 65534, 65534))
	}
	s.write("good/a", "1")
	s.write("bad/b", "1")
	s.start()
	s.wait()
	s.do(os.Chmod(filepath.Join(s.dst, "bad"), 0o555))
	if os.Getuid() == 0 {
		s.do(os.Chown(filepath.Join(s.dst, "bad"), 0, 0))
	}
	s.write("bad/new", "2")
	s.write("good/new", "2")
	st := s.until("the ledger names it", func(st Status) bool { return st.Ledger.Count > 0 && st.State == Degraded })
	if e := st.Ledger.Entries[0]; !isBelow(e.Path, "bad") || !e.Remote || !strings.Contains(e.Reason, "(") {
		t.Errorf("ledger: %+v", e)
	}
	s.until("good/new arrived", func(Status) bool { return s.onBackup("good/new") })
	s.until("tried again", func(st Status) bool { return st.Ledger.Count > 0 && st.Ledger.Entries[0].Tries > 2 })
	if os.Getuid() == 0 {
		s.do(os.Chown(filepath.Join(s.dst, "bad"), 65534, 65534))
	}
	s.do(os.Chmod(filepath.Join(s.dst, "bad"), 0o755))
	s.untilState(InStep)
	s.wait()
	rsynctest.CompareTreesWith(t, s.src, s.dst, rsynctest.CompareOptions{NoOwner: true})
}

func TestEmptiedSourceDeletesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.write("d/b", "2")
	s.start()
	s.equal()
	s.rm("a")
	s.rm("d")
	st := s.untilState(Held)
	if !s.onBackup("a") || !s.onBackup("d/b") {
		t.Fatal("deleted on the backup")
	}
	if st.Held == nil || !strings.Contains(st.Held.Reason, "empty") || st.Hint == "" {
		t.Errorf("held: %+v, hint %q", st.Held, st.Hint)
	}
	// It is back: the deletions lapse.
	s.write("a", "1")
	s.write("d/b", "3")
	s.equal()
}

func TestDeletionsOfAnEmptiedSourceAreJudgedAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.start()
	s.equal()
	s.rm("a")
	s.untilState(Held)
	s.write("b", "1")
	// What came is no reason to delete all that was there before.
	s.until("the deletion is held for its share", func(st Status) bool { return st.Held != nil && strings.Contains(st.Held.Reason, "empty before") })
	if !s.onBackup("a") {
		t.Error("deleted on the backup")
	}
	if _, err := s.call(t.Context(), http.MethodPost, "/approve"); err != nil {
		t.Fatal(err)
	}
	s.equal()
}

func TestEmptiedSourceWhereEverythingMayGo(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Delete.MaxPercent = 100 })
	s.write("a", "1")
	s.start()
	s.equal()
	s.rm("a")
	s.untilState(Held)
	s.write("b", "1")
	s.equal()
}

func TestSourceThatIsEmptyAtTheStart(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.do(os.WriteFile(filepath.Join(s.dst, "precious"), nil, 0o644))
	s.start()
	s.untilState(Held)
	if !s.onBackup("precious") {
		t.Fatal("deleted on the backup")
	}
}

func manyFiles(s *site, dir string, n int) {
	for i := range n {
		s.write(fmt.Sprintf("%s/%d/%d", dir, i%7, i), "x")
	}
}

func smallBudget(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 20, 25 }

func TestDeletionOverTheBudgetIsHeldUntilApproved(t *testing.T) {
	t.Parallel()
	s := newSite(t, smallBudget)
	manyFiles(s, "much", 60)
	manyFiles(s, "rest", 60)
	s.start()
	s.equal()
	s.rm("much")
	st := s.untilState(Held)
	if st.Held.Count < 60 || len(st.Held.Paths) != 1 || st.Held.Paths[0] != "much" {
		t.Errorf("held: %+v", st.Held)
	}
	s.write("meanwhile", "1")
	s.write("rest/0/0", "changed")
	s.until("creations go on", func(Status) bool { return s.onBackup("meanwhile") })
	if !s.onBackup("much/0/0") {
		t.Fatal("a held deletion was done")
	}

	// Held deletions survive a restart.
	s.stop()
	s.start()
	s.untilState(Held)
	if !s.onBackup("much/0/0") {
		t.Fatal("a held deletion was done by a restart")
	}
	lines, err := s.call(t.Context(), http.MethodPost, "/approve")
	var a Approval
	if err != nil || json.Unmarshal(lines[0], &a) != nil || a.Deletions < 60 || a.Paths != 1 {
		t.Errorf("approve: %s, %v", lines, err)
	}
	s.equal()
	s.untilState(InStep)
}

func TestHeldDeletionLapsesWhenTheFilesAreBack(t *testing.T) {
	t.Parallel()
	s := newSite(t, smallBudget)
	manyFiles(s, "much", 60)
	s.write("keep", "1")
	s.start()
	s.equal()
	aside := filepath.Join(filepath.Dir(s.src), "aside")
	s.do(os.Rename(s.path("much"), aside))
	s.untilState(Held)
	s.do(os.Rename(aside, s.path("much")))
	s.equal()
	if st := s.untilState(InStep); st.Counters.Deleted != 0 {
		t.Errorf("%d entries were deleted", st.Counters.Deleted)
	}
}

// A deletion that trickles must not pass the budget bit by bit.
func TestSlowDeletionIsHeldToo(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { smallBudget(p); p.Watch.MaxDelay = pair.Duration(100 * time.Millisecond) })
	for i := range 60 {
		s.write(fmt.Sprintf("f%02d", i), "x")
	}
	s.start()
	s.equal()
	for i := range 50 {
		s.rm(fmt.Sprintf("f%02d", i))
		time.Sleep(10 * time.Millisecond)
	}
	var left int
	s.until("all that is left is held", func(st Status) bool {
		files, err := os.ReadDir(s.dst)
		s.do(err)
		if left != len(files) {
			t.Logf("%d left, held %+v", len(files), st.Held)
		}
		left = len(files)
		return st.State == Held && st.Held.Count == left-10
	})
	if gone := 60 - left; gone > 20 {
		t.Errorf("%d files are gone, with max_files 20", gone)
	}
}

func TestSourceReplacedByAnotherDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.start()
	s.equal()
	aside := s.src + ".aside"
	s.do(os.Rename(s.src, aside))
	s.mkdir("")
	s.write("other", "1")
	s.untilState(Held)
	s.write("other2", "1")
	s.until("looked several times", func(st Status) bool { return st.State == Held && strings.Contains(st.Reason, "not the provisioned") })
	if s.onBackup("other") || s.onBackup("other2") || !s.onBackup("a") {
		t.Error("the backup was touched")
	}
	s.do(os.RemoveAll(s.src))
	s.do(os.WriteFile(filepath.Join(aside, "b"), nil, 0o644))
	s.do(os.Rename(aside, s.src))
	s.equal()
	s.untilState(InStep)
}

func TestAnotherSourceIsApproved(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.start()
	s.equal()
	s.stop()
	s.do(os.Rename(s.src, s.src+".aside"))
	s.write("b", "1")
	s.start()
	st := s.untilState(Held)
	if !strings.Contains(st.Reason, "not the provisioned directory") || !strings.Contains(st.Hint, "approve") {
		t.Errorf("%s, hint %q", st.Reason, st.Hint)
	}
	lines, err := s.call(t.Context(), http.MethodPost, "/approve")
	if err != nil || !strings.Contains(string(lines[0]), `"source"`) {
		t.Fatalf("approve: %s, %v", lines, err)
	}
	// The directory is approved now, and not that the backup has nothing but it.
	s.until("held because of what the backup had", func(st Status) bool { return st.Reason == strange })
	if !s.onBackup("a") || !s.onBackup("b") {
		t.Error("deleted, or not sent")
	}
	if _, err := s.call(t.Context(), http.MethodPost, "/approve"); err != nil {
		t.Fatal(err)
	}
	s.equal()
	s.stop()
	s.start()
	s.untilState(InStep)
}

func TestDeletionsSwitchedOff(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Delete.Enabled = false })
	s.write("a", "1")
	s.write("b", "1")
	s.write("d/x", "1")
	s.start()
	s.equal()
	s.rm("a")
	s.wait()
	s.stop()
	s.start()
	s.wait()
	if !s.onBackup("a") {
		t.Error("deleted although deletions are off")
	}
	// A directory with something in it can't make way for a file then, and that is told.
	s.rm("d")
	s.write("d", "a file")
	st := s.untilState(Degraded)
	if !s.onBackup("d/x") || st.Ledger.Entries[0].Path != "d" || !strings.Contains(st.Ledger.Entries[0].Reason, "delete.enabled") {
		t.Errorf("ledger: %+v", st.Ledger)
	}
}

// C31: changes from the time of a pause are not lost, and a pause survives a restart.
func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.write("b", "1")
	s.start()
	s.equal()
	if _, err := s.call(t.Context(), http.MethodPost, "/pause"); err != nil {
		t.Fatal(err)
	}
	s.untilState(Paused)
	s.rm("a")
	s.write("c", "1")
	s.until("changes are gathered", func(st Status) bool { return st.Backlog.Paths >= 2 })
	s.stop()
	s.write("d", "1")
	s.start()
	s.untilState(Paused)
	s.write("e", "1")
	if s.onBackup("c") || s.onBackup("d") || !s.onBackup("a") {
		t.Error("something was sent during the pause")
	}
	if _, err := s.call(t.Context(), http.MethodPost, "/resume"); err != nil {
		t.Fatal(err)
	}
	s.equal()
}

// C27: a slow writer never has a short file under its final name on the backup.
func TestFileThatIsStillBeingWritten(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Watch.MaxDelay = pair.Duration(300 * time.Millisecond) })
	s.write("a", "1")
	s.start()
	s.equal()
	f, err := os.Create(s.path("slow"))
	s.do(err)
	defer f.Close()
	chunk := make([]byte, 64<<10)
	for range 40 { // 1.2 s and more, four times max_delay
		_, err := f.Write(chunk)
		s.do(err)
		if s.onBackup("slow") {
			t.Fatal("a short file has its final name on the backup")
		}
		time.Sleep(30 * time.Millisecond)
	}
	s.do(f.Close())
	s.equal()
}

func TestFileThatIsNeverClosedGoesOut(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Watch.MaxDelay = pair.Duration(300 * time.Millisecond) })
	s.write("a", "1")
	s.start()
	s.equal()
	f, err := os.Create(s.path("log"))
	s.do(err)
	defer f.Close()
	var wrote int64
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		n, err := f.WriteString("a line\n")
		s.do(err)
		wrote += int64(n)
		if fi, err := os.Stat(filepath.Join(s.dst, "log")); err == nil && fi.Size() > 20 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d bytes were written, and nothing arrived", wrote)
}

func TestBigFileDoesNotHoldBackSmallOnes(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Transfer.BandwidthLimit = "4M" })
	s.write("a", "1")
	s.start()
	s.equal()
	s.do(os.WriteFile(s.path("big"), make([]byte, 40<<20), 0o644)) // 10 s
	s.until("the big file is on its way", func(st Status) bool {
		for _, j := range st.InFlight {
			if j.Kind == "big" && j.Percent > 0 && j.ETASeconds > 0 && j.Bytes == 40<<20 {
				return true
			}
		}
		return false
	})
	manyFiles(s, "small", 50)
	s.do(os.Chmod(s.path(""), 0o700))
	s.until("the small files arrived", func(Status) bool { return s.onBackup("small/0/49") })
	if s.onBackup("big") {
		t.Error("the big file was not so big after all")
	}
	// It is removed in the middle: the deletion of its directory does not wait for it.
	s.rm("big")
	s.equal()
}

func TestVerifyFindsAndRepairsDrift(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("deleted", "1")
	s.write("edited", "1")
	s.write("d/same", "1")
	s.start()
	s.equal()
	verify := func(path string) map[string]string {
		t.Helper()
		lines, err := s.call(t.Context(), http.MethodPost, path)
		s.do(err)
		drift := map[string]string{}
		for i, line := range lines {
			var u Update
			s.do(json.Unmarshal(line, &u))
			if u.Drift != nil {
				drift[u.Drift.Path] = u.Drift.What
			}
			if u.Error != "" || u.Done != (i == len(lines)-1) {
				t.Fatalf("%s", line)
			}
		}
		return drift
	}
	if drift := verify("/verify"); len(drift) > 0 {
		t.Errorf("drift in equal trees: %v", drift)
	}
	s.do(os.Remove(filepath.Join(s.dst, "deleted")))
	s.do(os.WriteFile(filepath.Join(s.dst, "edited"), []byte("other"), 0o644))
	// Of equal size and time: rsync's quick check does not see that.
	fi, err := os.Stat(filepath.Join(s.dst, "d/same"))
	s.do(err)
	s.do(os.WriteFile(filepath.Join(s.dst, "d/same"), []byte("2"), 0o644))
	s.do(os.Chtimes(filepath.Join(s.dst, "d/same"), fi.ModTime(), fi.ModTime()))
	s.do(os.WriteFile(filepath.Join(s.dst, "added"), []byte("1"), 0o644))
	want := map[string]string{"d/same": "edited", "deleted": "missing", "edited": "edited", "added": "added"}
	for _, path := range []string{"/verify", "/verify?repair=1"} {
		got := verify(path)
		for p, what := range want {
			if got[p] != what {
				t.Errorf("%s: %q is %q, want %q", path, p, got[p], what)
			}
		}
	}
	s.equal()
	if drift := verify("/verify"); len(drift) > 0 {
		t.Errorf("drift after the repair: %v", drift)
	}
}

func TestSyncFindsDrift(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.start()
	s.equal()
	s.do(os.Remove(filepath.Join(s.dst, "a")))
	s.do(os.WriteFile(filepath.Join(s.dst, "added"), []byte("1"), 0o644))
	lines, err := s.call(t.Context(), http.MethodPost, "/sync")
	s.do(err)
	var u Update
	if err := json.Unmarshal(lines[len(lines)-1], &u); err != nil || !u.Done {
		t.Fatalf("%s, %v", lines[len(lines)-1], err)
	}
	rsynctest.CompareTrees(t, s.src, s.dst)
}

func TestReloadTakesOverExcludes(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Exclude = []string{"*.tmp"} })
	s.write("a.tmp", "1")
	s.write("b", "1")
	s.start()
	s.wait()
	if s.onBackup("a.tmp") {
		t.Error("an excluded file was sent")
	}
	s.mu.Lock()
	s.pair.Exclude = []string{"*.bak"}
	s.mu.Unlock()
	s.agent.Reload()
	s.until("the definition was reloaded", func(Status) bool { return strings.Contains(s.log.String(), "the definition was reloaded") })
	s.until("a.tmp arrived", func(Status) bool { return s.onBackup("a.tmp") })
	s.write("c.bak", "1")
	s.write("d", "1")
	s.wait()
	if s.onBackup("c.bak") || !s.onBackup("d") {
		t.Error("the new exclude is not obeyed")
	}
	s.mu.Lock()
	s.pair.Backup.Port++
	s.mu.Unlock()
	s.agent.Reload()
	s.until("a restart is asked for", func(st Status) bool {
		return st.State == Degraded && strings.Contains(st.Reason, "backup.port changed")
	})
	s.mu.Lock()
	s.pair.Backup.Port--
	s.mu.Unlock()
	s.agent.Reload()
	s.until("all is well again", func(st Status) bool { return st.State == InStep })
	s.mu.Lock()
	defer s.mu.Unlock()
	notes := strings.Join(s.notes, "\n")
	if !strings.Contains(notes, "RELOADING=1\nMONOTONIC_USEC=") || strings.Count(notes, "READY=1") < 3 {
		t.Errorf("told the service manager:\n%s", notes)
	}
}

func TestEmptyBackupIsFilledByRecursion(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.manyDiffer = 400
	for i := range 5 {
		dir := s.path(fmt.Sprintf("%d", i))
		s.do(os.Mkdir(dir, 0o755))
		for j := range 100 {
			s.do(os.WriteFile(filepath.Join(dir, fmt.Sprint(j)), nil, 0o644))
		}
	}
	s.start()
	s.equal()
	if !strings.Contains(s.log.String(), "the whole tree is sent") {
		t.Error("not by recursion")
	}
}

func TestWrittenWhileTheFirstFullBatchIsSent(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Transfer.BandwidthLimit = "4M" })
	for i := range 10 { // 2.5 s
		s.do(os.WriteFile(s.path(fmt.Sprint(i)), make([]byte, 1<<20), 0o644))
	}
	s.start()
	s.until("the full batch sends", func(st Status) bool { return st.Full.Started > 0 && len(st.InFlight) > 0 && s.onBackup("0") })
	s.write("live", "1")
	s.until("it arrived", func(Status) bool { return s.onBackup("live") })
	if s.onBackup("8") {
		t.Error("a live change waits for the full batch")
	}
}

func TestReadyIsToldOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.start()
	s.wait()
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	ready, stopping := 0, 0
	for i, n := range s.notes {
		switch n {
		case "READY=1":
			ready++
		case "STOPPING=1":
			stopping = i
		}
	}
	if ready != 1 || stopping == 0 {
		t.Errorf("told the service manager: %q", s.notes)
	}
}

func TestTwoAgentsForOnePair(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a", "1")
	s.start()
	s.wait()
	other, err := New(Options{Pair: s.pair, PasswordFile: s.daemon.PasswordFile, StateDir: s.state, RuntimeDir: s.runtime})
	s.do(err)
	if err := other.Run(t.Context()); !errors.Is(err, ErrRunning) {
		t.Errorf("the second agent ended with %v", err)
	}
	s.untilState(InStep)
}

func TestDirectoriesBelowTheSourceAreRefused(t *testing.T) {
	t.Parallel()
	p := pair.Defaults()
	p.Source.Path = "/data"
	for _, o := range []Options{
		{Pair: p, StateDir: "/data/state", RuntimeDir: "/run/x"},
		{Pair: p, StateDir: "/var/x", RuntimeDir: "/data"},
		{Pair: p, StateDir: "relative", RuntimeDir: "/run/x"},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s and %s are accepted", o.StateDir, o.RuntimeDir)
		}
	}
}

// helperEnv makes the test binary an agent that can be killed.
const helperEnv = "LOCKSTEP_TEST_AGENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperEnv); dir != "" {
		os.Exit(helperAgent(dir))
	}
	os.Exit(m.Run())
}

func helperAgent(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "pair.yaml"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := pair.Parse(data)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	agent, err := New(Options{Pair: p, PasswordFile: os.Getenv(helperEnv + "_PASSWORD"), StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run")})
	if err == nil {
		agent.childrenEvery = 200 * time.Millisecond
		err = agent.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startProcess runs the agent as a process of its own.
func (s *site) startProcess() *exec.Cmd {
	s.t.Helper()
	dir := filepath.Dir(s.src)
	s.do(os.WriteFile(filepath.Join(dir, "pair.yaml"), s.pair.Render(), 0o644))
	self, err := os.Executable()
	s.do(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperEnv+"="+dir, helperEnv+"_PASSWORD="+s.daemon.PasswordFile)
	cmd.Stderr = s.log
	s.do(cmd.Start())
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func TestKilledInTheMiddleOfABatch(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Transfer.BandwidthLimit = "4M" })
	s.write("a", "1")
	for range 3 {
		cmd := s.startProcess()
		s.wait()
		for i := range 40 {
			s.do(os.WriteFile(s.path(fmt.Sprintf("f%d", i)), append(make([]byte, 128<<10), fmt.Sprint(time.Now())...), 0o644))
		}
		s.rm("a")
		s.until("in the middle", func(st Status) bool { return len(st.InFlight) > 0 && s.onBackup("f0") })
		s.do(cmd.Process.Kill())
		cmd.Wait()
		s.write("a", "2")
		s.rm("f39")
	}
	cmd := s.startProcess()
	s.equal()
	s.do(cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
}

// Rsync that found a file where a FIFO is by the time it opens it waits for a writer for ever.
func TestRsyncThatHangsInAFIFO(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the shortest time-out twice")
	}
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Transfer.Timeout = pair.Duration(2 * time.Second) })
	s.write("a", "1")
	cmd := s.startProcess()
	s.wait()
	// A run that is stopped before it opens the file, and goes on when that is a FIFO.
	var stalled bool
	for i := 0; i < 60 && !stalled; i++ {
		name := fmt.Sprintf("f%d", i)
		s.write(name, "1")
		time.Sleep(time.Duration(20+i%30) * time.Millisecond)
		s.rm(name)
		s.do(syscall.Mkfifo(s.path(name), 0o644))
		st, err := s.status()
		stalled = err == nil && st.LagSeconds > 1
	}
	s.equal()
	_ = cmd
}

// C32: an rsync that was stopped by a signal does not hold up the pair for ever.
func TestFrozenRsyncIsEnded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the shortest time-out twice")
	}
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) {
		p.Transfer.BandwidthLimit = "1M"
		p.Transfer.Timeout = pair.Duration(2 * time.Second)
	})
	s.write("a", "1")
	cmd := s.startProcess()
	s.wait()
	s.do(os.WriteFile(s.path("big"), make([]byte, 3<<20), 0o644))
	var pid int
	s.until("rsync sends", func(Status) bool {
		open, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		for _, fd := range open {
			if file, _ := os.Readlink(fd); file == s.path("big") {
				_, err := fmt.Sscanf(fd, "/proc/%d/", &pid)
				return err == nil && pid != cmd.Process.Pid // which looks whether somebody writes to it
			}
		}
		return false
	})
	s.do(syscall.Kill(pid, syscall.SIGSTOP))
	s.until("it was ended", func(st Status) bool { return st.Counters.Stalled > 0 })
	s.equal()
}

// The kernel tells of the change; size and modification time are as before (VeraCrypt, touch -r, cp -p over it).
func TestChangeThatKeepsSizeAndTimeArrives(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("f", "1111")
	old := time.Now().Add(-time.Minute)
	s.do(os.Chtimes(s.path("f"), old, old))
	s.start()
	s.equal()
	f, err := os.OpenFile(s.path("f"), os.O_WRONLY, 0)
	s.do(err)
	_, err = f.WriteString("2222")
	s.do(err)
	s.do(f.Close())
	s.do(os.Chtimes(s.path("f"), old, old))
	s.equal()
	data, err := os.ReadFile(filepath.Join(s.dst, "f"))
	s.do(err)
	if string(data) != "2222" {
		t.Errorf("the barrier was passed, and the backup has %q", data)
	}
}

// On a filesystem that keeps whole seconds, a file that is written twice in one of them has the time of before.
func TestSecondWriteWithinAStepOfTheTimeArrives(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.start()
	s.wait()
	write := func(content string, second time.Time) {
		t.Helper()
		s.write("f", content)
		s.do(os.Chtimes(s.path("f"), second, second))
		s.wait()
		if data, err := os.ReadFile(filepath.Join(s.dst, "f")); err != nil || string(data) != content {
			t.Errorf("the barrier was passed, and the backup has %q (%v)", data, err)
		}
	}
	second := time.Now().Truncate(time.Second)
	write("1111", second)
	write("2222", second)
	s.write("new", "3333")
	s.do(os.Chtimes(s.path("new"), second, second))
	s.mv("new", "f")
	s.equal()
}

// What takes the place of a file has its size and time, as files of packages whose times are all the same, and other contents.
func TestReplacementOfTheSameSizeAndTimeArrives(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"auto", "inotify"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			replaceBySameSizeAndTime(t, newSite(t, func(p *pair.Pair) { p.Watch.Backend = backend }))
		})
	}
}

func replaceBySameSizeAndTime(t *testing.T, s *site) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	put := func(name, content string) {
		t.Helper()
		s.write(name, content)
		s.do(os.Chtimes(s.path(name), old, old))
	}
	for _, name := range []string{"renamed", "removed", "dir/f", "dir/sub/g"} {
		put(name, "1111")
	}
	s.start()
	s.equal()
	check := func(name string) {
		t.Helper()
		s.wait()
		if data, err := os.ReadFile(filepath.Join(s.dst, name)); err != nil || string(data) != "2222" {
			t.Errorf("the barrier was passed, and the backup has %q in %s (%v)", data, name, err)
		}
	}
	outside := filepath.Join(filepath.Dir(s.src), "outside")
	s.do(os.WriteFile(outside, []byte("2222"), 0o644))
	s.do(os.Chtimes(outside, old, old))
	s.do(os.Rename(outside, s.path("renamed")))
	check("renamed")

	s.rm("removed")
	put("removed", "2222")
	check("removed")

	put("new/f", "2222")
	put("new/sub/g", "2222")
	s.wait()
	s.mv("dir", "old")
	s.mv("new", "dir")
	check("dir/f")
	check("dir/sub/g")
}

// A symlink became a directory, and the backup could not follow. What is deleted in the directory is not what the symlink on the backup leads to.
func TestDeletionDoesNotLeadThroughASymlinkOnTheBackup(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Full.Every = "" })
	s.do(s.daemon.Configure("uid = 65534", "gid = 65534"))
	s.do(os.Chmod(filepath.Dir(s.src), 0o755))
	s.write("d/b/x", "precious")
	s.do(os.Symlink("b", s.path("d/a")))
	// The backup has the same, and its directory d belongs to another user than the module's.
	s.do(os.MkdirAll(filepath.Join(s.dst, "d/b"), 0o755))
	s.do(os.WriteFile(filepath.Join(s.dst, "d/b/x"), []byte("precious"), 0o644))
	s.do(os.Symlink("b", filepath.Join(s.dst, "d/a")))
	for _, p := range []string{"", "d/b", "d/b/x"} {
		s.do(os.Lchown(filepath.Join(s.dst, p), 65534, 65534))
	}
	s.start()
	s.until("a first look", func(st Status) bool { return st.Full.Done > 0 })
	s.do(os.Remove(s.path("d/a")))
	s.mkdir("d/a")
	time.Sleep(500 * time.Millisecond)
	s.write("d/a/x", "of no worth")
	time.Sleep(500 * time.Millisecond)
	s.do(os.Remove(s.path("d/a/x")))
	time.Sleep(3 * time.Second)
	if !s.onBackup("d/b/x") {
		st, _ := s.status()
		t.Errorf("d/b/x is in the source and was deleted on the backup; state %s (%s)", st.State, st.Reason)
	}
	if data, _ := os.ReadFile(filepath.Join(s.dst, "d/b/x")); string(data) == "of no worth" {
		t.Error("d/b/x was overwritten")
	}
}

// Its deletion is held, and another directory takes its place, with files of the same size and time.
func TestDirectoryThatReturnsIsComparedByContents(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 0, 0 })
	old := time.Now().Add(-time.Hour)
	put := func(name, content string) {
		t.Helper()
		s.write(name, content)
		s.do(os.Chtimes(s.path(name), old, old))
	}
	put("dir/f", "1111")
	put("keep", "1")
	s.start()
	s.equal()
	put("new/f", "2222")
	s.wait()
	s.rm("dir")
	s.until("the deletion is held", func(st Status) bool { return st.State == Held })
	s.mv("new", "dir")
	s.until("it has arrived", func(st Status) bool {
		data, err := os.ReadFile(filepath.Join(s.dst, "dir/f"))
		return err == nil && string(data) == "2222"
	})
}
