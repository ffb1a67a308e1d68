// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeRsync is what the test binary does when it is run as rsync.
type fakeRsync struct {
	Version string // of --version; default: 3.5.0
	Stdout  string
	Stderr  string
	Status  int
	Signal  int  // ends itself with it
	Hang    bool // ignores SIGTERM, until it is killed
	Wait    bool // waits for SIGTERM and ends with 20
	Record  string
}

const fakeVariable = "LOCKSTEP_TEST_RSYNC"

// scripts are written before any test starts a process: a file that is open for writing in a child between its
// fork and its exec cannot be run (ETXTBSY).
var scripts struct{ fake, nobody, shell string }

func TestMain(m *testing.M) {
	if spec := os.Getenv(fakeVariable); spec != "" {
		syscall.Exit(runFake(spec)) // os.Exit adds a warning to stderr under go test -cover
	}
	os.Exit(func() int {
		d, err := os.MkdirTemp("", "lockstep-test-")
		if err == nil {
			defer os.RemoveAll(d)
			err = writeScripts(d)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func writeScripts(d string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Chmod(d, 0o755); err != nil {
		return err
	}
	scripts.fake, scripts.nobody, scripts.shell = filepath.Join(d, "fake"), filepath.Join(d, "nobody"), filepath.Join(d, "shell")
	for name, line := range map[string]string{
		scripts.fake:   fakeVariable + `="${0%/*}/spec" exec ` + self,
		scripts.nobody: `exec /usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups rsync`,
		// What rsync gives a remote shell, after the host, runs here.
		scripts.shell: `shift; exec sh -c "$*"`,
	} {
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"+line+" \"$@\"\n"), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func runFake(spec string) int {
	var f fakeRsync
	b, err := os.ReadFile(spec)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fake rsync:", err)
		return 99
	}
	return f.main(os.Args[1:])
}

func (f fakeRsync) main(args []string) int {
	if len(args) == 1 && args[0] == "--version" {
		if f.Version == "" {
			f.Version = "rsync  version 3.5.0  protocol version 32\nCompress list:\n    zstd lz4 zlibx zlib none\n"
		}
		fmt.Print(f.Version)
		return 0
	}
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 99
	}
	if f.Record != "" {
		cwd, _ := os.Getwd()
		b, err := json.Marshal(map[string]any{"args": args, "stdin": string(in), "env": os.Environ(), "cwd": cwd})
		if err != nil || os.WriteFile(f.Record, b, 0o600) != nil {
			return 99
		}
	}
	fmt.Print(f.Stdout)
	fmt.Fprint(os.Stderr, f.Stderr)
	if f.Hang || f.Wait {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("@ >f+++++++++ ready")
		for range c {
			if f.Wait {
				return ExitSignal
			}
		}
	}
	if f.Signal != 0 {
		if err := syscall.Kill(os.Getpid(), syscall.Signal(f.Signal)); err != nil {
			return 99
		}
		time.Sleep(time.Minute)
	}
	return f.Status
}

// asRsync makes a program that behaves as f.
func asRsync(t *testing.T, f fakeRsync) string {
	t.Helper()
	d := t.TempDir()
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d, "spec"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(scripts.fake, filepath.Join(d, "rsync")); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(d, "rsync")
}

func newFake(t *testing.T, fake fakeRsync) *fixture {
	t.Helper()
	f := &fixture{T: t, src: t.TempDir()}
	f.opts = Options{Rsync: asRsync(t, fake), Target: Target{Address: "backup.example", Port: 873, Module: "data", User: "u", PasswordFile: "/etc/pw"}}
	f.runner()
	return f
}

func TestEveryExitStatusHasAClass(t *testing.T) {
	t.Parallel()
	want := map[int]Class{
		0: Done, 1: Permanent, 2: Permanent, 3: Permanent, 4: Permanent, 5: Transient, 10: Transient, 11: Permanent, 12: Transient,
		13: Transient, 14: Transient, 15: Transient, 16: Transient, 19: Transient, 20: Transient, 21: Transient, 22: Transient,
		23: Unknown, 24: Done, 25: Permanent, 30: Transient, 35: Transient, 6: Unknown, 99: Unknown,
		124: Permanent, 125: Permanent, 126: Permanent, 127: Permanent,
	}
	for status, class := range want {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, fakeRsync{Status: status})
			f.make(dir{"a": file("")})
			res := f.send("a")
			if res.Status != status || res.Class != class || (class != Done) != (res.Message != "") {
				t.Errorf("%+v", res)
			}
		})
	}
}

// Rows of the table that no daemon of a test can be brought to. %s is the real path of the source directory.
func TestStderrDecides(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name    string
		kind    Kind
		status  int
		stderr  string
		want    Result
		message string
	}{
		{"disk full", Send, 11, `rsync: [receiver] write failed on "/a" (in data): No space left on device (28)`,
			Result{Class: NoSpace, Failed: remote("a", "No space left on device (28)")}, "the backup is full"},
		{"no inodes left", Send, 23, `rsync: [receiver] mkstemp "/.a.Ab12Cd" (in data) failed: No space left on device (28)`,
			Result{Class: NoSpace, Failed: remote("a", "No space left on device (28)")}, "the backup is full"},
		{"quota", Send, 11, `rsync: [receiver] write failed on "/a" (in data): Disk quota exceeded (122)`,
			Result{Class: NoSpace, Failed: remote("a", "Disk quota exceeded (122)")}, "the backup is full"},
		{"source disk full says nothing of the backup", Send, 23, `rsync: [sender] send_files failed to open "%s/a": No space left on device (28)`,
			Result{Class: Done, Failed: []PathFailure{{Path: "a", Reason: "No space left on device (28)"}}}, "could not be read"},
		{"read-only filesystem", Send, 23, `rsync: [receiver] mkstemp "/d/.f.Ab12Cd" (in data) failed: Read-only file system (30)`,
			Result{Class: Done, Failed: remote("d/f", "Read-only file system (30)")}, "could not be written"},
		{"too large for the filesystem", Send, 11, `rsync: [receiver] write failed on "/a" (in data): File too large (27)`,
			Result{Class: Permanent, Failed: remote("a", "File too large (27)")}, `"a": File too large (27)`},
		{"I/O error in the source", Send, 23, `rsync: [sender] read errors mapping "%s/a": Input/output error (5)`,
			Result{Class: Done, Failed: []PathFailure{{Path: "a", Reason: "Input/output error (5)"}}}, "could not be read"},
		{"still listing", Tree, 23, `rsync: [sender/inc] opendir "%s/d/x" failed: Permission denied (13)`,
			Result{Class: Done, Failed: []PathFailure{{Path: "d/x", Reason: "Permission denied (13)"}}}, "could not be read"},
		{"truncated while read", Send, 23, `rsync: [sender] read errors mapping "%s/a": No data available (61)`,
			Result{Class: Done, Changed: []string{"a"}}, ""},
		{"vanished", Send, 24, `file has vanished: "%s/a"`, Result{Class: Done, Changed: []string{"a"}}, ""},
		{"directory vanished", Tree, 24, `directory has vanished: "%s/d/x"`, Result{Class: Done, Changed: []string{"d/x"}}, ""},
		{"diminished", Send, 23, `skipped diminished file: "%s/a"`, Result{Class: Done, Changed: []string{"a"}}, ""},
		{"sent again", Send, 23, `WARNING: a failed verification -- update discarded (will try again).`, Result{Class: Done}, ""},
		{"changed twice", Send, 23, `WARNING: a failed verification -- update discarded (will try again).` + "\n" + `ERROR: a failed verification -- update discarded.`,
			Result{Class: Done, Changed: []string{"a"}}, ""},
		{"changed twice, kept as a part", Send, 23, `ERROR: d/f failed verification -- update put into partial-dir.`, Result{Class: Done, Changed: []string{"d/f"}}, ""},
		{"owner", Send, 23, `rsync: [receiver] chown "/.a.Ab12Cd" (in data) failed: Operation not permitted (1)`,
			Result{Class: Done, Failed: remote("a", "Operation not permitted (1)")}, "could not be written"},
		{"access control list", Send, 23, `rsync: [receiver] set_acl: sys_acl_set_file(d/.f.Ab12Cd, ACL_TYPE_ACCESS): Operation not supported (95)`,
			Result{Class: Done, Failed: remote("d/f", "Operation not supported (95)")}, "could not be written"},
		{"extended attribute", Send, 23, `rsync: [receiver] rsync_xal_set: lsetxattr("/a" (in data),"trusted.x") failed: Operation not permitted (1)`,
			Result{Class: Done, Failed: remote("a", "Operation not permitted (1)")}, "could not be written"},
		{"extended attribute, older", Send, 23, `rsync: rsync_xal_set: lsetxattr("a","user.x") failed: No such file or directory (2)`,
			Result{Class: Done, Failed: remote("a", "No such file or directory (2)")}, "could not be written"},
		{"rename", Send, 23, `rsync: [receiver] rename "/d/.f.Ab12Cd" (in data) -> "d/f": Operation not permitted (1)`,
			Result{Class: Done, Failed: remote("d/f", "Operation not permitted (1)")}, "could not be written"},
		{"rename of a temporary file whose name does not tell, as without a dot at the end", Send, 23, `rsync: [receiver] rename "/d/.other.Ab12Cd" (in data) -> "d/f": Invalid argument (22)`,
			Result{Class: Done, Failed: remote("d/f", "Invalid argument (22)")}, "could not be written"},
		{"device in place of something", Send, 23, `rsync: [generator] mknod "/d/.f.2347" (in data) failed: Input/output error (5)`,
			Result{Class: Done, Failed: remote("d/f", "Input/output error (5)")}, "could not be written"},
		{"symbolic link in place of something", Send, 23, `rsync: [generator] symlink "/.a.23475" (in data) -> "d/f" failed: Permission denied (13)`,
			Result{Class: Done, Failed: remote("a", "Permission denied (13)")}, "could not be written"},
		{"link", Send, 23, `rsync: [generator] link "/a" (in data) => d/f failed: Too many links (31)`,
			Result{Class: Done, Failed: remote("a", "Too many links (31)")}, "could not be written"},
		{"before 3.2.0, without the role", Send, 23, "rsync: send_files failed to open \"%s/a\": Permission denied (13)\nrsync: mkstemp \"d/.f.Ab12Cd\" (in data) failed: Permission denied (13)",
			Result{Class: Done, Failed: append([]PathFailure{{Path: "a", Reason: "Permission denied (13)"}}, remote("d/f", "Permission denied (13)")...)}, "could not be read"},
		{"module excludes it", Send, 23, `ERROR: daemon refused to receive file "a"`, Result{Class: Done, Failed: remote("a", "the module on the backup host excludes it")}, ""},
		{"too long a name", Tree, 23, `filename overflows max-path len by 3: d/x/y`,
			Result{Class: Done, Failed: []PathFailure{{Path: "d/x/y", Reason: "the name is too long for rsync"}}}, ""},
		{"too long a name on the backup", Send, 23, `rsync: [receiver] mkstemp "/d/.f.Ab12Cd" (in data) failed: File name too long (36)`,
			Result{Class: Done, Failed: remote("d/f", "File name too long (36)")}, ""},
		{"impossible owner", Send, 23, `uid 4294967295 (-1) is impossible to set on "/a" (in data)`,
			Result{Class: Done, Failed: remote("a", "uid 4294967295 (-1) is impossible to set")}, ""},
		{"a name that is not of this run", Send, 23, `rsync: [receiver] mkstemp "/other" (in data) failed: Permission denied (13)`, Result{Class: Unknown}, "other"},
		{"a line that nobody knows", Send, 23, "rsync: [sender] send_files failed to open \"%s/a\": Permission denied (13)\nsomething new", Result{Class: Unknown,
			Failed: []PathFailure{{Path: "a", Reason: "Permission denied (13)"}}}, "something new"},
		{"a directory that was filled meanwhile", Delete, 23, `rsync: [generator] delete_file: rmdir(gone/sub) failed: Directory not empty (39)`, Result{Class: Done, Kept: []string{"gone/sub"}}, ""},
		{"max-delete over a daemon", Delete, 0, `Deletions stopped due to --max-delete limit (7 skipped)`, Result{Class: Permanent}, "7 were skipped"},
		{"max-delete", Delete, 25, `Deletions stopped due to --max-delete limit (7 skipped)`, Result{Class: Permanent}, "7 were skipped"},
		{"rsync 3.4.3 on the backup", Delete, 2, `invalid file mode 00 for gone [receiver]`, Result{Class: Permanent}, "cannot delete"},
		{"digest", Send, 5, `@ERROR: your client does not support one of our daemon-auth checksums: sha512`, Result{Class: Permanent}, "sha512"},
		{"no directory", Send, 5, `@ERROR: chroot failed`, Result{Class: NoDirectory}, "the directory of module data is missing"},
		{"not mounted", Send, 5, "/backup is not a mountpoint\n@ERROR: pre-xfer exec failed", Result{Class: NoDirectory}, "nothing is mounted on /backup"},
		{"any other refusal", Send, 5, `@ERROR: pre-xfer exec preparation failed`, Result{Class: Permanent}, "pre-xfer"},
		{"no process", Send, 5, `@ERROR: fork failed`, Result{Class: Transient}, "fork failed"},
		{"unknown option", Send, 1, `rsync: --frobnicate: unknown option`, Result{Class: Permanent}, "--frobnicate: unknown option"},
		{"connect timeout", Send, 35, `rsync error: timeout waiting for daemon connection (code 35) at socket.c(1) [sender=3.5.0]`, Result{Class: Transient}, "did not answer in time"},
		{"out of memory", Send, 22, `ERROR: out of memory in flist_expand [sender]`, Result{Class: Transient}, "out of memory"},
		{"connection lost", Send, 12, "rsync: connection unexpectedly closed (24 bytes received so far) [sender]\nrsync error: error in rsync protocol data stream (code 12) at io.c(231) [sender=3.5.0]",
			Result{Class: Transient}, "closed the connection"},
		{"silence", Send, 30, `[sender] io timeout after 60 seconds -- exiting`, Result{Class: Transient}, "silent for 60 s"},
		{"symlink of another user", Send, 1, `rsync: [sender] refusing to follow a symlink owned by an untrusted user: /etc/pw`, Result{Class: Permanent}, "symbolic link of another user"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// One fake for a case: the source's path stands in what it says.
			f := &fixture{T: t, src: t.TempDir()}
			f.make(dir{"a": file(""), "d": dir{"f": file("")}})
			stderr := strings.ReplaceAll(c.stderr, "%s", f.src) + "\n"
			f.opts = Options{Rsync: asRsync(t, fakeRsync{Status: c.status, Stderr: stderr}), Target: Target{Address: "backup.example", Module: "data", PasswordFile: "/etc/pw"}}
			f.runner()
			paths := map[Kind][]string{Send: {"a", "d/f"}, Tree: {"d"}, Delete: {"gone"}}[c.kind]
			res := f.run(Job{Kind: c.kind, Paths: paths})
			c.want.Status = c.status
			f.perPath(res, c.want)
			if !strings.Contains(res.Message, c.message) {
				t.Errorf("message %q, want …%s…", res.Message, c.message)
			}
		})
	}
}

// Rsync that is not root leaves devices out, says so among its standard output, and ends with 0.
func TestDeviceThatIsLeftOutIsNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		extra []string
		want  []PathFailure
	}{
		{nil, []PathFailure{{Path: "a", Reason: "rsync on the backup host makes no such file; as root it does", Remote: true}}},
		{[]string{"--no-devices"}, nil},
		{[]string{"--no-D"}, nil},
	} {
		f := &fixture{T: t, src: t.TempDir()}
		f.make(dir{"a": file("")})
		f.opts = Options{Rsync: asRsync(t, fakeRsync{Stdout: "skipping non-regular file \"a\"\n"}), Extra: c.extra, Target: Target{Address: "backup.example", Module: "data"}}
		f.runner()
		if res := f.run(Job{Kind: Send, Paths: []string{"a"}}); res.Class != Done || !slices.Equal(res.Failed, c.want) {
			t.Errorf("%v: %+v", c.extra, res)
		}
	}
}

func TestCutTellsThatAPartMayBeOnTheBackup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		stderr string
		want   bool
	}{
		"all is well":                        {0, "", false},
		"killed":                             {12, "rsync: connection unexpectedly closed (8 bytes received so far) [sender]", true},
		"silent":                             {30, "[sender] io timeout after 60 seconds -- exiting", true},
		"never reached":                      {10, "rsync: failed to connect to backup.example (192.0.2.1): Connection refused (111)", false},
		"refused":                            {5, "@ERROR: max connections (6) reached -- try again later", false},
		"sent again, and well":               {0, "WARNING: a failed verification -- update discarded (will try again).", false},
		"changed twice":                      {23, "ERROR: d/f failed verification -- update put into partial-dir.", true},
		"a directory by the time it is read": {23, `rsync: [sender] read errors mapping "%s/a": Is a directory (21)`, true},
		"vanished before it was opened":      {24, `file has vanished: "%s/a"`, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fixture{T: t, src: t.TempDir()}
			f.make(dir{"a": file(""), "d": dir{"f": file("")}})
			stderr := strings.ReplaceAll(c.stderr, "%s", f.src) + "\n"
			f.opts = Options{Rsync: asRsync(t, fakeRsync{Status: c.status, Stderr: stderr}), Target: Target{Address: "backup.example", Module: "data", PasswordFile: "/etc/pw"}}
			f.runner()
			if res := f.run(Job{Kind: Send, Paths: []string{"a", "d/f"}}); res.Cut != c.want {
				t.Errorf("cut: %v, want %v; %+v", res.Cut, c.want, res)
			}
		})
	}
}

func remote(path, reason string) []PathFailure {
	return []PathFailure{{Path: path, Reason: reason, Remote: true}}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	f := newFake(t, fakeRsync{Signal: int(syscall.SIGKILL)})
	f.make(dir{"a": file("")})
	f.want(f.send("a"), Transient, -1, "signal: killed")

	f = newFake(t, fakeRsync{Wait: true})
	f.make(dir{"a": file("")})
	n := 0
	res := f.r.List(t.Context(), f.root(), ListOptions{}, func(Item) error { n++; return ErrStop })
	if n != 1 || res.Class != Stopped || res.Status != ExitSignal {
		t.Errorf("%d items, %+v", n, res)
	}

	ctx, cancel := withCancel(t)
	cancel()
	if res := f.r.Run(ctx, f.root(), Job{Kind: Send, Paths: []string{"a"}}, nil); res.Class != Stopped {
		t.Errorf("cancelled before the start: %+v", res)
	}
}

// What the backup's filesystem loses is seen by nothing but a comparison: rsync ends with status 0.
func TestCanarySaysWhatItSees(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fake          fakeRsync
		class         Class
		message, hint string
	}{
		"a time is lost":      {fakeRsync{Stdout: "@ .f..t...... .lockstep-canary-x/sub/file\n"}, Permanent, "a test file differs on the backup after rsync said that the create was done: .f..t...... .lockstep-canary-x/sub/file", "times to the nanosecond"},
		"backup is not there": {fakeRsync{Status: 10}, Transient, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := newFake(t, c.fake).r.Canary(t.Context())
			if res.Class != c.class || !strings.HasPrefix(res.Message, c.message) || !strings.Contains(res.Hint, c.hint) {
				t.Errorf("class %v, %q, hint %q", res.Class, res.Message, res.Hint)
			}
		})
	}
}

// Rsync shortens a long name for its temporary file, to which its messages refer.
func TestTemporaryNameThatWasShortenedIsThatOfTheFile(t *testing.T) {
	t.Parallel()
	long := "d/" + strings.Repeat("n", 250) + "-last"
	rep := newReport(runSend, nil, []string{"d/" + strings.Repeat("n", 20), long})
	rep.errLine(`rsync: [receiver] mkstemp "/d/.` + strings.Repeat("n", 247) + `.Ab12Cd" (in data) failed: Permission denied (13)`)
	if len(rep.Failed) != 1 || rep.Failed[0].Path != long {
		t.Errorf("%+v", rep.Failed)
	}
}

func TestChildGetsNothingButWhatItNeeds(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/notify") // so not parallel
	t.Setenv("RSYNC_PASSWORD", "secret")
	t.Setenv("RSYNC_PROXY", "example:1")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	record := filepath.Join(t.TempDir(), "record")
	f := newFake(t, fakeRsync{Record: record})
	f.make(dir{"a": file(""), "b": dir{"#c": file("")}})
	f.done(f.send("b/#c", "a", "a"))
	b, err := os.ReadFile(record)
	f.ok(err)
	var got struct {
		Args  []string
		Stdin string
		Env   []string
		Cwd   string
	}
	f.ok(json.Unmarshal(b, &got))
	for _, e := range got.Env {
		name, value, _ := strings.Cut(e, "=")
		switch name {
		case "PATH", "TZ", "PWD", "OLDPWD", "SHLVL", "_", fakeVariable: // from sh
		case "LC_ALL":
			if value != "C" {
				t.Errorf("LC_ALL=%s", value)
			}
		default:
			t.Errorf("the child gets %s", e)
		}
	}
	if got.Stdin != "./a\x00./b/#c\x00" {
		t.Errorf("list %q", got.Stdin)
	}
	if got.Cwd != f.src {
		t.Errorf("runs in %s, not %s", got.Cwd, f.src)
	}
	want := []string{
		"-lptgoD", "-d", "--ignore-missing-args", "--partial-dir=.~lockstep~", "--relative", "--from0", "--files-from=-", "--modify-window=-1", "--numeric-ids",
		"--sockopts=TCP_NODELAY", "--stats", "--no-human-readable", "--8-bit-output", "--no-motd", "--password-file=/etc/pw", "--port=873", ".", "u@backup.example::data/",
	}
	if d := diff(want, got.Args); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// rsync takes the words of --rsh apart at spaces outside of quotes, and knows no backslash.
func TestARemoteShellTakesThePlaceOfThePort(t *testing.T) {
	t.Parallel()
	r := &Runner{opts: Options{Timeout: time.Minute, Target: Target{Address: "backup", Port: 22, Module: "m", User: "u",
		Shell: []string{"ssh", "-p", "22", "-i", "/a b/it's"}}}, version: version{"3.5.0", 3, 5, 0}}
	args := strings.Join(r.args(run{mode: sendMode}), "\n") + "\n"
	if !strings.Contains(args, "\n--rsh=ssh -p 22 -i '/a b/it''s'\n") || !strings.HasSuffix(args, "\nu@backup::m/\n") {
		t.Error(args)
	}
	for _, wrong := range []string{"--port", "--contimeout"} { // the second is an error then
		if strings.Contains(args, wrong) {
			t.Errorf("%s is among %s", wrong, args)
		}
	}
}

// A directory that no module guards can be compared with, and never written to.
func TestADirectoryWithoutADaemonIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, backup := filepath.Join(dir, "source"), filepath.Join(dir, "the backup")
	for path, text := range map[string]string{filepath.Join(source, "a"): "1", filepath.Join(backup, "b"): "1"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := New(Options{Path: source, Timeout: time.Minute, Target: Target{Address: "here", Path: backup, Shell: []string{scripts.shell}}})
	if err != nil {
		t.Fatal(err)
	}
	root, err := OpenRoot(source)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, kind := range []Kind{Send, Tree, Delete} {
		if res := r.Run(t.Context(), root, Job{Kind: kind, Paths: []string{"a", "b"}}, nil); res.Class != Permanent {
			t.Errorf("kind %v: %s, %s", kind, res.Class, res.Message)
		}
	}
	found := map[string]bool{}
	res := r.List(t.Context(), root, ListOptions{Delete: true}, func(it Item) error {
		found[it.Path] = it.Extraneous
		return nil
	})
	delete(found, "") // they may have been made within one tick of the clock
	if d := diff(map[string]bool{"a": false, "b": true}, found); res.Class != Done || d != "" {
		t.Errorf("%s %s, found %s\n%s", res.Class, res.Message, d, res.Stderr)
	}
	if names, err := filepath.Glob(filepath.Join(backup, "*")); err != nil || len(names) != 1 || names[0] != filepath.Join(backup, "b") {
		t.Errorf("the backup has %q, %v", names, err)
	}
}

// What ssh says, of several versions.
func TestWhatSSHSays(t *testing.T) {
	t.Parallel()
	target := Target{Address: "backup", Port: 22, Module: "data", Shell: []string{"ssh"}}
	for said, want := range map[string]struct {
		class   Class
		message string
	}{
		"@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @":                            {Permanent, "backup:22 shows another ssh host key"},
		"No ED25519 host key is known for lockstep-data and you have requested strict checking.": {Permanent, "another ssh host key"},
		"root@backup: Permission denied (publickey).":                                            {Permanent, "refuses the pair's key"},
		"root@backup: Permission denied (publickey,gssapi-keyex,gssapi-with-mic,password).":      {Permanent, "refuses the pair's key"},
		"Load key \"/run/credentials/lockstep@data.service/ssh_key\": error in libcrypto":        {Permanent, "ssh cannot use the pair's key, /run/credentials/lockstep@data.service/ssh_key: error in libcrypto"},
		"ssh: connect to host backup port 22: Connection refused":                                {Transient, "no connection to backup:22 by ssh: Connection refused"},
		"ssh: connect to host backup port 22: Connection timed out":                              {Transient, "by ssh: Connection timed out"},
		"ssh: Could not resolve hostname backup: Name or service not known":                      {Transient, "the name backup of the backup host cannot be resolved"},
		"kex_exchange_identification: Connection closed by remote host":                          {Transient, "ends the connection before the login"},
		"kex_exchange_identification: read: Connection reset by peer":                            {Transient, "ends the connection before the login"},
		"Connection closed by 172.16.1.41 port 22":                                               {Transient, "ends the connection before the login"},
		"Timeout, server backup not responding.":                                                 {Transient, "was silent"},
		"Connection timed out during banner exchange":                                            {Transient, "was silent"},
		"Connection to backup closed by remote host.":                                            {Transient, "closed the connection"},
		"rsync: [sender] Failed to exec ssh: No such file or directory (2)":                      {Permanent, "ssh cannot be run here"},
		"bash: /usr/bin/rsync: No such file or directory":                                        {Permanent, "the backup host cannot run rsync: No such file or directory"},
	} {
		rep := newReport(runSend, nil, nil)
		for _, line := range []string{said, "rsync: connection unexpectedly closed (0 bytes received so far) [sender]", "rsync error: unexplained error (code 255) at io.c(232) [sender=3.5.0]"} {
			rep.errLine(line)
		}
		var res Result
		res.judge(255, rep, &target)
		if res.Class != want.class || !strings.Contains(res.Message, want.message) {
			t.Errorf("%s\n%s: %s", said, res.Class, res.Message)
		}
	}
}

func TestArgumentsThatMustNeverBe(t *testing.T) {
	t.Parallel()
	r := &Runner{opts: Options{Target: Target{Address: "::1", Module: "m"}, Exclude: []string{"a"}, FullExclude: []string{"b"}, Filter: []string{"P c"}, Compress: "zstd", Timeout: 1}, version: version{"3.5.0", 3, 5, 0}}
	for name, mode := range map[string][]string{"send": sendMode, "force": forceMode, "tree": treeMode, "delete": deleteMode, "list": listMode, "missing": listMissingMode, "replaced": listForceMode, "probe": probeMode} {
		args := r.args(run{mode: mode, full: true, progress: true})
		has := map[string]bool{}
		for _, a := range args {
			has[a] = true
		}
		if has["--ignore-errors"] {
			t.Errorf("%s has --ignore-errors", name)
		}
		deletes := has["--delete"] || has["--delete-missing-args"]
		if deletes != (name == "delete" || name == "missing") {
			t.Errorf("%s: %v", name, args)
		}
		if deletes && (!has["--existing"] || !has["--ignore-existing"] && !has["--dry-run"] || !has["--prune-empty-dirs"]) {
			t.Errorf("%s may create something: %v", name, args)
		}
		if has["--force"] != (name == "force" || name == "delete" || name == "missing" || name == "replaced") {
			t.Errorf("%s: %v", name, args)
		}
		if dry := name == "list" || name == "missing" || name == "replaced" || name == "probe"; has["--dry-run"] != dry {
			t.Errorf("%s: --dry-run is %v", name, !dry)
		}
		if args[len(args)-1] != "[::1]::m/" || !has["--timeout=1"] || !has["--modify-window=-1"] || !has["--sockopts=TCP_NODELAY"] {
			t.Errorf("%s: %v", name, args)
		}
	}
}

func TestNewJudgesTheVersion(t *testing.T) {
	t.Parallel()
	cases := []struct {
		version, compress string
		err               string
		warnings          int
	}{
		{"rsync  version 3.1.2  protocol version 31\n", "", "version 3.1.2, too old\nhint: install", 0},
		{"rsync  version 3.1.3  protocol version 31\n", "", "", 1},
		{"rsync  version 3.1.3  protocol version 31\n", "zstd", "cannot compress with zstd\nhint: set transfer.compress to one of: zlib, zlibx", 0},
		{"rsync  version v3.2.7  protocol version 31\nCompress list:\n    zstd lz4 zlibx zlib none\n", "zstd", "", 1},
		{"rsync  version 3.4.3  protocol version 32\n", "", "", 1},
		{"rsync  version 3.5.0pre1  protocol version 32\n", "", "", 0},
		{"openrsync: protocol version 29\nrsync version 2.6.9 compatible\n", "", `not an rsync: --version says "openrsync: protocol version 29"`, 0},
		{"hello\n", "", "not an rsync", 0},
	}
	for _, c := range cases {
		r, err := New(Options{Rsync: asRsync(t, fakeRsync{Version: c.version}), Compress: c.compress})
		switch {
		case (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err):
			t.Errorf("%q: %v, want %q", c.version, err, c.err)
		case err == nil && len(r.Warnings()) != c.warnings:
			t.Errorf("%q: warnings %q", c.version, r.Warnings())
		}
	}
	r, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("rsync %s", r.Version())
	old := &Runner{version: version{"3.1.3", 3, 1, 3}}
	for c, want := range map[string]string{"zlib": "[--compress]", "zlibx": "[--new-compress]", "": "[]"} {
		old.opts.Compress = c
		if got := fmt.Sprint(old.compress()); got != want {
			t.Errorf("compress %s before 3.2.0: %s", c, got)
		}
	}
}
