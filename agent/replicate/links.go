// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

const (
	// linksPace bounds the comparisons for the sake of files with several names, or of broken transfers: at most a tenth of the time.
	linksPace = 10

	// linksKnown is how many such files are remembered, at about 100 bytes each. When one is forgotten, its next look
	// costs a comparison.
	linksKnown = 100_000
)

// links is what is known of files with several names (hard links).
//
// The kernel tells of a change under the name that it was made through, and of no other; and the backup has a file of
// its own for each name, unless rsync --hard-links is given, which sees the names of one run only. So when such a file
// was changed, source and backup are compared once more, and the pair is not in step until then. The status change
// time tells one change from the next: the names that the comparison finds have the same.
type links struct {
	known  map[inode]time.Time // status change time for which a comparison was asked
	wanted bool
}

type inode struct{ dev, ino uint64 }

// several notes a file that is about to be sent and has several names.
func (p *prepared) several(st transfer.Entry) {
	if st.Nlink < 2 {
		return
	}
	if p.links == nil {
		p.links = map[inode]time.Time{}
	}
	p.links[inode{st.Dev, st.Ino}] = st.ChangeTime
}

// linksWalked is how many entries of a tree are looked at for files with several names. A larger tree counts as if it had one.
const linksWalked = 100_000

// severalBelow notes the files with several names in a tree that is about to be sent as a whole, and how many files there
// are and how large. It returns false when there are too many entries to look at.
func (p *prepared) severalBelow(r root, dir string, left *int) bool {
	children, err := r.Children(dir)
	if err != nil {
		return true // sending it tells
	}
	if *left -= len(children); *left < 0 {
		return false
	}
	for _, c := range children {
		switch {
		case c.Mode.IsRegular():
			p.several(c.Entry)
			p.files++
			p.bytes += c.Size
		case c.Mode.IsDir():
			if !p.severalBelow(r, join(dir, c.Name), left) {
				return false
			}
		}
	}
	return true
}

// linked asks for a comparison when a file with several names was changed.
func (l *loop) linked(files map[inode]time.Time) {
	for id, changed := range files {
		if l.links.known[id].Equal(changed) {
			continue
		}
		if l.links.known == nil || len(l.links.known) >= linksKnown {
			l.links.known = map[inode]time.Time{}
		}
		l.links.known[id] = changed
		l.links.wanted, l.full.valid = true, false
	}
}
