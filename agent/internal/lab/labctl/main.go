// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Labctl boots the lab of package lab and leads into it. See docs/lab.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

const usage = `usage: labctl [-dir DIR] [-lab ID] COMMAND

  up                   boot a lab and keep it until Ctrl-C
  run COMMAND ARG...   boot a lab, run a command on its link, take it down; the command's status is labctl's
  ssh HOST [COMMAND]   log in to a host of a running lab as ops, with sudo allowed
  enter HOST [ARG...]  a root shell or command on a host without ssh: works when its network is cut
  exec COMMAND ARG...  run a command of this machine on a running lab's link
  cut HOST             pull the network cable of a host
  drop HOST [PORT...]  packets for these TCP ports of a host, or for any, vanish without an answer
  restore HOST         undo cut and drop
  list                 the labs that run
  clean                clear away what killed labs left behind
  check                say whether a lab can boot here

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintf(os.Stderr, "labctl: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("labctl", flag.ContinueOnError)
	dir := flags.String("dir", "", "where roots are cached and labs run (default $LOCKSTEP_LAB_CACHE, else /var/cache/lockstep-lab)")
	id := flags.String("lab", "", "which lab, if several run")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		flags.SetOutput(os.Stderr)
		flags.Usage()
		return errors.New("which command?")
	}
	command, args := flags.Arg(0), flags.Args()[1:]
	switch command {
	case "up":
		return up(ctx, *dir)
	case "run":
		if len(args) == 0 {
			return errors.New("run: which command?")
		}
		return boot(ctx, *dir, args)
	case "check":
		if err := lab.Check(); err != nil {
			return err
		}
		fmt.Println("a lab can boot here")
		return nil
	case "clean":
		return lab.Collect(*dir, os.Stdout)
	case "list":
		labs, err := lab.List(*dir)
		for _, l := range labs {
			fmt.Printf("%s\tpid %d\n", l.ID, l.Owner)
		}
		return err
	}

	found, err := lab.Find(*dir, *id)
	if err != nil {
		return err
	}
	switch command {
	case "exec":
		if len(args) == 0 {
			return errors.New("exec: which command?")
		}
		return become(found.LinkArgv(args...))
	case "ssh":
		if len(args) == 0 {
			return errors.New("ssh: which host? nfs01 or backup")
		}
		return become(found.LinkArgv(append([]string{"ssh", "-F", found.SSHConfigFile()}, args...)...))
	case "enter":
		if len(args) == 0 {
			return errors.New("enter: which host? nfs01 or backup")
		}
		argv := args[1:]
		if len(argv) == 0 {
			argv = []string{"bash", "--login"}
		}
		argv, err := found.HostArgv(args[0], argv...)
		if err != nil {
			return err
		}
		return become(argv)
	}
	if len(args) == 0 && (command == "cut" || command == "drop" || command == "restore") {
		return fmt.Errorf("%s: which host? nfs01 or backup", command)
	}
	switch command {
	case "cut":
		return found.CutOff(ctx, args[0])
	case "restore":
		return found.Restore(ctx, args[0])
	case "drop":
		var ports []int
		for _, arg := range args[1:] {
			port, err := strconv.ParseUint(arg, 10, 16)
			if err != nil {
				return fmt.Errorf("drop: %q is no port", arg)
			}
			ports = append(ports, int(port))
		}
		return found.BlackHole(ctx, args[0], ports...)
	}
	return fmt.Errorf("unknown command %q", command)
}

func up(ctx context.Context, dir string) (err error) {
	l, err := lab.Start(ctx, lab.Options{Dir: dir, Log: os.Stdout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Println()
	for _, h := range l.Hosts() {
		fmt.Printf("  %-7s %s   %s is an ext4 file system of its own\n", h.Name, h.Address, h.Disk)
	}
	fmt.Printf(`
In another terminal:
  %[1]s ssh nfs01                log in as ops; sudo works
  %[1]s enter backup             root shell, also when the network is cut
  %[1]s exec terraform apply     run a program of this machine on the lab's link
  ssh files: %[2]s

Ctrl-C ends the lab and removes everything of it.
`, self, l.SSHConfigFile())
	<-ctx.Done()
	fmt.Println("\npowering off")
	return nil
}

// boot runs a command in a lab of its own, with LAB_SSH_CONFIG, LAB_SSH_KEY, LAB_KNOWN_HOSTS, LAB_ID and
// LABCTL in its environment.
func boot(ctx context.Context, dir string, argv []string) (err error) {
	l, err := lab.Start(ctx, lab.Options{Dir: dir, Log: os.Stdout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := l.Command(ctx, argv...)
	cmd.Env = append(os.Environ(), "LABCTL="+self+" -dir "+lab.Dir(dir)+" -lab "+l.ID, "LAB_ID="+l.ID,
		"LAB_SSH_CONFIG="+l.SSHConfigFile(), "LAB_SSH_KEY="+l.KeyFile(), "LAB_KNOWN_HOSTS="+l.KnownHostsFile())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// become replaces this process by another program, so that terminals and signals are that program's own.
func become(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", path, syscall.Exec(path, argv, os.Environ()))
}
