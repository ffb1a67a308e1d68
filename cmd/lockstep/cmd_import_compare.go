// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/agent/sersync"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// compareOptions are the flags of `lockstep import sersync FILE --compare`.
type compareOptions struct {
	length        time.Duration // 0: until interrupted
	settle, every time.Duration
	passwordFile  string
	rsync         string
	asJSON        bool
}

// check refuses flags that do not go together.
func (o compareOptions) check(flags *flag.FlagSet, compare bool) error {
	var err error
	flags.Visit(func(f *flag.Flag) {
		only := slices.Contains([]string{"for", "settle", "every", "password-file", "rsync", "json"}, f.Name)
		never := slices.Contains([]string{"as", "dir", "plugin"}, f.Name)
		switch {
		case only && !compare:
			err = fmt.Errorf("--%s is for --compare", f.Name)
		case never && compare:
			err = fmt.Errorf("--%s and --compare exclude each other", f.Name)
		}
	})
	switch {
	case err != nil:
		return err
	case o.length < 0 || o.settle <= 0 || o.every <= 0:
		return errors.New("--for, --settle and --every are times such as 90s or 24h")
	case o.length > 0 && o.length < o.settle:
		return fmt.Errorf("--for %s is shorter than --settle %s, so nothing could be told", o.length, o.settle)
	}
	return nil
}

// compareReport is the JSON form of what a comparison has found.
type compareReport struct {
	Verdict     string    `json:"verdict"` // same, different, unknown
	SersyncRuns bool      `json:"sersync_runs"`
	Settle      float64   `json:"settle_seconds"`
	Began       time.Time `json:"began"`
	Ended       time.Time `json:"ended"`
	Pairs       []*shadow `json:"pairs"`
}

// compareSersync asks again and again what lockstep would do beside the sersync that runs, and writes nothing on either host.
// It ends after the time given, or when ctx does, with a report.
func compareSersync(ctx context.Context, std stdio, file string, result *sersync.Result, opts compareOptions) error {
	var shadows []*shadow
	for i, to := range result.Live.Remotes {
		if to.PasswordFile = cmp.Or(opts.passwordFile, to.PasswordFile); to.Path != "" {
			to.PasswordFile = "" // rsync has one for a daemon only
		}
		s, err := newShadow(result.Pairs[i], to, result.Live, opts.settle, opts.rsync)
		if err != nil {
			return err
		}
		shadows = append(shadows, s)
	}
	report := compareReport{SersyncRuns: sersyncRuns(), Settle: opts.settle.Seconds(), Began: time.Now(), Pairs: shadows}
	if !report.SersyncRuns {
		fmt.Fprintln(std.err, "note: no process called sersync runs on this host; what it left behind is compared")
	}
	if opts.length > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, opts.length)
		defer stop()
	}
	v := &shadowView{w: std.err, line: newProgressLine(std.err), until: opts.length, began: report.Began, all: shadows, told: map[*shadow]string{}}
	var group sync.WaitGroup
	fatal := make([]error, len(shadows))
	for i, s := range shadows {
		group.Go(func() { fatal[i] = v.follow(ctx, s, opts) })
	}
	group.Wait()
	v.line.end()
	report.Ended = time.Now()
	report.Verdict = verdictSame
	for _, s := range shadows {
		s.finish()
		if s.Verdict != verdictSame && report.Verdict != verdictDifferent {
			report.Verdict = s.Verdict
		}
	}
	var err error
	if opts.asJSON {
		err = printJSON(std.out, report)
	} else {
		err = writeReport(std.out, report)
	}
	if err = errors.Join(err, errors.Join(fatal...)); err != nil {
		return err
	}
	switch report.Verdict {
	case verdictSame:
		return nil
	case verdictDifferent:
		return &statusError{status: exitDiffers}
	default:
		return &statusError{exitFailure, fmt.Errorf("%s: source and backup were not compared for long enough to tell", file)}
	}
}

// shadowView shows what happens to whoever waits.
type shadowView struct {
	mu    sync.Mutex
	w     io.Writer
	line  *progressLine
	began time.Time
	until time.Duration
	all   []*shadow
	told  map[*shadow]string // the problem that was told
}

// follow compares one pair until ctx ends. An error is something that no later comparison can mend.
func (v *shadowView) follow(ctx context.Context, s *shadow, opts compareOptions) error {
	for {
		began := time.Now()
		v.mu.Lock()
		known := *s // what a comparison may change; it counts when the comparison is complete
		v.mu.Unlock()
		settled, res := known.round(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // of a comparison that was cut off nothing is known
		}
		v.mu.Lock()
		if res.Class == transfer.Done {
			*s = known
		} else {
			s.explain(&res)
			s.Failed++
			s.Problem, s.Hint = res.Message, res.Hint
		}
		v.show(s, settled)
		v.mu.Unlock()
		if res.Class == transfer.Permanent && s.Comparisons == 0 {
			msg := fmt.Sprintf("compare pair %q: %s", s.Pair, res.Message)
			if res.Hint != "" {
				msg += "\nhint: " + res.Hint
			}
			return errors.New(msg)
		}
		wait := max(opts.every, shadowShare*time.Since(began))
		if opts.length > 0 {
			// One more at the end, so that what has settled by then counts.
			wait = min(wait, max(0, opts.length-time.Since(v.began)-2*time.Since(began)-time.Second/2))
			wait = max(wait, min(opts.every, time.Second/4))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// show tells what is new. It is called with mu held.
func (v *shadowView) show(s *shadow, settled []*difference) {
	const named = 20
	if s.Problem != v.told[s] {
		if v.told[s] = s.Problem; s.Problem != "" {
			v.line.end()
			fmt.Fprintf(v.w, "%s %s: %s\n", time.Now().Format(time.TimeOnly), s.Pair, visible(s.Problem))
		}
	}
	settled = slices.DeleteFunc(settled, (*difference).minor)
	if len(settled) > 0 {
		v.line.end()
	}
	for i, d := range settled {
		if i == named {
			fmt.Fprintf(v.w, "%s %s: and %d more\n", time.Now().Format(time.TimeOnly), s.Pair, len(settled)-named)
			break
		}
		fmt.Fprintf(v.w, "%s %s: %s\n", time.Now().Format(time.TimeOnly), s.Pair, d)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s", short(time.Since(v.began)))
	if v.until > 0 {
		fmt.Fprintf(&b, " of %s", short(v.until))
	}
	for _, o := range v.all {
		fmt.Fprintf(&b, "; %s: %s, %s, %d on the way", o.Pair, count(o.Comparisons, "comparison"), count(o.count(), "difference"), o.OnTheirWay)
	}
	v.line.set(b.String())
}

// String tells a difference in one line.
func (d *difference) String() string {
	path := visible(cmp.Or(d.Path, "."))
	if d.dir {
		path += "/"
	}
	switch d.Action {
	case toSend:
		return fmt.Sprintf("not sent: %s (%s): %s", path, d.Change, d.Cause)
	case toDelete:
		return fmt.Sprintf("not deleted: %s: %s", path, d.Cause)
	case isLeftOut:
		return fmt.Sprintf("left out by %s: %s (%s)", d.Rule, path, d.Change)
	default:
		return fmt.Sprintf("kept: %s (%s)", path, d.Change)
	}
}

// minor reports whether nothing would be lost if nobody ever cared.
func (d *difference) minor() bool { return d.Cause == sersync.DirTime }

// count is how many differences there are that lockstep would do something about.
func (s *shadow) count() int {
	n := 0
	for _, d := range s.followed {
		if d.settled && !d.minor() && (d.Action == toSend || d.Action == toDelete) {
			n++
		}
	}
	return n
}

// writeReport tells people what was found.
func writeReport(w io.Writer, r compareReport) error {
	var b strings.Builder
	for _, s := range r.Pairs {
		s.write(&b, r)
	}
	if len(r.Pairs) > 1 {
		fmt.Fprintf(&b, "All pairs: %s\n", r.Verdict)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const shownExamples = 10

func (s *shadow) write(b *strings.Builder, r compareReport) {
	settle := short(time.Duration(r.Settle * float64(time.Second)))
	fmt.Fprintf(b, "Pair %s: %s and %s, watched for %s with %s\n", s.Pair, s.Source, s.Target, short(r.Ended.Sub(s.Began)), count(s.Comparisons, "comparison"))
	if s.Problem != "" {
		fmt.Fprintf(b, "  %s\n", visible(s.Problem))
		if s.Hint != "" {
			fmt.Fprintf(b, "  hint: %s\n", s.Hint)
		}
	}
	if s.Comparisons == 0 {
		fmt.Fprintf(b, "\nVerdict: unknown. No comparison was completed.\n\n")
		return
	}
	fmt.Fprintf(b, "  %s in the source; %d differ for less than %s and are taken to be on their way\n", count(int(s.Paths), "path"), s.OnTheirWay, settle)
	for _, part := range []struct{ action, title string }{
		{toSend, "lockstep would send, and sersync has not within " + settle},
		{toDelete, "lockstep would delete on the backup, once you approve it, and sersync has not within " + settle},
		{isLeftOut, "left out by lockstep, by a rule of the definition, and not equal on the backup"},
		{toKeep, "only on the backup, where both leave it because deletions are off"},
	} {
		s.writePart(b, part.action, part.title)
	}
	if s.LeftOut > 0 {
		fmt.Fprintf(b, "\n  Left out of the source by the rules of the definition, equal ones too: %s\n", count(int(s.LeftOut), "path"))
	}
	if s.LateCount > 0 {
		worst := s.Late[0]
		for _, l := range s.Late {
			if l.Seconds > worst.Seconds {
				worst = l
			}
		}
		fmt.Fprintf(b, "\n  %s came later than %s; the latest after %s: %s\n", count(s.LateCount, "path"), settle, short(time.Duration(worst.Seconds*float64(time.Second))), visible(worst.Path))
	}
	if s.More > 0 {
		fmt.Fprintf(b, "\n  %d more differ that are not named here\n", s.More)
	}
	send, gone, times := 0, 0, 0
	for _, d := range s.Differences {
		switch {
		case d.minor():
			times++
		case d.Action == toSend:
			send += 1 + d.Below
		case d.Action == toDelete:
			gone += 1 + d.Below
		}
	}
	if times > 0 {
		fmt.Fprintf(b, "\n  Only the time differs, which lockstep sets, of %s\n", count(times, "directory"))
	}
	b.WriteString("\n")
	switch s.Verdict {
	case verdictUnknown:
		fmt.Fprintf(b, "Verdict: unknown. It was not compared for as long as %s, or the last comparison failed.\n\n", settle)
	case verdictSame:
		fmt.Fprintf(b, "Verdict: the same. lockstep would send nothing and delete nothing that sersync has not.\n\n")
	default:
		fmt.Fprintf(b, "Verdict: different. When lockstep takes over, it sends %s", count(send, "path"))
		if gone > 0 {
			fmt.Fprintf(b, ", and deletes %d on the backup after `lockstep approve`", gone)
		}
		b.WriteString(".\n\n")
	}
}

// writePart lists the differences of one kind, by their causes or rules.
func (s *shadow) writePart(b *strings.Builder, action, title string) {
	type group struct {
		name string
		list []*difference
	}
	var groups []*group
	for _, d := range s.Differences { // sorted by action, rule and cause
		if d.Action != action || d.minor() {
			continue
		}
		name := d.Cause.String()
		if action == isLeftOut {
			name = "by " + d.Rule
		}
		if len(groups) == 0 || groups[len(groups)-1].name != name {
			groups = append(groups, &group{name: name})
		}
		g := groups[len(groups)-1]
		g.list = append(g.list, d)
	}
	if len(groups) == 0 {
		return
	}
	fmt.Fprintf(b, "\n  %s:\n", title)
	for _, g := range groups {
		fmt.Fprintf(b, "    %s: %s\n", count(len(g.list), "path"), g.name)
		for i, d := range g.list {
			if i == shownExamples {
				fmt.Fprintf(b, "      and %d more; --json names them\n", len(g.list)-shownExamples)
				break
			}
			path := visible(cmp.Or(d.Path, "."))
			if d.dir {
				path += "/"
			}
			fmt.Fprintf(b, "      %-18s %s", d.Change, path)
			if d.Below > 0 {
				fmt.Fprintf(b, " with %d below", d.Below)
			}
			if d.Change != "only on the backup" && d.Action == toSend {
				fmt.Fprintf(b, ", since %s", d.Since.Format(time.DateTime))
			}
			b.WriteString("\n")
		}
	}
}
