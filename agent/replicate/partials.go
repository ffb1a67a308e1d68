// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// maxPartials bounds the paths remembered in partials; past it a full batch finds what is left over.
const maxPartials = 10_000

// partials remembers the paths of transfers that were cut off. Rsync keeps what arrived of a file in a directory beside it, and
// removes that when the file is sent again. When it is not, because it is gone or no file any more, the
// directory would stay on the backup.
type partials struct {
	dirs  map[string]map[string]struct{} // the paths by the directory they lie in
	count int
}

// cutOff notes that a transfer of some paths did not come to its end.
func (l *loop) cutOff(now time.Time, w *work) {
	p := &l.partials
	if p.dirs == nil {
		p.dirs = map[string]map[string]struct{}{}
	}
	for _, e := range w.batch.Entries {
		dir, ok := parentOf(e.Path)
		if !ok {
			continue
		}
		if p.count >= maxPartials {
			*p = partials{}
			l.requestFull(now, "many transfers were cut off")
			return
		}
		if p.dirs[dir] == nil {
			p.dirs[dir] = map[string]struct{}{}
		}
		if _, known := p.dirs[dir][e.Path]; !known {
			p.dirs[dir][e.Path] = struct{}{}
			p.count++
		}
	}
}

// complete notes that a path was sent or is gone. When it was the last one of its directory, what may be left over there is
// taken to the door.
func (l *loop) complete(now, first time.Time, path string) {
	p := &l.partials
	if p.count == 0 {
		return
	}
	dir, _ := parentOf(path)
	if _, known := p.dirs[dir][path]; !known {
		return
	}
	delete(p.dirs[dir], path)
	p.count--
	if len(p.dirs[dir]) > 0 {
		return
	}
	delete(p.dirs, dir)
	if l.door.enabled {
		l.door.add(now, deletion{path: join(dir, transfer.PartialDir), first: first})
	}
}
