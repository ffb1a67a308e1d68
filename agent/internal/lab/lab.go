// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package lab boots real systemd hosts on one machine for tests, the demo and curious people.
//
// A lab is two hosts, nfs01 (172.16.1.31) and backup (172.16.1.41), each a Debian root booted by
// systemd-nspawn with sshd, systemd, rsync and sudo in it and nothing of lockstep's. They share one
// link; [Lab.Command] runs programs of this machine on that link, at 172.16.1.1.
//
// Nothing of a lab is reachable by name from outside it: mounts live in the mount namespaces of its own
// processes, networks are held by file descriptors of the process that called [Start], and those
// processes die with it. So any number of labs run side by side with the same addresses, and a lab
// whose owner was killed leaves only a directory and empty cgroups, which the next [Start] removes.
//
// It needs root; [Check] says what else is missing. It knows nothing of lockstep.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The lab's link. Every lab has the same addresses, each on a link of its own.
const (
	Address = "172.16.1.1" // this machine, for programs run by Lab.Command
	prefix  = "/24"
)

// Users that can log in with the lab's key: root, Operator, who may use sudo without a password,
// and Guest, who may not use sudo at all.
const (
	Operator = "ops"
	Guest    = "guest"
)

// hostSpecs are the hosts of a lab. The disk is an ext4 file system of its own, mounted through fstab,
// so that `umount` and `mount` of the directory do what they do on a real host.
var hostSpecs = []hostSpec{
	{name: "nfs01", address: "172.16.1.31", disk: "/data"},
	{name: "backup", address: "172.16.1.41", disk: "/backup"},
}

type hostSpec struct{ name, address, disk string }

// Options configures a lab. The zero value is what tests want.
type Options struct {
	// Dir holds the cached root and the running labs. Default: $LOCKSTEP_LAB_CACHE, else /var/cache/lockstep-lab.
	Dir string
	// Log, if set, gets a line for every step that takes time.
	Log io.Writer
}

// Lab is a running lab. Its methods may be called from any goroutine.
type Lab struct {
	ID    string
	run   *runDir
	hosts []*Host
	net   *os.File // the network namespace of the link
	log   io.Writer
}

// Start removes what dead labs left behind, makes the root if it is not in the cache, boots the hosts
// and returns when sshd answers on both. Whoever calls Start calls [Lab.Close]; when ctx ends while
// Start runs, everything is taken down again.
func Start(ctx context.Context, opts Options) (_ *Lab, err error) {
	if err := Check(); err != nil {
		return nil, err
	}
	dir := Dir(opts.Dir)
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	if err := collect(dir, opts.Log); err != nil {
		return nil, err
	}
	root, err := cachedRoot(ctx, dir, opts.Log)
	if err != nil {
		return nil, err
	}
	run, err := newRunDir(dir)
	if err != nil {
		return nil, err
	}
	l := &Lab{ID: run.id(), run: run, log: opts.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()

	begin := time.Now()
	if err := l.makeKeys(ctx); err != nil {
		return nil, err
	}
	if err := l.makeNetwork(ctx); err != nil {
		return nil, err
	}
	if err := l.run.save(func(s *runState) { s.Net = fdPath(l.net) }); err != nil {
		return nil, err
	}
	boot, bootCtx := errgroup.WithContext(ctx)
	for _, spec := range hostSpecs {
		h, err := newHost(l, spec, root)
		if err != nil {
			return nil, err
		}
		l.hosts = append(l.hosts, h)
	}
	for _, h := range l.hosts {
		boot.Go(func() error { return h.boot(bootCtx) })
	}
	if err := boot.Wait(); err != nil {
		return nil, err
	}
	fmt.Fprintf(l.log, "lab %s: two hosts booted in %.1fs\n", l.ID, time.Since(begin).Seconds())
	return l, nil
}

// Close powers the hosts off and removes everything of the lab but the cached root. It may be called twice.
func (l *Lab) Close() error {
	var stop errgroup.Group
	for _, h := range l.hosts {
		stop.Go(func() error { return h.halt(syscall.SIGTERM) })
	}
	err := stop.Wait()
	for _, h := range l.hosts {
		h.net.Close()
	}
	if l.net != nil {
		l.net.Close()
	}
	return errors.Join(err, l.run.remove())
}

// Host returns the host nfs01 or backup. Another name is a bug of the caller.
func (l *Lab) Host(name string) *Host {
	i := slices.IndexFunc(l.hosts, func(h *Host) bool { return h.Name == name })
	if i < 0 {
		panic(fmt.Sprintf("bug: no host %q in the lab", name))
	}
	return l.hosts[i]
}

// Hosts returns all hosts.
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// Files that a program in the lab needs to log in to the hosts.
func (l *Lab) KeyFile() string        { return l.run.path("id_ed25519") }
func (l *Lab) KnownHostsFile() string { return l.run.path("known_hosts") }
func (l *Lab) SSHConfigFile() string  { return l.run.path("ssh_config") }

// Command is a program of this machine, run at [Address] on the lab's link. The host names resolve in it.
// The caller may set Dir, Env and the standard streams before Start. When ctx ends, the program and its
// children get SIGTERM, and SIGKILL ten seconds later.
func (l *Lab) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return groupCommand(ctx, enterLink(fdPath(l.net), l.run.path("hosts"), argv)...)
}

// enterLink wraps argv so that it runs in a network namespace with a hosts file of its own.
func enterLink(net, hosts string, argv []string) []string {
	return append([]string{"nsenter", "--net=" + net, "--",
		"unshare", "--mount", "--propagation=slave", "--",
		"sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}, argv...)
}

// Exec runs [Lab.Command] to its end and returns its standard output.
func (l *Lab) Exec(ctx context.Context, argv ...string) (string, error) {
	return output(l.Command(ctx, argv...), argv)
}

// RunError is a command that ended with a status other than 0.
type RunError struct {
	Argv   []string
	Status int
	Stdout string
	Stderr string
}

func (e *RunError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", strings.Join(e.Argv, " "), e.Status,
		strings.TrimSpace(e.Stderr+"\n"+e.Stdout))
}

// output runs a command; argv is what errors call it.
func output(cmd *exec.Cmd, argv []string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &RunError{Argv: argv, Status: exit.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
	} else if err != nil {
		err = fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return stdout.String(), err
}

// groupCommand is a command whose whole process group ends with ctx.
func groupCommand(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// makeNetwork makes the link: a network namespace with a bridge in it.
func (l *Lab) makeNetwork(ctx context.Context) (err error) {
	if l.net, err = newNetNS(); err != nil {
		return err
	}
	return ip(ctx, fdPath(l.net),
		"link set lo up",
		"link add br0 type bridge forward_delay 0",
		"addr add "+Address+prefix+" dev br0",
		"link set br0 up")
}

// ip runs lines of ip(8) commands in a network namespace.
func ip(ctx context.Context, net string, lines ...string) error {
	cmd := groupCommand(ctx, "nsenter", "--net="+net, "--", "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	_, err := output(cmd, []string{"ip", strings.Join(lines, "; ")})
	return err
}

// newNetNS makes a network namespace that lives as long as the returned file, or a process in it.
func newNetNS() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine, so nobody else gets its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		done <- result{file, err}
	}()
	r := <-done
	return r.file, r.err
}

// fdPath is a path at which other processes find an open file of this one.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// makeKeys makes the lab's ssh key, a host key for each host, and the files for ssh(1) in the lab.
func (l *Lab) makeKeys(ctx context.Context) error {
	keygen := func(file, comment string) (string, error) {
		argv := []string{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", file}
		if _, err := output(groupCommand(ctx, argv...), argv); err != nil {
			return "", err
		}
		public, err := os.ReadFile(file + ".pub")
		return strings.TrimSpace(string(public)), err
	}
	if _, err := keygen(l.KeyFile(), "lab"); err != nil {
		return err
	}
	var known, config, hosts strings.Builder
	fmt.Fprintf(&hosts, "127.0.0.1 localhost\n::1 localhost\n%s lab\n", Address)
	for _, spec := range hostSpecs {
		public, err := keygen(l.run.path("hostkey-"+spec.name), "root@"+spec.name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&hosts, "%s %s\n", spec.address, spec.name)
		fmt.Fprintf(&known, "%s,%s %s\n", spec.name, spec.address, public)
		fmt.Fprintf(&config, "Host %s %s\n  HostName %[2]s\n  HostKeyAlias %[1]s\n", spec.name, spec.address)
	}
	fmt.Fprintf(&config, "Host *\n  User %s\n  IdentityFile %s\n  IdentitiesOnly yes\n  UserKnownHostsFile %s\n"+
		"  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  BatchMode yes\n  ConnectTimeout 10\n  LogLevel ERROR\n",
		Operator, l.KeyFile(), l.KnownHostsFile())
	for file, text := range map[string]string{
		"known_hosts": known.String(), "ssh_config": config.String(), "hosts": hosts.String(),
	} {
		if err := os.WriteFile(l.run.path(file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Dir is the directory of cached roots and running labs: dir, or the default when dir is empty.
func Dir(dir string) string {
	if dir == "" {
		dir = os.Getenv("LOCKSTEP_LAB_CACHE")
	}
	if dir == "" {
		dir = "/var/cache/lockstep-lab"
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return dir
}
