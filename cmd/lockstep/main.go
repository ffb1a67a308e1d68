// SPDX-License-Identifier: Apache-2.0

// Lockstep keeps a directory on a backup host equal to a directory on a source host. See lockstep(8).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// version is set by the linker.
var version = "dev"

// Exit statuses. The table is printed in lockstep(8); any status not in it is a failure.
const (
	exitOK        = 0
	exitFailure   = 1
	exitUsage     = 2  // bad flags, or a definition with problems
	exitNotInStep = 3  // status: starting, behind, degraded or paused
	exitHeld      = 4  // status: deletions are held, or the source is not the provisioned one
	exitFailing   = 5  // status: failing
	exitNoAgent   = 6  // no agent answers
	exitDiffers   = 7  // plan: there are changes; verify: there is drift
	exitTimeout   = 8  // wait: not in step in time; verify: it will not be
	exitConfig    = 78 // run: a restart cannot help (sysexits.h EX_CONFIG, RestartPreventExitStatus)
)

// statusError ends the program with a status of its own. Err may be nil when all has been said.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// flagError ends a command after package flag has said what is wrong.
func flagError(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return &statusError{status: exitOK}
	}
	return &statusError{status: exitUsage}
}

func usageError(err error) error { return &statusError{exitUsage, err} }

// stdio is what a command reads and writes; commands touch no global of package os for it.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// command is one subcommand. run gets the arguments after its name.
type command struct {
	name, args, short string
	run               func(ctx context.Context, std stdio, args []string) error
}

func commands() []command {
	return []command{
		{"check", "FILE...", "tell every problem of pair definitions", runCheck},
		{"completion", "bash|zsh|fish", "print a completion script for a shell", runCompletion},
		{"filter", "test --exclude PATTERN PATH", "tell which paths exclude patterns leave out", runFilter},
		{"plan", "--role ROLE [--definition FILE]", "show what apply would change on this host", runPlan},
		{"apply", "--role ROLE [--definition FILE]", "make this host what the pair definition says", runApply},
		{"read", "--role ROLE [NAME]", "show what this host has of a pair, and what differs", runRead},
		{"destroy", "--role ROLE [NAME]", "remove a pair from this host; its data stays", runDestroy},
		{"unit", "[--binary PATH]", "print the systemd unit of the agents, for packages", runUnit},
		{"import", "sersync FILE [--as FORMAT]", "make definitions out of sersync's confxml.xml", runImport},
		{"run", "NAME", "replicate a pair until told to stop", runRun},
		{"status", "[NAME] [--json|--watch|--nagios]", "tell how pairs are", runStatus},
		{"wait", "[NAME] [--timeout 60s]", "wait until the changes up to now are on the backup", runWait},
		{"sync", "[NAME]", "compare both sides now and send what differs", runSync},
		{"verify", "[NAME] [--repair]", "compare the contents of both sides", runVerify},
		{"pause", "[NAME]", "stop sending; changes are still gathered", runPause},
		{"resume", "[NAME]", "go on after a pause", runResume},
		{"approve", "[NAME]", "let held deletions pass", runApprove},
		{"doctor", "[NAME] [--json]", "run the whole path once and say what to mend", runDoctor},
		{"demo", "[--keep]", "show a pair at work on this machine, without root", runDemo},
		{"version", "", "print the version", runVersion},
	}
}

func main() {
	os.Exit(Main())
}

// Main runs the command line and returns the exit status.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return dispatch(ctx, stdio{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:])
}

func dispatch(ctx context.Context, std stdio, args []string) int {
	switch {
	case len(args) == 0:
		usage(std.out)
		return exitUsage
	case args[0] == "help" && len(args) > 1:
		args = []string{args[1], "--help"}
	case args[0] == "help", isHelp(args[0]):
		usage(std.out)
		return exitOK
	case args[0] == "--version":
		args = []string{"version"}
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, std, args[1:])
		var status *statusError
		switch {
		case err == nil:
			return exitOK
		case errors.As(err, &status):
			if status.err != nil {
				fmt.Fprintf(std.err, "lockstep: %v\n", status.err)
			}
			return status.status
		case errors.Is(err, context.Canceled) && ctx.Err() != nil:
			fmt.Fprintln(std.err, "lockstep: interrupted")
			return exitFailure
		default:
			fmt.Fprintf(std.err, "lockstep: %v\n", err)
			return exitFailure
		}
	}
	hint := "lockstep help lists the commands"
	var meant []string
	for _, c := range commands() {
		if args[0] != "" && strings.HasPrefix(c.name, args[0]) {
			meant = append(meant, c.name)
		}
	}
	if len(meant) > 0 {
		hint = "did you mean lockstep " + strings.Join(meant, " or ") + "?"
	}
	fmt.Fprintf(std.err, "lockstep: unknown command %q\nhint: %s\n", args[0], hint)
	return exitUsage
}

func usage(w io.Writer) {
	fmt.Fprintf(w, "usage: lockstep COMMAND [ARGUMENTS]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-10s %-36s %s\n", c.name, c.args, c.short)
	}
	fmt.Fprintf(w, "\nlockstep help COMMAND tells more of one; lockstep(8) has all of it.\n")
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

// newFlags are the flags of a command. Asked for --help, and after a flag that it does not know, the command tells how it
// is called, what it does, and its flags. more is text to follow what `lockstep help` says of it; each of calls is a way to call it.
func newFlags(std stdio, more string, calls ...string) *flag.FlagSet {
	name, _, _ := strings.Cut(calls[0], " ")
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(std.err)
	f.Usage = func() {
		fmt.Fprintf(std.err, "usage: lockstep %s\n", strings.Join(calls, "\n       lockstep "))
		for _, c := range commands() {
			if c.name == name {
				fmt.Fprintf(std.err, "\n%s%s.\n", strings.ToUpper(c.short[:1]), c.short[1:])
			}
		}
		fmt.Fprintf(std.err, "%s\n", more)
		// Package flag takes -name and --name, and prints the first.
		var list strings.Builder
		f.SetOutput(&list)
		f.PrintDefaults()
		f.SetOutput(std.err)
		fmt.Fprint(std.err, strings.ReplaceAll("\n"+list.String(), "\n  -", "\n  --")[1:])
	}
	return f
}

// duration is a flag for a time, which is written as in a definition; 0 needs no unit.
type duration time.Duration

func (d *duration) String() string { return pair.Duration(*d).String() }

func (d *duration) Set(s string) error {
	if s == "0" {
		*d = 0
		return nil
	}
	v, err := pair.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%w\nhint: %s", err, pair.DurationHint(s))
	}
	*d = duration(v)
	return nil
}

func durationVar(flags *flag.FlagSet, to *time.Duration, name string, preset time.Duration, usage string) {
	*to = preset
	flags.Var((*duration)(to), name, usage)
}

// parseMixed parses flags that may stand before, between and after the other arguments.
func parseMixed(flags *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		if flags.NArg() == 0 {
			return rest, nil
		}
		if n := len(args) - flags.NArg(); n > 0 && args[n-1] == "--" {
			return append(rest, flags.Args()...), nil
		}
		rest = append(rest, flags.Arg(0))
		args = flags.Args()[1:]
	}
}

// oneArgument parses flags and the one argument that may be among them; "" without one.
func oneArgument(flags *flag.FlagSet, args []string) (string, error) {
	rest, err := parseMixed(flags, args)
	switch {
	case err != nil:
		return "", flagError(err)
	case len(rest) > 1:
		return "", usageError(fmt.Errorf("unexpected argument %q", rest[1]))
	case len(rest) == 1:
		return rest[0], nil
	}
	return "", nil
}

// noArguments parses flags that nothing else may follow.
func noArguments(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return flagError(err)
	}
	if flags.NArg() > 0 {
		return usageError(fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	return nil
}

func runVersion(_ context.Context, std stdio, args []string) error {
	if err := noArguments(newFlags(std, "", "version"), args); err != nil {
		return err
	}
	_, err := fmt.Fprintf(std.out, "lockstep %s\n", version)
	return err
}

// maxInput is more than any definition, request or confxml.xml has; the parsers refuse less.
const maxInput = 16 << 20

// readInput reads a file, or standard input where it is called -.
func readInput(std stdio, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(io.LimitReader(std.in, maxInput))
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return io.ReadAll(io.LimitReader(f, maxInput))
}

// inFile puts the file's name in front of each problem.
func inFile(file string, err error) error {
	var problems pair.Problems
	if !errors.As(err, &problems) {
		return fmt.Errorf("%s: %w", file, err)
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = file + ": " + p.String()
	}
	return errors.New(strings.Join(lines, "\n"))
}
