// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

func (d *doctor) localRsync(ctx context.Context) *transfer.Runner {
	d.user = d.pair.Auth.User
	if user, err := passwordUser(d.files.password); err == nil && user != "" {
		d.user = user
	}
	p := d.pair
	runner, err := transfer.New(transfer.Options{
		Rsync: d.rsync, Path: p.Source.Path,
		Target: transfer.Target{Address: p.Backup.Address, Port: p.Backup.Port, Module: p.Backup.Module, User: d.user, PasswordFile: d.files.password,
			Shell: d.files.shell(p)},
		// The rules do not matter to a canary.
		Compress: p.Transfer.Compress, BandwidthLimit: p.Transfer.BandwidthLimit, Timeout: d.timeout, Extra: p.Transfer.Options,
	})
	if err != nil {
		d.failure("rsync", err, "")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	if facts, err := d.machine.System.Inspect(ctx, host.Query{Rsync: d.rsync == ""}); err == nil && facts.Rsync.Fault != "" {
		// What sends needs no --delete-missing-args to work, but who restores from here may.
		d.tell("rsync", levelWarn, "rsync "+runner.Version()+" here: "+facts.Rsync.Fault, otherRsync)
		return runner
	}
	for _, w := range runner.Warnings() {
		d.tell("rsync", levelWarn, w, "")
	}
	if len(runner.Warnings()) == 0 {
		d.tell("rsync", levelOK, "rsync "+runner.Version()+" here; no known fault", "")
	}
	return runner
}

func (d *doctor) password() bool {
	info, err := os.Stat(d.files.password)
	switch {
	case err != nil:
		d.failure("password", err, "run doctor as root; lockstep apply --role source --definition "+d.files.definition+" makes the file")
	case info.Mode().Perm()&0o007 != 0:
		d.tell("password", levelFail, fmt.Sprintf("%s may be read by others (mode %04o), and rsync does not take it", d.files.password, info.Mode().Perm()),
			"chmod 0600 "+d.files.password)
	default:
		d.tell("password", levelOK, fmt.Sprintf("%s, for user %s", d.files.password, d.user), "")
		return true
	}
	return false
}

func (d *doctor) resolve(ctx context.Context) bool {
	address := d.pair.Backup.Address
	if net.ParseIP(address) != nil {
		d.tell("name", levelOK, address+" is an address, no name to look up", "")
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	began := time.Now()
	addresses, err := net.DefaultResolver.LookupHost(ctx, address)
	took := time.Since(began)
	switch {
	case err != nil:
		d.failure("name", err, "see to DNS or /etc/hosts, or write an address in backup.address")
		return false
	case took > time.Second:
		d.tell("name", levelWarn, fmt.Sprintf("%s is %s, and it took %s to find out: every transfer waits for that", address, strings.Join(addresses, ", "), short(took)),
			"see to the resolver, or write an address in backup.address")
	default:
		d.tell("name", levelOK, fmt.Sprintf("%s is %s", address, strings.Join(addresses, ", ")), "")
	}
	return true
}

// connect dials the daemon, or sshd.
func (d *doctor) connect(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	at := net.JoinHostPort(d.pair.Backup.Address, strconv.Itoa(d.pair.Backup.Port))
	began := time.Now()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", at)
	if err != nil {
		service := unit.RsyncdName
		if d.pair.Transport == pair.SSH {
			service = "ssh or sshd"
		}
		d.failure("connect", err, "on "+d.pair.Backup.Host+": systemctl status "+service+"; then see to routes and firewalls between the hosts")
		return false
	}
	defer conn.Close() //nolint:errcheck // read only
	took := time.Since(began)
	from, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		from = conn.LocalAddr().String()
	}
	if ip := net.ParseIP(d.pair.Source.Address); ip != nil && !d.onBackup() && !ip.Equal(net.ParseIP(from)) {
		d.tell("connect", levelWarn, fmt.Sprintf("%s answered in %v; this host dials from %s, and source.address is %s", at, took.Round(100*time.Microsecond), from, d.pair.Source.Address),
			"if the login is refused, write the address that the backup host sees in source.address")
	} else {
		d.tell("connect", levelOK, fmt.Sprintf("%s answered in %v, dialled from %s", at, took.Round(100*time.Microsecond), from), "")
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			d.failure("greeting", err, "")
			return false
		}
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadString('\n')
	line = strings.TrimSpace(line)
	switch {
	case err != nil && line == "":
		d.failure("greeting", fmt.Errorf("%s says nothing: %w", at, err), "is another service listening there, or does a firewall cut in?")
		return false
	case d.pair.Transport == pair.SSH:
		return d.sshGreeting(at, line)
	}
	return d.rsyncGreeting(at, line)
}

// rsyncGreeting looks at what the daemon says first, as in "@RSYNCD: 32.0 sha512 sha256 sha1 md5 md4".
func (d *doctor) rsyncGreeting(at, line string) bool {
	words := strings.Fields(strings.TrimPrefix(line, "@RSYNCD:"))
	if !strings.HasPrefix(line, "@RSYNCD: ") || len(words) == 0 {
		d.tell("greeting", levelFail, fmt.Sprintf("%s is not an rsync daemon, it says %q", at, line), "check backup.address and backup.port")
		return false
	}
	digests := strings.Join(words[1:], " ")
	protocol, _ := strconv.ParseFloat(words[0], 64) // 0 for something that is not a number
	switch {
	case len(words) == 1:
		d.tell("greeting", levelWarn, "protocol "+words[0]+", and MD5 for the login: an rsync before 3.2.7", "update rsync on "+d.pair.Backup.Host)
	case protocol < 32:
		d.tell("greeting", levelWarn, "protocol "+words[0]+", digests "+digests+": an rsync before 3.4.0, which mended six security faults, unless the distribution mended them too",
			"update rsync on "+d.pair.Backup.Host)
	default:
		d.tell("greeting", levelOK, "protocol "+words[0]+", digests "+digests, "")
	}
	return true
}

// sshGreeting looks at what sshd says first, as in "SSH-2.0-OpenSSH_9.2p1 Debian-2".
func (d *doctor) sshGreeting(at, line string) bool {
	if !strings.HasPrefix(line, "SSH-") {
		d.tell("greeting", levelFail, fmt.Sprintf("%s is not an ssh server, it says %q", at, line), "check backup.address and backup.port")
		return false
	}
	d.tell("greeting", levelOK, line, "")
	return true
}

func (d *doctor) login(ctx context.Context, runner *transfer.Runner) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*d.timeout)
	defer cancel()
	module := d.pair.Backup.Module
	res := runner.Probe(ctx)
	if res.Class != transfer.Done {
		d.tell("login", levelFail, cmp.Or(res.Message, res.Class.String()), res.Hint)
		return false
	}
	d.tell("login", levelOK, fmt.Sprintf("module %s takes user %s", module, d.user), "")
	return true
}

// restoreTop sends the source directory itself, without what is in it.
func (d *doctor) restoreTop(ctx context.Context, runner *transfer.Runner) error {
	root, err := transfer.OpenRoot(d.pair.Source.Path)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only a handle
	res := runner.Run(ctx, root, transfer.Job{Kind: transfer.Send, Paths: []string{""}}, nil)
	if res.Class != transfer.Done || len(res.Failed) > 0 {
		return errors.New(cmp.Or(res.Message, res.Class.String()))
	}
	return nil
}

func (d *doctor) canary(ctx context.Context, runner *transfer.Runner) bool {
	ctx, cancel := context.WithTimeout(ctx, 6*d.timeout) // up to six runs of rsync
	defer cancel()
	res := runner.Canary(ctx)
	if res.Class != transfer.Done {
		d.tell("canary", levelFail, cmp.Or(res.Message, res.Class.String()), res.Hint)
		return false
	}
	// The canary changed the time of the backup's top directory, and an agent has no way to know.
	err := errors.New("whether the source directory is the right one is not known")
	if d.right {
		err = d.restoreTop(ctx, runner)
	}
	if err != nil && d.backend != "" { // without an agent, the next one begins with a comparison
		d.tell("canary", levelWarn, "works, and left another time on the top directory of the backup: "+err.Error(), "lockstep sync "+d.name)
		return true
	}
	d.tell("canary", levelOK, fmt.Sprintf("a file was created, changed and deleted on the backup, and looked at each time, in %s", short(res.Elapsed)), "")
	return true
}
