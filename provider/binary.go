// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/lockstep-sync/lockstep/provider/internal/ssh"
)

// Ways to get lockstep onto a host.
const (
	installAuto    = "auto"    // upload it when there is none, or when an uploaded one is older
	installPackage = "package" // the host must have it
)

const packageHint = "install it from the lockstep releases: apt-get install ./lockstep_VERSION_ARCH.deb, or dnf install ./lockstep-VERSION.ARCH.rpm"

// wanted decides about the binary of a host: whether the carried one is to replace it, and a warning.
type wanted struct {
	upload  *carriedFile // nil: leave what is there
	warning string
}

func (h *host) want(ctx context.Context, f facts) (wanted, error) {
	fail := func(err error, hint string) (wanted, error) {
		return wanted{}, h.fail(ctx, "look for lockstep", err, hint)
	}
	arch := goArch(f.Machine)
	if f.System != "Linux" || arch == "" {
		return fail(fmt.Errorf("the host is %s on %s; lockstep runs on Linux on x86_64 and aarch64", f.System, f.Machine), "")
	}
	if h.install == installPackage {
		if f.Binary == "" {
			return fail(errors.New("lockstep is not installed, and host_binary.install = \"package\" forbids to upload it"), packageHint)
		}
		return wanted{}, nil
	}
	newer, comparable := isNewer(h.carried.version, f.Version)
	switch f.Owner {
	case byPackage, byHand:
		w := wanted{}
		if newer && comparable {
			w.warning = fmt.Sprintf("lockstep %s in %s is older than the provider's %s. It is used as it is: the provider does not overwrite what it did not upload. Upgrade it there: %s.",
				f.Version, f.Binary, h.carried.version, strings.TrimPrefix(packageHint, "install it from the lockstep releases: "))
		}
		return w, nil
	}
	file, err := h.carried.get(arch)
	if err != nil {
		if f.Binary != "" { // what was uploaded before still serves
			return wanted{}, nil
		}
		return fail(fmt.Errorf("lockstep is not installed, and the provider cannot upload it: %w", err),
			packageHint+"; or set host_binary.directory to where lockstep_linux_"+arch+" is")
	}
	switch {
	case f.Binary == "":
		return wanted{upload: file}, nil
	case f.Sum == file.sum:
		return wanted{}, nil
	case newer, !comparable: // two builds without a release number: the one at hand is the one meant
		return wanted{upload: file}, nil
	}
	return wanted{}, nil
}

// versionAfter is the version that ready leaves on the host; "" if that is not known beforehand.
func (h *host) versionAfter(f facts, w wanted) string {
	if w.upload == nil {
		return f.Version
	}
	if h.carried.dir != carriedDir() || h.carried.version == f.Version {
		return "" // given by the user, of whatever version; or another build of the same
	}
	return h.carried.version
}

// staged is the carried binary in a temporary directory of a host, which goes away with the connection.
type staged struct {
	file    *carriedFile
	path    string
	version string
	session *ssh.Session // of the shell that keeps the directory
	users   int          // operations that run it; guarded by the host's turn
	retired bool         // installed by now: the last user drops it
}

func (s *staged) drop() {
	s.session.Release()
	_, _ = s.session.Wait()
}

// stageScript takes a file from standard input into a directory in which programs may run, says where, and
// stays until standard input ends: however this provider ends, nothing is left behind. One line without
// single quotes, since it is an argument: standard input is the file's.
const stageScript = `umask 077; for t in "${TMPDIR:-/tmp}" "$HOME" /var/tmp; do ` +
	`d=$(mktemp -d "$t/.lockstep.XXXXXXXX" 2>/dev/null) || continue; ` +
	`echo "exit 0" >"$d/try" && chmod 700 "$d/try" && "$d/try" 2>/dev/null && break; ` +
	`rm -rf "$d"; d=; done; ` +
	`[ -n "$d" ] || { echo "no directory to run a program from: /tmp, the home directory and /var/tmp are full, read-only or mounted noexec" >&2; exit 1; }; ` +
	`trap "rm -rf \"$d\"" EXIT; trap "exit 1" HUP INT TERM PIPE; ` +
	`head -c %d >"$d/lockstep" && chmod 700 "$d/lockstep" || exit 1; ` +
	`echo "lockstep:path=$d/lockstep"; echo "lockstep:sum=$(sha256sum <"$d/lockstep" | cut -d" " -f1)"; ` +
	`echo "lockstep:version=$("$d/lockstep" version | head -n 1)"; echo lockstep:end; cat >/dev/null`

// stage uploads file. The caller holds the turn.
func (h *host) stage(ctx context.Context, file *carriedFile) (*staged, error) {
	if h.staged != nil && h.staged.file == file {
		return h.staged, nil
	}
	const step = "upload lockstep"
	script := fmt.Sprintf(stageScript, len(file.content))
	// It outlives the request that needs it first, for those that come after.
	session, err := h.pool.Start(context.WithoutCancel(ctx), h.name, shellJoin([]string{"sh", "-c", script}), bytes.NewReader(file.content))
	if err != nil {
		return nil, h.fail(ctx, step, err, "")
	}
	s := &staged{file: file, session: session}
	if !session.Expect(ctx, "lockstep:end\n") {
		session.Release()
		if err := ctx.Err(); err != nil {
			return nil, h.fail(ctx, step, err, "")
		}
		result, err := session.Wait()
		if err == nil {
			err = fmt.Errorf("exit status %d: %s", result.Status, tail(result.Stderr))
		}
		return nil, h.fail(ctx, step, err, "")
	}
	sum := ""
	for line := range strings.Lines(string(session.Stdout())) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "lockstep:path="); ok {
			s.path = v
		}
		if v, ok := strings.CutPrefix(line, "lockstep:sum="); ok {
			sum = v
		}
		if v, ok := strings.CutPrefix(line, "lockstep:version="); ok {
			s.version = strings.TrimPrefix(v, "lockstep ")
		}
	}
	switch {
	case sum != file.sum:
		s.drop()
		return nil, h.fail(ctx, step, fmt.Errorf("what arrived has SHA-256 %q, what was sent %q", sum, file.sum), "is the disk full? df -h "+path.Dir(path.Dir(s.path)))
	case s.version == "":
		s.drop()
		return nil, h.fail(ctx, step, errors.New("the uploaded program does not run there"), "is it built for this machine? uname -m")
	}
	h.staged = s
	return s, nil
}

// installScript puts the staged file $1, which has the SHA-256 $2, to $3, and says so in $4. The copy is made
// and checked by root, so that nobody can exchange the file in between.
const installScript = `set -eu
umask 022
mkdir -p "${3%/*}" "${4%/*}"
trap 'rm -f "$3.new" "$4.new"' EXIT
cp "$1" "$3.new"
[ "$(sha256sum <"$3.new" | cut -d' ' -f1)" = "$2" ]
chmod 0755 "$3.new"
echo "$2" >"$4.new"
mv -f "$4.new" "$4"
mv -f "$3.new" "$3"
sync "$3" 2>/dev/null || sync
`

// removeScript removes $1 if it still has the SHA-256 that $2 says.
const removeScript = `[ -f "$2" ] || exit 0
if [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$(cat "$2")" ]; then rm -f "$1"; fi
rm -f "$2"
rmdir "${2%/*}" 2>/dev/null || true
`

// shell runs a script as root that has to succeed.
func (h *host) shell(ctx context.Context, step, script string, args ...string) error {
	result, err := h.script(ctx, step, script, args...)
	if err != nil {
		return err
	}
	if result.Status != 0 {
		return h.fail(ctx, step, fmt.Errorf("exit status %d: %s", result.Status, tail(result.Stderr)), "")
	}
	return nil
}

// binary is lockstep on a host, ready to be called, until done is.
type binary struct {
	path    string
	version string
	warning string
	staged  *staged // nil: installed
	host    *host
}

// done lets go of a staged binary.
func (b binary) done() {
	if b.staged == nil {
		return
	}
	b.host.turn <- struct{}{}
	defer b.host.unlock()
	if b.staged.users--; b.staged.users == 0 && b.staged.retired {
		b.staged.drop()
	}
}

// unstage removes the staged binary, once its last user is done: nothing is going to be installed.
func (h *host) unstage() {
	h.turn <- struct{}{}
	defer h.unlock()
	s := h.staged
	if s == nil {
		return
	}
	h.staged, s.retired = nil, true
	if s.users == 0 {
		s.drop()
	}
}

// trial gives a binary to plan with and changes nothing on the host: where the carried one is going to be
// installed, it is run from a temporary directory.
func (h *host) trial(ctx context.Context) (binary, error) {
	f, err := h.look(ctx)
	if err != nil {
		return binary{}, err
	}
	w, err := h.want(ctx, f)
	if err != nil {
		return binary{}, err
	}
	if w.upload == nil {
		return binary{path: f.Binary, version: f.Version, warning: w.warning}, nil
	}
	if err := h.lock(ctx); err != nil {
		return binary{}, err
	}
	defer h.unlock()
	s, err := h.stage(ctx, w.upload)
	if err != nil {
		return binary{}, err
	}
	s.users++
	return binary{path: s.path, version: s.version, staged: s, host: h}, nil
}

// present gives the binary that is installed; path is "" if none is.
func (h *host) present(ctx context.Context) (binary, error) {
	f, err := h.look(ctx)
	return binary{path: f.Binary, version: f.Version}, err
}

// ready gives a binary to apply with, installed for good. One operation installs it, the others wait for that.
func (h *host) ready(ctx context.Context) (binary, error) {
	select {
	case h.installing <- struct{}{}:
		defer func() { <-h.installing }()
	case <-ctx.Done():
		return binary{}, h.fail(ctx, "install lockstep", ctx.Err(), "")
	}
	b, err := h.trial(ctx)
	if err != nil || b.staged == nil {
		return b, err
	}
	defer b.done()
	err = h.shell(ctx, "install lockstep", installScript, b.path, b.staged.file.sum, h.paths.uploaded, h.paths.marker)
	if err != nil {
		return binary{}, err
	}
	if err := h.lock(ctx); err != nil {
		return binary{}, err
	}
	h.facts = nil
	b.staged.retired = true
	if h.staged == b.staged {
		h.staged = nil
	}
	h.unlock()
	return h.present(ctx)
}

// withdraw removes the uploaded binary unless somebody still uses it. last is asked once nobody can begin to.
func (h *host) withdraw(ctx context.Context, last func() (bool, error)) error {
	if err := h.using.Acquire(ctx, allOfIt); err != nil {
		return h.fail(ctx, "remove lockstep", err, "")
	}
	defer h.using.Release(allOfIt)
	f, err := h.look(ctx)
	if err != nil || f.Owner != byUpload {
		return err
	}
	if yes, err := last(); err != nil || !yes {
		return err
	}
	err = h.shell(ctx, "remove lockstep", removeScript, h.paths.uploaded, h.paths.marker)
	h.forget()
	return err
}
