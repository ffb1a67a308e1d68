// SPDX-License-Identifier: Apache-2.0

package watch

// Exclude matches paths against rsync exclude patterns (rsync(1) PATTERN MATCHING RULES).
type Exclude struct {
	patterns []string
}

// NewExclude reads an ordered list of rsync exclude patterns.
func NewExclude(patterns []string) (*Exclude, error) {
	return &Exclude{patterns: patterns}, nil
}

// Match tells whether path, or a directory above it, is excluded. Path is relative to the root.
func (e *Exclude) Match(path string, dir bool) bool {
	return false
}
