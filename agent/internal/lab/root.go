// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packages is what a bare host has. python3 is for the modules of Ansible itself, which the roles use; the rest is what lockstep asks of a host.
var packages = []string{
	"ca-certificates", "dbus", "iproute2", "openssh-server", "procps", "python3", "rsync", "sudo",
	"systemd", "systemd-sysv",
}

// customize makes a fresh root a lab host; $1 is the root. systemd-remount-fs fails on an overlay, and the
// timers would disturb measurements. Host keys and machine-id are made anew for each host.
const customize = `set -eu
for unit in systemd-remount-fs.service getty.target console-getty.service \
	apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer; do
	ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
chroot "$1" useradd --create-home --shell /bin/bash --password '*' ` + Operator + `
chroot "$1" useradd --create-home --shell /bin/bash --password '*' ` + Guest + `
echo '` + Operator + ` ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/lab"
chmod 0440 "$1/etc/sudoers.d/lab"
rm -f "$1"/etc/ssh/ssh_host_*
: >"$1/etc/machine-id"
`

// cachedRoot returns the directory of the root that all hosts share, made by mmdebstrap if need be: the
// release that this machine runs, from the package sources that this machine uses. Its name says what is in it.
func cachedRoot(ctx context.Context, dir string, log io.Writer) (string, error) {
	release, err := osRelease()
	if err != nil {
		return "", err
	}
	suite := release["VERSION_CODENAME"]
	if suite == "" {
		return "", fmt.Errorf("/etc/os-release has no VERSION_CODENAME\nhint: the lab needs Debian or Ubuntu")
	}
	sum := sha256.Sum256([]byte(strings.Join(packages, " ") + "\n" + customize))
	root := filepath.Join(dir, fmt.Sprintf("root-%s-%s-%s", suite, runtime.GOARCH, hex.EncodeToString(sum[:6])))
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := flock(root+".lock", unix.LOCK_EX) // another lab may be making it right now
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}

	fmt.Fprintf(log, "lab: making the root of the hosts in %s (once; about half a minute)\n", root)
	begin := time.Now()
	work := root + ".new" // ours alone under the lock; a remnant was left by a killed run
	if err := os.RemoveAll(work); err != nil {
		return "", err
	}
	if err := os.Mkdir(work, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	sources, err := aptSources("/etc/apt", suite, work)
	if err != nil {
		return "", err
	}
	options, err := aptOptions(ctx)
	if err != nil {
		return "", err
	}
	optionsFile := filepath.Join(work, "apt.conf")
	if err := os.WriteFile(optionsFile, []byte(options), 0o644); err != nil {
		return "", err
	}
	hook := filepath.Join(work, "customize")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\n"+customize), 0o755); err != nil {
		return "", err
	}

	made := filepath.Join(work, "root")
	argv := []string{"mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory",
		"--include=" + strings.Join(packages, ","), "--aptopt=" + optionsFile,
		"--customize-hook=" + hook, suite, made}
	argv = append(argv, sources...)
	cmd := groupCommand(ctx, argv...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	if _, err := output(cmd, argv); err != nil {
		return "", fmt.Errorf("make the root of the hosts: %w", err)
	}
	// The hosts have no way out; how this machine reaches its mirrors is not theirs to know.
	for _, name := range []string{"etc/apt/sources.list", "etc/apt/sources.list.d", "etc/apt/apt.conf.d/99mmdebstrap"} {
		if err := os.RemoveAll(filepath.Join(made, name)); err != nil {
			return "", err
		}
	}
	if err := os.Rename(made, root); err != nil {
		return "", err
	}
	fmt.Fprintf(log, "lab: root made in %.0fs\n", time.Since(begin).Seconds())
	return root, nil
}

func osRelease() (map[string]string, error) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	values := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), "="); ok {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	return values, lines.Err()
}

// aptSources picks, of the package sources below etc, those of the release itself, and writes them to
// dir/sources.list and dir/lab.sources for mmdebstrap. Sources of other projects are left out: their keys
// and their servers are not needed.
func aptSources(etc, suite, dir string) ([]string, error) {
	var lists, stanzas []string
	files, err := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	if err != nil {
		return nil, err
	}
	files = append([]string{filepath.Join(etc, "sources.list")}, files...)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		switch filepath.Ext(file) {
		case ".list":
			for line := range strings.Lines(string(data)) {
				if line = strings.TrimSpace(line); ofRelease(oneLine(line), suite) {
					lists = append(lists, resolveMirrorFiles(line))
				}
			}
		case ".sources":
			for _, stanza := range strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n\n") {
				if ofRelease(deb822(stanza), suite) {
					stanzas = append(stanzas, resolveMirrorFiles(strings.Trim(stanza, "\n")))
				}
			}
		}
	}
	var args []string
	for name, entries := range map[string][]string{"sources.list": lists, "lab.sources": stanzas} {
		if len(entries) == 0 {
			continue
		}
		sep := "\n"
		if name == "lab.sources" {
			sep = "\n\n"
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Join(entries, sep)+"\n"), 0o644); err != nil {
			return nil, err
		}
		args = append(args, path)
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("%s names no package source with suite %s and component main", etc, suite)
	}
	slices.Sort(args)
	return args, nil
}

// source is what decides whether an entry of sources.list(5) is of the release.
type source struct{ types, suites, components []string }

func oneLine(line string) source {
	fields := strings.Fields(line)
	if len(fields) == 0 || fields[0] != "deb" {
		return source{}
	}
	fields = fields[1:]
	if len(fields) > 0 && strings.HasPrefix(fields[0], "[") {
		for len(fields) > 0 && !strings.HasSuffix(fields[0], "]") {
			fields = fields[1:]
		}
		if len(fields) > 0 {
			fields = fields[1:]
		}
	}
	if len(fields) < 3 {
		return source{}
	}
	return source{[]string{"deb"}, fields[1:2], fields[2:]}
}

func deb822(stanza string) source {
	values := map[string]string{}
	key := ""
	for line := range strings.Lines(stanza) {
		switch line = strings.TrimRight(line, "\n"); {
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " "), strings.HasPrefix(line, "\t"):
			values[key] += " " + strings.TrimSpace(line)
		default:
			name, value, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(name))
			values[key] = strings.TrimSpace(value)
		}
	}
	if strings.EqualFold(values["enabled"], "no") {
		return source{}
	}
	return source{strings.Fields(values["types"]), strings.Fields(values["suites"]), strings.Fields(values["components"])}
}

func ofRelease(s source, suite string) bool {
	release := func(name string) bool {
		name = strings.TrimSuffix(name, "/")
		return name == suite || name == suite+"-updates" || name == suite+"-security" || name == suite+"/updates"
	}
	return slices.Contains(s.types, "deb") && slices.ContainsFunc(s.suites, release) && slices.Contains(s.components, "main")
}

// resolveMirrorFiles replaces apt's mirror+file:PATH, which apt inside the new root cannot read, by the
// first mirror in the file.
func resolveMirrorFiles(entry string) string {
	const scheme = "mirror+file:"
	for {
		at := strings.Index(entry, scheme)
		if at < 0 {
			return entry
		}
		path := entry[at+len(scheme):]
		if end := strings.IndexAny(path, " \t\n"); end >= 0 {
			path = path[:end]
		}
		data, err := os.ReadFile(path)
		first, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
		mirror := strings.Fields(first)
		if err != nil || len(mirror) == 0 {
			return entry
		}
		entry = strings.Replace(entry, scheme+path, mirror[0], 1)
	}
}

// aptOptions are the settings of this machine's apt that say how mirrors are reached and trusted.
func aptOptions(ctx context.Context) (string, error) {
	dump, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return "", fmt.Errorf("apt-config dump: %w", err)
	}
	var options strings.Builder
	options.WriteString("Acquire::Languages \"none\";\n")
	for line := range strings.Lines(string(dump)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		group := strings.SplitN(strings.TrimPrefix(strings.ToLower(name), "acquire::"), "::", 2)[0]
		if !strings.HasPrefix(strings.ToLower(name), "acquire::") || value == `"";` {
			continue
		}
		switch group {
		case "http", "https", "check-valid-until", "check-date", "max-validtime", "retries", "forceipv4", "forceipv6":
			fmt.Fprintf(&options, "%s %s\n", name, value)
		}
	}
	return options.String(), nil
}
