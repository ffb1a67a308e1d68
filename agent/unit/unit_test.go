// SPDX-License-Identifier: Apache-2.0

package unit_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/unit"
)

func TestParseOfRenderIsTheSame(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]unit.File{
		"agent":   unit.Agent("/usr/bin/lockstep"),
		"rsyncd":  unit.Rsyncd("/usr/bin/rsync", "/etc/lockstep/rsyncd.conf"),
		"drop-in": unit.AgentDropIn{Fanotify: true, Tmp: true}.File(),
	} {
		again, err := unit.Parse(append([]byte("# a comment\n"), f.Render()...))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(f, again); diff != "" {
			t.Errorf("%s (-rendered +parsed):\n%s", name, diff)
		}
	}
	if out := (unit.AgentDropIn{}).File().Render(); len(out) > 0 {
		t.Errorf("a drop-in that says nothing is %q", out)
	}
}

// service has every value of an option in the section of that name.
func service(f unit.File, name string) []string {
	var values []string
	for _, o := range f {
		if o.Section == "Service" && o.Name == name {
			values = append(values, o.Value)
		}
	}
	return values
}

func TestPrivilegesOfTheAgent(t *testing.T) {
	t.Parallel()
	base, more := unit.Agent("/usr/bin/lockstep"), unit.AgentDropIn{Fanotify: true}.File()
	if got := service(base, "AmbientCapabilities"); !slices.Equal(got, []string{"CAP_DAC_READ_SEARCH CAP_LEASE"}) {
		t.Errorf("agent: %q", got)
	}
	if got := service(more, "AmbientCapabilities"); !slices.Equal(got, []string{"CAP_SYS_ADMIN"}) {
		t.Errorf("drop-in for fanotify: %q", got)
	}
	for _, f := range []unit.File{base, more} {
		if ambient, bound := service(f, "AmbientCapabilities"), service(f, "CapabilityBoundingSet"); !slices.Equal(ambient, bound) {
			t.Errorf("ambient %q, bounding set %q", ambient, bound)
		}
	}
}

func TestDropInHasWhatThePairNeedsAndNothingElse(t *testing.T) {
	t.Parallel()
	for want, d := range map[string]unit.AgentDropIn{
		"":                {},
		"PrivateTmp=no":   {Tmp: true},
		"LoadCredential=": {NoPassword: true}, // clears what the template loads
		"PrivateTmp=no; LoadCredential=ssh_key:/etc/lockstep/secrets/%i.ssh; LoadCredential=known_hosts:/etc/lockstep/secrets/%i.known_hosts": {Tmp: true, SSH: true},
		"AmbientCapabilities=CAP_SYS_ADMIN; CapabilityBoundingSet=CAP_SYS_ADMIN; SystemCallFilter=fanotify_init fanotify_mark open_by_handle_at; LoadCredential=": {
			Fanotify: true, NoPassword: true},
	} {
		var got []string
		for _, o := range d.File() {
			if o.Section != "Service" {
				t.Errorf("%+v: section %s", d, o.Section)
			}
			got = append(got, o.Name+"="+o.Value)
		}
		if strings.Join(got, "; ") != want {
			t.Errorf("%+v: %q, want %q", d, got, want)
		}
	}
}

func TestNamesFitTheTemplate(t *testing.T) {
	t.Parallel()
	if name := unit.AgentName("data"); name != strings.Replace(unit.AgentTemplate, "@", "@data", 1) {
		t.Errorf("the agent of pair data is %s, its template %s", name, unit.AgentTemplate)
	}
	if user := service(unit.Agent("/usr/bin/lockstep"), "User"); !slices.Equal(user, []string{unit.User}) {
		t.Errorf("the agent runs as %q", user)
	}
}

func TestUnitFileThatIsNoneIsAnError(t *testing.T) {
	t.Parallel()
	if f, err := unit.Parse([]byte("[Service\nUser=x\n")); err == nil {
		t.Errorf("read as %+v", f)
	}
}

// The limits are what is promised; the daemon's is higher, because it has to give files to their owners as root.
func TestExposureStaysLow(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed\nhint: apt-get install systemd")
	}
	dir := t.TempDir()
	// ExecStart= has to exist, or the unit does not load.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	score := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`)
	for name, tc := range map[string]struct {
		files []unit.File
		limit float64
	}{
		"lockstep@inotify.service":  {[]unit.File{unit.Agent(self)}, 2.0},
		"lockstep@fanotify.service": {[]unit.File{unit.Agent(self), unit.AgentDropIn{Fanotify: true}.File()}, 2.5},
		"lockstep-rsyncd.service":   {[]unit.File{unit.Rsyncd(self, "/etc/lockstep/rsyncd.conf")}, 4.0},
	} {
		var text []byte
		for _, f := range tc.files {
			text = append(append(text, f.Render()...), '\n')
		}
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, text, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "security", "--no-pager", "--offline=true", p).CombinedOutput()
		m := score.FindSubmatch(out)
		if m == nil {
			t.Skipf("systemd-analyze of this host gives no score, it needs systemd 250: %v\n%s", err, out) // for --offline
		}
		n, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil || n > tc.limit {
			t.Errorf("exposure of %s is %s, the limit is %.1f", name, m[1], tc.limit)
		}
		t.Logf("exposure of %s is %s", name, m[1])
	}
}
