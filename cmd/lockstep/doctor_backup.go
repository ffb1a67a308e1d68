// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/apply"
	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// onBackup is whether this is the pair's backup host, and not its source host as well.
func (d *doctor) onBackup() bool {
	return d.name != "" && !exists(plan.SecretFile(d.name)) && keepsBackup("", d.name)
}

// examineBackup looks at the half of the path that lies on the backup host, which the source host cannot see.
func (d *doctor) examineBackup(ctx context.Context) {
	d.provisioned(ctx)
	if d.pair.Transport != pair.SSH { // else sshd starts one for each connection
		d.daemon(ctx)
	}
	d.daemonRsync(ctx)
	d.connect(ctx)
	if d.directory() {
		d.space(d.pair.Backup.Path, "the backup")
	}
	d.clock()
	d.tell("path", levelSkip, "login and canary start at the source host", "on "+d.pair.Source.Host+": lockstep doctor "+d.name)
}

// provisioned is what `lockstep plan` finds.
func (d *doctor) provisioned(ctx context.Context) {
	again := "lockstep apply --role backup --definition " + d.files.definition
	data, err := os.ReadFile(d.files.definition)
	if err != nil {
		d.failure("module", err, "")
		return
	}
	req, problems := plan.ParseRequest(data, plan.Plan)
	reply := plan.Reply{Problems: problems}
	if len(problems) == 0 {
		reply = apply.Run(ctx, d.machine, apply.Command{Verb: plan.Plan, Role: plan.Backup, Version: version, Identity: identity, ByHand: true}, req)
	}
	well := len(reply.Problems) == 0
	d.stuck = !well
	for _, p := range reply.Problems {
		d.tell("module", levelFail, p.Path+": "+p.Msg, p.Hint)
	}
	for _, w := range reply.Warnings {
		d.tell(w.Path, levelWarn, w.Msg, w.Hint)
	}
	for _, c := range reply.Changes {
		// The directory, and whether the daemon runs, are looked at below: what helps there is not always an apply.
		if c.Object == "directory" || c.Path == unit.RsyncdName {
			continue
		}
		well = false
		d.tell("module", levelFail, fmt.Sprintf("%s: %s is not as apply made it", c.Object, c.Path), "lockstep plan --role backup --definition "+d.files.definition+" shows how; "+again)
	}
	if well {
		d.tell("module", levelOK, fmt.Sprintf("module %s and its secrets are as apply made them", d.pair.Backup.Module), "")
	}
}

func (d *doctor) daemon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	u, err := d.machine.Units.Unit(ctx, unit.RsyncdName)
	switch {
	case err != nil:
		d.tell("unit", levelSkip, strings.ReplaceAll(err.Error(), "\n", "; "), "")
	case u.Masked:
		d.tell("unit", levelFail, unit.RsyncdName+" is masked", "systemctl unmask "+unit.RsyncdName)
	case !u.Active:
		d.tell("unit", levelFail, unit.RsyncdName+" is "+u.State, "journalctl -u "+unit.RsyncdName+"; systemctl restart "+unit.RsyncdName)
	case !u.Enabled:
		d.tell("unit", levelWarn, unit.RsyncdName+" runs and is not enabled: it will not come back after a reboot", "systemctl enable "+unit.RsyncdName)
	default:
		d.tell("unit", levelOK, unit.RsyncdName+" is enabled and "+u.State, "")
	}
}

// otherRsync is what to do about an rsync with a fault, which need not be the one of 3.4.3.
const otherRsync = "mend that, or install another version than 3.4.3"

// daemonRsync looks for a version with a fault that makes it useless as a backup.
func (d *doctor) daemonRsync(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	facts, err := d.machine.System.Inspect(ctx, host.Query{Rsync: true})
	switch r := facts.Rsync; {
	case err != nil:
		d.failure("rsync", err, "")
	case r.Path == "":
		d.tell("rsync", levelFail, "rsync is not installed", "install rsync 3.1.3 or newer, other than 3.4.3")
	case r.Fault != "":
		d.tell("rsync", levelFail, strings.TrimSpace("rsync "+r.Version)+" here: "+r.Fault, otherRsync)
	default:
		d.tell("rsync", levelOK, "rsync "+r.Version+" here; no known fault", "")
	}
}

func (d *doctor) directory() bool {
	info, err := os.Stat(d.pair.Backup.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		do := "mount it"
		if !d.stuck {
			do += "; or lockstep apply --role backup --definition " + d.files.definition + " makes an empty one"
		}
		d.tell("directory", levelFail, d.pair.Backup.Path+" is missing: is its disk mounted?", do)
	case err != nil:
		d.failure("directory", err, "")
	case !info.IsDir():
		d.tell("directory", levelFail, d.pair.Backup.Path+" is not a directory", "")
	default:
		d.tell("directory", levelOK, fmt.Sprintf("%s is there (mode %04o)", d.pair.Backup.Path, info.Mode().Perm()), "")
		return true
	}
	return false
}

// lowSpace is the share of a filesystem, of its bytes or of its inodes, that should be left: 1/20.
const lowSpace = 20

// space looks at the filesystem of a directory of this host.
func (d *doctor) space(path, whose string) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		d.failure("space", fmt.Errorf("%s: %w", path, err), "")
		return
	}
	free := int64(st.Bavail) * st.Bsize
	saw := fmt.Sprintf("%s has %s of %s left", whose, size(free), size(int64(st.Blocks)*st.Bsize))
	inodes := st.Files > 0 && st.Ffree < st.Files/lowSpace // some filesystems have no fixed number, and say 0
	if inodes {
		saw += fmt.Sprintf(", and %d of %d inodes", st.Ffree, st.Files)
	}
	switch do := "df -h " + path + "; df -i " + path; {
	case st.Bavail == 0 || inodes && st.Ffree == 0:
		d.tell("space", levelFail, saw, do)
	case st.Bavail < st.Blocks/lowSpace || inodes:
		d.tell("space", levelWarn, saw, do)
	default:
		d.tell("space", levelOK, saw, "")
	}
}

// clock asks the kernel whether something keeps the clock right. Nothing in a transfer depends on it.
func (d *doctor) clock() {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		d.tell("clock", levelSkip, "adjtimex: "+err.Error(), "")
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		d.tell("clock", levelWarn, "nothing keeps this host's clock right. Replication does not depend on it, the times in status and log do",
			"enable systemd-timesyncd, chrony or ntpd")
	default:
		d.tell("clock", levelOK, "a time service keeps this host's clock right", "")
	}
}
