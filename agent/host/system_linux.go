// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

// New returns the machine that the program runs on. Close it when done.
func New() (*Machine, error) {
	u := &units{dial: dbus.NewWithContext}
	return &Machine{Files: files{}, Units: u, Users: users{}, System: &system{units: u}}, nil
}

// Close ends the connection to systemd.
func (m *Machine) Close() {
	if u, ok := m.Units.(*units); ok {
		u.close()
	}
}

type system struct{ units *units }

// Bounds of one inspection, so that a plan answers soon on any tree.
const (
	countTimeout   = 10 * time.Second
	countMax       = 20_000_000
	resolveTimeout = 10 * time.Second
)

func (s *system) Inspect(ctx context.Context, q Query) (Facts, error) {
	f := Facts{
		Root:      os.Geteuid() == 0,
		Versions:  map[string]string{"arch": runtime.GOARCH},
		UIDs:      map[string]int{},
		GIDs:      map[string]int{},
		Addresses: map[string][]string{},
		Dirs:      map[string]Dir{},
		Sysctls:   map[string]string{},
	}
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	f.Systemd = err == nil
	if f.Executable, err = os.Executable(); err != nil {
		return f, err
	}
	if f.Executable, err = filepath.EvalSymlinks(f.Executable); err != nil {
		return f, err
	}
	if q.Self {
		if f.Digest, err = digest(f.Executable); err != nil {
			return f, err
		}
		f.Untrusted = untrusted(f.Executable)
	}
	if q.Rsync {
		f.Rsync = findRsync(ctx)
		f.Versions["rsync"] = f.Rsync.Version
	}
	f.OS = osRelease()
	f.Versions["os"] = f.OS["PRETTY_NAME"]
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		f.Versions["kernel"] = unix.ByteSliceToString(uts.Release[:])
	}
	if f.Systemd && f.Root {
		if f.Versions["systemd"], err = s.units.version(ctx); err != nil {
			return f, err
		}
	}
	for _, name := range q.Users {
		if id, err := userID(name); err == nil {
			f.UIDs[name] = id
		}
	}
	for _, name := range q.Groups {
		if id, err := groupID(name); err == nil {
			f.GIDs[name] = id
		}
	}
	for _, name := range q.Names {
		if addresses := resolve(ctx, name); len(addresses) > 0 {
			f.Addresses[name] = addresses
		}
	}
	if q.Port != 0 {
		f.Listener = listener(q.Port)
	}
	for _, path := range q.Dirs {
		if f.Dirs[path], err = inspectDir(path); err != nil {
			return f, err
		}
	}
	if q.CountIn != "" {
		f.Count, f.CountAll = countDirs(ctx, q.CountIn)
	}
	f.SysctlsWritable = len(q.Sysctls) > 0
	for _, name := range q.Sysctls {
		if unix.Access(sysctlPath(name), unix.W_OK) != nil {
			f.SysctlsWritable = false
		}
		data, err := os.ReadFile(sysctlPath(name))
		if err != nil {
			continue // a kernel without it has no such limit
		}
		f.Sysctls[name] = strings.TrimSpace(string(data))
	}
	if q.SSH {
		f.SSH = program("ssh")
	}
	if q.SSHD != nil {
		d := findSSHD(ctx, *q.SSHD, f.Addresses[q.SSHD.From])
		f.SSHD = &d
	}
	if q.SELinux != "" {
		f.SELinux = findSELinux(selinuxfs, q.SELinux)
	}
	if q.Firewall != nil && !allLoopback(f.Addresses[q.Firewall.From]) {
		f.Firewall = findFirewall(ctx, *q.Firewall, f.Addresses[q.Firewall.From])
	}
	return f, ctx.Err()
}

// program finds a program in PATH, or where the system keeps programs: the PATH of an ssh session may be short, and need not
// have those that only root runs.
func program(name string) string {
	for _, dir := range []string{"", "/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin", "/sbin"} {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found
		}
	}
	return ""
}

func sysctlPath(name string) string { return "/proc/sys/" + strings.ReplaceAll(name, ".", "/") }

func (*system) SetSysctl(name, value string) error {
	err := os.WriteFile(sysctlPath(name), []byte(value+"\n"), 0)
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	return err
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// untrusted says why root should not run this file for ever: somebody else could replace it, or it may vanish.
func untrusted(path string) string {
	for _, temp := range []string{"/tmp/", "/var/tmp/", "/run/user/", "/dev/shm/"} {
		if strings.HasPrefix(path, temp) {
			return path + " is in a directory for temporary files"
		}
	}
	for p := path; ; p = filepath.Dir(p) {
		info, err := os.Lstat(p)
		if err != nil {
			return err.Error()
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			return fmt.Sprintf("%s belongs to %s, not to root", p, userName(st.Uid))
		}
		if perm := info.Mode(); perm&0o022 != 0 && perm&fs.ModeSticky == 0 {
			return fmt.Sprintf("%s is writable for others than root", p)
		}
		if p == "/" {
			return ""
		}
	}
}

func osRelease() map[string]string {
	values := map[string]string{}
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
				values[key] = strings.Trim(value, `"'`)
			}
		}
		break
	}
	return values
}

// resolve gives the addresses of a name; an address or a network stands for itself.
func resolve(ctx context.Context, name string) []string {
	if _, err := netip.ParseAddr(name); err == nil {
		return []string{name}
	}
	if _, err := netip.ParsePrefix(name); err == nil {
		return []string{name}
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil
	}
	var addresses []string
	for _, a := range found {
		addresses = append(addresses, a.Unmap().WithZone("").String())
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// listener finds who listens on a TCP port of any local address. /proc/net/tcp: 0A is TCP_LISTEN, the tenth field the inode.
func listener(port int) *Listener {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || fields[3] != "0A" {
				continue
			}
			if _, hexPort, ok := strings.Cut(fields[1], ":"); ok {
				if n, err := strconv.ParseUint(hexPort, 16, 16); err == nil && int(n) == port {
					inodes["socket:["+fields[9]+"]"] = true
				}
			}
		}
		f.Close()
	}
	if len(inodes) == 0 {
		return nil
	}
	// Of several holders, as of a socket that a child inherited, the one with the lowest number is the first.
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, _ := os.ReadDir(dir)
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil || !inodes[target] {
				continue
			}
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return &Listener{PID: pid, Command: strings.TrimSpace(string(comm)), Unit: unitOf(pid)}
		}
	}
	return &Listener{} // of another process namespace
}

// unitOf is the service that a process belongs to, by its control group.
func unitOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.Split(strings.TrimSpace(line), "/")
		for _, part := range slices.Backward(parts) {
			if strings.HasSuffix(part, ".service") {
				return part
			}
		}
	}
	return ""
}

func inspectDir(path string) (Dir, error) {
	var d Dir
	info, err := os.Lstat(path)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		d.Symlink = true
		info, err = os.Stat(path)
	}
	switch {
	case err == nil:
		d.Exists, d.IsDir = true, info.IsDir()
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
		return d, err
	}
	d.Mount = mounted(path)
	d.Entries = someOf(path)
	for p := path; ; p = filepath.Dir(p) {
		var st unix.Statfs_t
		if err := unix.Statfs(p, &st); err == nil {
			d.ReadOnly = st.Flags&unix.ST_RDONLY != 0
			d.FS = fmt.Sprintf("%x:%x:%x", st.Type, uint32(st.Fsid.Val[0]), uint32(st.Fsid.Val[1]))
			return d, nil
		}
		if p == "/" {
			return d, nil
		}
	}
}

// someOf names a few entries of a directory, without the lost+found that its filesystem makes.
func someOf(path string) []string {
	const some = 6
	dir, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(some + 1)
	names = slices.DeleteFunc(names, func(name string) bool { return name == "lost+found" })
	slices.Sort(names)
	return names[:min(some, len(names))]
}

// mounted is whether something is mounted on path, as mountpoint(1) has it: another device number than the parent's would
// be that of a subvolume of btrfs, too.
func mounted(path string) bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	// proc_pid_mountinfo(5) has these as \ooo.
	at := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(files{}.Real(path))
	for line := range strings.Lines(string(data)) {
		if fields := strings.SplitN(line, " ", 6); len(fields) == 6 && fields[4] == at {
			return true
		}
	}
	return false
}

func countDirs(ctx context.Context, root string) (n int, all bool) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	seen := 0
	all = true
	_ = filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			n++
		}
		if seen++; n >= countMax || seen%1000 == 0 && ctx.Err() != nil {
			all = false
			return fs.SkipAll
		}
		return nil // what cannot be read is not counted, and not watched either
	})
	return n, all
}

func (*system) Login(ctx context.Context, l Login) error { return login(ctx, l) }
