// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// level is what a finding of the doctor means.
type level string

const (
	levelOK   level = "ok"
	levelWarn level = "warn" // works, and should be looked at
	levelFail level = "fail" // does not work
	levelSkip level = "skip" // cannot be seen, or makes no sense after what failed before
)

// finding is what the doctor saw in one step.
type finding struct {
	Check string `json:"check"`
	Level level  `json:"level"`
	Saw   string `json:"saw"`
	Do    string `json:"do,omitempty"`
}

// doctor runs the path of a pair from this host to the module on the backup host, once.
type doctor struct {
	std      stdio
	json     bool
	name     string // of the unit; "" = stand-alone
	files    runFiles
	rsync    string
	timeout  time.Duration
	machine  *host.Machine
	pair     pair.Pair
	user     string
	backend  string // of the agent that runs
	right    bool   // the source directory is known to be the one that the pair was made for
	stuck    bool   // apply would change nothing: plan found a problem
	findings []finding
	failed   bool
}

func runDoctor(ctx context.Context, std stdio, args []string) error {
	f := newPairFlags(std, "doctor", "[NAME] [--json] [--definition FILE --password-file FILE [--ssh-key FILE --known-hosts FILE]]")
	d := &doctor{std: std}
	asJSON := f.Bool("json", false, "print JSON")
	f.StringVar(&d.files.definition, "definition", "", "pair definition `file` (default "+plan.DefinitionFile("NAME")+")")
	f.StringVar(&d.files.password, "password-file", "", "rsync password `file` (default "+plan.SecretFile("NAME")+")")
	f.StringVar(&d.files.sshKey, "ssh-key", "", "private key `file`, with transport ssh (default "+plan.SSHKeyFile("NAME")+")")
	f.StringVar(&d.files.knownHosts, "known-hosts", "", "`file` with the backup host's keys, with transport ssh (default "+plan.KnownHostsFile("NAME")+")")
	f.StringVar(&d.rsync, "rsync", "", "rsync `binary` (default: the one in PATH)")
	durationVar(f.FlagSet, &d.timeout, "timeout", 10*time.Second, "a step that waits longer than this `time` has failed")
	name, err := f.parse(args)
	if err != nil {
		return err
	}
	d.json, d.files.runtime = *asJSON, f.runtimeDir
	standAlone := d.files.definition != "" && d.files.password != ""
	if name == "" && !standAlone {
		if name, err = onlyPair(); err != nil {
			return err
		}
	}
	if name != "" {
		d.name = name
		d.files.definition = cmp.Or(d.files.definition, plan.DefinitionFile(name))
		d.files.password = cmp.Or(d.files.password, plan.SecretFile(name))
		d.files.sshKey = cmp.Or(d.files.sshKey, plan.SSHKeyFile(name))
		d.files.knownHosts = cmp.Or(d.files.knownHosts, plan.KnownHostsFile(name))
		d.files.runtime = cmp.Or(d.files.runtime, filepath.Join(runRoot, name))
	}
	for _, file := range []*string{&d.files.password, &d.files.sshKey, &d.files.knownHosts} { // rsync and ssh run in another directory
		if *file == "" {
			continue
		}
		if *file, err = filepath.Abs(*file); err != nil {
			return err
		}
	}
	if d.machine, err = host.New(); err != nil {
		return err
	}
	defer d.machine.Close()
	d.examine(ctx)
	if d.json {
		reply := struct {
			Pair   string    `json:"pair"`
			OK     bool      `json:"ok"`
			Checks []finding `json:"checks"`
		}{cmp.Or(d.pair.Name, name), !d.failed, d.findings}
		if err := printJSON(std.out, reply); err != nil {
			return err
		}
	}
	if d.failed {
		return &statusError{status: exitFailure}
	}
	return nil
}

// onlyPair is the name of the only pair of this host.
func onlyPair() (string, error) {
	switch names := defined(""); len(names) {
	case 0:
		return "", usageError(errors.New("no pair is applied on this host\nhint: run doctor on a host of the pair, or give --definition and --password-file"))
	case 1:
		return names[0], nil
	default:
		return "", usageError(fmt.Errorf("%d pairs are applied on this host: name one of %s", len(names), strings.Join(names, ", ")))
	}
}

// tell adds a finding and prints it at once: some steps take their time.
func (d *doctor) tell(check string, l level, saw, do string) {
	d.findings = append(d.findings, finding{check, l, saw, do})
	d.failed = d.failed || l == levelFail
	if d.json {
		return
	}
	line := fmt.Sprintf("%-4s  %-10s  %s", l, check, visible(saw))
	if do != "" {
		line += " -> " + visible(do)
	}
	fmt.Fprintln(d.std.out, line)
}

// failure tells of an error, whose second line may say what to do.
func (d *doctor) failure(check string, err error, do string) {
	saw, hint, _ := strings.Cut(err.Error(), "\nhint: ")
	var lines []string
	for line := range strings.Lines(saw) {
		lines = append(lines, strings.TrimSpace(line))
	}
	d.tell(check, levelFail, strings.Join(lines, "; "), cmp.Or(hint, do))
}

// examine goes along the path in its order. A step from the password on that returns false ends it: what comes later depends on it.
func (d *doctor) examine(ctx context.Context) {
	if !d.definition() {
		return
	}
	if d.onBackup() {
		d.examineBackup(ctx)
		return
	}
	d.source()
	d.unit(ctx)
	d.agent(ctx)
	d.limits(ctx)
	if d.pair.HooksOnly() {
		d.tell("backup", levelSkip, "the pair has none: hooks are told of what changes", "")
		return
	}
	runner := d.localRsync(ctx)
	path := []struct {
		check string
		do    func() bool
	}{
		{"password", d.password},
		{"name", func() bool { return d.resolve(ctx) }},
		{"connect", func() bool { return d.connect(ctx) }},
		{"login", func() bool { return d.login(ctx, runner) }},
		{"canary", func() bool { return d.canary(ctx, runner) }},
	}
	for i, step := range path {
		if step.check == "login" && runner == nil || !step.do() {
			var rest []string
			for _, later := range path[i+1:] {
				rest = append(rest, later.check)
			}
			if len(rest) > 0 {
				d.tell(strings.Join(rest, ","), levelSkip, "not tried after what failed above", "")
			}
			break
		}
	}
	d.tell("space", levelSkip, "the free space of the backup is not visible from here, only whether it is full", "on "+d.pair.Backup.Host+": lockstep doctor "+d.pair.Name)
	d.clock()
}

func (d *doctor) definition() bool {
	data, err := os.ReadFile(d.files.definition)
	if err != nil {
		do := "run doctor as somebody who may read it"
		switch {
		case errors.Is(err, fs.ErrNotExist) && d.files.definition == plan.DefinitionFile(d.name):
			do = pairsHere()
		case errors.Is(err, fs.ErrNotExist):
			do = "check --definition"
		}
		d.failure("definition", err, do)
		return false
	}
	p, err := pair.Parse(data)
	if err != nil {
		d.failure("definition", err, "lockstep check "+d.files.definition)
		return false
	}
	d.pair = p
	if d.name != "" && p.Name != d.name {
		d.tell("definition", levelFail, fmt.Sprintf("%s: name is %q", d.files.definition, p.Name), "name the file as the pair")
		return false
	}
	if p.Transport == pair.SSH && (d.files.sshKey == "" || d.files.knownHosts == "") {
		d.tell("definition", levelFail, d.files.definition+": transport is ssh, and which key logs in to which host is not known here", "give --ssh-key and --known-hosts")
		return false
	}
	if p.HooksOnly() {
		d.tell("definition", levelOK, fmt.Sprintf("%s: hooks for %s, without a backup", d.files.definition, p.Source.Path), "")
		return true
	}
	d.tell("definition", levelOK, fmt.Sprintf("%s: %s to %s on %s", d.files.definition, p.Source.Path, p.Backup.Path, p.Backup.Host), "")
	return true
}
