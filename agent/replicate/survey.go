// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// skipMany bounds the files that a recursive run leaves out: each is an argument of rsync.
const skipMany = 100

// survey looks at trees that are about to be sent by recursion. Rsync takes what it finds there, so what must not go with it has to be
// named: the files that are open for writing, or they would have their final names on the backup while they are short.
//
// A file that is made after the look, while the run lasts, is not known here. It is sent once more when it is closed.
type survey struct {
	p   *prepared
	r   root
	w   *writers
	now time.Time
}

// tree looks at everything below a directory. Each file that is waited for is in skip, and comes again by itself.
func (s *survey) tree(ctx context.Context, dir queue.Entry) {
	children, err := s.r.Children(dir.Path)
	if err != nil || ctx.Err() != nil {
		return // sending it tells
	}
	for _, c := range children {
		kid := dir
		kid.Path = join(dir.Path, c.Name)
		switch {
		case s.w.exclude.Match(kid.Path, c.Mode.IsDir()):
		case c.Mode.IsRegular():
			s.file(kid, c.Entry)
		case c.Mode.IsDir():
			s.tree(ctx, kid)
		default:
			s.p.several(c.Entry)
		}
	}
}

func (s *survey) file(e queue.Entry, st transfer.Entry) {
	p := s.p
	p.files++
	p.bytes += st.Size
	if e.Created && e.Compare && len(p.distrusted) == 0 && looksUnchanged(s.now, e, st) { // of a directory that took the place of another
		p.distrusted = append(p.distrusted, e.Path)
	}
	p.several(st)
	// To ask costs more than all the rest. Who copies a file writes to it all the time.
	if s.now.Sub(st.ModTime) > copyPause || !s.r.OpenForWriting(e.Path) {
		return
	}
	wait, o := s.w.wait(s.now, e, st)
	if !wait || len(p.busy) >= skipMany {
		return
	}
	p.busy[e.Path] = o
	e.Tree, e.Compare = false, false
	p.below = append(p.below, queue.Again{Entry: e, At: s.w.look(s.now, e)})
}

// skip is what the run has to leave out.
func (p *prepared) skip() []string { return slices.Sorted(maps.Keys(p.busy)) }
