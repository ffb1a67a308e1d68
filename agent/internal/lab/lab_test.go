// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the owner of a lab that a test kills, and a program in a host.
func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_OWNER") != "" {
		l, err := Start(context.Background(), Options{})
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("up", l.ID)
		select {}
	}
	if dir := os.Getenv("LAB_TEST_FANOTIFY"); dir != "" {
		if err := probeFanotify(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// need skips a test that no lab can be booted for, by name and reason; in CI that is a failure.
func need(t *testing.T) {
	t.Helper()
	if err := Check(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must run the lab: %v", err)
		}
		t.Skip(err)
	}
}

func start(t *testing.T) *Lab {
	t.Helper()
	need(t)
	l, err := Start(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func run(t *testing.T, h *Host, argv ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestHostsAreRealAndBare(t *testing.T) {
	t.Parallel()
	l := start(t)
	for _, h := range l.Hosts() {
		if state := run(t, h, "systemctl", "is-system-running"); state != "running" {
			t.Errorf("%s: systemd is %s", h.Name, state)
		}
		if name := run(t, h, "hostname"); name != h.Name {
			t.Errorf("%s calls itself %s", h.Name, name)
		}
		if kind := run(t, h, "findmnt", "-no", "FSTYPE", h.Disk); kind != "ext4" {
			t.Errorf("%s: %s is %s", h.Name, h.Disk, kind)
		}
		if out, err := h.Shell(t.Context(), "find / -xdev -name '*lockstep*'"); err != nil || out != "" {
			t.Errorf("%s is not bare: %v\n%s", h.Name, err, out)
		}
		if out, err := h.SSH(t.Context(), Operator, "sudo -n id -u"); err != nil || strings.TrimSpace(out) != "0" {
			t.Errorf("%s: sudo over ssh as %s: %q, %v", h.Name, Operator, out, err)
		}
		if out, err := h.SSH(t.Context(), Guest, "sudo -n id -u"); err == nil {
			t.Errorf("%s: %s may use sudo: %q", h.Name, Guest, out)
		}
	}
	if _, err := l.Host("nfs01").Shell(t.Context(), "ssh-keyscan -T 5 backup 2>/dev/null | grep -q ssh-ed25519"); err != nil {
		t.Errorf("nfs01 does not reach backup: %v", err)
	}
	if a, b := run(t, l.Host("nfs01"), "cat", "/etc/machine-id"), run(t, l.Host("backup"), "cat", "/etc/machine-id"); a == b {
		t.Errorf("both hosts have the machine-id %s", a)
	}
}

func TestWhatIsWrittenOutlivesAReboot(t *testing.T) {
	t.Parallel()
	h := start(t).Host("nfs01")
	boot := run(t, h, "cat", "/proc/sys/kernel/random/boot_id")
	if err := h.WriteFile(t.Context(), "/etc/here", []byte("x\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	run(t, h, "touch", "/data/there")
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mode := run(t, h, "stat", "-c", "%a", "/etc/here", "/data/there"); !strings.HasPrefix(mode, "640\n") {
		t.Errorf("modes after the reboot: %s", mode)
	}
	if again := run(t, h, "cat", "/proc/sys/kernel/random/boot_id"); again == boot {
		t.Error("the host has the boot id of before")
	}
	run(t, h, "sync")
	if err := h.CutPower(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(t.Context(), "true"); err == nil || !strings.Contains(err.Error(), "nfs01 is off") {
		t.Errorf("a command on a host without power: %v", err)
	}
	if err := h.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, h, "test", "-e", "/data/there")

	// The host may also do it by itself.
	before, err := h.leaderPID()
	if err != nil {
		t.Fatal(err)
	}
	run(t, h, "systemctl", "--no-block", "reboot")
	eventually(t, "reboot by itself", func() error {
		now, err := h.leaderPID()
		if err == nil && now == before {
			err = fmt.Errorf("PID 1 is still %d", now)
		}
		if err != nil {
			return err
		}
		_, err = h.SSH(t.Context(), "root", "test -e /data/there")
		return err
	})
}

func TestFaultsComeAndGo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := start(t)
	h := l.Host("backup")
	reach := func() error {
		_, err := l.Exec(ctx, "ssh", "-F", l.SSHConfigFile(), "-o", "ConnectTimeout=1", "backup", "true")
		return err
	}
	for name, fault := range map[string]func() error{
		"cut off":             func() error { return h.CutOff(ctx) },
		"black hole":          func() error { return h.BlackHole(ctx) },
		"black hole of ports": func() error { return h.BlackHole(ctx, 22, 873) },
	} {
		if err := reach(); err != nil {
			t.Fatalf("before %s: %v", name, err)
		}
		if err := fault(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if reach() == nil {
			t.Errorf("%s: ssh still gets through", name)
		}
		run(t, h, "true") // the other way in
		if err := h.Restore(ctx); err != nil {
			t.Fatalf("restore after %s: %v", name, err)
		}
		eventually(t, "after "+name, reach)
	}

	run(t, h, "umount", h.Disk)
	if _, err := h.Run(ctx, "mountpoint", "-q", h.Disk); err == nil {
		t.Errorf("%s is still mounted", h.Disk)
	}
	run(t, h, "mount", h.Disk)
	if err := h.Shrink(ctx, h.Disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(ctx, "dd", "if=/dev/zero", "of="+h.Disk+"/big", "bs=1M", "count=2"); err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("2 MiB on a disk of 1 MiB: %v", err)
	}
	if err := h.Grow(ctx, h.Disk, 4<<20); err != nil {
		t.Fatal(err)
	}
	run(t, h, "dd", "if=/dev/zero", "of="+h.Disk+"/big", "bs=1M", "count=2")
}

// fanotify with file handles is what the agent would like to use; neither the system call filter of
// systemd-nspawn nor the file system may stand in its way. A service of the host's systemd tries it, for a
// program that comes in by Host.Command is not below that filter.
func TestHostsSupportFanotify(t *testing.T) {
	t.Parallel()
	h := start(t).Host("nfs01")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.CopyTo(t.Context(), self, "/usr/local/bin/probe"); err != nil {
		t.Fatal(err)
	}
	run(t, h, "systemd-run", "--wait", "--pipe", "--quiet", "--setenv=LAB_TEST_FANOTIFY=/data", "/usr/local/bin/probe")
}

func probeFanotify(dir string) error {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME|unix.FAN_CLOEXEC, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("fanotify_init: %w", err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_CREATE|unix.FAN_ONDIR, unix.AT_FDCWD, dir); err != nil {
		return fmt.Errorf("fanotify_mark: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "seen"), nil, 0o644); err != nil {
		return err
	}
	if _, err := unix.Read(fd, make([]byte, 4096)); err != nil {
		return fmt.Errorf("read the event: %w", err)
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return fmt.Errorf("name_to_handle_at: %w", err)
	}
	mount, err := os.Open(dir)
	if err != nil {
		return err
	}
	if _, err := unix.OpenByHandleAt(int(mount.Fd()), handle, unix.O_PATH); err != nil {
		return fmt.Errorf("open_by_handle_at: %w", err)
	}
	return nil
}

func TestSeveralLabsRunSideBySide(t *testing.T) {
	t.Parallel()
	a, b := start(t), start(t)
	run(t, a.Host("nfs01"), "touch", "/data/of-a")
	if _, err := b.Host("nfs01").Run(t.Context(), "test", "-e", "/data/of-a"); err == nil {
		t.Error("two labs share a disk")
	}
	if err := a.Host("backup").PowerOff(); err != nil {
		t.Fatal(err)
	}
	if out, err := b.Host("backup").SSH(t.Context(), "root", "hostname"); err != nil || strings.TrimSpace(out) != "backup" {
		t.Errorf("the other lab's backup host: %q, %v", out, err)
	}
	labs, err := List("")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Lab{a, b} {
		found, err := Find("", l.ID)
		if err != nil {
			t.Fatalf("%v; running: %v", err, labs)
		}
		argv, err := found.HostArgv("nfs01", "hostname")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(argv[0], argv[1:]...).Output(); err != nil || string(out) != "nfs01\n" {
			t.Errorf("enter nfs01 of lab %s: %q, %v", l.ID, out, err)
		}
	}
}

// A lab must not outlive its owner, however that ends, and nothing of it may stay for ever.
func TestAKilledOwnerLeavesNothing(t *testing.T) {
	t.Parallel()
	need(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.CommandContext(t.Context(), self)
	owner.Env = append(os.Environ(), "LAB_TEST_OWNER=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	id, ok := strings.CutPrefix(strings.TrimSpace(line), "up ")
	if err != nil || !ok {
		t.Fatalf("the owner said %q, %v", line, err)
	}
	found, err := Find("", id)
	if err != nil {
		t.Fatal(err)
	}
	if len(found.state.Hosts) != 2 || len(found.state.Leaders) != 2 {
		t.Fatalf("recorded state: %+v", found.state)
	}

	if err := owner.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // killed
	for _, recorded := range []map[string]process{found.state.Hosts, found.state.Leaders} {
		for name, p := range recorded {
			eventually(t, "end of "+name, func() error {
				if p.alive() {
					return fmt.Errorf("pid %d lives", p.PID)
				}
				return nil
			})
		}
	}
	if err := Collect("", t.Output()); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(found.state.CGroups, found.dir) {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if file, err := os.ReadFile(d); err == nil && strings.HasPrefix(string(file), found.dir) {
			t.Errorf("%s is still %s", d, file)
		}
	}
}
