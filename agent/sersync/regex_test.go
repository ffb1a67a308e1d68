// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestTranslationIsExact holds translate against rsync itself and against sersync's three forms of a subject, on trees
// of generated names: where sersync has one answer rsync must give it, and where sersync has two, one of them.
func TestTranslationIsExact(t *testing.T) {
	t.Parallel()
	rsync, err := exec.LookPath("rsync")
	if err != nil {
		t.Skip("rsync is not installed\nhint: apt-get install rsync")
	}
	seed := uint64(1) // a landing must not depend on luck; SEED=$RANDOM looks further
	if text := os.Getenv("SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	trees := []map[string]bool{randomTree(t, r), randomTree(t, r)}
	roots := make([]string, len(trees))
	for i, tree := range trees {
		roots[i] = plant(t, tree)
	}
	expressions := []string{
		`(.*)\.svn`, `(.*)\.gz`, `^info/*`, `^static/*`, `(.*)\.php$`, `.*\.(jpe?g|png)`, `(.*).php`, `php`, `^/a/(.*)`, `/(.*)\.log`, `(.*)/cache`,
		`(.*)/cache/(.*)`, `cache/(.*)`, `cache/`, `(.*)cache(.*)`, `.*tmp.*`, `^test/test.txt`, `/test/test\.txt`, `^/test/test.txt`, `foo.*`, `foo.+`,
		`.*\d{4}\.log`, `[a-f]*`, `[a-f].*`, `[^/]*\.log`, `[^/]+/[^/]+`, `.*/[^/]+\.gz`, `.*[^a]`, `(info|static|cache)/*`, `(?:.*/)?info/?`, `.*\.svn/*`,
		`.*\.svn/`, `a?b?c?`, `(.*/)*info`, `.{3}`, `.*\.[a-z]{2,3}`, `\w\.php`, `a.*b.*`, `.*a.*o.*`, `/+info`, `info/+`, `.*~`, `.*/\.svn/.*`, `x\[1\]`, `.*\[1\].*`,
		`.*?\.gz`, `.*[./]php`, `.*[^.]php`, `info|.*/info`, `^$`, ``, `/`, `.`, `..`, `/.`, `a/*b`, `.*/a/.*/b`, `[^/]*..+[^/]`, `[^/]*.+x`, `[^/]*/x.*`, `.*x/[^/]*`, `.+x.[^/]*`,
	}
	for len(expressions) < 85 {
		e := randomExpression(r)
		if patterns, err := translate(e); err == nil && len(patterns) > 0 {
			expressions = append(expressions, e)
		}
	}
	translated := 0
	for _, e := range expressions {
		patterns, err := translate(e)
		if err != nil {
			t.Logf("%-24s refused: %v", e, err)
			continue
		}
		if len(patterns) > 0 {
			translated++
		}
		for i, tree := range trees {
			for _, wrong := range compare(t, e, tree, sent(t, rsync, roots[i], patterns)) {
				t.Errorf("%s as %q: %s", e, patterns, wrong)
			}
		}
	}
	if translated < 65 {
		t.Errorf("only %d expressions were translated", translated)
	}
	// The comparison itself must be able to fail.
	for e, pattern := range map[string]string{`(.*)\.gz`: "*.g", `^info/*`: "info", `(.*)/cache`: "cache", `/(.*)\.log`: "*.log"} {
		found := false
		for i, tree := range trees {
			found = found || len(compare(t, e, tree, sent(t, rsync, roots[i], []string{pattern}))) > 0
		}
		if !found {
			t.Errorf("%s as %s was found exact", e, pattern)
		}
	}
}

// components has names that expressions in use are about, and those next to them.
var components = []string{"a", "b", "c", "abc", "ab", "info", "infox", "xinfo", "static", "test", "test.txt", "testxtxt", "cache", "mycache", "cache2",
	"x.php", "php", ".php", "xphp", "a.svn", ".svn", "x.gz", "gz", "2024.log", "20240101", "x.log", "log", "a.jpg", "a.jpeg", "tmp", "x.tmp", "foo", "foobar", "x~",
	"x[1]", "x1", "a b", "ao"}

// randomTree maps paths to whether they are directories. Some paths are in every tree, so that each comparison that must
// fail does.
func randomTree(t *testing.T, r *rand.Rand) map[string]bool {
	t.Helper()
	tree := map[string]bool{"b": true, "b/info": false, "b/cache": false, "b/x.gz": false, "cache": false, "info": false, "x.log": false, "b/x.log": false, "b/x.g": false}
	var grow func(dir string, depth int)
	grow = func(dir string, depth int) {
		for _, i := range r.Perm(len(components))[:16-4*depth] {
			path := dir + components[i]
			if _, ok := tree[path]; ok {
				continue
			}
			tree[path] = depth < 3 && r.IntN(5) < 2
			if tree[path] {
				grow(path+"/", depth+1)
			}
		}
	}
	grow("", 0)
	return tree
}

func plant(t *testing.T, tree map[string]bool) string {
	t.Helper()
	root := t.TempDir()
	paths := make([]string, 0, len(tree))
	for path := range tree {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		full := filepath.Join(root, path)
		var err error
		if tree[path] {
			err = os.MkdirAll(full, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(full), 0o755); err == nil {
			err = os.WriteFile(full, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// sent lists what rsync would send with these exclude patterns.
func sent(t *testing.T, rsync, root string, patterns []string) map[string]bool {
	t.Helper()
	args := []string{"-rn", "--out-format=%n"}
	for _, p := range patterns {
		args = append(args, "--exclude="+p)
	}
	out, err := exec.Command(rsync, append(args, root+"/", filepath.Join(root, "not there")+"/")...).Output()
	if err != nil {
		t.Fatalf("rsync %q: %v", args, err)
	}
	paths := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		paths[strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "/")] = true
	}
	return paths
}

// compare returns where rsync's answer is none of sersync's.
func compare(t *testing.T, expression string, tree, sent map[string]bool) []string {
	t.Helper()
	re, err := regexp.Compile(`(?s)\A(?:` + expression + `)\z`)
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	event := func(path string) bool {
		if strings.Contains(path, "/") {
			path = "/" + path
		}
		return re.MatchString(path)
	}
	scan := func(path string) bool { return re.MatchString(path + "/") }
	var wrong []string
	for path, dir := range tree {
		must, may := event(path), event(path)
		if dir {
			must, may = must && scan(path), may || scan(path)
		}
		for i, c := range path {
			if c == '/' {
				above := path[:i]
				must = must || event(above) && scan(above)
				may = may || event(above) || scan(above)
			}
		}
		switch {
		case must && sent[path]:
			wrong = append(wrong, fmt.Sprintf("rsync sends %s, sersync does not", path))
		case !may && !sent[path]:
			wrong = append(wrong, fmt.Sprintf("rsync leaves out %s, sersync does not", path))
		}
	}
	return wrong
}

func randomExpression(r *rand.Rand) string {
	pieces := []string{"a", "b", "info", "cache", "test", "foo", "x", "o", `\.`, ".", ".*", "(.*)", ".+", "/", "/*", "/?", "[^/]*", "[^/]+", "[^/]", "[ab]", "[a-z]", "[^a]",
		"[^./]", "(a|b|info)", "(/|x)", `\d`, `\w`, "[0-9]{2}", "a?", "(?:ab)?", "(.*/)?", "log", "gz", "[/.]"}
	var b strings.Builder
	for range 1 + r.IntN(4) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

func TestWhatIsNotTranslated(t *testing.T) {
	t.Parallel()
	for _, e := range []string{`(?!x).*`, `(a)\1`, `a*`, `[0-9]+\.log`, `(ab)*`, `a{2,}`, `a{10}`, `a**`, `a^b`, `a$b`, `(a`, `a)`, `[a`, `a\`, `\bx`, `a\\b`, `[[:alpha:]]`,
		`[\\]`, `.*`, `(.*)(.*)`, `/?.*`, `[^/]*|/.*`, `.{8}.{8}`, `é*`, `[é]`, `a{`, `*a`, `+`, `{2}`, `(((((((((((a)))))))))))`, `.*+`} {
		if patterns, err := translate(e); err == nil {
			t.Errorf("%s was translated to %q", e, patterns)
		}
	}
}

func TestTranslationReadsWell(t *testing.T) {
	t.Parallel()
	for e, want := range map[string]string{
		`(.*)\.php`:            "*.php",
		`^info/*`:              "/info",
		`.*\.(gif|jpe?g)`:      "*.gif *.jpg *.jpeg",
		`(.*)cache(.*)`:        "*cache*",
		`(.*)/cache/(.*)`:      "/cache/** /**/cache/",
		`foo.*`:                "/foo*",
		`/(.*)\.log`:           "/*/**.log",
		`(.*).php`:             "*?php /**/php",
		`.*\d{2}`:              "*[0-9][0-9]",
		`x\[1\]`:               `/x\[1]`,
		`^test/test.txt`:       "",
		`数据/*`:                 "/数据",
		`.*[^./]`:              `*[^.]`,
		`(.*)\.svn/(.*)`:       "*.svn/",
		`/uploads/tmp/(.*)`:    "/uploads/tmp/**",
		`(.*)node_modules(.*)`: "*node_modules*",
	} {
		patterns, err := translate(e)
		if got := strings.Join(patterns, " "); err != nil || got != want {
			t.Errorf("%s became %q, %v; want %q", e, got, err, want)
		}
	}
}
