// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"slices"
	"strings"
	"time"
)

// List compares the source with the backup and changes neither. each gets every difference, in rsync's order:
// what is extraneous in a directory before the directory itself, a new directory before what is in it. Where two rsyncs share
// the tree that is the order of each half (Item.Half), and the halves are mixed. each is never called twice at once, nor after List
// has returned.
//
// Temporary files of transfers that run at the same time, and unfinished parts that the next transfer of their file
// will use, are not reported as extraneous. Parts of no use are, in the end, by the directory that holds them.
func (r *Runner) List(ctx context.Context, root *Root, opts ListOptions, each func(Item) error) Result {
	began := time.Now()
	paths := opts.Paths
	if len(paths) == 0 {
		paths = []string{""}
	}
	kind := Tree
	if !opts.Delete {
		kind, paths = Send, topMost(slices.Sorted(slices.Values(paths)))
	}
	paths, early, err := r.prepare(ctx, root, Job{Kind: kind, Paths: paths, Full: true})
	if err != nil {
		return r.notRun(ctx, early, err)
	}
	early.Incomplete = len(early.Failed) > 0
	if len(paths) == 0 {
		return merge(early, Result{Status: -1})
	}
	mode := listMode
	if opts.Checksum {
		mode = append(slices.Clone(mode), "--checksum")
	}
	if opts.Delete {
		mode = append(slices.Clone(mode), "--delete")
	}
	// Of what comes with a list, rsync 3.5 looks up every path from the top, component by component, which doubles its work.
	c, list := run{mode: mode, full: true, whole: paths[0] == ""}, []byte(nil)
	if !c.whole {
		list = fileList(paths)
	}
	f := leftovers{root: root, mayOwn: r.writers.watch()}
	take := func(it Item) error {
		if it.Extraneous && f.inUse(it) {
			return nil
		}
		f.differs(it)
		return each(it)
	}
	var res Result
	if r.splits(opts) {
		res = r.listHalves(ctx, root, c, take)
	} else {
		res = r.exec(ctx, runList, root, paths, list, r.args(c), func(line string) error {
			if it, ok := parseItem(line); ok {
				return take(it)
			}
			return nil
		})
	}
	res = merge(early, res)
	res.Incomplete = res.Incomplete || readFailures(res)
	if res.Class == Done && !res.Incomplete {
		for _, it := range f.useless() {
			if each(it) != nil {
				break
			}
		}
	}
	res.Hidden, res.PartsLeft = f.hidden, f.left
	res.Elapsed = time.Since(began)
	return res
}

// BackupEmpty reports whether the backup has nothing that a comparison would see. When that could not be told in full, it is false.
func (r *Runner) BackupEmpty(ctx context.Context, root *Root) (bool, Result) {
	extraneous, made := false, int64(0)
	res := r.exec(ctx, runList, root, []string{""}, nil, r.args(run{mode: emptyMode, full: true, whole: true}), func(line string) error {
		it, ok := parseItem(line)
		if ok && it.Extraneous {
			extraneous = true
			return ErrStop
		}
		if ok && it.New {
			made++
		}
		return nil
	})
	const self = 1 // the source directory is in rsync's list, too
	return res.Class == Done && len(res.Failed) == 0 && !extraneous && made == res.Stats.Files-self, res
}

func readFailures(res Result) bool {
	return slices.ContainsFunc(res.Failed, func(f PathFailure) bool { return !f.Remote })
}

// leftovers knows what rsync itself leaves on the backup for a while.
type leftovers struct {
	root   *Root
	mayOwn func(path string) bool
	parts  map[string]*parts // by the directory that they are in
	files  map[string]bool   // those that the parts are of; true when they are to be sent
	hidden bool              // what may be of a run that sends was passed over
	left   bool              // parts of no use were passed over
}

// parts is one of rsync's directories for parts.
type parts struct {
	dir   Item
	files []string
}

// differs notes a file that is to be sent. Rsync tells what is extraneous in a directory before the files of it.
func (l *leftovers) differs(it Item) {
	if _, ok := l.files[it.Path]; ok && strings.HasPrefix(it.What, "<") {
		l.files[it.Path] = true
	}
}

// useless returns the directories in which no part is of use. Rsync continues from a part when it sends the file, and removes
// it then.
func (l *leftovers) useless() (dirs []Item) {
	for dir, p := range l.parts {
		used := 0
		for _, file := range p.files {
			_, name := split(file)
			if e, err := l.root.Lstat(file); err != nil || !e.Mode.IsRegular() {
				continue
			}
			if l.files[file] {
				used++
			} else if l.mayOwn(join(dir, name)) {
				l.hidden = true
				used++
			}
		}
		switch {
		case !p.dir.Extraneous: // something excluded keeps it
		case used == 0:
			dirs = append(dirs, p.dir)
		case used < len(p.files):
			l.left = true
		}
	}
	slices.SortFunc(dirs, func(a, b Item) int { return strings.Compare(a.Path, b.Path) })
	return dirs
}

// in returns what is known of a directory for parts.
func (l *leftovers) in(dir string) *parts {
	if l.parts == nil {
		l.parts, l.files = map[string]*parts{}, map[string]bool{}
	}
	p := l.parts[dir]
	if p == nil {
		p = &parts{}
		l.parts[dir] = p
	}
	return p
}

// inUse reports whether an extraneous item is not the user's and will go, or be used, by itself, or is told of in the end.
func (l *leftovers) inUse(it Item) bool {
	dir, name := split(it.Path)
	if name == partialDir && it.Dir {
		l.in(it.Path).dir = it
		return true
	}
	if parent, last := split(dir); last == partialDir {
		file, p := join(parent, name), l.in(dir)
		if _, told := l.files[file]; !told { // by the other half
			l.files[file], p.files = false, append(p.files, file)
		}
		return true
	}
	if m := tempName.FindStringSubmatch(name); m != nil && !it.Dir {
		// Of a name that is too long with the additions, rsync takes the beginning.
		if len(name) <= 240 {
			if !l.regular(join(dir, m[1])) && !l.regular(join(dir, "."+m[1])) {
				return false
			}
		}
		if l.mayOwn(it.Path) {
			l.hidden = true
			return true
		}
	}
	return false
}

func (l *leftovers) regular(path string) bool {
	e, err := l.root.Lstat(path)
	return err == nil && e.Mode.IsRegular()
}

// ListMissing lists everything that a Delete job of these paths would delete on the backup, and changes nothing. Of
// a path that is on disk and no directory it lists what a Send with Force would delete to make way for it.
// What is protected by an exclude is not listed.
func (r *Runner) ListMissing(ctx context.Context, root *Root, paths []string, each func(Item) error) Result {
	began := time.Now()
	var missing, present []string
	for _, p := range paths {
		if e, err := root.Lstat(p); err == nil && !e.Mode.IsDir() {
			present = append(present, p)
		} else {
			missing = append(missing, p)
		}
	}
	extraneous := func(line string) error {
		if it, ok := parseItem(line); ok && it.Extraneous {
			return each(it)
		}
		return nil
	}
	res := Result{Status: -1}
	for _, half := range []struct {
		job  Job
		mode []string
		kind runKind
	}{
		{Job{Kind: Delete, Paths: missing}, listMissingMode, runDelete},
		{Job{Kind: Send, Force: true, Paths: present}, listForceMode, runForce},
	} {
		list, early, err := r.prepare(ctx, root, half.job)
		if err != nil {
			return r.notRun(ctx, early, err)
		}
		early.Status = res.Status
		one := early
		if len(list) > 0 {
			one = merge(early, r.exec(ctx, half.kind, root, list, fileList(list), r.args(run{mode: half.mode}), extraneous))
		}
		res = merge(res, one)
		if res.Class != Done {
			break
		}
	}
	res.Incomplete = res.Incomplete || readFailures(res)
	res.Elapsed = time.Since(began)
	return res
}
