// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// runFiles says where an agent finds its things.
type runFiles struct {
	definition, password, state, runtime string
	// With transport ssh:
	sshKey, knownHosts string
}

// shell is the command that rsync reaches the backup host by; nil when it dials the daemon.
func (files *runFiles) shell(p pair.Pair) []string {
	if p.Transport != pair.SSH {
		return nil
	}
	return p.RemoteShell(files.sshKey, files.knownHosts)
}

func runRun(ctx context.Context, std stdio, args []string) error {
	f := newFlags(std, "", "run NAME", "run --definition FILE --password-file FILE --state-dir DIR --runtime-dir DIR")
	var files runFiles
	f.StringVar(&files.definition, "definition", "", "pair definition `file` (default "+plan.DefinitionFile("NAME")+")")
	f.StringVar(&files.password, "password-file", "", "rsync password `file` (default $CREDENTIALS_DIRECTORY/password or "+plan.SecretFile("NAME")+")")
	f.StringVar(&files.sshKey, "ssh-key", "", "private key `file`, with transport ssh (default $CREDENTIALS_DIRECTORY/ssh_key or "+plan.SSHKeyFile("NAME")+")")
	f.StringVar(&files.knownHosts, "known-hosts", "", "`file` with the backup host's keys, with transport ssh (default $CREDENTIALS_DIRECTORY/known_hosts or "+plan.KnownHostsFile("NAME")+")")
	f.StringVar(&files.state, "state-dir", "", "state `directory` (default $STATE_DIRECTORY or "+plan.StateDir+"/NAME)")
	f.StringVar(&files.runtime, "runtime-dir", "", "runtime `directory` (default $RUNTIME_DIRECTORY or "+runRoot+"/NAME)")
	rsync := f.String("rsync", "", "rsync `binary` (default: the one in PATH)")
	debug := f.Bool("debug", false, "log every transfer")
	name, err := oneArgument(f, args)
	switch {
	case err != nil:
		return err
	case name == "" && (files.definition == "" || files.state == "" || files.runtime == ""):
		return usageError(errRunNeeds)
	}
	noPassword := name == "" && files.password == ""
	if err := files.complete(name); err != nil {
		return err
	}
	p, err := readDefinition(files.definition)
	if errors.Is(err, fs.ErrNotExist) && files.definition == plan.DefinitionFile(name) {
		err = fmt.Errorf("%w\nhint: %s", err, pairsHere())
	}
	if err != nil {
		return cannotStart(std.err, name, err)
	}
	if name != "" && p.Name != name {
		return cannotStart(std.err, name, fmt.Errorf("%s: name is %q, want %q as the file is called\nhint: lockstep apply --role source --definition FILE writes it anew", files.definition, p.Name, name))
	}
	if noPassword && !p.HooksOnly() {
		return usageError(errRunNeeds)
	}
	user, err := files.login(p)
	if err != nil {
		return cannotStart(std.err, p.Name, fmt.Errorf("password of pair %q: %w", p.Name, err))
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return err
	}
	log := newLog(std.err, p.Name, *debug)
	agent, err := replicate.New(replicate.Options{
		Pair:         p,
		User:         user,
		PasswordFile: files.password,
		SSHKey:       files.sshKey,
		KnownHosts:   files.knownHosts,
		StateDir:     files.state,
		RuntimeDir:   files.runtime,
		Rsync:        *rsync,
		Version:      version,
		Log:          log,
		Notify:       notify(),
		Watchdog:     watchdog,
		Reload: func() (pair.Pair, string, error) {
			p, err := readDefinition(files.definition)
			if err != nil {
				return p, "", err
			}
			user, err := files.login(p)
			return p, user, err
		},
	})
	if err != nil {
		return cannotStart(std.err, p.Name, err)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-hup:
				agent.Reload()
			case <-done:
				return
			}
		}
	}()
	log.Info("started", "version", version, "path", p.Source.Path)
	err = agent.Run(ctx)
	log.Info("stopped")
	return err
}

// cannotStart ends an agent that a restart cannot help. In the journal that is a message with an id.
func cannotStart(w io.Writer, pair string, err error) error {
	if direct, no := journal.StderrIsJournalStream(); no != nil || !direct {
		return &statusError{exitConfig, err}
	}
	newLog(w, pair, false).Error("the agent cannot start, and a restart cannot help", "err", err)
	return &statusError{status: exitConfig}
}

var errRunNeeds = errors.New("run needs the name of a pair, or --definition, --password-file, --state-dir and --runtime-dir\nhint: a pair with transport none needs no --password-file; one with transport ssh also needs --ssh-key and --known-hosts")

// login returns the user that goes with the password. Without a backup there is neither.
func (files *runFiles) login(p pair.Pair) (user string, err error) {
	if p.HooksOnly() {
		return "", nil
	}
	return passwordUser(files.password)
}

// passwordUser returns the rsync user that the second line of a password file may name. Rsync reads only the first.
func passwordUser(name string) (user string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 0; lines.Scan(); n++ {
		if n == 1 {
			user = lines.Text()
		}
	}
	return user, lines.Err()
}

// complete fills what was not given, first from what systemd says, then from the packaged places.
func (files *runFiles) complete(name string) error {
	password, sshKey, knownHosts := plan.SecretFile(name), plan.SSHKeyFile(name), plan.KnownHostsFile(name)
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		password, sshKey, knownHosts = filepath.Join(dir, "password"), filepath.Join(dir, "ssh_key"), filepath.Join(dir, "known_hosts")
	}
	for _, d := range []struct {
		path *string
		env  string
		or   string
	}{
		{&files.definition, "", plan.DefinitionFile(name)},
		{&files.password, "", password},
		{&files.sshKey, "", sshKey},
		{&files.knownHosts, "", knownHosts},
		{&files.state, "STATE_DIRECTORY", filepath.Join(plan.StateDir, name)},
		{&files.runtime, "RUNTIME_DIRECTORY", filepath.Join(runRoot, name)},
	} {
		if *d.path == "" {
			*d.path = d.or
			if dir := os.Getenv(d.env); d.env != "" && dir != "" {
				// A unit may have several, separated by colons; ours is the first.
				*d.path, _, _ = strings.Cut(dir, ":")
			}
		}
		abs, err := filepath.Abs(*d.path)
		if err != nil {
			return err
		}
		*d.path = abs
	}
	return nil
}

func readDefinition(name string) (pair.Pair, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return pair.Pair{}, err
	}
	p, err := pair.Parse(data)
	if err != nil {
		return p, fmt.Errorf("%s:\n%w", name, err)
	}
	return p, nil
}

// notify sends states to systemd, if it started us.
func notify() func(string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return func(state string) {
		// Nobody can be told of an error: it is the service manager that does not listen.
		_, _ = daemon.SdNotify(false, state)
	}
}
