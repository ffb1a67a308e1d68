// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"slices"
	"strings"
)

// topMost leaves out every path that lies below another one. It sorts its argument.
func topMost(paths []string) []string {
	// Byte order is not enough: "a-b" stands between "a" and "a/b".
	slices.SortFunc(paths, comparePaths)
	out := paths[:0]
	for _, p := range paths {
		if len(out) > 0 && isBelow(p, out[len(out)-1]) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// comparePaths orders paths so that everything below a directory follows it at once.
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			switch {
			case a[i] == '/':
				return -1
			case b[i] == '/':
				return 1
			}
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}

// isBelow reports whether path is dir or lies below it.
func isBelow(path, dir string) bool {
	return dir == "" || strings.HasPrefix(path, dir) && (len(path) == len(dir) || path[len(dir)] == '/')
}

// isBelowAny is isBelow for one of several directories.
func isBelowAny(path string, dirs map[string]bool) bool {
	if len(dirs) == 0 {
		return false
	}
	for ok := true; ok; path, ok = parentOf(path) {
		if dirs[path] {
			return true
		}
	}
	return false
}

// parentOf returns the directory that a path lies in; ok is false for the root.
func parentOf(path string) (parent string, ok bool) {
	if path == "" {
		return "", false
	}
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], true
}
