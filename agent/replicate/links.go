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
	if len(p.links) >= linksKnown {
		p.links[inode{}] = time.Now() // for all that are not remembered
		return
	}
	p.links[inode{st.Dev, st.Ino}] = st.ChangeTime
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
