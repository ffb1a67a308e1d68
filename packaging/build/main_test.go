// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

const root = "../.."

// What goreleaser.yaml puts into the packages is in the checkout, or made below build/.
func TestPackagesNameFilesThatExist(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(root, "goreleaser.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Nfpms []struct {
			Contents  []struct{ Src, Dst string }
			Overrides map[string]struct{ Scripts map[string]string }
		}
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	var files []string
	manuals := map[string]bool{}
	for _, n := range config.Nfpms {
		for _, c := range n.Contents {
			if made, ok := strings.CutPrefix(c.Src, "build/packaging/man/"); ok {
				files = append(files, "packaging/man/"+strings.TrimSuffix(made, ".gz"))
				manuals[strings.TrimSuffix(made, ".gz")] = true
			} else if !strings.HasPrefix(c.Src, "build/") {
				files = append(files, c.Src)
			}
		}
		for _, o := range n.Overrides {
			for _, script := range o.Scripts {
				files = append(files, script)
				if out, err := exec.Command("sh", "-n", filepath.Join(root, script)).CombinedOutput(); err != nil {
					t.Errorf("%s: %v: %s", script, err, out)
				}
			}
		}
	}
	if len(files) < 10 {
		t.Fatalf("only %q", files)
	}
	for _, file := range files {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			t.Error(err)
		}
	}
	pages, err := filepath.Glob(filepath.Join(root, "packaging/man/*.[578]"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if !manuals[filepath.Base(page)] {
			t.Errorf("%s is in no package", page)
		}
	}
}

// purge runs the script in a directory that stands for the root of the file system.
func purge(t *testing.T, dir string) (said string) {
	t.Helper()
	script, err := os.ReadFile(filepath.Join(root, "packaging/deb/postrm"))
	if err != nil {
		t.Fatal(err)
	}
	absolute := regexp.MustCompile(`(?m)(^|[\s='"])(/[a-z]+/?)`)
	text := absolute.ReplaceAllStringFunc(string(script), func(found string) string {
		i := strings.IndexByte(found, '/')
		switch found[i:] {
		case "/etc/", "/var/", "/run/", "/root/", "/usr/":
			return found[:i] + dir + found[i:]
		case "/bin/", "/dev/": // of the first line, and /dev/null
			return found
		}
		t.Fatalf("%s would be touched for real", found[i:])
		return ""
	})
	text = strings.ReplaceAll(text, "systemctl", "false") // and there is no /run/systemd/system in the directory
	cmd := exec.Command("sh", "-s", "purge")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// Purge takes the lines that let source hosts in as root, out of the files that apply put them into, and nothing else.
func TestPurgeLetsNoSourceHostIn(t *testing.T) {
	t.Parallel()
	const line = `restrict,command="/usr/bin/rsync --server --daemon --config=/etc/lockstep/ssh/data.conf ." ssh-ed25519 AAAA managed-by-lockstep:data`
	const first, moved, made, link = "/root/.ssh/authorized_keys", "/etc/ssh/keys/root", "/root/.keys/made", "/root/link"
	for name, tc := range map[string]struct{ before, after string }{
		"last":           {"# who\nssh-rsa BBBB \xff admin\r\n\n" + line + "\n", "# who\nssh-rsa BBBB \xff admin\r\n\n"},
		"first":          {line + "\nssh-rsa BBBB admin", "ssh-rsa BBBB admin"},
		"several":        {line + "\na\n" + strings.TrimSuffix(line, "data") + "m-2 \t\r\n" + line, "a\n"},
		"none":           {"managed-by-lockstep:data more\nx-managed-by-lockstep:data\nmanaged-by-lockstep:", "managed-by-lockstep:data more\nx-managed-by-lockstep:data\nmanaged-by-lockstep:"},
		"nothing else":   {line + "\n", ""},
		"nothing at all": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			put := func(file, text string, mode os.FileMode) {
				t.Helper()
				if err := errors.Join(os.MkdirAll(filepath.Dir(dir+file), 0o755), os.WriteFile(dir+file, []byte(text), mode), os.Chmod(dir+file, mode)); err != nil {
					t.Fatal(err)
				}
			}
			put(first, tc.before, 0o640)
			put(moved, tc.before, 0o600)
			put(made, line+"\n", 0o600)
			put("/root/elsewhere", tc.before, 0o600)
			if err := os.Symlink("elsewhere", dir+link); err != nil {
				t.Fatal(err)
			}
			pairs := map[string]any{}
			for _, file := range []string{first, moved, made, link, "/root/none"} {
				pairs[path.Base(path.Dir(file))+path.Base(file)] = map[string]any{"backup": map[string]string{"authorized_keys": dir + file, "fs": "1"}}
			}
			record, err := json.MarshalIndent(map[string]any{"pairs": pairs, "made": map[string]bool{dir + made: true}, "dirs": map[string]bool{dir + path.Dir(made): true}}, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			put(plan.RecordFile, string(record), 0o600)
			said := purge(t, dir)
			for file, mode := range map[string]os.FileMode{first: 0o640, moved: 0o600} {
				data, err := os.ReadFile(dir + file)
				info, serr := os.Stat(dir + file)
				if err != nil || serr != nil || string(data) != tc.after || info.Mode() != mode {
					t.Errorf("%s: %v, %v, %v, %q, want %q", file, err, serr, info.Mode(), data, tc.after)
				}
				if rest, err := os.ReadDir(filepath.Dir(dir + file)); err != nil || len(rest) != 1 {
					t.Errorf("beside %s: %v, %v", file, rest, err)
				}
			}
			if _, err := os.Lstat(filepath.Dir(dir + made)); !os.IsNotExist(err) {
				t.Errorf("what apply made for the line is left: %v", err)
			}
			// A link is not followed, and it is told what is left behind it.
			data, err := os.ReadFile(dir + "/root/elsewhere")
			to, lerr := os.Readlink(dir + link)
			if err != nil || lerr != nil || string(data) != tc.before || to != "elsewhere" {
				t.Errorf("the link leads to %q, %q: %v, %v", to, data, err, lerr)
			}
			if left := tc.before != tc.after; strings.Contains(said, dir+link+" is a symbolic link") != left || !left && said != "" {
				t.Errorf("it says %q", said)
			}
		})
	}
}

// Purge takes everything that apply writes, wherever that is, and nothing else: the script is run in a directory
// that stands for the root of the file system.
func TestPurgeTakesWhatApplyWritesAndNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	gone := []string{
		plan.DefinitionFile("data"), plan.SecretFile("data"), plan.SecretsFile("data"), plan.ModuleFile("data"), plan.RsyncdConf,
		plan.SystemdDir + "/" + unit.AgentTemplate, plan.SystemdDir + "/" + unit.RsyncdName, plan.DropInFile("data"), plan.SysctlFile,
		plan.HostKeyFile, plan.RecordFile, plan.StateDir + "/data/source.json",
		plan.SystemdDir + "/multi-user.target.wants/" + unit.AgentName("data"), plan.SystemdDir + "/multi-user.target.wants/" + unit.RsyncdName,
	}
	kept := []string{
		"/data/file", "/backup/nfs01/file", "/etc/rsyncd.conf", plan.SystemdDir + "/lockstep.service", plan.DropInDir("mail") + "/own.conf",
		plan.SystemdDir + "/multi-user.target.wants/ssh.service", "/etc/sysctl.d/60-other.conf",
	}
	for _, path := range append(gone, kept...) {
		if err := os.MkdirAll(filepath.Dir(dir+path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const binary = "/usr/local/bin/lockstep" // as postinst leaves it
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir+binary), 0o755), os.Symlink(dir+"/usr/bin/lockstep", dir+binary)); err != nil {
		t.Fatal(err)
	}
	if out := purge(t, dir); out != "" {
		t.Errorf("it says %q", out)
	}
	for _, path := range append(gone, binary) {
		if _, err := os.Lstat(dir + path); !os.IsNotExist(err) {
			t.Errorf("purge leaves %s: %v", path, err)
		}
	}
	for _, path := range kept {
		if _, err := os.Lstat(dir + path); err != nil {
			t.Errorf("purge took %s", path)
		}
	}
	for _, path := range []string{plan.EtcDir, plan.StateDir, plan.DropInDir("data")} {
		if _, err := os.Lstat(dir + path); !os.IsNotExist(err) {
			t.Errorf("purge leaves the directory %s: %v", path, err)
		}
	}
}

// What a script puts beside the state directories of pairs has a name that no pair can have.
func TestScriptsMeetNoPair(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"packaging/deb/p*", "packaging/rpm/p*"} {
		scripts, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(scripts) == 0 {
			t.Fatalf("%s: %v, %v", pattern, scripts, err)
		}
		for _, script := range scripts {
			text, err := os.ReadFile(script)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range regexp.MustCompile(plan.StateDir+`/([^\s;"]+)`).FindAllSubmatch(text, -1) {
				if name := string(found[1]); plan.ValidName(name) {
					t.Errorf("%s: a pair can be named %q", script, name)
				}
			}
		}
	}
}

// What the packages take from lockstep itself, it gives when it is called as here.
func TestTheBinaryGivesItsUnitAndCompletions(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "lockstep")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/lockstep")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Chdir(t.TempDir())
	for _, step := range []func(string) error{units, completions} {
		if err := step(binary); err != nil {
			t.Error(err)
		}
	}
	got, err := os.ReadFile(filepath.Join(outDir, "systemd/lockstep@.service"))
	if err != nil {
		t.Fatal(err)
	}
	if want := unit.Agent("/usr/bin/lockstep").Render(); string(got) != string(want) {
		t.Errorf("the unit of the packages is not apply's:\n%s", got)
	}
	for _, name := range []string{"lockstep.bash", "lockstep.fish", "_lockstep"} {
		if text, err := os.ReadFile(filepath.Join(outDir, "completions", name)); err != nil || len(text) == 0 {
			t.Errorf("%s: %d bytes, %v", name, len(text), err)
		}
	}
}
