// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	fenced = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	// In a page: [words](target), and ![picture](target). In any file: our pages by their address.
	mdLink  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	webLink = regexp.MustCompile(`https://github\.com/lockstep-sync/lockstep/(?:blob|tree|raw)/main/([\w./-]*[\w/-])(#[\w-]+)?`)
)

// Every link from a page to a place of ours leads to a file and a heading that are there, and so does every address of ours that a unit, an
// alert or a message gives.
func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	seen := 0
	check := func(file, target, anchor string) {
		seen++
		path := filepath.Join(repository, target)
		info, err := os.Stat(path)
		switch {
		case err != nil:
			t.Errorf("%s: a link to %s: %v", file, target, err)
		case anchor == "" || !strings.HasSuffix(target, ".md"):
		case info.IsDir() || !anchors(read(t, target))[anchor]:
			t.Errorf("%s: %s has no heading %q", file, target, anchor)
		}
	}
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		file, err := filepath.Rel(repository, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "__pycache__" || slices.Contains([]string{".git", "build", "dist"}, file)):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		text := read(t, file)
		for _, m := range webLink.FindAllStringSubmatch(text, -1) {
			check(file, m[1], strings.TrimPrefix(m[2], "#"))
		}
		if !strings.HasSuffix(file, ".md") {
			return nil
		}
		for _, m := range mdLink.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			switch {
			case strings.Contains(target, "://"), strings.HasPrefix(target, "mailto:"):
			case target == "":
				check(file, file, anchor)
			default:
				check(file, filepath.Join(filepath.Dir(file), target), anchor)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 80 {
		t.Errorf("only %d links were looked at", seen)
	}
}

// anchors are the places of a page that a link can lead to: its headings, as GitHub writes them, and what it names itself.
func anchors(page string) map[string]bool {
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		found[strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9_ -]`).ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	for _, m := range regexp.MustCompile(`<a (?:id|name)="([^"]+)">`).FindAllStringSubmatch(page, -1) {
		found[m[1]] = true
	}
	return found
}
