// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"strings"
)

// edit is one line of a comparison: ' ', '-' or '+', and its line numbers in both texts.
type edit struct {
	op       byte
	old, now int
	text     string
}

// maxCells bounds the memory of a comparison; past it, one text is shown as replaced by the other.
const maxCells = 4 << 20

// compare finds a shortest list of removed and added lines by the table of longest common subsequences.
func compare(old, now []string) []edit {
	start := 0
	for start < len(old) && start < len(now) && old[start] == now[start] {
		start++
	}
	end := 0
	for end < len(old)-start && end < len(now)-start && old[len(old)-1-end] == now[len(now)-1-end] {
		end++
	}
	a, b := old[start:len(old)-end], now[start:len(now)-end]
	var edits []edit
	for i := range start {
		edits = append(edits, edit{' ', i, i, old[i]})
	}
	i, j := 0, 0
	if len(a)*len(b) <= maxCells {
		width := len(b) + 1
		common := make([]int32, (len(a)+1)*width)
		for x := len(a) - 1; x >= 0; x-- {
			for y := len(b) - 1; y >= 0; y-- {
				if a[x] == b[y] {
					common[x*width+y] = common[(x+1)*width+y+1] + 1
				} else {
					common[x*width+y] = max(common[(x+1)*width+y], common[x*width+y+1])
				}
			}
		}
		for i < len(a) && j < len(b) {
			switch {
			case a[i] == b[j]:
				edits = append(edits, edit{' ', start + i, start + j, a[i]})
				i, j = i+1, j+1
			case common[(i+1)*width+j] >= common[i*width+j+1]:
				edits = append(edits, edit{'-', start + i, start + j, a[i]})
				i++
			default:
				edits = append(edits, edit{'+', start + i, start + j, b[j]})
				j++
			}
		}
	}
	for ; i < len(a); i++ {
		edits = append(edits, edit{'-', start + i, start + j, a[i]})
	}
	for ; j < len(b); j++ {
		edits = append(edits, edit{'+', start + i, start + j, b[j]})
	}
	for k := range end {
		edits = append(edits, edit{' ', len(old) - end + k, len(now) - end + k, old[len(old)-end+k]})
	}
	return edits
}

func splitLines(data []byte) []string {
	if len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// unified writes the hunks of a unified diff with three lines of context.
func unified(old, now []byte) string {
	const context = 3
	edits := compare(splitLines(old), splitLines(now))
	var b strings.Builder
	for i := 0; i < len(edits); {
		if edits[i].op == ' ' {
			i++
			continue
		}
		from, last := max(0, i-context), i
		for k := i; k < len(edits) && k <= last+2*context; k++ {
			if edits[k].op != ' ' {
				last = k
			}
		}
		to := min(len(edits), last+context+1)
		var oldLines, nowLines int
		for _, e := range edits[from:to] {
			if e.op != '+' {
				oldLines++
			}
			if e.op != '-' {
				nowLines++
			}
		}
		fmt.Fprintf(&b, "@@ -%s +%s @@\n", span(edits[from].old, oldLines), span(edits[from].now, nowLines))
		for _, e := range edits[from:to] {
			fmt.Fprintf(&b, "%c%s\n", e.op, e.text)
		}
		i = to
	}
	return b.String()
}

// span is a range of lines as diff(1) writes it: an empty one begins at the line before.
func span(first, lines int) string {
	if lines == 0 {
		return fmt.Sprintf("%d,0", first)
	}
	return fmt.Sprintf("%d,%d", first+1, lines)
}
