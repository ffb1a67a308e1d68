// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Exit statuses of rsync, named as in its errcode.h.
const (
	ExitOK          = 0  // RERR_OK
	ExitSyntax      = 1  // RERR_SYNTAX: wrong option; password file; module is read only
	ExitProtocol    = 2  // RERR_PROTOCOL
	ExitFileSelect  = 3  // RERR_FILESELECT
	ExitUnsupported = 4  // RERR_UNSUPPORTED: option refused
	ExitStartClient = 5  // RERR_STARTCLIENT: @ERROR line tells
	ExitSocketIO    = 10 // RERR_SOCKETIO
	ExitFileIO      = 11 // RERR_FILEIO
	ExitStreamIO    = 12 // RERR_STREAMIO
	ExitMessageIO   = 13 // RERR_MESSAGEIO
	ExitIPC         = 14 // RERR_IPC
	ExitCrashed     = 15 // RERR_CRASHED
	ExitTerminated  = 16 // RERR_TERMINATED
	ExitSignal1     = 19 // RERR_SIGNAL1
	ExitSignal      = 20 // RERR_SIGNAL
	ExitWaitChild   = 21 // RERR_WAITCHILD
	ExitMalloc      = 22 // RERR_MALLOC
	ExitPartial     = 23 // RERR_PARTIAL
	ExitVanished    = 24 // RERR_VANISHED
	ExitDelLimit    = 25 // RERR_DEL_LIMIT
	ExitTimeout     = 30 // RERR_TIMEOUT
	ExitConTimeout  = 35 // RERR_CONTIMEOUT
)

// verdict is a row's answer. In message and hint, {1} is the first group of the row's pattern, and {module}, {address},
// {user} and {password file} come from the target.
type verdict struct {
	class   Class
	message string
	hint    string
}

// row says what a line on standard error means for the whole run. Its status, if not 0, must be rsync's.
type row struct {
	status  int
	pattern *regexp.Regexp
	verdict
}

func line(pattern string) *regexp.Regexp { return regexp.MustCompile(pattern) }

// rows is read from the top, and the first row decides that matches a line of a run whose status is not 0. The cause
// stands in an earlier row than what follows from it: a daemon that refuses an option also closes the connection.
var rows = []row{
	{0, line(`REMOTE HOST IDENTIFICATION HAS CHANGED|^Host key verification failed|^No \S+ host key is known`), verdict{Permanent,
		"{address} shows another ssh host key than the one that was pinned when the pair was made: it may be another host",
		"if sshd on the backup host was given new keys, apply the pair again, which pins them; if it was not, somebody is in between"}},
	{0, line(`Permission denied \([a-z,-]+\)\.?$`), verdict{Permanent, "sshd on the backup host refuses the pair's key",
		"lockstep read --role backup there, with the name of the pair, tells what differs: the line in authorized_keys, PermitRootLogin; else the log of sshd tells"}},
	{0, line(`^(?:Load key|no such identity:) "?([^":]+)"?: (.*)`), verdict{Permanent, "ssh cannot use the pair's key, {1}: {2}", "apply the pair again, which writes it"}},
	{0, line(`^ssh: connect to host \S+ port \d+: (.*)`), verdict{Transient, "no connection to {address} by ssh: {1}",
		"is sshd running on the backup host, and does a firewall let this host through?"}},
	{0, line(`^ssh: Could not resolve hostname (\S+): (.*)`), verdict{Transient, "the name {1} of the backup host cannot be resolved: {2}", "check backup.address and the resolver"}},
	{0, line(`^Connection timed out during banner exchange|^Timeout, server \S+ not responding`), verdict{Transient, "{address} was silent, or sshd there is busy", ""}},
	{0, line(`^(?:kex_exchange_identification: |Connection )(?:read: |\S*)(closed|reset|Connection (?:closed|reset))`), verdict{Transient, "sshd at {address} ends the connection before the login",
		"too many at once (MaxStartups of sshd_config(5)), or something bans this host (fail2ban, DenyUsers)"}},
	{0, line(`rsync: (command not found|not found|No such file or directory)$`), verdict{Permanent, "the backup host cannot run rsync: {1}", "install it there, and apply the pair again"}},
	{0, line(`Failed to exec ssh: (.*)`), verdict{Permanent, "ssh cannot be run here: {1}", "install openssh-client"}},
	{0, line(`^Connection to \S+ closed by remote host`), verdict{Transient, "sshd at {address} closed the connection", ""}},
	{0, line(`^@ERROR: auth failed on module`), verdict{Permanent, "the backup host refuses the password of user {user} for module {module}",
		"the same answer comes for a wrong password, an unknown user, and a secrets file on the backup host that others may read; the log of its rsync daemon tells which"}},
	{0, line(`^@ERROR: Unknown module '(.*)'`), verdict{Permanent, "the backup host has no module {1}, or not for this host",
		"see the rsync daemon's configuration on the backup host: the module's name, and `hosts allow`, which must hold the address it sees this host with"}},
	{0, line(`^@ERROR: access denied to (\S+) from (.*)`), verdict{Permanent, "the backup host refuses module {1} to this host: it sees it as {2}",
		"set source.address to the address that the backup host sees, or mend `hosts allow` of the module"}},
	{0, line(`^@ERROR: max connections \((.*)\) reached`), verdict{Transient, "all {1} connections of module {module} are taken", ""}},
	{0, line(`^@ERROR: (chroot|chdir) failed`), verdict{NoDirectory, "the directory of module {module} is missing on the backup host ({1} failed)",
		"mount or make the module's `path` on the backup host"}},
	// What plan.Module has the daemon run says so.
	{0, line(`^(/.*) is not a mountpoint$`), verdict{NoDirectory, "the backup host refuses: nothing is mounted on {1}", "mount it there; nothing was written in its place"}},
	{0, line(`^@ERROR: (fork failed)`), verdict{Transient, "the backup host cannot start a process: {1}", ""}},
	{0, line(`^@ERROR: (failed to open lock file)`), verdict{Permanent, "the rsync daemon on the backup host: {1}",
		"the directory of the module's `lock file` must exist and be writable for the daemon"}},
	{0, line(`^@ERROR: your client does not support one of our daemon-auth checksums: (.*)`), verdict{Permanent,
		"the backup host wants a password digest that this rsync has not: {1}", "update rsync here (3.2.7 has sha512), or widen `auth digest` of the module"}},
	{0, line(`^@ERROR: (.*)`), verdict{Permanent, "the rsync daemon on the backup host says: {1}", "its log tells more"}},
	{0, line(`The server is configured to refuse (\S+)`), verdict{Permanent, "module {module} on the backup host refuses the rsync option {1}",
		"remove it from the module's `refuse options`"}},
	{0, line(`^ERROR: module is read only`), verdict{Permanent, "module {module} on the backup host is read only", "set `read only = no` for the module"}},
	{0, line(`password file must not be other-accessible`), verdict{Permanent, "{password file} may be read by others, so rsync does not use it", "chmod 0600 {password file}"}},
	{0, line(`password file must be owned by root`), verdict{Permanent, "{password file} does not belong to root, so rsync does not use it", "chown root {password file}"}},
	{0, line(`could not open password file .*: (.*) \(\d+\)$`), verdict{Permanent, "rsync cannot read {password file}: {1}", "lockstep apply writes it; rsync has to run as its owner or as root"}},
	{0, line(`refusing to follow a symlink owned by an untrusted user`), verdict{Permanent, "{password file} is a symbolic link of another user, which rsync does not follow", "put a plain file there"}},
	{0, line(`failed to read a password from`), verdict{Permanent, "{password file} holds no password", "apply the pair again, or write the password of the rsync user to it"}},
	{0, line(`(invalid file mode 0+) for`), verdict{Permanent, "rsync on the backup host cannot delete what is missing from the source ({1})",
		"either it is 3.4.3 on one of the hosts, or a distribution's version with the same fault: update it to 3.4.4 or later; or the module's `refuse options` refuses delete-missing-args"}},
	{0, line(`Deletions stopped due to --max-delete limit \((\d+) skipped\)`), verdict{Permanent, "the backup host limits deletions: {1} were skipped",
		"remove --max-delete from the module or from transfer.options; lockstep has a limit of its own"}},
	{0, line(`getaddrinfo:? (\S+) \S+: (.*)`), verdict{Transient, "the name {1} of the backup host cannot be resolved: {2}", "check backup.address and the resolver"}},
	{0, line(`failed to connect to .*: (.*) \(\d+\)$`), verdict{Transient, "no connection to {address}: {1}", "is the rsync daemon running on the backup host, and does a firewall let this host through?"}},
	{0, line(`(did not see server greeting|didn't get server startup line)`), verdict{Transient, "{address} does not answer as an rsync daemon", "is another service listening there?"}},
	{0, line(`rsync: server sent "(.*)" rather than greeting`), verdict{Permanent, "{address} is not an rsync daemon: it says {1}", "check backup.address and backup.port"}},
	{ExitSyntax, line(`(?:^|: )(-.*: unknown option)$`), verdict{Permanent, "rsync does not know an option: {1}", "is rsync on both hosts new enough?"}},
	{ExitFileIO, line(`ERROR: (daemon has excluded destination .*|destination must be .*|cannot overwrite .*|destination path is .*)`), verdict{Permanent, "module {module} on the backup host: {1}", ""}},
	{ExitTimeout, line(`(?:io timeout after|timed out after) (\d+) seconds`), verdict{Transient, "{address} was silent for {1} s", ""}},
	{ExitFileSelect, line(`getcwd\(\)`), verdict{Transient, "the source directory was unmounted or deleted", "mount it again; lockstep looks for it"}},
	{0, line(`(unexpected tag \d+)`), verdict{Transient, "the connection to {address} broke: {1}",
		"if this lasts and transfer.compress is set: a module whose `refuse options` refuses compression answers so"}},
	{0, line(`connection unexpectedly closed`), verdict{Transient, "the backup host closed the connection",
		"if this lasts, the log of its rsync daemon tells why; one that does not know the algorithm of transfer.compress says nothing else"}},
	{0, line(`(?:read|write|writev) error: (.*) \(\d+\)$`), verdict{Transient, "the connection to {address} broke: {1}", ""}},
}

// statuses is what an exit status means when no row matched and no named path explains it.
var statuses = map[int]verdict{
	ExitSyntax:      {Permanent, "rsync refuses its options", ""},
	ExitProtocol:    {Permanent, "the two rsyncs do not understand each other", "is rsync on both hosts 3.1.3 or newer?"},
	ExitFileSelect:  {Permanent, "rsync cannot use a directory or file that it was given", ""},
	ExitUnsupported: {Permanent, "rsync, here or on the backup host, does not support what was asked", ""},
	ExitStartClient: {Transient, "the connection to {address} ended before the transfer began", ""},
	ExitSocketIO:    {Transient, "no connection to {address}", ""},
	ExitFileIO:      {Permanent, "the backup host cannot write", "the log of its rsync daemon tells why"},
	ExitStreamIO:    {Transient, "the connection to {address} broke", ""},
	ExitMessageIO:   {Transient, "rsync cannot write its messages", ""},
	ExitIPC:         {Transient, "rsync's processes cannot talk to each other", ""},
	ExitCrashed:     {Transient, "a process of rsync crashed", ""},
	ExitTerminated:  {Transient, "a process of rsync was ended", ""},
	ExitSignal1:     {Transient, "rsync was ended by a signal", ""},
	ExitSignal:      {Transient, "rsync was ended by a signal", ""},
	ExitWaitChild:   {Transient, "rsync lost one of its processes", ""},
	ExitMalloc:      {Transient, "rsync ran out of memory", "raise MemoryMax of the unit, or --max-alloc in transfer.options"},
	ExitDelLimit:    {Permanent, "rsync's --max-delete stopped deletions", "remove --max-delete; lockstep has a limit of its own"},
	ExitTimeout:     {Transient, "{address} was silent for too long", ""},
	ExitConTimeout:  {Transient, "{address} did not answer in time", "does a firewall drop the packets?"},
	124:             {Permanent, "rsync's remote shell failed", ""}, // RERR_CMD_FAILED
	125:             {Permanent, "rsync's remote shell was killed", ""},
	126:             {Permanent, "rsync's remote shell cannot be run", ""},
	127:             {Permanent, "rsync's remote shell is not found", ""},
	255:             {Transient, "ssh to {address} failed", ""}, // of ssh; what it is about, a row above tells
}

// expand fills in the target and a row's groups.
func (v verdict) expand(t *Target, groups []string) (message, hint string) {
	address := t.Address
	if t.Port != 0 {
		address += ":" + strconv.Itoa(t.Port)
	}
	pairs := []string{"{module}", t.Module, "{address}", address, "{user}", t.User, "{password file}", t.PasswordFile}
	for i, g := range groups {
		if i > 0 {
			pairs = append(pairs, "{"+strconv.Itoa(i)+"}", g)
		}
	}
	rep := strings.NewReplacer(pairs...)
	return rep.Replace(v.message), rep.Replace(v.hint)
}

// judge decides the class of a run from its exit status and from what the report has read. It sets Class, Message and Hint.
func (res *Result) judge(status int, rep *report, t *Target) {
	decide := func(v verdict, groups []string) {
		res.Class = v.class
		res.Message, res.Hint = v.expand(t, groups)
	}
	// Over a daemon, rsync ends with 0 after reaching --max-delete.
	if rep.deletionsStopped != "" {
		status = max(status, ExitDelLimit)
	}
	switch {
	case rep.noSpace != "":
		*res = withVerdict(*res, NoSpace, "the backup is full: "+rep.noSpace, "make room on the backup host; lockstep goes on by itself")
	case status == ExitOK, status == ExitVanished, status == ExitPartial && len(rep.unknown) == 0 && rep.explained:
		res.Class = Done
		res.Message, res.Hint = res.summary()
	case status == ExitPartial:
		message := "rsync did not bring everything, and does not say what"
		if len(rep.unknown) > 0 {
			message = rep.unknown[0]
		}
		*res = withVerdict(*res, Unknown, message, "")
	default:
		if v, groups, ok := rep.match(status); ok {
			decide(v, groups)
			return
		}
		if v, ok := statuses[status]; ok {
			decide(v, nil)
			if said := rep.said(); said != "" {
				res.Message += ": " + said
			}
			return
		}
		message := fmt.Sprintf("rsync ended with status %d", status)
		if said := rep.said(); said != "" {
			message += ": " + said
		}
		*res = withVerdict(*res, Unknown, message, "")
	}
}

func withVerdict(res Result, c Class, message, hint string) Result {
	res.Class, res.Message, res.Hint = c, message, hint
	return res
}

// summary is the message of a run that came to its end: what of it is not done.
func (res *Result) summary() (message, hint string) {
	var there, here []PathFailure
	for _, f := range res.Failed {
		if f.Remote {
			there = append(there, f)
		} else {
			here = append(here, f)
		}
	}
	var parts []string
	add := func(fs []PathFailure, what string) {
		if len(fs) == 1 {
			parts = append(parts, fmt.Sprintf("%q could not be %s: %s", fs[0].Path, what, fs[0].Reason))
		} else if len(fs) > 1 {
			parts = append(parts, fmt.Sprintf("%d paths could not be %s, as %q: %s", len(fs), what, fs[0].Path, fs[0].Reason))
		}
	}
	add(there, "written on the backup host")
	add(here, "read")
	if n := len(res.Blocked); n > 0 {
		parts = append(parts, fmt.Sprintf("%d blocked by a directory on the backup", n))
	}
	if n := len(res.Kept); n > 0 {
		parts = append(parts, fmt.Sprintf("%d directories kept on the backup: excluded files in them", n))
	}
	if res.Incomplete && len(parts) == 0 {
		parts = append(parts, "the source could not be read in full")
	}
	for _, f := range there {
		switch {
		case strings.HasPrefix(f.Reason, "Read-only file system"):
			hint = "the filesystem on the backup host is mounted read only"
		case strings.HasPrefix(f.Reason, "Permission denied"), strings.HasPrefix(f.Reason, "Operation not permitted"):
			hint = "the module's uid on the backup host may not do it; uid = root may"
		}
	}
	if hint == "" && len(here) > 0 {
		hint = "the agent's user may not read it, or the disk is failing"
	}
	return strings.Join(parts, "; "), hint
}
