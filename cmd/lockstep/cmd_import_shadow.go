// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/sersync"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

const (
	// maxFollowed is how many differences of a pair are followed by name, at about 300 bytes each. What is more is counted.
	maxFollowed = 100_000

	// maxNamed is how many paths the report of a pair names in each list.
	maxNamed = 10_000

	// shadowShare is how much of the time a comparison may take: both hosts have other things to do.
	shadowShare = 10
)

// What is the matter with a path. The words are those of the JSON report.
const (
	toSend    = "send"     // lockstep would send it
	toDelete  = "delete"   // lockstep would delete it on the backup
	toKeep    = "keep"     // only on the backup, where both leave it
	isLeftOut = "left out" // lockstep leaves it out by a rule
)

// difference is one path that source and backup do not have in common.
type difference struct {
	Path   string        `json:"path"`
	Bytes  []byte        `json:"path_base64,omitempty"` // of a name that is not UTF-8
	Action string        `json:"action"`
	Change string        `json:"change"` // new, contents, attributes, only on the backup
	Below  int           `json:"below,omitempty"`
	Cause  sersync.Cause `json:"cause"`
	Rule   string        `json:"rule,omitempty"`
	Since  time.Time     `json:"since"` // when it was first seen

	what    string
	dir     bool
	open    bool // it was changed within the settle time at the last look
	settled bool
}

// late is a path that sersync did bring, but after the settle time.
type late struct {
	Path    string  `json:"path"`
	Seconds float64 `json:"seconds"`
}

// shadow follows one pair beside the sersync that runs. One goroutine at a time uses it.
type shadow struct {
	Pair        string        `json:"pair"`
	Source      string        `json:"source"`
	Target      string        `json:"target"`
	Began       time.Time     `json:"began"`
	Last        time.Time     `json:"last_comparison,omitzero"`
	Comparisons int           `json:"comparisons"`
	Failed      int           `json:"failed_comparisons"`
	Problem     string        `json:"problem,omitempty"` // of the last comparison
	Hint        string        `json:"hint,omitempty"`
	Paths       int64         `json:"paths"`       // in the source, without what is left out
	LeftOut     int64         `json:"left_out"`    // in the source
	OnTheirWay  int           `json:"on_the_way"`  // they differ for less than the settle time
	More        int           `json:"more"`        // differences that are not followed by name
	Deletions   int           `json:"deletions"`   // entries on the backup
	Differences []*difference `json:"differences"` // those that have settled
	Late        []late        `json:"late"`
	LateCount   int           `json:"late_count"`
	Verdict     string        `json:"verdict"`

	def         pair.Pair
	live        sersync.Live
	settle      time.Duration
	shell       []string         // sersync's way by ssh
	ruled, bare *transfer.Runner // with the definition's rules, and without any; bare is nil if it has none
	rules       *watch.Exclude
	names       map[string]string // rule → where it stands
	unknown     bool              // there are rules that rules does not have
	followed    map[string]*difference
	first       time.Time // of the first comparison: a difference can be older than settle only after that
	incomplete  bool      // some of the source could not be read
	gains       bool      // the module takes no deletions, and none are wanted: what is only on the backup is not asked for
}

const (
	verdictSame      = "same"
	verdictDifferent = "different"
	verdictUnknown   = "unknown"
)

func newShadow(p pair.Pair, to sersync.Remote, live sersync.Live, settle time.Duration, rsync string) (*shadow, error) {
	opts := transfer.Options{
		Rsync:   rsync,
		Path:    p.Source.Path,
		Target:  transfer.Target{Address: to.Address, Port: to.Port, Module: to.Module, Path: to.Path, User: to.User, PasswordFile: to.PasswordFile},
		Timeout: time.Duration(p.Transfer.Timeout),
		Extra:   p.Transfer.Options,
	}
	target := to.Address + "::" + to.Module
	if to.Path != "" {
		target = strings.TrimPrefix(to.User+"@"+to.Address, "@") + ":" + to.Path
	}
	if len(to.Shell) > 0 {
		// As sersync, in the background, nobody is there to ask. Of an option that is given twice ssh takes the first.
		opts.Target.Shell = append(slices.Clone(to.Shell), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
	}
	s := &shadow{
		Pair: p.Name, Source: p.Source.Path, Target: target, Began: time.Now(),
		Differences: []*difference{}, Late: []late{}, def: p, live: live, settle: settle, shell: opts.Target.Shell,
		names: map[string]string{}, followed: map[string]*difference{},
	}
	var list []string
	exclude := func(field string, patterns []string) {
		for _, pattern := range patterns {
			list = append(list, "- "+pattern)
			s.names["- "+pattern] = fmt.Sprintf("%s %q", field, pattern)
		}
	}
	exclude("exclude", p.Exclude)
	exclude("full.exclude", p.Full.Exclude)
	for _, rule := range p.Filter {
		if strings.HasPrefix(rule, "- ") || strings.HasPrefix(rule, "+ ") {
			list = append(list, rule)
			s.names[rule] = fmt.Sprintf("filter %q", rule)
		} else {
			s.unknown = true
		}
	}
	var err error
	if s.rules, err = watch.NewExclude(list); err != nil {
		return nil, err
	}
	if len(list) > 0 || s.unknown {
		if s.bare, err = transfer.New(opts); err != nil {
			return nil, err
		}
	}
	opts.Exclude, opts.Filter, opts.FullExclude = p.Exclude, p.Filter, p.Full.Exclude
	s.ruled, err = transfer.New(opts)
	return s, err
}

// listed is what one dry run found.
type listed struct {
	items   map[string]*difference // by path; what is below one that is new or extraneous as a whole is counted there
	more    int
	entries int // extraneous ones
	res     transfer.Result
}

// list asks what lockstep would do now. It changes nothing on either side.
func list(ctx context.Context, runner *transfer.Runner, root *transfer.Root, deletions bool) listed {
	l := listed{items: map[string]*difference{}}
	var extra []*difference // the top-most ones so far
	var fresh *difference
	l.res = runner.List(ctx, root, transfer.ListOptions{Delete: deletions}, func(it transfer.Item) error {
		d := &difference{Path: it.Path, what: it.What, dir: it.Dir}
		switch {
		case it.Extraneous:
			d.Change = "only on the backup"
			l.entries++
			// Rsync tells what is in a directory before the directory itself.
			for n := len(extra); n > 0 && it.Dir && strings.HasPrefix(extra[n-1].Path, it.Path+"/"); n-- {
				d.Below += 1 + extra[n-1].Below
				extra = extra[:n-1]
			}
			if len(extra) >= maxFollowed {
				l.more++
				return nil
			}
			extra = append(extra, d)
			return nil
		case it.New:
			if fresh != nil && strings.HasPrefix(it.Path, fresh.Path+"/") {
				fresh.Below++
				return nil
			}
			d.Change = "new"
			if it.Dir {
				fresh = d
			}
		case strings.HasPrefix(it.What, "."):
			d.Change = "attributes"
		default:
			d.Change = "contents"
		}
		if len(l.items) >= maxFollowed {
			l.more++
			return nil
		}
		l.items[it.Path] = d
		return nil
	})
	for _, d := range extra {
		l.items[d.Path] = d
	}
	return l
}

// round compares once, and takes in what was found. It reports what has settled since the last one.
func (s *shadow) round(ctx context.Context) (settled []*difference, res transfer.Result) {
	root, err := transfer.OpenRoot(s.def.Source.Path)
	if err != nil {
		return nil, transfer.Result{Class: transfer.Unknown, Message: err.Error()}
	}
	defer root.Close() //nolint:errcheck // read only
	if !s.def.Delete.Enabled && s.Comparisons == 0 {
		// A module may refuse --delete, as sersync never gives it then.
		s.gains = list(ctx, s.ruled, root, true).res.Class == transfer.Permanent
	}
	var bare listed
	if s.bare != nil {
		if bare = list(ctx, s.bare, root, !s.gains); bare.res.Class != transfer.Done {
			return nil, bare.res
		}
	}
	ruled := list(ctx, s.ruled, root, !s.gains)
	if ruled.res.Class != transfer.Done {
		return nil, ruled.res
	}
	now := time.Now()
	s.Last, s.Comparisons, s.Problem, s.Hint = now, s.Comparisons+1, "", ""
	s.Paths, s.LeftOut = ruled.res.Stats.Files, 0
	s.More, s.Deletions = ruled.more+bare.more, ruled.entries
	if s.incomplete = ruled.res.Incomplete; s.incomplete {
		s.Problem = "some of the source could not be read, so nobody knows what to delete: " + ruled.res.Message
		s.Hint = "run it as the user that sersync runs as"
	}
	found := map[string]*difference{}
	for _, d := range ruled.items {
		switch {
		case d.Change != "only on the backup":
			d.Action = toSend
		case s.def.Delete.Enabled:
			d.Action = toDelete
		default:
			d.Action = toKeep
		}
		found[d.Action+" "+d.Path] = d
	}
	if s.bare != nil {
		s.LeftOut = max(0, bare.res.Stats.Files-ruled.res.Stats.Files)
		for _, d := range bare.items {
			if _, ok := ruled.items[d.Path]; ok {
				continue
			}
			rule, ok := s.rules.Find(d.Path, d.dir)
			switch {
			case ok:
				d.Rule = s.names[rule]
			case s.unknown:
				d.Rule = "another filter rule"
			default:
				continue // it has arrived between the two runs
			}
			d.Action = isLeftOut
			found[d.Action+" "+d.Path] = d
		}
	}
	return s.take(now, found), ruled.res
}

// explain tells of a failure of sersync's ssh. What transfer says of one is about the key and the known hosts of the pair.
func (s *shadow) explain(res *transfer.Result) {
	const ownStatus, notFound = 255, 127 // ssh(1) and sh(1)
	if len(s.shell) == 0 || !slices.Contains([]int{ownStatus, notFound, transfer.ExitProtocol, transfer.ExitStreamIO}, res.Status) {
		return
	}
	host, _, _ := strings.Cut(s.Target, ":")
	lines := strings.Split(res.Stderr, "\n")
	for _, line := range slices.Backward(lines) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "rsync") {
			res.Message = fmt.Sprintf("ssh to %s: %s", host, line)
			break
		}
	}
	res.Hint = fmt.Sprintf("as the user that sersync runs as, this must end well: %s %s rsync --version", strings.Join(s.shell, " "), host)
}

// take holds what was found against what was there before.
func (s *shadow) take(now time.Time, found map[string]*difference) (settled []*difference) {
	for key, was := range s.followed {
		if _, ok := found[key]; ok {
			continue
		}
		if was.settled && was.Action != isLeftOut && was.Action != toKeep {
			s.LateCount++
			if len(s.Late) < maxNamed {
				s.Late = append(s.Late, late{was.Path, now.Sub(was.Since).Seconds()})
			}
		}
	}
	if s.first.IsZero() {
		s.first = now
	}
	s.OnTheirWay = 0
	for key, d := range found {
		d.Since = now
		if was, ok := s.followed[key]; ok {
			d.Since, d.settled = was.Since, was.settled
		}
		d.open = s.changing(now, d)
		d.Cause = s.live.Cause(d.Path, d.what, d.dir, d.open)
		switch {
		case d.settled:
		case now.Sub(d.Since) < s.settle, d.open && d.Cause != sersync.StillOpen:
			s.OnTheirWay++
		default:
			d.settled = true
			settled = append(settled, d)
		}
	}
	s.followed = found
	slices.SortFunc(settled, func(a, b *difference) int { return cmp.Compare(a.Path, b.Path) })
	return settled
}

// changing reports whether a path was changed on the source so lately that sersync may still be about to send it.
func (s *shadow) changing(now time.Time, d *difference) bool {
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(s.def.Source.Path, d.Path), &st); err != nil {
		return false
	}
	return now.Sub(time.Unix(st.Ctim.Unix())) < s.settle
}

// finish makes the report.
func (s *shadow) finish() {
	s.Differences = s.Differences[:0]
	acts := s.More > 0
	for _, d := range s.followed {
		if !d.settled {
			continue
		}
		s.Differences = append(s.Differences, d)
		if !utf8.ValidString(d.Path) {
			d.Bytes = []byte(d.Path)
		}
		acts = acts || (d.Action == toSend || d.Action == toDelete) && !d.minor()
	}
	slices.SortFunc(s.Differences, func(a, b *difference) int {
		return cmp.Or(cmp.Compare(a.Action, b.Action), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Path, b.Path))
	})
	if n := len(s.Differences); n > maxNamed {
		s.More += n - maxNamed
		s.Differences = s.Differences[:maxNamed]
	}
	switch {
	case acts:
		s.Verdict = verdictDifferent
	case s.Problem != "" || s.Comparisons == 0 || s.Last.Sub(s.Began) < s.settle, s.OnTheirWay > 0 && s.Last.Sub(s.first) < s.settle:
		s.Verdict = verdictUnknown
	default:
		s.Verdict = verdictSame
	}
}

// sersyncRuns looks for a process that is called sersync, or sersync2 as the distributed program.
func sersyncRuns() bool {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(names, func(name string) bool {
		text, err := os.ReadFile(name)
		return err == nil && strings.HasPrefix(string(text), "sersync")
	})
}
