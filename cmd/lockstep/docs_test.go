// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/replicate"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repository, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var metricName = regexp.MustCompile(`\blockstep_[a-z0-9_]+\b`)

// scraped gives the metrics of an agent that has sent a file, with their types and labels.
func scraped(t *testing.T) (types map[string]string, labels map[string][]string) {
	t.Helper()
	p := newPatient(t)
	text := "name: data\nsource: {host: a, path: " + p.dir + "/data}\nbackup: {host: b, path: /backup, address: 127.0.0.1}\n"
	definition, err := pair.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	definition.Backup.Port = p.port
	runtime, err := os.MkdirTemp("", "lockstep") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(runtime) })
	agent, err := replicate.New(replicate.Options{Pair: definition, PasswordFile: p.passwordFile, StateDir: t.TempDir(), RuntimeDir: runtime, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	c := newClient("data", runtime)
	var body string
	for deadline := time.Now().Add(30 * time.Second); ; {
		resp, err := c.do(t.Context(), http.MethodGet, "/metrics")
		if err == nil {
			data, err := io.ReadAll(resp.Body)
			resp.Body.Close() //nolint:errcheck // read to its end
			if err != nil {
				t.Fatal(err)
			}
			body = string(data)
			// By then all that come later are there too.
			if strings.Contains(body, "lockstep_full_last_timestamp_seconds") && strings.Contains(body, "lockstep_last_in_step") && strings.Contains(body, "lockstep_transfers_total") {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the metrics are not complete: %v\n%s", err, body)
		}
		time.Sleep(20 * time.Millisecond)
	}
	types, labels = map[string]string{}, map[string][]string{}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(strings.TrimSpace(rest), " ")
			types[name] = kind
			continue
		}
		name := metricName.FindString(line)
		for _, m := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(line, -1) {
			if !strings.HasPrefix(line, "#") && m[1] != "pair" && !slices.Contains(labels[name], m[1]) {
				labels[name] = append(labels[name], m[1])
			}
		}
	}
	return types, labels
}

// Every alert fires when it should, with the words that it should say, and not before; Prometheus' own tool tells.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(repository, "packaging/prometheus")
	tests := read(t, "packaging/prometheus/alerts_test.yaml")
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(read(t, "packaging/prometheus/alerts.yaml"), -1)
	if len(alerts) == 0 {
		t.Fatal("no alerts")
	}
	for _, m := range alerts {
		if !regexp.MustCompile(`alertname: ` + m[1] + `\n +exp_alerts:\n`).MatchString(tests) {
			t.Errorf("no test lets %s fire", m[1])
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not in PATH\nhint: make deps unpacks it into build/tools; it comes with Prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// The panel State shows each state as what it is called; Prometheus' own tool computes it.
func TestTheDashboardShowsEachState(t *testing.T) {
	t.Parallel()
	var board struct {
		Panels []struct {
			Title       string
			Targets     []struct{ Expr string }
			FieldConfig struct {
				Defaults struct {
					Mappings []struct {
						Options map[string]struct{ Text string }
					}
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(read(t, "packaging/grafana/lockstep.json")), &board); err != nil {
		t.Fatal(err)
	}
	expr, codes := "", map[string]string{}
	for _, p := range board.Panels {
		if p.Title == "State" {
			expr = strings.ReplaceAll(p.Targets[0].Expr, "$pair", "data")
			for code, option := range p.FieldConfig.Defaults.Mappings[0].Options {
				codes[option.Text] = code
			}
		}
	}
	rules := "tests:\n"
	for _, state := range replicate.States() {
		if codes[string(state)] == "" {
			t.Errorf("the panel State has no words for %s", state)
			continue
		}
		rules += "- interval: 1m\n  input_series:\n"
		for _, other := range replicate.States() {
			value := "0x5"
			if other == state {
				value = "1x5"
			}
			rules += fmt.Sprintf("  - {series: 'lockstep_state{pair=\"data\", instance=\"a\", state=%q}', values: %s}\n", other, value)
		}
		rules += fmt.Sprintf("  promql_expr_test: [{expr: %q, eval_time: 2m, exp_samples: [{labels: '{pair=\"data\"}', value: %s}]}]\n", expr, codes[string(state)])
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not in PATH\nhint: make deps unpacks it into build/tools; it comes with Prometheus")
	}
	file := filepath.Join(t.TempDir(), "state.yaml")
	write(t, file, rules, 0o644)
	if out, err := exec.CommandContext(t.Context(), promtool, "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// The list of metrics in docs is the list of metrics; the alerts and the dashboard use no other.
func TestDocumentedMetricsAreTheMetrics(t *testing.T) {
	t.Parallel()
	types, labels := scraped(t)

	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(lockstep_\\w+)` \\| (\\w+) \\| (.*?) ?\\|").FindAllStringSubmatch(read(t, "docs/metrics.md"), -1) {
		documented[row[1]] = true
		if types[row[1]] != row[2] {
			t.Errorf("docs/metrics.md: %s is a %s, the agent says %q", row[1], row[2], types[row[1]])
		}
		var want []string
		for _, l := range labels[row[1]] {
			want = append(want, "`"+l+"`")
		}
		if got := strings.TrimSpace(row[3]); got != strings.Join(want, ", ") {
			t.Errorf("docs/metrics.md: %s has the labels %q, the agent gives %q", row[1], got, strings.Join(want, ", "))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(types)) {
		if !documented[name] {
			t.Errorf("docs/metrics.md has no row for %s", name)
		}
	}

	states := map[string]bool{}
	for _, s := range replicate.States() {
		states[string(s)] = true
	}
	checkQuery := func(where, expr string) {
		t.Helper()
		names := metricName.FindAllString(expr, -1)
		if len(names) == 0 && !strings.HasPrefix(expr, `up{`) {
			t.Errorf("%s: %q uses no metric of lockstep", where, expr)
		}
		for _, name := range names {
			if types[name] == "" {
				t.Errorf("%s: there is no metric %s", where, name)
			}
			if counter := strings.HasSuffix(name, "_total"); counter && !strings.Contains(expr, "rate(") && !strings.Contains(expr, "increase(") {
				t.Errorf("%s: %q shows a counter as it is", where, expr)
			}
		}
		for _, m := range regexp.MustCompile(`state="([^"]*)"`).FindAllStringSubmatch(expr, -1) {
			if !states[m[1]] {
				t.Errorf("%s: there is no state %q", where, m[1])
			}
		}
		if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.Count(expr, "{") != strings.Count(expr, "}") || strings.Count(expr, `"`)%2 != 0 {
			t.Errorf("%s: %q is not balanced", where, expr)
		}
	}

	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	dec := yaml.NewDecoder(strings.NewReader(read(t, "packaging/prometheus/alerts.yaml")))
	dec.KnownFields(true)
	if err := dec.Decode(&rules); err != nil {
		t.Fatal(err)
	}
	runbook := read(t, "docs/runbook.md")
	anchors := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(runbook, -1) {
		anchors[strings.ReplaceAll(strings.ToLower(strings.ReplaceAll(m[1], ",", "")), " ", "-")] = true
	}
	seen := map[string]bool{}
	for _, group := range rules.Groups {
		for _, r := range group.Rules {
			checkQuery("alert "+r.Alert, r.Expr)
			_, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "docs/runbook.md#")
			switch {
			case r.Alert == "" || seen[r.Alert]:
				t.Errorf("alert %q is unnamed or there twice", r.Alert)
			case r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "":
				t.Errorf("alert %s says too little: %+v", r.Alert, r)
			case !anchors[anchor]:
				t.Errorf("alert %s: docs/runbook.md has no section %q", r.Alert, anchor)
			}
			seen[r.Alert] = true
		}
	}
	for _, state := range []string{"failing", "held", "degraded", "paused"} {
		if !strings.Contains(read(t, "packaging/prometheus/alerts.yaml"), `state="`+state+`"`) {
			t.Errorf("no alert for %s", state)
		}
	}

	var board struct {
		UID, Title string
		Panels     []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "packaging/grafana/lockstep.json")), &board); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || p.Type == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			checkQuery("panel "+p.Title, strings.NewReplacer("$pair", "data", "$__rate_interval", "1m").Replace(target.Expr))
		}
	}
	if board.UID == "" || len(board.Panels) < 5 {
		t.Errorf("dashboard %q has %d panels", board.UID, len(board.Panels))
	}
}

// Every definition in docs and examples is valid, and every lockstep command that they show exists and takes its flags.
func TestDocsShowWhatThereIs(t *testing.T) {
	t.Parallel()
	page := manPage(t, "lockstep.8")
	known := map[string]bool{"help": true}
	for _, c := range commands() {
		known[c.name] = true
	}
	files := []string{"README.md", "docs/by-hand.md", "docs/runbook.md", "docs/metrics.md", "docs/terraform.md", "docs/hooks.md", "docs/ssh.md", "docs/lab.md", "docs/testing.md"}
	for _, file := range files {
		text := read(t, file)
		for _, m := range regexp.MustCompile("(?:^|[`\n#] ?)lockstep ([a-z]+)((?: [^`\n|>&;#]*)?)").FindAllStringSubmatch(text, -1) {
			if !known[m[1]] {
				if !strings.Contains(m[0], "`lockstep") && !strings.HasPrefix(m[0], "lockstep") {
					continue // prose
				}
				t.Errorf("%s: there is no command %q", file, "lockstep "+m[1])
				continue
			}
			for _, f := range regexp.MustCompile(`--[a-z-]+`).FindAllString(m[2], -1) {
				if !strings.Contains(page, f) {
					t.Errorf("%s: %q: no command has %s", file, strings.TrimSpace(m[0]), f)
				}
			}
		}
		for _, m := range regexp.MustCompile("(?ms)^```yaml\n(name: .*?)^```").FindAllStringSubmatch(text, -1) {
			if _, err := pair.Parse([]byte(m[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(text, -1) {
			if m[1] == "BENCHMARKS.md" {
				continue // written by make bench
			}
			if _, err := os.Stat(filepath.Join(repository, filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: a link leads nowhere: %v", file, err)
			}
		}
	}
	examples, err := filepath.Glob(filepath.Join(repository, "examples/pairs/*.yaml"))
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, example := range examples {
		data, err := os.ReadFile(example)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pair.Parse(data); err != nil {
			t.Errorf("%s: %v", example, err)
		}
	}
	// Whoever listens for metrics as the docs show can.
	if _, _, err := net.SplitHostPort(regexp.MustCompile(`listen: (\S+)`).FindStringSubmatch(read(t, "docs/metrics.md"))[1]); err != nil {
		t.Error(err)
	}
}

// A block of commands in README.md and docs/ names the host that it is for, and is run there by TestEveryPageCanBeFollowed in
// agent/internal/lab/e2e, or the line before it says why not.
func TestCommandsInDocsAreRunOrSayWhyNot(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join(repository, "docs/*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	followed := []string{"README.md", "docs/by-hand.md", "docs/runbook.md", "docs/metrics.md", // by that test
		"docs/migration.md"} // by TestMigrationFromSersyncAsDocumented
	for _, page := range append(pages, filepath.Join(repository, "README.md")) {
		name, err := filepath.Rel(repository, page)
		if err != nil {
			t.Fatal(err)
		}
		if name == "docs/migration.md" {
			continue // has a test of its own in the lab, which follows it
		}
		for _, m := range regexp.MustCompile("(?ms)^([^\n]*)\n```([^\n]*)\n(.*?)^```$").FindAllStringSubmatch(read(t, name), -1) {
			before, info, body := m[1], m[2], m[3]
			lang, host, _ := strings.Cut(info, " ")
			switch {
			case slices.Contains([]string{"yaml", "hcl", "json", "text", "promql", "ini", "xml"}, lang):
			case lang != "sh":
				t.Errorf("%s: a block of language %q:\n%s", name, info, body)
			case host == "":
				if !regexp.MustCompile(`^<!-- not run: .{10,} -->$`).MatchString(before) {
					t.Errorf("%s: nothing runs this, and nothing says why:\n%s", name, body)
				}
			case !slices.Contains([]string{"source", "backup", "both", "copy", "control"}, host) || !slices.Contains(followed, name):
				t.Errorf("%s: nothing runs a block for %q here:\n%s", name, host, body)
			}
		}
	}
}

// inspect visits the code of packages, without their tests.
func inspect(t *testing.T, packages []string, visit func(ast.Node)) {
	t.Helper()
	for _, dir := range packages {
		files, err := filepath.Glob(filepath.Join(repository, dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				visit(n)
				return true
			})
		}
	}
}

// literal is the text of a string in the code.
func literal(n ast.Node) (string, bool) {
	lit, ok := n.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

// A reason that the runbook explains is one that the code gives, in these words; or the kernel's.
func TestTheRunbookHasTheWordsOfTheAgent(t *testing.T) {
	t.Parallel()
	var said []string
	inspect(t, []string{"agent/replicate", "agent/transfer", "agent/watch"}, func(n ast.Node) {
		if text, ok := literal(n); ok {
			said = append(said, text)
		}
	})
	for errno := range syscall.Errno(134) {
		said = append(said, errno.Error())
	}
	page := read(t, "docs/runbook.md")
	checked := 0
	for _, section := range []string{"Held", "Degraded", "Failing"} {
		_, text, _ := strings.Cut(page, "\n## "+section+"\n")
		text, _, _ = strings.Cut(text, "\n## ")
		for _, row := range regexp.MustCompile(`(?m)^\| (\*[^|]*) \|`).FindAllStringSubmatch(text, -1) {
			for _, reason := range regexp.MustCompile(`\*([^*]+)\*`).FindAllStringSubmatch(row[1], -1) {
				for _, part := range regexp.MustCompile(`…|\b[nm]\b|[():]`).Split(reason[1], -1) {
					part = strings.ToLower(strings.TrimSpace(part))
					if len(part) < 5 {
						continue
					}
					checked++
					if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(strings.ToLower(s), part) }) {
						t.Errorf("%s: nothing says %q of %q", section, part, reason[1])
					}
				}
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d pieces were looked at", checked)
	}
}
