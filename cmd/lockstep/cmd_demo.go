// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// demoPatience bounds every step of the demonstration.
const demoPatience = 30 * time.Second

// demo is a pair on the loopback address: a source directory, an rsync daemon of its own, and an agent.
type demo struct {
	std    stdio
	dir    string
	port   int
	agent  *client
	daemon *exec.Cmd
	log    bytes.Buffer // of the agent; read after it has ended
}

// runDemo is `lockstep demo`: it shows a pair at work without root and without any set-up.
func runDemo(ctx context.Context, std stdio, args []string) error {
	f := newFlags(std, "", "demo [--keep]")
	keep := f.Bool("keep", false, "leave the directories in place")
	if err := noArguments(f, args); err != nil {
		return err
	}
	rsync, err := exec.LookPath("rsync")
	if err != nil {
		return fmt.Errorf("rsync is not installed\nhint: %s", installRsync())
	}
	dir, err := os.MkdirTemp("", "lockstep-demo-")
	if err != nil {
		return err
	}
	d := &demo{std: std, dir: dir}
	if !*keep {
		defer os.RemoveAll(dir)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := d.startDaemon(ctx, rsync); err != nil {
		return err
	}
	defer func() {
		cancel()
		_ = d.daemon.Wait() // it was killed, and says so
	}()
	ended := make(chan error, 1)
	agentCtx, stopAgent := context.WithCancel(ctx)
	defer stopAgent()
	if err := d.startAgent(agentCtx, ended); err != nil {
		return err
	}
	err = d.show(ctx)
	stopAgent()
	err = errors.Join(err, <-ended)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w\nlog of the agent:\n%s", err, d.log.String())
	}
	if *keep {
		fmt.Fprintf(std.out, "\nThe directories are left in %s.\n", dir)
	}
	return err
}

// installRsync is the command that installs rsync on this system.
func installRsync() string {
	for _, tool := range []string{"apt-get", "dnf", "yum", "zypper", "apk", "pacman"} {
		if _, err := exec.LookPath(tool); err != nil {
			continue
		}
		switch tool {
		case "apk":
			return "apk add rsync"
		case "pacman":
			return "pacman -S rsync"
		}
		return tool + " install rsync"
	}
	return "install the package rsync"
}

func (d *demo) path(names ...string) string {
	return filepath.Join(append([]string{d.dir}, names...)...)
}

// say tells what happens next, or what was seen.
func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.std.out, format+"\n", args...) }

func (d *demo) startDaemon(ctx context.Context, rsync string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err == nil {
		d.port, err = strconv.Atoi(port)
	}
	if err := errors.Join(err, ln.Close()); err != nil {
		return err
	}
	for _, sub := range []string{"source", "backup", "state", "run"} {
		if err := os.Mkdir(d.path(sub), 0o755); err != nil {
			return err
		}
	}
	owner := ""
	if os.Geteuid() == 0 {
		owner = "uid = root\ngid = root\n"
	}
	for name, text := range map[string]string{
		"rsyncd.conf": fmt.Sprintf("address = 127.0.0.1\nport = %d\nuse chroot = no\nmunge symlinks = no\nlog file = %s\nsocket options = TCP_NODELAY\n"+
			"[demo]\npath = %s\nread only = no\n%sauth users = lockstep\nsecrets file = %s\n", d.port, d.path("rsyncd.log"), d.path("backup"), owner, d.path("secrets")),
		"secrets":  "lockstep:demo\n",
		"password": "demo\n",
	} {
		if err := os.WriteFile(d.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	d.daemon = exec.CommandContext(ctx, rsync, "--daemon", "--no-detach", "--config="+d.path("rsyncd.conf"))
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.daemon.Cancel = func() error { return syscall.Kill(-d.daemon.Process.Pid, syscall.SIGTERM) }
	d.daemon.WaitDelay = 5 * time.Second
	if err := d.daemon.Start(); err != nil {
		return fmt.Errorf("rsync daemon: %w", err)
	}
	err = d.until(ctx, "the rsync daemon answers", func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(d.port)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if err != nil {
		// What was started is ended, with what it says in its log.
		log, _ := os.ReadFile(d.path("rsyncd.log"))
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(log))
	}
	return nil
}

func (d *demo) startAgent(ctx context.Context, ended chan<- error) error {
	p := pair.Defaults()
	p.Name = "demo"
	p.Source = pair.Source{Host: "localhost", Path: d.path("source")}
	p.Backup.Host, p.Backup.Path, p.Backup.Port = "127.0.0.1", d.path("backup"), d.port
	p.Delete.MaxFiles = 100
	p.Complete()
	if problems := p.Validate(); len(problems) > 0 {
		return problems
	}
	agent, err := replicate.New(replicate.Options{
		Pair: p, PasswordFile: d.path("password"), StateDir: d.path("state"), RuntimeDir: d.path("run"), Version: version,
		Log: slog.New(slog.NewTextHandler(&d.log, nil)),
	})
	if err != nil {
		return err
	}
	d.agent = newClient("demo", d.path("run"))
	go func() { ended <- agent.Run(ctx) }()
	return nil
}

// until polls until ok holds.
func (d *demo) until(ctx context.Context, what string, ok func() bool) error {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	deadline := time.Now().Add(demoPatience)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v in vain until %s", demoPatience, what)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (d *demo) untilState(ctx context.Context, want replicate.State) (s replicate.Status, err error) {
	err = d.until(ctx, "the pair is "+string(want), func() bool {
		now, err := d.agent.status(ctx)
		s = now
		return err == nil && s.State == want
	})
	return s, err
}

func (d *demo) onBackup(name string) bool {
	_, err := os.Lstat(d.path("backup", name))
	return err == nil
}

// show is what is to be seen.
func (d *demo) show(ctx context.Context) error {
	d.say("A source directory, an rsync daemon on 127.0.0.1:%d, and an agent between them:", d.port)
	d.say("  source  %s", d.path("source"))
	d.say("  backup  %s", d.path("backup"))
	s, err := d.untilState(ctx, replicate.InStep)
	if err != nil {
		return err
	}
	d.say("  state   %s; watching with %s", s.State, s.Watch.Backend)

	d.say("\n20 files are written, one after the other:")
	var took []time.Duration
	for i := range 20 {
		name := fmt.Sprintf("file-%02d", i)
		began := time.Now()
		if err := os.WriteFile(d.path("source", name), []byte("lockstep\n"), 0o644); err != nil {
			return err
		}
		if err := d.until(ctx, name+" is on the backup", func() bool { return d.onBackup(name) }); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	d.say("  all are on the backup; median %v, slowest %v", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))

	d.say("\nA directory of 500 files, moved into place as a whole:")
	began := time.Now()
	if err := os.Mkdir(d.path("new"), 0o755); err != nil {
		return err
	}
	for i := range 500 {
		if err := os.WriteFile(d.path("new", fmt.Sprintf("%03d", i)), []byte(strconv.Itoa(i)), 0o644); err != nil {
			return err
		}
	}
	if err := os.Rename(d.path("new"), d.path("source", "directory")); err != nil {
		return err
	}
	if err := d.wait(ctx); err != nil {
		return err
	}
	n, err := os.ReadDir(d.path("backup", "directory"))
	if err != nil {
		return err
	}
	d.say("  %d files on the backup after %v, as `lockstep wait` tells", len(n), time.Since(began).Round(time.Millisecond))

	d.say("\nOne file is removed, one is renamed:")
	if err := errors.Join(os.Remove(d.path("source", "file-00")), os.Rename(d.path("source", "file-01"), d.path("source", "renamed"))); err != nil {
		return err
	}
	if err := d.wait(ctx); err != nil {
		return err
	}
	if d.onBackup("file-00") || d.onBackup("file-01") || !d.onBackup("renamed") {
		return errors.New("the backup is not as the source after `lockstep wait`")
	}
	d.say("  file-00 and file-01 are gone from the backup, and renamed is there")

	d.say("\nrm -rf of the directory: more than the definition allows (delete.max_files: 100, delete.max_percent: 25):")
	if err := os.RemoveAll(d.path("source", "directory")); err != nil {
		return err
	}
	if s, err = d.untilState(ctx, replicate.Held); err != nil {
		return err
	}
	d.say("  state   %s: %s", s.State, s.Reason)
	d.say("  hint    %s", s.Hint)
	if !d.onBackup("directory/000") {
		return errors.New("the directory was deleted on the backup while its deletion was held")
	}
	if err := os.WriteFile(d.path("source", "meanwhile"), nil, 0o644); err != nil {
		return err
	}
	if err := d.until(ctx, "the new file is on the backup", func() bool { return d.onBackup("meanwhile") }); err != nil {
		return err
	}
	d.say("  the directory is still on the backup, and a file that is written now arrives there")
	d.say("\nlockstep approve:")
	var a replicate.Approval
	if err := d.agent.get(ctx, http.MethodPost, "/approve", &a); err != nil {
		return err
	}
	if s, err = d.untilState(ctx, replicate.InStep); err != nil {
		return err
	}
	if d.onBackup("directory") {
		return errors.New("the directory is on the backup, although its deletion was approved")
	}
	d.say("  state   %s; the directory is gone from the backup, with all %d entries", s.State, a.Deletions)
	return nil
}

// wait is `lockstep wait`.
func (d *demo) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	return d.agent.stream(ctx, "/wait", func(replicate.Update) error { return nil })
}
