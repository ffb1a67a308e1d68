// SPDX-License-Identifier: Apache-2.0

package watch

import "hash/maphash"

// dirID names a directory in a dirSet; 0 is none. An id is used again after the directory was removed.
type dirID uint32

// dirSet is the set of watched directories: found by path and by inode, each knowing its parent and children.
// With 100,000 of them every byte of an entry counts, so entries link to each other by number, live in chunks
// that never move, and share the bytes of their path with fsnotify.
type dirSet struct {
	chunks  []*[dirChunk]dir
	last    dirID // the highest id ever given out
	free    dirID // removed entries, linked by next
	len     int
	byPath  dirTable
	byInode dirTable
	seed    maphash.Seed
	devs    []uint64 // device numbers; few, so an entry has an index
}

const dirChunk = 512 // a chunk of 24 KiB: little is wasted on a small tree

type dir struct {
	path   string // absolute
	ino    uint64
	dev    uint32 // index into devs plus one; 0 = inode not known yet
	parent dirID
	first  dirID // child
	next   dirID // sibling
	prev   dirID // sibling
}

func newDirSet() *dirSet {
	return &dirSet{seed: maphash.MakeSeed()}
}

func (s *dirSet) at(id dirID) *dir { return &s.chunks[id/dirChunk][id%dirChunk] }

func (s *dirSet) path(id dirID) string { return s.at(id).path }

func (s *dirSet) hashPath(path string) uint32 { return uint32(maphash.String(s.seed, path)) }

func hashInode(dev uint32, ino uint64) uint32 {
	return uint32((ino*0x9e3779b97f4a7c15 + uint64(dev)*0xbf58476d1ce4e5b9) >> 32)
}

func (s *dirSet) pathHashOf(id dirID) uint32 { return s.hashPath(s.at(id).path) }

func (s *dirSet) inodeHashOf(id dirID) uint32 { return hashInode(s.at(id).dev, s.at(id).ino) }

// get returns the directory of that path, or 0.
func (s *dirSet) get(path string) dirID {
	if s.len == 0 {
		return 0
	}
	for i := s.byPath.begin(s.hashPath(path)); ; i = s.byPath.after(i) {
		id := s.byPath.slots[i]
		if id == 0 || s.at(id).path == path {
			return id
		}
	}
}

// inode returns the directory that was last said to have that inode, or 0.
func (s *dirSet) inode(dev, ino uint64) dirID {
	d := s.dev(dev, false)
	if d == 0 || s.byInode.used == 0 {
		return 0
	}
	for i := s.byInode.begin(hashInode(d, ino)); ; i = s.byInode.after(i) {
		id := s.byInode.slots[i]
		if id == 0 || s.at(id).ino == ino && s.at(id).dev == d {
			return id
		}
	}
}

// add puts a directory in, which must not be there yet, below parent, which must be there unless it is 0.
func (s *dirSet) add(path string, parent dirID) dirID {
	id := s.free
	if id != 0 {
		s.free = s.at(id).next
	} else {
		s.last++
		id = s.last
		if int(id/dirChunk) == len(s.chunks) {
			s.chunks = append(s.chunks, new([dirChunk]dir))
		}
	}
	d := s.at(id)
	*d = dir{path: path, parent: parent}
	if parent != 0 {
		p := s.at(parent)
		if d.next = p.first; d.next != 0 {
			s.at(d.next).prev = id
		}
		p.first = id
	}
	s.byPath.put(s.hashPath(path), id, s.pathHashOf)
	s.len++
	return id
}

// identify says which inode the directory is.
func (s *dirSet) identify(id dirID, dev, ino uint64) {
	d := s.at(id)
	if d.dev != 0 {
		s.byInode.remove(s.inodeHashOf(id), id, s.inodeHashOf)
	}
	d.dev, d.ino = s.dev(dev, true), ino
	s.byInode.put(s.inodeHashOf(id), id, s.inodeHashOf)
}

// remove takes out one directory, whose children must be gone.
func (s *dirSet) remove(id dirID) {
	d := s.at(id)
	if d.first != 0 {
		panic("bug: removing a directory before its children")
	}
	s.byPath.remove(s.pathHashOf(id), id, s.pathHashOf)
	if d.dev != 0 {
		s.byInode.remove(s.inodeHashOf(id), id, s.inodeHashOf)
	}
	switch {
	case d.prev != 0:
		s.at(d.prev).next = d.next
	case d.parent != 0:
		s.at(d.parent).first = d.next
	}
	if d.next != 0 {
		s.at(d.next).prev = d.prev
	}
	*d = dir{next: s.free}
	s.free = id
	s.len--
}

// removeTree takes out a directory and all below it, the lowest first, and calls gone with what was the id and the path of
// each.
func (s *dirSet) removeTree(top dirID, gone func(id dirID, path string)) {
	for id := top; ; {
		if first := s.at(id).first; first != 0 {
			id = first
			continue
		}
		path, parent := s.at(id).path, s.at(id).parent
		s.remove(id)
		gone(id, path)
		if id == top {
			return
		}
		id = parent
	}
}

// each calls f for every directory, in no order, until it returns false. f must not change the set.
func (s *dirSet) each(f func(id dirID) bool) {
	for id := dirID(1); id <= s.last; id++ {
		if s.at(id).path != "" && !f(id) {
			return
		}
	}
}

func (s *dirSet) dev(dev uint64, add bool) uint32 {
	for i, d := range s.devs {
		if d == dev {
			return uint32(i) + 1
		}
	}
	if !add {
		return 0
	}
	s.devs = append(s.devs, dev)
	return uint32(len(s.devs))
}

// dirTable is a hash table of ids with linear probing: four bytes a slot, a quarter of them empty.
type dirTable struct {
	slots []dirID // a power of two
	used  int
}

func (t *dirTable) begin(hash uint32) int { return int(hash) & (len(t.slots) - 1) }

func (t *dirTable) after(i int) int { return (i + 1) & (len(t.slots) - 1) }

func (t *dirTable) put(hash uint32, id dirID, hashOf func(dirID) uint32) {
	if 4*(t.used+1) > 3*len(t.slots) {
		old := t.slots
		t.slots = make([]dirID, max(16, 2*len(old)))
		for _, o := range old {
			if o != 0 {
				t.insert(hashOf(o), o)
			}
		}
	}
	t.insert(hash, id)
	t.used++
}

func (t *dirTable) insert(hash uint32, id dirID) {
	i := t.begin(hash)
	for t.slots[i] != 0 {
		i = t.after(i)
	}
	t.slots[i] = id
}

// remove takes id out and moves back those that had to give way to it, so that no search ends too early.
func (t *dirTable) remove(hash uint32, id dirID, hashOf func(dirID) uint32) {
	i := t.begin(hash)
	for t.slots[i] != id {
		if t.slots[i] == 0 {
			panic("bug: directory is not in the table")
		}
		i = t.after(i)
	}
	for j := t.after(i); t.slots[j] != 0; j = t.after(j) {
		home := t.begin(hashOf(t.slots[j]))
		if (j-home)&(len(t.slots)-1) >= (j-i)&(len(t.slots)-1) {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = 0
	t.used--
}
