// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"strings"
)

// paths are where lockstep is looked for on a host.
type paths struct {
	packaged string // of the deb and rpm; never written by the provider
	uploaded string // where the provider puts it
	marker   string // holds the SHA-256 of what the provider put there
}

// pathsBelow gives the paths on a host; root is not empty in tests only.
func pathsBelow(root string) paths {
	return paths{packaged: root + "/usr/bin/lockstep", uploaded: root + "/usr/local/bin/lockstep", marker: root + "/var/lib/lockstep/uploaded.sha256"}
}

// owner says who put the binary of a host there.
type owner string

const (
	byPackage owner = "package"
	byUpload  owner = "upload"
	byHand    owner = "hand" // in the place of the uploaded one, but not what we uploaded
)

// facts are what a look at a host tells, without root's rights and without changing anything.
type facts struct {
	UID     string
	System  string // as uname -s
	Machine string // as uname -m
	Kernel  string
	OS      string
	Rsync   string // empty: not installed
	Systemd string
	Binary  string // path of lockstep; empty: none
	Version string
	Sum     string
	Owner   owner
}

// lookScript prints what is known about the host, one fact a line. $1 to $3 are the paths.
const lookScript = `fact() { printf 'lockstep:%s=%s\n' "$1" "$2"; }
fact uid "$(id -u)"
fact system "$(uname -s)"
fact machine "$(uname -m)"
fact kernel "$(uname -r)"
fact os "$(. /etc/os-release 2>/dev/null && echo "$PRETTY_NAME")"
fact rsync "$(rsync --version 2>/dev/null | sed -n '1s/^rsync *version *v*\([^ ]*\).*/\1/p')"
fact systemd "$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')"
for f in "$1" "$2"; do
	[ -f "$f" ] && [ -x "$f" ] || continue
	fact binary "$f"
	fact version "$("$f" version 2>/dev/null | sed -n '1s/^lockstep \([^ ]*\).*/\1/p')"
	fact sum "$(sha256sum <"$f" | cut -d' ' -f1)"
	break
done
fact marker "$(cat "$3" 2>/dev/null)"
`

// look finds the facts, once; [host.forget] makes the next call look again.
func (h *host) look(ctx context.Context) (facts, error) {
	if err := h.lock(ctx); err != nil {
		return facts{}, err
	}
	defer h.unlock()
	if h.facts != nil {
		return *h.facts, nil
	}
	argv := []string{"sh", "-s", "--", h.paths.packaged, h.paths.uploaded, h.paths.marker}
	result, err := h.pool.Run(ctx, h.name, shellJoin(argv), strings.NewReader(lookScript))
	if err != nil {
		return facts{}, h.fail(ctx, "look at the host", err, "")
	}
	said := map[string]string{}
	for line := range strings.Lines(string(result.Stdout)) {
		rest, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "lockstep:")
		key, value, _ := strings.Cut(rest, "=")
		if ok { // else a login script's words
			said[key] = value
		}
	}
	if _, found := said["uid"]; !found {
		return facts{}, h.fail(ctx, "look at the host", fmt.Errorf("its shell answered with exit status %d: %s", result.Status, tail(result.Stderr+string(result.Stdout))),
			"the log-in needs a shell that runs commands: no forced command, no nologin, no sftp only")
	}
	f := facts{
		UID: said["uid"], System: said["system"], Machine: said["machine"], Kernel: said["kernel"], OS: said["os"], Rsync: said["rsync"],
		Systemd: said["systemd"], Binary: said["binary"], Version: said["version"], Sum: said["sum"],
	}
	switch marker := said["marker"]; {
	case f.Binary == "":
	case f.Binary == h.paths.packaged:
		f.Owner = byPackage
	case marker != "" && marker == f.Sum:
		f.Owner = byUpload
	default:
		f.Owner = byHand
	}
	h.facts = &f
	return f, nil
}

// forget drops what was found out about lockstep on the host.
func (h *host) forget() {
	h.turn <- struct{}{}
	h.facts = nil
	h.unlock()
}
