// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bootTimeout is how long a host may take to start. One takes about a second on an idle machine.
const bootTimeout = 90 * time.Second

// haltTimeout is how long an orderly power-off may take before the power is cut.
const haltTimeout = 20 * time.Second

// diskSize is the size of the files behind a host's disks. They are sparse.
const diskSize = 4 << 30

// Host is one host of a lab. Its methods may be called from any goroutine.
type Host struct {
	Name    string
	Address string
	Disk    string // the directory that is a mounted file system of its own: /data or /backup

	lab  *Lab
	root string   // of all hosts, read-only
	dir  string   // this host's directory in the run directory
	net  *os.File // its network namespace; it outlives a reboot, as a network card does

	mu      sync.Mutex
	running *machine // nil while the power is off
}

// machine is a host with its power on. Its goroutines end when systemd-nspawn has ended.
type machine struct {
	ended  chan struct{} // closed when the power is off; err is set before
	err    error
	ready  chan struct{} // closed when systemd first says that the host has started
	notify *net.UnixConn

	mu       sync.Mutex
	nspawn   process // another one after the host rebooted itself
	leader   process // the host's PID 1 as this machine numbers it
	stopping bool    // the power is being turned off, so a reboot does not turn it on again
}

// exitReboot is systemd-nspawn's way, with --keep-unit, to ask to be started again (systemd.exec(5),
// exit status 133).
const exitReboot = 133

// on says whether the power is on; a host may also have powered itself off.
func (m *machine) on() bool {
	if m == nil {
		return false
	}
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

func newHost(l *Lab, spec hostSpec, root string) (*Host, error) {
	h := &Host{Name: spec.name, Address: spec.address, Disk: spec.disk, lab: l, root: root, dir: l.run.path(spec.name)}
	var err error
	if h.net, err = newNetNS(); err != nil {
		return nil, err
	}
	if err := l.run.save(func(s *runState) { s.Nets[h.Name] = fdPath(h.net) }); err != nil {
		return nil, err
	}
	return h, nil
}

// boot makes the host's disks, plugs it into the link and starts it for the first time.
func (h *Host) boot(ctx context.Context) error {
	seed := filepath.Join(h.dir, "seed")
	public, err := os.ReadFile(h.lab.KeyFile() + ".pub")
	if err != nil {
		return err
	}
	hostKey, err := os.ReadFile(h.lab.run.path("hostkey-" + h.Name))
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile(h.lab.run.path("hosts"))
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	rand.Read(id)
	for _, f := range []struct {
		path string
		mode fs.FileMode
		text string
	}{
		{"etc/hostname", 0o644, h.Name + "\n"},
		{"etc/hosts", 0o644, string(hosts)},
		{"etc/machine-id", 0o444, hex.EncodeToString(id) + "\n"},
		{"etc/fstab", 0o644, "/mnt/disk " + h.Disk + " none bind,nofail 0 0\n"},
		{"etc/ssh/ssh_host_ed25519_key", 0o600, string(hostKey)},
		{"etc/ssh/authorized_keys", 0o644, string(public)},
		{"etc/ssh/sshd_config.d/lab.conf", 0o644, "AuthorizedKeysFile /etc/ssh/authorized_keys\n" +
			"PasswordAuthentication no\nUseDNS no\nHostKey /etc/ssh/ssh_host_ed25519_key\n"},
	} {
		path := filepath.Join(seed, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	for _, dir := range []string{h.Disk, "mnt/disk"} {
		if err := os.MkdirAll(filepath.Join(seed, dir), 0o755); err != nil {
			return err
		}
	}
	// The first disk holds what the host writes to its root, so that any file system may be below the lab.
	for _, disk := range []string{"root.img", "disk.img"} {
		path := filepath.Join(h.dir, disk)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(path, diskSize); err != nil {
			return err
		}
		argv := []string{"mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", path}
		if _, err := output(groupCommand(ctx, argv...), argv); err != nil {
			return err
		}
	}
	if err := ip(ctx, fdPath(h.lab.net),
		"link add "+h.Name+" type veth peer name eth0 netns "+fdPath(h.net),
		"link set "+h.Name+" master br0 up"); err != nil {
		return err
	}
	if err := ip(ctx, fdPath(h.net),
		"link set lo up",
		"addr add "+h.Address+prefix+" dev eth0",
		"link set eth0 up",
		"route add default via "+Address); err != nil {
		return err
	}
	return h.PowerOn(ctx)
}

// startScript is run in a mount namespace of its own, with all that it mounts gone when the host is off.
// $1 is the host's directory, $2 the shared root, then cgroups up to --, then the command that boots.
const startScript = `set -eu
dir=$1 lower=$2; shift 2
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift
mkdir -p "$dir/write" "$dir/disk" "$dir/root"
mount -o loop,noatime "$dir/root.img" "$dir/write"
mount -o loop,noatime "$dir/disk.img" "$dir/disk"
mkdir -p "$dir/write/upper" "$dir/write/work"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$dir/write/upper,workdir=$dir/write/work" "$dir/root"
if [ -d "$dir/seed" ]; then
	rmdir "$dir/disk/lost+found"
	cp -a "$dir/seed/." "$dir/root/"
	rm -r "$dir/seed"
fi
mkdir -p /run/systemd/nspawn
mount -t tmpfs lab /run/systemd/nspawn
exec "$@"
`

// PowerOn starts a host that is off and returns when its systemd says that it has started.
func (h *Host) PowerOn(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running.on() {
		return fmt.Errorf("%s is running", h.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()

	socket := filepath.Join(h.dir, "notify")
	if err := os.RemoveAll(socket); err != nil {
		return err
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	console, err := os.OpenFile(filepath.Join(h.dir, "console.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		notify.Close()
		return err
	}
	cgroups, wrap, err := h.cgroups()
	if err != nil {
		notify.Close()
		console.Close()
		return err
	}

	argv := append(wrap, "unshare", "--mount", "--propagation=private", "--", "sh", "-c", startScript, "lab-host", h.dir, h.root)
	argv = append(argv, cgroups...)
	argv = append(argv, "--",
		"systemd-nspawn", "--quiet", "--directory="+filepath.Join(h.dir, "root"),
		"--register=no", "--keep-unit", "--network-namespace-path="+fdPath(h.net),
		"--machine="+h.Name+"-"+h.lab.ID, "--hostname="+h.Name, "--bind="+filepath.Join(h.dir, "disk")+":/mnt/disk",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--notify-ready=yes",
		"--system-call-filter=fanotify_init fanotify_mark open_by_handle_at", // a host has them; systemd-nspawn's default has not
		// What --boot does, and more: the host's systemd dies with systemd-nspawn, which a kill -9 of the lab's owner takes along.
		"--kill-signal=SIGRTMIN+3", "setpriv", "--pdeathsig", "KILL", "/lib/systemd/systemd")
	m := &machine{ended: make(chan struct{}), ready: make(chan struct{}), notify: notify}
	started := make(chan error)
	go func() {
		defer close(m.ended)
		defer notify.Close()
		defer console.Close()
		// PR_SET_PDEATHSIG counts the death of the thread, not of the process, so this one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for first := true; ; first = false {
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET=" + socket}
			cmd.Stdout, cmd.Stderr = console, console
			// A group of its own: Ctrl-C is for the owner of the lab, who then powers the host off.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
			err := m.start(cmd)
			if err == nil {
				err = h.lab.run.save(func(s *runState) { s.Hosts[h.Name] = m.nspawn })
			}
			if first {
				started <- err
			}
			if err == nil {
				err = cmd.Wait()
			}
			if m.err = err; cmd.ProcessState.ExitCode() != exitReboot {
				return
			}
		}
	}()
	h.running = m
	if err := <-started; err != nil {
		return err
	}
	go h.listen(m)

	select {
	case <-m.ready:
		return nil
	case <-m.ended:
		return fmt.Errorf("%s ended while it started: %w\n%s", h.Name, m.err, h.consoleTail())
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w\n%s", h.Name, ctx.Err(), h.consoleTail())
	}
}

// start starts systemd-nspawn, unless the power is being turned off.
func (m *machine) start(cmd *exec.Cmd) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping {
		return errors.New("the power was turned off")
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.nspawn = thisProcess(cmd.Process.Pid)
	return nil
}

// kill ends systemd-nspawn and, if how is SIGKILL, before it the host's PID 1 and with that every process of the host.
// On SIGTERM systemd-nspawn asks the host's systemd to power off.
func (m *machine) kill(how syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopping = true
	if how == syscall.SIGKILL {
		if err := m.leader.kill(how); err != nil {
			return err
		}
	}
	return m.nspawn.kill(how)
}

// listen follows what systemd-nspawn says of the host: systemd-nspawn(1) --notify-ready, sd_notify(3).
// It ends when the socket is closed.
func (h *Host) listen(m *machine) {
	buf := make([]byte, 4096)
	for {
		n, err := m.notify.Read(buf)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(buf[:n])) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "X_NSPAWN_LEADER_PID":
				if pid, err := strconv.Atoi(value); err == nil {
					leader := thisProcess(pid)
					m.mu.Lock()
					m.leader = leader
					m.mu.Unlock()
					if err := h.lab.run.save(func(s *runState) { s.Leaders[h.Name] = leader }); err != nil {
						fmt.Fprintf(h.lab.log, "lab %s: %v\n", h.lab.ID, err)
					}
				}
			case "READY":
				m.mu.Lock()
				select {
				case <-m.ready:
				default:
					close(m.ready)
				}
				m.mu.Unlock()
			}
		}
	}
}

// PowerOff shuts the host down in order.
func (h *Host) PowerOff() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stop(syscall.SIGTERM)
}

// CutPower ends the host at once: no process gets to clean up or to flush.
func (h *Host) CutPower() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stop(syscall.SIGKILL)
}

// Reboot shuts the host down in order and starts it again.
func (h *Host) Reboot(ctx context.Context) error {
	if err := h.PowerOff(); err != nil {
		return err
	}
	return h.PowerOn(ctx)
}

// Running says whether the power is on.
func (h *Host) Running() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.running.on()
}

// halt is stop for a lab that ends; a host that is off already is well.
func (h *Host) halt(how syscall.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.running.on() {
		return nil
	}
	return h.stop(how)
}

func (h *Host) stop(how syscall.Signal) error {
	m := h.running
	if !m.on() {
		return fmt.Errorf("%s is off", h.Name)
	}
	if err := m.kill(how); err != nil {
		return err
	}
	select {
	case <-m.ended:
		return nil
	case <-time.After(haltTimeout):
	}
	fmt.Fprintf(h.lab.log, "lab %s: %s does not power off, cutting its power\n", h.lab.ID, h.Name)
	err := m.kill(syscall.SIGKILL)
	<-m.ended
	return err
}

func (h *Host) consoleTail() string {
	data, err := os.ReadFile(filepath.Join(h.dir, "console.log"))
	if err != nil {
		return err.Error()
	}
	const most = 3000
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return string(data)
}
