// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// churn writes, renames and deletes in the source until stop is called. Stop gives what went wrong.
func (w *world) churn(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	cmd := w.source.Command(ctx, "sh", "-euc", `cd /data; mkdir -p churn; i=0
		while :; do
			i=$((i+1)); d=churn/$((i%20)); mkdir -p $d
			echo $i >$d/$i; head -c 20000 /dev/urandom >$d/big.$((i%7))
			[ $((i%3)) != 0 ] || rm -f churn/*/$((i-2))
			[ $((i%50)) != 0 ] || { rm -rf churn/moved; mv $d churn/moved; }
			sleep 0.01
		done`)
	go func() { done <- cmd.Run() }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			select {
			case err := <-done:
				t.Errorf("the writer ended early: %v", err)
			default:
				cancel()
				<-done
			}
			cancel()
		})
	}
	t.Cleanup(stop)
	return stop
}

// truth asks for the status again and again until stop is called, and then fails the test if the agent ever said
// "in step" although a change older than patience was not on the backup. It returns the states that it saw.
func (w *world) truth(t *testing.T, patience time.Duration) (stop func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var states []string
	var lies []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			mark := fmt.Sprint(time.Now().UnixNano())
			if os.WriteFile(w.source.Path("/data/truth"), []byte(mark), 0o644) != nil {
				time.Sleep(100 * time.Millisecond) // the host is off, or /data is not there
				continue
			}
			written := time.Now()
			for ctx.Err() == nil && time.Since(written) < patience {
				time.Sleep(50 * time.Millisecond)
			}
			s, err := w.status(ctx)
			if err != nil {
				continue
			}
			got, readErr := os.ReadFile(w.backup.Path(backupDir + "/truth"))
			if len(states) == 0 || states[len(states)-1] != s.State {
				states = append(states, s.State)
			}
			if s.State == "in step" && (readErr != nil || string(got) != mark) {
				lies = append(lies, fmt.Sprintf("%+v, and a file that is %s old is not on the backup: %v", s, time.Since(written), readErr))
			}
		}
	}()
	var once sync.Once
	stop = func() []string {
		once.Do(func() {
			cancel()
			<-done
			for _, lie := range lies {
				t.Errorf("the status lied: %s", lie)
			}
			t.Logf("states: %s", strings.Join(states, " → "))
		})
		return states
	}
	t.Cleanup(func() { stop() })
	return stop
}

func TestKilledInMidBatchTheAgentComesBackAndConverges(t *testing.T) {
	w := pairUp(t)
	stopChurn := w.churn(t)
	for range 3 {
		pid, err := strconv.Atoi(strings.TrimSpace(run(t, w.source, "systemctl", "show", "-P", "MainPID", agentUnit)))
		if err != nil || pid == 0 {
			t.Fatalf("the agent has no pid: %d, %v", pid, err)
		}
		// In mid-batch: an rsync of the agent runs at this moment.
		shell(t, w.source, `i=0; while [ $i -lt 2000 ]; do
			for p in /proc/[0-9]*/comm; do
				if [ "$(cat $p 2>/dev/null)" = rsync ]; then kill -KILL "$1"; exit 0; fi
			done; i=$((i+1)); done; echo "no rsync was seen" >&2; exit 1`, fmt.Sprint(pid))
		eventually(t, 30*time.Second, func() error {
			now := strings.TrimSpace(run(t, w.source, "systemctl", "show", "-P", "MainPID", agentUnit))
			if now == "0" || now == fmt.Sprint(pid) {
				return fmt.Errorf("the agent was not started again: pid %s", now)
			}
			_, err := w.status(t.Context())
			return err
		})
	}
	stopChurn()
	w.inStep(t, time.Minute)
	run(t, w.source, "rm", "-r", "/data/churn")
	w.inStep(t, 30*time.Second)
}

func TestAfterARebootOfEitherHostThePairConverges(t *testing.T) {
	w := newWorld(t)
	w.configure(t, pairHCL)
	w.mustTerraform(t, "apply", "-auto-approve")
	w.inStep(t, time.Minute)
	stopTruth := w.truth(t, 3*time.Second)

	for _, off := range []func() error{w.source.PowerOff, w.source.CutPower} {
		shell(t, w.source, `cd /data; for i in $(seq 200); do echo $i >before-$i; done; rm -f old-*`)
		if err := off(); err != nil {
			t.Fatal(err)
		}
		if err := w.source.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		shell(t, w.source, `cd /data; for i in $(seq 200); do echo $i >old-$i; done; rm -f before-1*`)
		eventually(t, 30*time.Second, func() error { _, err := w.status(t.Context()); return err })
		w.awaitState(t, time.Minute, "in step")
		w.inStep(t, time.Minute)
	}
	for _, off := range []func() error{w.backup.PowerOff, w.backup.CutPower} {
		stopChurn := w.churn(t)
		if err := off(); err != nil {
			t.Fatal(err)
		}
		w.awaitState(t, 30*time.Second, "failing", "behind")
		if err := w.backup.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		stopChurn()
		w.inStep(t, time.Minute)
	}
	stopTruth()
	w.noChanges(t)
}

// Nothing happens in the source while the backup host dies and loses a file that it had not on disk yet.
func TestIdlePairAsksForItsBackup(t *testing.T) {
	w := pairUp(t)
	run(t, w.source, "touch", "/data/idle")
	w.inStep(t, 30*time.Second)
	run(t, w.backup, "systemctl", "stop", "lockstep-rsyncd")
	run(t, w.backup, "rm", backupDir+"/idle")
	w.awaitState(t, 90*time.Second, "failing")
	run(t, w.backup, "systemctl", "start", "lockstep-rsyncd")
	w.inStep(t, 30*time.Second)
	w.equal(t, time.Second)
}

// cutFor is how long the backup host is unreachable. The promise is about 60 s, which CI waits for; LOCKSTEP_E2E_CUT sets it.
func cutFor(t *testing.T) time.Duration {
	if text := os.Getenv("LOCKSTEP_E2E_CUT"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if os.Getenv("CI") != "" {
		return time.Minute
	}
	return 20 * time.Second
}

func TestCutOffFromTheBackupThePairConvergesByItself(t *testing.T) {
	w := pairUp(t)
	for name, cut := range map[string]func(context.Context) error{
		"cable pulled": w.backup.CutOff,
		"packets vanish": func(ctx context.Context) error {
			return w.backup.BlackHole(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				if err := w.backup.Restore(context.Background()); err != nil {
					t.Error(err)
				}
			})
			stopTruth := w.truth(t, 3*time.Second)
			logged := w.logLines(t)
			stopChurn := w.churn(t)
			if err := cut(t.Context()); err != nil {
				t.Fatal(err)
			}
			length := cutFor(t)
			begin := time.Now()
			s := w.awaitState(t, 20*time.Second, "failing", "behind")
			for time.Since(begin) < length {
				time.Sleep(100 * time.Millisecond)
			}
			s = w.awaitState(t, 90*time.Second, "failing")
			if s.Reason == "" || s.LagSeconds < 1 || s.Backlog.Paths == 0 {
				t.Errorf("the status does not tell why, how far and how much: %+v", s)
			}
			contains(t, s.Reason, "172.16.1.41")
			if lines := w.logLines(t) - logged; lines > int(time.Since(begin).Seconds())+5 {
				t.Errorf("%d lines in the journal in %s", lines, time.Since(begin))
			}
			stopChurn()
			if err := w.backup.Restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.inStep(t, 2*time.Minute)
			stopTruth()
		})
	}
}

func (w *world) logLines(t *testing.T) int {
	t.Helper()
	return strings.Count(run(t, w.source, "journalctl", "--no-pager", "-o", "cat", "-u", agentUnit), "\n")
}

func TestUnmountingTheSourceDeletesNothing(t *testing.T) {
	w := pairUp(t)
	shell(t, w.source, `cd /data; for i in $(seq 50); do echo $i >kept-$i; done`)
	w.inStep(t, 20*time.Second)
	before := tree(t, w.backup, backupDir)

	unmount(t, w.source, sourceDir)
	mounted := false
	t.Cleanup(func() {
		if !mounted {
			if _, err := w.source.Run(context.Background(), "mount", sourceDir); err != nil {
				t.Error(err)
			}
		}
	})
	s := w.awaitState(t, 20*time.Second, "held")
	contains(t, s.Reason, sourceDir)
	if s.Hint == "" {
		t.Errorf("the status does not say what to do: %+v", s)
	}
	// A restart with the source missing, and a full batch asked for, are the moments in which a mirror empties its copy.
	run(t, w.source, "systemctl", "restart", agentUnit)
	w.awaitState(t, 20*time.Second, "held")
	_, _ = w.source.Run(t.Context(), "timeout", "5", "lockstep", "sync", "data") // may well refuse
	run(t, w.source, "touch", "/data/on-the-wrong-disk")
	time.Sleep(3 * time.Second) // long enough for a batch that must not come
	if after := tree(t, w.backup, backupDir); after != before {
		t.Errorf("the backup changed while the source was not mounted:\n%s", after)
	}
	w.awaitState(t, 5*time.Second, "held")

	run(t, w.source, "rm", "/data/on-the-wrong-disk")
	run(t, w.source, "mount", sourceDir)
	mounted = true
	w.inStep(t, time.Minute)
	shell(t, w.source, `echo x >/data/after-the-mount; rm /data/kept-*`)
	w.inStep(t, 20*time.Second)
}

func TestASourceThatIsSuddenlyEmptyIsHeldUntilApproved(t *testing.T) {
	w := newWorld(t)
	w.configure(t, strings.Replace(pairHCL, "  backup =", "  delete = { max_files = 20, max_percent = 10 }\n  backup =", 1))
	w.mustTerraform(t, "apply", "-auto-approve")
	shell(t, w.source, `cd /data; mkdir d; for i in $(seq 100); do echo $i >d/$i; done`)
	w.inStep(t, time.Minute)

	run(t, w.source, "rm", "-r", "/data/d")
	s := w.awaitState(t, 20*time.Second, "held")
	if s.Reason == "" || s.Hint == "" {
		t.Errorf("the status does not say why and what to do: %+v", s)
	}
	shell(t, w.source, `echo x >/data/new`)
	eventually(t, 20*time.Second, func() error {
		_, err := os.Stat(w.backup.Path(backupDir + "/new"))
		return err
	})
	if n := strings.Count(run(t, w.backup, "ls", backupDir+"/d"), "\n"); n != 100 {
		t.Errorf("%d of 100 files are left on the backup", n)
	}
	w.awaitState(t, 5*time.Second, "held")
	run(t, w.source, "lockstep", "approve", "data")
	w.inStep(t, 30*time.Second)
	if _, err := os.Stat(w.backup.Path(backupDir + "/d")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("approved, and still there: %v", err)
	}
}

func TestAFullBackupDiskIsToldAndRecovers(t *testing.T) {
	w := newWorld(t)
	if err := w.backup.Shrink(t.Context(), "/backup", 4<<20); err != nil {
		t.Fatal(err)
	}
	w.configure(t, pairHCL)
	w.mustTerraform(t, "apply", "-auto-approve")
	w.inStep(t, time.Minute)
	shell(t, w.source, `head -c 6000000 /dev/urandom >/data/large`)
	var s status
	eventually(t, 30*time.Second, func() error {
		var err error
		if s, err = w.status(t.Context()); err != nil {
			return err
		}
		if s.State == "in step" || !strings.Contains(strings.ToLower(s.Reason), "space") {
			return fmt.Errorf("the status is %+v", s)
		}
		return nil
	})
	if err := w.backup.Grow(t.Context(), "/backup", 64<<20); err != nil {
		t.Fatal(err)
	}
	w.inStep(t, 2*time.Minute)
}
