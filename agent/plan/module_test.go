// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// module starts a daemon with the module that a definition gets, in directories of the test.
func module(t *testing.T, mount bool) (*rsynctest.Server, string) {
	t.Helper()
	var settings []string
	for _, param := range plan.Module(sample(t), plan.BackupInputs{Allow: []string{"127.0.0.1"}, Secrets: []plan.Secret{{User: "lockstep", Password: "x"}}, Mount: mount}).Params {
		switch param.Name {
		case "path", "secrets file", "lock file":
			continue // the test's own
		case "uid", "gid", "use chroot":
			if os.Geteuid() != 0 {
				continue
			}
		}
		settings = append(settings, param.Name+" = "+param.Value)
	}
	s := rsynctest.Daemon(t, rsynctest.Options{Settings: settings})
	return s, t.TempDir()
}

func push(t *testing.T, s *rsynctest.Server, from string, options ...string) (string, error) {
	t.Helper()
	args := append(slices.Clone(options), "--password-file="+s.PasswordFile, "--sockopts=TCP_NODELAY", "--port="+strconv.Itoa(s.Port), from+"/", s.User+"@"+s.Address+"::"+s.Module+"/")
	out, err := exec.Command(rsynctest.Binary(t), args...).CombinedOutput()
	return string(out), err
}

func TestModuleTakesEveryOptionThatADefinitionMayHave(t *testing.T) {
	t.Parallel()
	s, from := module(t, false)
	rsynctest.MakeTree(t, from, rsynctest.Dir{"file": rsynctest.File("text")})
	values := map[string]string{
		"--checksum-choice": "md5", "--compress-level": "3", "--skip-compress": "gz/jpg", "--chmod": "D755,F644", "--chown": "root:root",
		"--usermap": "*:root", "--groupmap": "*:root", "--max-alloc": "2G", "--block-size": "4096", "--contimeout": "", "--address": "127.0.0.1",
	}
	for _, option := range pair.AllowedOptions() {
		args := []string{"-a", "--numeric-ids", option.Name}
		if option.Value != "" {
			value, known := values[option.Name]
			if !known {
				t.Errorf("%s: no value to try it with", option.Name)
			}
			args[2] += "=" + value
		}
		switch option.Name {
		case "--contimeout", "--ipv6":
			continue // stay with the client; the daemon of the test listens on IPv4 only
		case "--compress-level", "--skip-compress":
			args = append(args, "--compress")
		case "--chown", "--usermap", "--groupmap":
			args = slices.DeleteFunc(args, func(a string) bool { return a == "--numeric-ids" })
		}
		if out, err := push(t, s, from, args...); err != nil && strings.Contains(out, "refuse") {
			t.Errorf("%q: %s", args, out)
		} else if err != nil {
			t.Logf("%q: %s", args, out) // an rsync that was built without it, or a filesystem
		}
	}
}

func TestModuleRefusesWhatCouldDoHarm(t *testing.T) {
	t.Parallel()
	s, from := module(t, false)
	rsynctest.MakeTree(t, from, rsynctest.Dir{"file": rsynctest.File("text")})
	for _, option := range []string{"--backup", "--backup-dir=/x", "--remove-source-files", "--log-file=/x", "--iconv=latin1", "--copy-links", "--write-devices", "--append"} {
		if out, err := push(t, s, from, "-a", option); err == nil && !strings.HasPrefix(option, "--copy") && !strings.HasPrefix(option, "--log") {
			t.Errorf("%s was taken: %s", option, out)
		}
	}
	// It gives nothing back.
	cmd := exec.Command(rsynctest.Binary(t), "-a", "--password-file="+s.PasswordFile, "--port="+strconv.Itoa(s.Port), s.User+"@"+s.Address+"::"+s.Module+"/", filepath.Join(t.TempDir(), "back"))
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "write only") {
		t.Errorf("reading: %v: %s", err, out)
	}
}

// An unmounted disk leaves a directory that takes everything, and fills what is below it.
func TestModuleOfAMountPointTakesNothingWhenNothingIsMounted(t *testing.T) {
	t.Parallel()
	s, from := module(t, true)
	rsynctest.MakeTree(t, from, rsynctest.Dir{"f": rsynctest.File("x")})
	out, err := push(t, s, from, "-r")
	if err == nil || !strings.Contains(out, s.Path+" is not a mountpoint") {
		t.Errorf("%v: %s", err, out)
	}
	if names, err := os.ReadDir(s.Path); err != nil || len(names) > 0 {
		t.Errorf("%v, %v", names, err)
	}

	params := plan.Module(sample(t), plan.BackupInputs{Mount: true}).Params
	check := params[len(params)-1]
	dir := filepath.Join(t.TempDir(), `a "b" $(touch c) 'd`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/proc": "/proc is a mountpoint", dir: dir + " is not a mountpoint"} {
		cmd := exec.Command("/bin/sh", "-c", check.Value)
		cmd.Dir, cmd.Env = filepath.Dir(dir), append(os.Environ(), "RSYNC_MODULE_PATH="+path)
		out, err := cmd.CombinedOutput()
		if check.Name != "pre-xfer exec" || strings.TrimSpace(string(out)) != want || (err == nil) != (path == "/proc") {
			t.Errorf("%s: %v: %s", path, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "c")); err == nil {
		t.Error("the path was run")
	}
}
