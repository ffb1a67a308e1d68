// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected files in testdata")

// golden runs got on the first file of every archive and compares its answer with the file called want.
func golden(t *testing.T, pattern, want string, got func(t *testing.T, definition []byte) string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files match %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) == 0 {
				t.Fatal("no definition in the archive")
			}
			answer := got(t, archive.Files[0].Data)
			if *update {
				archive.Files = append(archive.Files[:1], txtar.File{Name: want, Data: []byte(answer)})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(archive.Files) != 2 || archive.Files[1].Name != want {
				t.Fatalf("the archive lacks %s; run go test -update", want)
			}
			if diff := cmp.Diff(string(archive.Files[1].Data), answer); diff != "" {
				t.Errorf("%s differs (-want +got):\n%s", want, diff)
			}
		})
	}
}

func TestValidDefinitionsRenderComplete(t *testing.T) {
	t.Parallel()
	golden(t, "testdata/valid/*.txtar", "rendered.yaml", func(t *testing.T, definition []byte) string {
		p, err := Parse(definition)
		if err != nil {
			t.Fatal(err)
		}
		return string(p.Render())
	})
}

func TestInvalidDefinitionsTellEveryProblem(t *testing.T) {
	t.Parallel()
	golden(t, "testdata/invalid/*.txtar", "problems", func(t *testing.T, definition []byte) string {
		p, err := Parse(definition)
		if err == nil {
			t.Fatalf("Parse took an invalid definition: %+v", p)
		}
		if !reflect.DeepEqual(p, Pair{}) {
			t.Errorf("Parse returned a definition beside its problems: %+v", p)
		}
		var ps Problems
		if !errors.As(err, &ps) {
			t.Fatalf("the error is %T, not Problems", err)
		}
		return ps.Error() + "\n"
	})
}

func TestHooksInTheDocsParse(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/hooks.md")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]bool{}
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		if !strings.HasPrefix(block, "name: ") {
			block = "name: data\nsource: {host: nfs01, path: /data}\nbackup: {host: backup, path: /backup/nfs01}\n" + block
		}
		p, err := Parse([]byte(block))
		if err != nil {
			t.Errorf("%v\n%s", err, block)
		}
		for _, h := range p.Hooks {
			types[h.Type] = true
		}
		checkRoundTrip(t, p)
	}
	if len(types) != len(hookTypes) {
		t.Errorf("examples of %v only", types)
	}
}

func TestExamplesParse(t *testing.T) {
	t.Parallel()
	files, _ := filepath.Glob("../../examples/pairs/*.yaml")
	if len(files) < 2 {
		t.Fatalf("examples/pairs has %d definitions", len(files))
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(data); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// The long example names every field, and shows the defaults wherever it can.
func TestFullExampleHasEveryField(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../examples/pairs/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	node, ps := tree(data)
	if ps != nil {
		t.Fatal(ps)
	}
	d := &decoder{line: map[string]int{}, failed: map[string]bool{}}
	p := Defaults()
	d.object(pairFields(d, &p), node, "")
	for _, place := range places(pairFields(d, &p), "") {
		if d.line[place] == 0 {
			t.Errorf("examples/pairs/full.yaml lacks %s", place)
		}
	}
}

// What Parse reads is what JSON writes.
func TestSchemaIsTheType(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(short())
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	var got []string
	for key, value := range tree {
		group, ok := value.(map[string]any)
		if !ok {
			got = append(got, key)
		}
		for inner := range group {
			got = append(got, key+"."+inner)
		}
	}
	want := places(pairFields(&decoder{}, &Pair{}), "")
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Every leaf is read by Parse: another value than the default survives.
	for range 20 {
		checkRoundTrip(t, random(rand.New(rand.NewPCG(1, rand.Uint64()))))
	}
}

// short is the short form.
func short() Pair {
	p := Defaults()
	p.Name = "data"
	p.Source.Host, p.Source.Path = "nfs01", "/data"
	p.Backup.Host, p.Backup.Path = "backup", "/backup/nfs01"
	p.Complete()
	return p
}

func TestShortFormIsTheDefaults(t *testing.T) {
	t.Parallel()
	got, err := Parse([]byte("name: data\nsource: {host: nfs01, path: /data}\nbackup: {host: backup, path: /backup/nfs01}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(short(), got); diff != "" {
		t.Error(diff)
	}
	if got.Source.Address != "nfs01" || got.Backup.Address != "backup" || got.Backup.Module != "data" {
		t.Errorf("derived defaults: %+v %+v", got.Source, got.Backup)
	}
}

func checkRoundTrip(t *testing.T, p Pair) {
	t.Helper()
	if ps := p.Validate(); len(ps) > 0 {
		t.Fatalf("not valid: %v\n%+v", ps, p)
	}
	text := p.Render()
	again, err := Parse(text)
	if err != nil {
		t.Fatalf("Parse(Render(p)): %v\n%s", err, text)
	}
	if diff := cmp.Diff(p, again); diff != "" {
		t.Fatalf("Parse(Render(p)) differs:\n%s\n%s", diff, text)
	}
	data, err := json.Marshal(struct{ Pair Pair }{p})
	if err != nil {
		t.Fatal(err)
	}
	var wire struct{ Pair Pair }
	if err := json.Unmarshal(data, &wire); err != nil {
		t.Fatalf("json: %v\n%s", err, data)
	}
	if diff := cmp.Diff(p, wire.Pair); diff != "" {
		t.Fatalf("json round trip differs:\n%s\n%s", diff, data)
	}
	bare, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if p2, err := Parse(bare); err != nil || !reflect.DeepEqual(p, p2) {
		t.Fatalf("Parse(json): %v\n%s", err, bare)
	}
}

// random returns a valid definition with every field changed now and then.
func random(r *rand.Rand) Pair {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	some := func(of ...string) []string {
		r.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		return of[:r.IntN(len(of)+1)]
	}
	letters := []rune("aß漢😀 \t*?[]#:&!%@'\"\\/{},|>-+~.\u0085\u2028\ufeff\x01\r0")
	word := func() string {
		s := make([]rune, 1+r.IntN(12))
		for i := range s {
			s[i] = letters[r.IntN(len(letters))]
		}
		return string(s)
	}
	p := Defaults()
	p.Name = pick("data", "a", "0", "no", "on", "y", "true", "null", "2024", "1e3", "0x1f", "a-b", strings.Repeat("a", 63))
	p.Source = Source{Host: pick("nfs01", "10.0.0.1", "::1", "fe80::1", "no", "1234", "1.5"), Path: "/s/" + pick("a", "b c", "ü", "#x", "a: b", "x'y\"z", `\`), Address: pick("", "x", "10.1.1.1")}
	p.Backup = Backup{
		Host: pick("backup", "b_1", "off"), Path: "/t/" + pick("a", "b c", "漢", "a #b", "{x}"), Address: pick("", "192.0.2.9"),
		Port: 1 + r.IntN(65535), Module: pick("", "data", "Opt_nfs", "a b", "null", "資料"), UID: pick("root", "0", "65534", "www-data"), GID: pick("root", "10", "no"),
	}
	p.Auth.User = pick("lockstep", "no", "_x", "a-1")
	for range r.IntN(4) {
		if w := word(); len((&validator{}).excludeProblems(w)) == 0 {
			p.Exclude = append(p.Exclude, w)
			p.Full.Exclude = append(p.Full.Exclude, w)
			p.Filter = append(p.Filter, pick("- ", "+ ", "P ", "R ", "exclude ", "-,r ", "-! ", "P,p ")+w)
		}
	}
	p.Delete = Delete{Enabled: r.IntN(2) == 0, MaxFiles: r.IntN(1 << 30), MaxPercent: r.IntN(101)}
	p.Watch.Backend = pick("auto", "fanotify", "inotify")
	p.Watch.Events = append(some("create", "modify", "attrib", "move"), "delete")
	p.Watch.Delay = Duration(time.Millisecond * time.Duration(1+r.IntN(3_600_000)))
	p.Watch.MaxDelay = p.Watch.Delay + Duration(r.Int64N(int64(time.Hour)))
	p.Transfer = Transfer{
		Compress: pick("", "zstd", "lz4", "zlibx", "zlib"), BandwidthLimit: pick("", "1000", "1.5M", "2MB", "8g"),
		Timeout: Duration(time.Second * time.Duration(1+r.IntN(3600))), Parallel: 1 + r.IntN(16),
		Options: some("--acls", "-X", "--chmod=D755,F644", "--skip-compress=gz/jpg", "--fsync", "--zl=3", "--no-W"),
	}
	for i := range r.IntN(3) {
		h := Hook{Name: fmt.Sprint(pick("no", "a", "1e", "x-"), i), Include: some("*.php", "/a b/", "#x"), Retries: r.IntN(101), Timeout: Duration(time.Second)}
		switch h.Type = pick(hookTypes...); h.Type {
		case "command":
			h.Argv, h.IgnoreErrors = []string{"/bin/" + pick("true", "a b", "#"), pick(PathPlace, "--"), word()}, r.IntN(2) == 0
		case "socket":
			h.Network, h.Address = "tcp", pick("[::1]:80", "localhost:1", "192.0.2.1:65535")
			if r.IntN(2) == 0 {
				h.Network, h.Address = "unix", "/run/a b"
			}
		case "http":
			h.URL, h.Method = "http://localhost:1/x?y=z", pick("POST", "PUT")
			if r.IntN(2) == 0 {
				h.URL, h.Method, h.Kind, h.Match = "https://[::1]/"+PathPlace, "GET", pick("", "file", "dir"), pick("", "/a b/(.*)", "(#|: )")
			}
			h.HeadersFile = pick("", "/etc/x: y")
		}
		p.Hooks = append(p.Hooks, h)
	}
	p.Full.Every = pick("", "24h", "1h30m", "0 3 * * *", "*/15 1-5 * * MON", "@daily")
	p.Retry = Retry{Initial: Duration(time.Second), Max: Duration(time.Second * time.Duration(1+r.IntN(80000)))}
	p.Metrics.Listen = pick("", ":9100", "127.0.0.1:1", "[::1]:65535", "host.example:80")
	p.Paused = r.IntN(2) == 0
	p.Complete()
	return p
}

func (v *validator) excludeProblems(pattern string) Problems {
	v.excludes("", []string{pattern})
	return v.problems
}

func TestRenderParseRoundTrip(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		checkRoundTrip(t, random(r))
	}
}

func TestJSONIsStrictAndHasDefaults(t *testing.T) {
	t.Parallel()
	const head = `{"protocol":1,"pair":{"name":"data","source":{"host":"a","path":"/data"},"backup":{"host":"b","path":"/b"}`
	type request struct{ Pair Pair }
	var r request
	if err := json.Unmarshal([]byte(head+`}}`), &r); err != nil {
		t.Fatal(err)
	}
	if r.Pair.Backup.Port != 873 || r.Pair.Backup.Module != "data" || r.Pair.Delete.MaxFiles != 1000 {
		t.Errorf("defaults are missing: %+v", r.Pair)
	}
	for _, tc := range []struct{ body, path, msg string }{
		{`,"bakup":{}`, "bakup", `unknown field "bakup"`},
		{`,"paused":1`, "paused", `"1" is not true or false`},
		{`,"paused":true,"paused":false`, "paused", "given twice"},
		{`,"watch":{"delay":20}`, "watch.delay", "a number without a unit is not a duration"},
		{`,"transfer":{"parallel":2.0}`, "transfer.parallel", "2.0 is not a whole number"},
		{`,"exclude":["\ud800"]`, "exclude[0]", "is not UTF-8 text"},
		{`,"delete":{"max_percent":101}`, "delete.max_percent", "101 is not a percentage"},
		{`,"hooks":[{"name":"a","type":"command"}]`, "hooks[0].argv", "is missing"},
		{`,"delete":null`, "delete", "delete is empty, not a group of fields"},
	} {
		err := json.Unmarshal([]byte(head+tc.body+`}}`), &r)
		var ps Problems
		if !errors.As(err, &ps) || len(ps) != 1 || ps[0].Path != tc.path || ps[0].Msg != tc.msg {
			t.Errorf("%s: %v, want %s: %s", tc.body, err, tc.path, tc.msg)
		}
	}
	// A character past U+FFFF as Python's json writes it.
	if err := json.Unmarshal([]byte(head+`,"exclude":["\ud83d\ude00"]}}`), &r); err != nil || r.Pair.Exclude[0] != "😀" {
		t.Errorf("surrogate pair: %v %q", err, r.Pair.Exclude)
	}
}

func TestNilListsAreWrittenAsEmptyOnes(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(Pair{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "null") {
		t.Errorf("%s", data)
	}
	if strings.Contains(string(Pair{}.Render()), "null") {
		t.Errorf("%s", Pair{}.Render())
	}
}

func TestDurationText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"60s": "1m", "24h": "24h", "90m": "1h30m", "20ms": "20ms", "3605s": "1h0m5s", "0.5s": "500ms"} {
		d, err := ParseDuration(in)
		if err != nil || d.String() != want {
			t.Errorf("%s: %s, %v; want %s", in, d, err, want)
		}
	}
	for _, in := range []string{"", "20", "0", "1.5", "1d", "5 s", "ms", "1e3"} {
		if d, err := ParseDuration(in); err == nil {
			t.Errorf("%q was read as %s", in, d)
		}
	}
}

func TestScheduleNext(t *testing.T) {
	t.Parallel()
	start := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	for every, want := range map[string]time.Time{
		"90m":         start.Add(90 * time.Minute),
		"0 3 * * *":   time.Date(2025, 3, 2, 3, 0, 0, 0, time.UTC),
		"0 0 29 2 *":  time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC),
		"@daily":      time.Date(2025, 3, 2, 0, 0, 0, 0, time.UTC),
		"0 3 * * SUN": time.Date(2025, 3, 2, 3, 0, 0, 0, time.UTC),
	} {
		s, err := Full{Every: every}.Schedule()
		if err != nil {
			t.Errorf("%s: %v", every, err)
		} else if got := s.Next(start); !got.Equal(want) {
			t.Errorf("%s: next after %s is %s, want %s", every, start, got, want)
		}
	}
	if s, err := (Full{}).Schedule(); s != nil || err != nil {
		t.Errorf("empty schedule: %v %v", s, err)
	}
}

// Every option on the list, and every rate that Validate takes, must be ones that rsync takes.
func TestRsyncTakesWhatValidateTakes(t *testing.T) {
	t.Parallel()
	rsync, err := exec.LookPath("rsync")
	if err != nil {
		t.Skip("rsync is not installed\nhint: apt-get install rsync")
	}
	version, _ := exec.Command(rsync, "--version").Output()
	t.Logf("%s", strings.SplitN(string(version), "\n", 2)[0])
	src, dst := t.TempDir(), t.TempDir()
	run := func(options ...string) ([]byte, error) {
		// Beside what transfer always gives: rsync refuses some combinations.
		args := append([]string{"-a", "--partial-dir=.x", "--relative", "--numeric-ids", "--modify-window=-1"}, options...)
		return exec.Command(rsync, append(args, src+"/", dst+"/")...).CombinedOutput()
	}
	var together []string // all that do not exclude each other, in one run
	values := map[string]string{
		"--checksum-choice": "xxh128", "--compress-level": "3", "--skip-compress": "gz/mp[34]", "--chmod": "D755,Fgo-w", "--chown": "root:root",
		"--usermap": "0-99:nobody,*:root", "--groupmap": "*:root", "--max-alloc": "2G", "--block-size": "131072", "--contimeout": "10", "--address": "127.0.0.1",
	}
	for _, o := range AllowedOptions() {
		spellings := []string{o.Name}
		if o.Short != "" {
			spellings = append(spellings, o.Short)
		}
		if o.Value != "" {
			spellings = []string{o.Name + "=" + values[o.Name]}
		}
		for _, s := range spellings {
			if name, msg, _ := checkOption(s); msg != "" || name != o.Name {
				t.Errorf("checkOption(%q) = %q, %q", s, name, msg)
			}
			switch o.Name {
			case "--contimeout": // for daemons only
			case "--no-whole-file", "--ipv6", "--no-perms", "--chown": // exclude another
				if out, err := run(s); err != nil {
					t.Errorf("rsync %s: %v\n%s", s, err, out)
				}
			default:
				together = append(together, s)
			}
		}
	}
	if out, err := run(together...); err != nil {
		t.Errorf("rsync %s: %v\n%s", together, err, out)
	}
	for _, rate := range []string{"1", "0.5", "512b", "511b", "100B", "100iB", "1.5m", "2MB", "2MiB", "1k", "1KB", "0.4", ".5", "1.", "0", "1x", "-1", "1 M", "8192P", "0.001g", "1e3", "10KIB", "1g+1"} {
		msg, _ := checkRate(rate)
		// rsync reads its options one by one and ends at --version, so nothing is sent at a byte a second.
		err := exec.Command(rsync, "--bwlimit="+rate, "--version").Run()
		if rate == "0" || rate == "1g+1" { // rsync takes them; lockstep has "" for the first and no use for the other
			if msg == "" || err != nil {
				t.Errorf("rate %s: %q, %v", rate, msg, err)
			}
			continue
		}
		if (msg == "") != (err == nil) {
			t.Errorf("rate %s: validate says %q, rsync says %v", rate, msg, err)
		}
	}
}

func TestFilterRulesThatRsyncReads(t *testing.T) {
	t.Parallel()
	rsync, err := exec.LookPath("rsync")
	if err != nil {
		t.Skip("rsync is not installed\nhint: apt-get install rsync")
	}
	if exec.Command(rsync, "--filter=nonsense x", "--version").Run() == nil {
		t.Fatal("rsync took a rule that is none")
	}
	for _, rule := range []string{"- *.tmp", "+ /a/***", "P keep/", "R x", "exclude x", "include x", "protect x", "risk x",
		"-! */", "-r x", "-,r x", "exclude,r x", "-p x", "-x user.*", "exclude,! x", "Pp x"} {
		if msg, _ := checkRule(rule); msg != "" {
			t.Errorf("%q is refused: %s", rule, msg)
		}
		if out, err := exec.Command(rsync, "--filter="+rule, "--version").CombinedOutput(); err != nil {
			t.Errorf("rsync refuses %q: %v\n%s", rule, err, out)
		}
	}
	for _, rule := range []string{"", "-", "- ", "x", ". file", ":.rsync-filter", ": f", "merge f", "dir-merge f", "!", "clear", "H x", "hide x", "S x",
		"show x", "-s x", "-/ x", "-C", "-Z x", "exclude", "excludes x", "*.tmp", "-_x", "dir-merge,- f", ".- f", "merge,C f"} {
		if msg, _ := checkRule(rule); msg == "" {
			t.Errorf("%q is taken", rule)
		}
	}
}

func TestValidateBuiltDefinition(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		path   string
		change func(*Pair)
	}{
		{"name", func(p *Pair) { p.Name = "../x" }},
		{"name", func(p *Pair) { p.Name = "" }},
		{"backup.module", func(p *Pair) { p.Backup.Module = "" }},
		{"backup.module", func(p *Pair) { p.Name = "global"; p.Backup.Module = "global" }},
		{"backup.module", func(p *Pair) { p.Backup.Module = "Glo bal" }},
		{"backup.module", func(p *Pair) { p.Backup.Module = "a]b" }},
		{"backup.module", func(p *Pair) { p.Backup.Module = "a\nb" }},
		{"source.host", func(p *Pair) { p.Source.Host = "-oProxyCommand=x" }},
		{"source.address", func(p *Pair) { p.Source.Address = "*" }},
		{"source.address", func(p *Pair) { p.Source.Address = "10.0.0.0/8" }},
		{"backup.address", func(p *Pair) { p.Backup.Address = "a b" }},
		{"source.path", func(p *Pair) { p.Source.Path = "/a\nb" }},
		{"source.path", func(p *Pair) { p.Source.Path = "/a\xff" }},
		{"source.path", func(p *Pair) { p.Source.Path = "//" }},
		{"backup.path", func(p *Pair) { p.Backup.Path = "/etc" }},
		{"backup.path", func(p *Pair) { p.Backup.Path = "/var" }},
		{"backup.path", func(p *Pair) { p.Backup.Path = "/efi/x" }},
		{"backup.path", func(p *Pair) { p.Backup.Path = "/usr/local/www" }},
		{"backup.path", func(p *Pair) { p.Backup.Path = "/usr/local"; p.Transport = SSH }},
		{"backup.path", func(p *Pair) { p.Backup.Path = "/b\\" }},
		{"backup.path", func(p *Pair) { p.Backup.Host = "nfs01"; p.Backup.Path = "/data/b" }},
		{"backup.path", func(p *Pair) {
			p.Source.Address, p.Backup.Address = "127.0.0.1", "localhost"
			p.Backup.Path = "/data/b"
		}},
		{"backup.port", func(p *Pair) { p.Backup.Port = 0 }},
		{"backup.uid", func(p *Pair) { p.Backup.UID = "4294967295" }},
		{"backup.gid", func(p *Pair) { p.Backup.GID = "a b" }},
		{"auth.user", func(p *Pair) { p.Auth.User = "@admins" }},
		{"auth.user", func(p *Pair) { p.Auth.User = "a:b" }},
		{"exclude[0]", func(p *Pair) { p.Exclude = []string{"a\nb"} }},
		{"exclude", func(p *Pair) { p.Exclude = slices.Repeat([]string{"a"}, 1001) }},
		{"full.exclude[0]", func(p *Pair) { p.Full.Exclude = []string{""} }},
		{"watch.events", func(p *Pair) { p.Watch.Events = nil }},
		{"watch.delay", func(p *Pair) { p.Watch.Delay = 0 }},
		{"watch.max_delay", func(p *Pair) { p.Watch.MaxDelay = Duration(time.Millisecond) }},
		{"transfer.timeout", func(p *Pair) { p.Transfer.Timeout = Duration(1500 * time.Millisecond) }},
		{"transfer.options[0]", func(p *Pair) { p.Transfer.Options = []string{"--delete"} }},
		{"transfer.options[1]", func(p *Pair) { p.Transfer.Options = []string{"-A", "--acls"} }},
		{"transfer.options[1]", func(p *Pair) { p.Transfer.Options = []string{"-4", "-6"} }},
		{"full.every", func(p *Pair) { p.Full.Every = "TZ=" }},
		{"full.every", func(p *Pair) { p.Full.Every = "0 0 30 2 *" }},
		{"retry.max", func(p *Pair) { p.Retry.Max = 1 }},
		{"hooks[0].argv", func(p *Pair) { p.Hooks = []Hook{{Name: "a", Type: "command", Timeout: 1e9}} }},
		{"hooks[0].argv[0]", func(p *Pair) { p.Hooks = []Hook{{Name: "a", Type: "command", Timeout: 1e9, Argv: []string{"{path}"}}} }},
		{"hooks[0].url", func(p *Pair) {
			p.Hooks = []Hook{{Name: "a", Type: "http", Timeout: 1e9, Method: "GET", URL: "http://{path}.example.com/"}}
		}},
		{"hooks[1].name", func(p *Pair) {
			h := Hook{Name: "a", Type: "socket", Timeout: 1e9, Network: "tcp", Address: "[::1]:1"}
			p.Hooks = []Hook{h, h}
		}},
		{"metrics.listen", func(p *Pair) { p.Metrics.Listen = "9100" }},
	} {
		p := short()
		tc.change(&p)
		ps := p.Validate()
		if len(ps) != 1 || ps[0].Path != tc.path {
			t.Errorf("want one problem at %s, got %v", tc.path, ps)
		}
	}
	if ps := short().Validate(); ps != nil {
		t.Error(ps)
	}
	for _, path := range []string{"/dev/shm/x", "/run/media/disk", "/usr/local/www", "/home", "/srv/100%", "/a b"} {
		p := short()
		p.Source.Path, p.Backup.Path = path, path
		if below(path, "/usr") {
			p.Transport = SSH
			p.Complete()
		}
		if ps := p.Validate(); ps != nil {
			t.Errorf("%s: %v", path, ps)
		}
	}
}

func TestEdits(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"ture", "true", 1}, {"exclud", "exclude", 1}, {"prot", "port", 1}, {"kitten", "sitting", 3}} {
		if got := edits(tc.a, tc.b); got != tc.want {
			t.Errorf("edits(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/valid/*.txtar", "testdata/invalid/*.txtar"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(archive.Files[0].Data)
		}
	}
	examples, _ := filepath.Glob("../../examples/pairs/*.yaml")
	for _, file := range examples {
		data, _ := os.ReadFile(file)
		f.Add(data)
	}
	data, _ := json.Marshal(short())
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			var ps Problems
			if !errors.As(err, &ps) || len(ps) == 0 || fmt.Sprint(err) == "" {
				t.Fatalf("an error that says nothing: %#v", err)
			}
			return
		}
		checkRoundTrip(t, p)
	})
}
