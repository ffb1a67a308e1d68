// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// node is a file, with its content, or a directory.
type node struct {
	dir     bool
	data    string
	size    int64
	mounted bool // something is mounted on it
}

// tree is a directory tree by path; the root itself is not in it.
type tree map[string]node

func (t tree) clone() tree { return maps.Clone(t) }

// below returns the paths below a directory, parents first.
func (t tree) below(dir string) []string {
	var out []string
	for p := range t {
		if p != dir && isBelow(p, dir) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, comparePaths)
	return out
}

func (t tree) remove(p string) {
	for _, q := range t.below(p) {
		delete(t, q)
	}
	delete(t, p)
}

// put makes a node and the directories above it, whatever is in the way.
func (t tree) put(p string, n node) {
	for dir, ok := parentOf(p); ok && dir != ""; dir, ok = parentOf(dir) {
		if old, there := t[dir]; !there || !old.dir {
			t[dir] = node{dir: true}
		}
	}
	if !n.dir && t[p].dir {
		t.remove(p)
	}
	t[p] = n
}

// reach reports whether every directory above p is one.
func (t tree) reach(p string) bool {
	for dir, ok := parentOf(p); ok && dir != ""; dir, ok = parentOf(dir) {
		if !t[dir].dir {
			return false
		}
	}
	return true
}

// fakeRun is one call of the engine.
type fakeRun struct {
	at   time.Duration // since the beginning
	what string        // send, tree, delete, force, list, missing, probe
	job  []string
}

func (r fakeRun) String() string { return fmt.Sprintf("%v %s %q", r.at, r.what, r.job) }

// fakeEngine is a source and a backup in memory, with the rules of package transfer.
type fakeEngine struct {
	mu    sync.Mutex
	began time.Time
	src   tree
	dst   tree
	id    transfer.Identity
	gone  bool // the source directory
	open  map[string]bool
	takes time.Duration
	// changed is when a file was last changed, where that counts.
	changed map[string]time.Time
	runs    []fakeRun
	told    []fakeRun // events, for the log of a failed test
	// answer may give a result of its own instead of doing a run; nil does it.
	answer func(what string, paths []string) *transfer.Result
	// listLate is how long a comparison takes to tell what it has found.
	listLate time.Duration
	// listEnd is the result of a comparison that has told what it found; nil is that it came to its end.
	listEnd *transfer.Result
	// answerLate is how long the answer to ListMissing takes after it was found.
	answerLate time.Duration
	// during is called in the middle of a run that sends or deletes.
	during  func(what string, paths []string)
	locked  map[string]bool // cannot be read, or not be looked into
	standby int             // runs that were asked to let one stand by for the next
	closed  int             // calls of Close

	onDelete func(p string) // for each entry that is deleted on the backup
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{
		began: time.Now(), src: tree{}, dst: tree{}, id: transfer.Identity{FS: "fsid:fake-1", Ino: 2}, open: map[string]bool{}, locked: map[string]bool{},
		takes: 10 * time.Millisecond,
	}
}

type fakeRoot struct {
	e  *fakeEngine
	id transfer.Identity
}

func (e *fakeEngine) Open() (root, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, &fs.PathError{Op: "open", Path: "/data", Err: fs.ErrNotExist}
	}
	return fakeRoot{e, e.id}, nil
}

func (r fakeRoot) Close() error { return nil }

func (r fakeRoot) Identity() (transfer.Identity, error) { return r.id, nil }

func (r fakeRoot) Empty() (bool, error) {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	if r.e.locked[""] {
		return false, fs.ErrPermission
	}
	return len(r.e.src) == 0, nil
}

func (r fakeRoot) Lstat(p string) (transfer.Entry, error) {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	return r.e.lstat(p)
}

func (e *fakeEngine) lstat(p string) (transfer.Entry, error) {
	if p == "" {
		return transfer.Entry{Mode: fs.ModeDir}, nil
	}
	for dir, ok := parentOf(p); ok; dir, ok = parentOf(dir) {
		if e.locked[dir] {
			return transfer.Entry{}, &fs.PathError{Op: "lstat", Path: p, Err: fs.ErrPermission}
		}
	}
	n, ok := e.src[p]
	if !ok || !e.src.reach(p) {
		return transfer.Entry{}, fs.ErrNotExist
	}
	if n.dir {
		return transfer.Entry{Mode: fs.ModeDir | 0o755, Nlink: 2}, nil
	}
	st := transfer.Entry{Mode: 0o644, Size: max(n.size, int64(len(n.data))), Nlink: 1, ChangeTime: e.changed[p]}
	if e.open[p] {
		st.ModTime = time.Now() // whoever has it open writes to it all the time
	}
	return st, nil
}

func (r fakeRoot) OpenForWriting(p string) bool {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	return r.e.open[p]
}

func (r fakeRoot) MountedOn(dir string) bool {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	return r.e.src[dir].mounted
}

func (r fakeRoot) Children(dir string) ([]transfer.Child, error) {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	var out []transfer.Child
	for p := range r.e.src {
		if parent, ok := parentOf(p); ok && parent == dir {
			if st, err := r.e.lstat(p); err == nil {
				out = append(out, transfer.Child{Name: path.Base(p), Entry: st})
			}
		}
	}
	slices.SortFunc(out, func(a, b transfer.Child) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// begin notes a run, takes its time, and returns a result if the test has one.
func (e *fakeEngine) begin(ctx context.Context, what string, paths []string) *transfer.Result {
	e.mu.Lock()
	e.runs = append(e.runs, fakeRun{time.Since(e.began), what, slices.Clone(paths)})
	answer, takes := e.answer, e.takes
	e.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return &transfer.Result{Class: transfer.Stopped, Message: "stopped"}
	}
	if answer != nil {
		return answer(what, paths)
	}
	return nil
}

func (e *fakeEngine) Run(ctx context.Context, _ root, job transfer.Job, _ func(transfer.Progress)) transfer.Result {
	what := job.Kind.String()
	if job.Force {
		what = "force"
	}
	if job.Standby > 0 {
		e.set(func() { e.standby++ })
	}
	if res := e.begin(ctx, what, job.Paths); res != nil {
		return *res
	}
	e.mu.Lock()
	during := e.during
	there := map[string]bool{} // when rsync is started: what comes back later is passed over without a word
	for _, p := range job.Paths {
		_, err := e.lstat(p)
		there[p] = err == nil
	}
	e.mu.Unlock()
	if during != nil {
		during(what, job.Paths)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	res := transfer.Result{Standby: job.Standby > 0, Elapsed: e.takes}
	for _, p := range job.Paths {
		_, err := e.lstat(p)
		if job.Kind == transfer.Delete {
			switch {
			case err == nil && there[p]:
				res.Changed = append(res.Changed, p)
			case err == nil:
			case e.src.reach(p):
				e.drop(p, &res)
			default:
				res.Changed = append(res.Changed, e.top(p))
			}
			continue
		}
		if err != nil {
			res.Changed = append(res.Changed, p)
			continue
		}
		if job.Force && e.src[p].dir {
			res.Changed = append(res.Changed, p)
			continue
		}
		e.send(p, job.Force, &res)
		if job.Kind == transfer.Tree {
			for _, q := range e.src.below(p) {
				if !slices.Contains(job.Skip, q) {
					e.send(q, false, &res)
				}
			}
		}
	}
	return res
}

// top is the uppermost part of an absent path that is missing or no directory.
func (e *fakeEngine) top(p string) string {
	for i := range p {
		if p[i] == '/' && !e.src[p[:i]].dir {
			return p[:i]
		}
	}
	return p
}

func (e *fakeEngine) drop(p string, res *transfer.Result) {
	for _, q := range append(e.dst.below(p), p) {
		if _, ok := e.dst[q]; !ok {
			continue
		}
		res.Stats.Deleted++
		if e.onDelete != nil {
			e.onDelete(q)
		}
	}
	e.dst.remove(p)
}

func (e *fakeEngine) send(p string, force bool, res *transfer.Result) {
	if p == "" {
		return
	}
	n := e.src[p]
	if e.locked[p] {
		res.Failed = append(res.Failed, transfer.PathFailure{Path: p, Reason: "Permission denied (13)"})
		return
	}
	for _, b := range res.Blocked {
		if isBelow(p, b) {
			return
		}
	}
	if old := e.dst[p]; old.dir && !n.dir && len(e.dst.below(p)) > 0 {
		if !force {
			res.Blocked = append(res.Blocked, p)
			return
		}
		for _, q := range e.dst.below(p) {
			e.drop(q, res)
		}
	}
	if old := e.dst[p]; !n.dir && old != n {
		res.Stats.Transferred++
	}
	if _, there := e.dst[p]; !there {
		res.Stats.Created++
	}
	e.dst.put(p, n)
}

func (e *fakeEngine) List(ctx context.Context, _ root, opts transfer.ListOptions, each func(transfer.Item) error) transfer.Result {
	what := "list"
	if !opts.Delete {
		what = "look" // at what was sent
	}
	if res := e.begin(ctx, what, opts.Paths); res != nil {
		return *res
	}
	paths := opts.Paths
	if len(paths) == 0 {
		paths = []string{""}
	}
	var res transfer.Result
	var items []transfer.Item
	e.mu.Lock()
	for _, p := range paths {
		if _, err := e.lstat(p); err != nil {
			res.Changed = append(res.Changed, p)
			continue
		}
		extra := e.dst.below(p)
		slices.Reverse(extra) // children first
		for _, q := range extra {
			if _, ok := e.src[q]; !ok && opts.Delete {
				items = append(items, transfer.Item{Path: q, Dir: e.dst[q].dir, Extraneous: true})
			}
		}
		for _, q := range append([]string{p}, e.src.below(p)...) {
			if q == "" {
				continue
			}
			res.Stats.Files++
			if e.locked[q] {
				res.Incomplete = true
				res.Failed = append(res.Failed, transfer.PathFailure{Path: q, Reason: "Permission denied (13)"})
				res.Message = fmt.Sprintf("%q could not be read: Permission denied (13)", q)
				continue
			}
			old, there := e.dst[q]
			if old != e.src[q] {
				items = append(items, transfer.Item{Path: q, Dir: e.src[q].dir, New: !there})
			}
		}
	}
	late := e.listLate
	e.mu.Unlock()
	time.Sleep(late)
	if len(paths) == 1 && paths[0] == "" {
		res.Stats.Files++ // the root
	}
	for _, it := range items {
		if res.Incomplete && it.Extraneous {
			continue // rsync does not delete after an I/O error
		}
		if each(it) != nil {
			return transfer.Result{Class: transfer.Stopped}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listEnd != nil {
		return *e.listEnd
	}
	return res
}

func (e *fakeEngine) BackupEmpty(ctx context.Context, _ root) bool {
	if res := e.begin(ctx, "empty", nil); res != nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.dst) == 0
}

func (e *fakeEngine) ListMissing(ctx context.Context, _ root, paths []string, each func(transfer.Item) error) transfer.Result {
	if res := e.begin(ctx, "missing", paths); res != nil {
		return *res
	}
	var items []transfer.Item
	e.mu.Lock()
	for _, p := range paths {
		_, err := e.lstat(p)
		if n, ok := e.dst[p]; ok && err != nil {
			items = append(items, transfer.Item{Path: p, Dir: n.dir, Extraneous: true})
		}
		for _, q := range e.dst.below(p) {
			items = append(items, transfer.Item{Path: q, Dir: e.dst[q].dir, Extraneous: true})
		}
	}
	late := e.answerLate
	e.mu.Unlock()
	time.Sleep(late)
	for _, it := range items {
		if each(it) != nil {
			return transfer.Result{Class: transfer.Stopped}
		}
	}
	return transfer.Result{}
}

func (e *fakeEngine) Probe(ctx context.Context) transfer.Result {
	if res := e.begin(ctx, "probe", nil); res != nil {
		return *res
	}
	return transfer.Result{}
}

func (e *fakeEngine) Children() []int { return nil }

func (e *fakeEngine) Close() { e.set(func() { e.closed++ }) }

// count returns how many runs of a kind there were.
func (e *fakeEngine) count(what string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, r := range e.runs {
		if r.what == what {
			n++
		}
	}
	return n
}

// times returns when runs of a kind began.
func (e *fakeEngine) times(what string) []time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []time.Duration
	for _, r := range e.runs {
		if r.what == what {
			out = append(out, r.at)
		}
	}
	return out
}

func (e *fakeEngine) setAnswer(f func(what string, paths []string) *transfer.Result) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = f
}

// fails is an answer: runs of a kind, or all when it is "", come to nothing.
func fails(kind string, class transfer.Class, message string) func(string, []string) *transfer.Result {
	return func(what string, _ []string) *transfer.Result {
		if kind == "" || what == kind {
			return failure(class, message)
		}
		return nil
	}
}

// lasts is an answer: runs of a kind take longer, and are done then.
func lasts(kind string, d time.Duration) func(string, []string) *transfer.Result {
	return func(what string, _ []string) *transfer.Result {
		if what == kind {
			time.Sleep(d)
		}
		return nil
	}
}

// set changes the engine while it is in use.
func (e *fakeEngine) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// fakeWatcher delivers what the test gives it.
type fakeWatcher struct {
	reports chan watch.Report
	ready   chan struct{}
	end     chan error
	info    watch.Info
	exclude *watch.Exclude
}

func (w *fakeWatcher) Run(ctx context.Context) error {
	defer close(w.reports)
	select {
	case <-ctx.Done():
		return nil
	case err := <-w.end:
		return err
	}
}

func (w *fakeWatcher) Reports() <-chan watch.Report { return w.reports }

func (w *fakeWatcher) Ready() <-chan struct{} { return w.ready }

func (w *fakeWatcher) Info() watch.Info { return w.info }

func (w *fakeWatcher) SetExclude(e *watch.Exclude) { w.exclude = e }

func failure(class transfer.Class, message string) *transfer.Result {
	return &transfer.Result{Class: class, Status: 1, Message: message, Hint: "mend it"}
}
