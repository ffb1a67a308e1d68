// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

func (im *importer) host(root *element) {
	e := im.one(root, "host", false)
	if e == nil {
		return
	}
	ip, port := im.attr(e, "hostip"), im.attr(e, "port")
	im.note(e, "host", Changed, "", "dropped: sersync printed %s:%s and used it for nothing; lockstep status shows the state, and metrics.listen opens a port for Prometheus", ip, port)
}

func (im *importer) switches(root *element) {
	if e := im.one(root, "debug", false); e != nil {
		if im.flag(e, "start") {
			im.note(e, "debug", Changed, "", "not a matter of the definition: lockstep run has a debug log level, and journalctl -u lockstep@NAME shows the log")
		} else {
			im.note(e, "debug", Kept, "", "off")
		}
	}
	if e := im.one(root, "fileSystem", false); e != nil {
		im.flag(e, "xfs")
		im.note(e, "fileSystem", Kept, "", "lockstep finds out by itself what is a directory, on every filesystem")
	}
}

func (im *importer) addExclude(e *element, setting string, outcome Outcome, pattern, text string) {
	if !slices.Contains(im.base.Exclude, pattern) {
		im.base.Exclude = append(im.base.Exclude, pattern)
	}
	im.note(e, setting, outcome, "exclude", "%s%s", strconv.Quote(pattern), text)
}

func (im *importer) filter(root *element) {
	e := im.one(root, "filter", false)
	if e == nil {
		return
	}
	expressions := e.all("exclude")
	if !im.flag(e, "start") {
		for _, x := range expressions {
			im.attr(x, "expression")
		}
		if len(expressions) > 0 {
			im.note(e, "filter", Kept, "", "off, so its %d expressions are left out", len(expressions))
		} else {
			im.note(e, "filter", Kept, "", "off")
		}
		return
	}
	im.filterOn = true
	for _, x := range expressions {
		expression := im.attr(x, "expression")
		name := "filter/exclude " + expression
		patterns, err := translate(expression)
		guess := nearest(expression)
		switch {
		case expression == "":
			im.note(x, name, Changed, "", "left out: an empty expression matches nothing")
		case err != nil && strings.Contains(expression, "(?!"):
			im.note(x, name, Refused, "exclude", `%v; to replicate one directory only, make it source.path, or write filter rules such as "+ */", "+ uploads/***", "- *"`, err)
		case err != nil && guess != "":
			im.note(x, name, Refused, "exclude", "%v; the nearest pattern may be %q", err, guess)
		case err != nil:
			im.note(x, name, Refused, "exclude", "%v", err)
		case len(patterns) == 0 && guess != "":
			im.note(x, name, Changed, "exclude", "left out: it never matched in sersync, which holds it against the whole of /sub/name, with a slash in front; if %q is meant, write that", guess)
		case len(patterns) == 0:
			im.note(x, name, Changed, "exclude", "left out: it never matched in sersync")
		default:
			for _, p := range patterns {
				im.addExclude(x, name, Kept, p, "")
			}
		}
	}
	im.note(e, "filter", Changed, "exclude", "lockstep's excludes hold in full batches too; sersync's did not, and it refused -r beside them")
}

// inotify maps the switches of sersync to watch.events and delete.enabled.
func (im *importer) inotify(root *element) {
	e := im.one(root, "inotify", true)
	if e == nil {
		return
	}
	on := map[string]bool{}
	at := map[string]*element{}
	for _, name := range []string{"delete", "createFolder", "createFile", "closeWrite", "moveFrom", "moveTo", "attrib", "modify"} {
		c := im.one(e, name, false)
		if c == nil {
			at[name] = e
			im.note(e, "inotify/"+name, Changed, "watch.events", "not there, taken for false")
			continue
		}
		at[name] = c
		on[name] = im.flag(c, "start")
	}
	kept := func(name, event string) {
		if on[name] {
			im.note(at[name], "inotify/"+name, Kept, "watch.events", "%s", event)
		} else {
			im.note(at[name], "inotify/"+name, Kept, "watch.events", "off; a full batch still finds such changes")
		}
	}
	im.deletes = on["delete"]
	im.live = Live{Deletes: on["delete"], Attrib: on["attrib"], Modify: on["modify"], NewFolders: on["createFolder"]}
	im.base.Delete.Enabled = im.deletes
	if im.deletes {
		im.note(at["delete"], "inotify/delete", Kept, "delete.enabled", "true. New beside it: deletions over delete.max_files and delete.max_percent are held until approved; sersync had no bound")
	} else {
		im.note(at["delete"], "inotify/delete", Kept, "delete.enabled", "false: nothing is ever deleted on the backup")
	}
	if on["createFolder"] {
		kept("createFolder", "create")
	} else {
		im.note(at["createFolder"], "inotify/createFolder", Changed, "watch.events", "off in sersync meant that new directories were never watched; lockstep watches and sends them")
	}
	written := on["closeWrite"] || on["modify"]
	if on["createFile"] || !written {
		kept("createFile", "create")
	} else {
		im.note(at["createFile"], "inotify/createFile", Kept, "watch.events", "off: a new file is sent once it has been written, as an event of modify")
	}
	switch {
	case on["modify"], !written:
		kept("modify", "modify")
		if on["closeWrite"] || !written {
			kept("closeWrite", "modify")
		} else {
			im.note(at["closeWrite"], "inotify/closeWrite", Kept, "watch.events", "off: modify covers it")
		}
	default:
		kept("closeWrite", "modify")
		im.note(at["modify"], "inotify/modify", Changed, "watch.events", "off in sersync, which sent a file when it was closed; lockstep sends one that stays open too, after watch.max_delay")
	}
	kept("attrib", "attrib")
	if on["moveFrom"] == on["moveTo"] {
		kept("moveFrom", "move")
		kept("moveTo", "move")
	} else {
		for _, name := range []string{"moveFrom", "moveTo"} {
			if on[name] {
				kept(name, "move")
			} else {
				im.note(at[name], "inotify/"+name, Changed, "watch.events", "off in sersync while its counterpart is on; lockstep notices both ends of a move")
			}
		}
	}
	if on["moveFrom"] && !im.deletes {
		im.note(at["moveFrom"], "inotify/moveFrom", Kept, "delete.enabled", "what is moved away stays on the backup, as deletions are off")
	}
	var events []string
	for _, event := range []struct {
		name string
		on   bool
	}{
		// Without it, a directory that is made and filled at once would wait for a full batch.
		{"create", on["createFolder"] || on["createFile"] || written},
		{"modify", on["closeWrite"] || on["modify"]},
		{"attrib", on["attrib"]},
		{"delete", on["delete"]},
		{"move", on["moveFrom"] || on["moveTo"]},
	} {
		if event.on {
			events = append(events, event.name)
		}
	}
	im.base.Watch.Events = events
	if !written && len(events) > 0 {
		im.note(e, "inotify", Changed, "watch.events", "no event of written content, as in the file; such changes wait for the next full batch. Add modify to send them at once")
	}
}

// sersync reads <sersync> and gives the pairs.
func (im *importer) sersync(root *element) []pair.Pair {
	e := im.one(root, "sersync", true)
	if e == nil {
		return nil
	}
	im.rsync(e)
	im.failLog(e)
	im.crontab(e)
	im.hiddenFiles()
	im.plugin(e)
	paths := e.all("localpath")
	if len(paths) == 0 {
		im.problem(e, "", "<sersync> has no <localpath>", "sersync does not start without it")
		return nil
	}
	for _, extra := range paths[1:] {
		im.note(extra, "localpath", Refused, "", "sersync reads only the first localpath, of line %d; import a file of its own for %s", paths[0].line, im.attr(extra, "watch"))
	}
	local := paths[0]
	im.watched(local)
	remotes := local.all("remote")
	if len(remotes) == 0 {
		im.problem(local, "", "<localpath> has no <remote>", "sersync has nowhere to send to without it")
	}
	var pairs []pair.Pair
	names := map[string]bool{}
	for _, r := range remotes {
		ip, module := im.attr(r, "ip"), im.attr(r, "name")
		duplicate := slices.ContainsFunc(pairs, func(p pair.Pair) bool {
			return p.Backup.Host == ip && (p.Backup.Module == module || p.Backup.Path == module)
		})
		if duplicate {
			im.note(r, "remote", Refused, "", "%s %s is there already; one pair is enough", ip, module)
			continue
		}
		name := pairName(module, ip, len(remotes) > 1, names)
		names[name] = true
		pairs = append(pairs, im.remote(r, name, ip, module))
	}
	return pairs
}

func (im *importer) watched(e *element) {
	im.base.Source.Host = im.opts.SourceHost
	if im.opts.SourceHost == "" {
		im.note(e, "localpath", Missing, "source.host", "confxml.xml lies on its source host and does not name it; write the host's name")
	}
	watch := im.attr(e, "watch")
	im.base.Source.Path = watch
	if clean := path.Clean(watch); strings.HasPrefix(watch, "/") && clean != watch {
		im.base.Source.Path = clean
	}
	im.note(e, "localpath watch", Kept, "source.path", "%s", im.base.Source.Path)
}

// pairName makes a name of the module; of several remotes, which mostly have the same module, with the address.
func pairName(module, ip string, several bool, taken map[string]bool) string {
	text := path.Base(module)
	if several {
		text += "-" + ip
	}
	name := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, text), "-")
	for strings.Contains(name, "--") {
		name = strings.ReplaceAll(name, "--", "-")
	}
	name = strings.Trim(name[:min(len(name), 56)], "-")
	if name == "" {
		name = "sersync"
	}
	for i, unique := 2, name; ; i++ {
		if !taken[unique] {
			return unique
		}
		unique = fmt.Sprintf("%s-%d", name, i)
	}
}

func (im *importer) remote(e *element, name, ip, module string) pair.Pair {
	note := func(outcome Outcome, field, format string, args ...any) {
		im.note(e, "remote", outcome, field, format, args...)
		im.notes[len(im.notes)-1].Pair = name
	}
	to := im.remoteBase
	to.Address, to.Port = ip, im.base.Backup.Port
	if im.ssh {
		to.Path, to.Shell = module, []string{"ssh"} // its -e comes last, and so goes before one of the parameters
	} else {
		to.Module = strings.Trim(module, "/")
	}
	im.live.Remotes = append(im.live.Remotes, to)
	p := im.base
	p.Exclude, p.Filter = slices.Clone(p.Exclude), slices.Clone(p.Filter)
	p.Name = name
	p.Backup.Host = ip
	note(Kept, "backup.host", "%s", ip)
	if im.ssh {
		p.Backup.Path = module
		if clean := path.Clean(module); strings.HasPrefix(module, "/") {
			p.Backup.Path = clean
		}
		note(Kept, "backup.path", "%s, which is a directory with ssh", p.Backup.Path)
	} else {
		module, below, nested := strings.Cut(module, "/")
		if nested {
			note(Changed, "backup.module", "%s/%s is a directory in a module; lockstep makes a module of its own for it, named like the pair", module, below)
		} else {
			p.Backup.Module = module
			note(Kept, "backup.module", "%s", module)
		}
		dir, ok := im.opts.BackupPaths[module]
		if !ok {
			dir = im.opts.BackupPaths[""]
		}
		if dir != "" {
			p.Backup.Path = path.Join(dir, below)
			note(Kept, "backup.path", "%s, as given", p.Backup.Path)
		} else {
			further := ""
			if below != "" {
				further = " and below it /" + below
			}
			note(Missing, "backup.path", "only rsyncd.conf on %s tells it: write the path of [%s]%s", ip, module, further)
		}
	}
	p.Complete()
	return p
}

func (im *importer) rsync(sersync *element) {
	e := im.one(sersync, "rsync", true)
	if e == nil {
		return
	}
	if c := im.one(e, "ssh", false); c != nil {
		if im.flag(c, "start") {
			im.ssh = true
			im.base.Transport, im.base.Backup.Port = pair.SSH, pair.DefaultPort(pair.SSH)
			im.note(c, "rsync/ssh", Kept, "transport", "ssh. lockstep makes a key of its own for the pair, which opens nothing but its module, and pins the backup host's key; sersync used root's")
		} else {
			im.note(c, "rsync/ssh", Kept, "", "off: an rsync daemon")
		}
	}
	if c := im.one(e, "commonParams", true); c != nil {
		im.params(c, im.attr(c, "params"))
	}
	if c := im.one(e, "auth", false); c != nil {
		on, users, file := im.flag(c, "start"), im.attr(c, "users"), im.attr(c, "passwordfile")
		if on && im.ssh {
			im.remoteBase.User = users
			im.note(c, "rsync/auth", Changed, "", "%s was the user of the ssh session; lockstep logs in as root, with a key that runs nothing but the pair's module, to keep owners", users)
		} else if on {
			im.base.Auth.User = users
			im.remoteBase.User, im.remoteBase.PasswordFile = users, file
			im.note(c, "rsync/auth users", Kept, "auth.user", "%s", users)
			im.note(c, "rsync/auth passwordfile", Changed, "", "%s is not read: lockstep makes a password of its own and keeps it on the two hosts. To keep the old one give it to the front end (password_wo, a vault)", file)
		} else {
			im.note(c, "rsync/auth", Changed, "auth.user", "off in sersync; lockstep always has a password, which it makes itself")
		}
	}
	if c := im.one(e, "userDefinedPort", false); c != nil {
		on, port := im.flag(c, "start"), im.attr(c, "port")
		if im.base.Transport == pair.SSH {
			im.note(c, "rsync/userDefinedPort", Changed, "", "of no use with ssh, whose port goes into backup.port; it is %d unless something else is said", im.base.Backup.Port)
		} else if on {
			im.port(c, "rsync/userDefinedPort", port)
		} else {
			im.note(c, "rsync/userDefinedPort", Kept, "", "off: 873. Stop the old daemon on the backup host before lockstep's takes the port, or choose another in backup.port")
		}
	}
	if c := im.one(e, "timeout", false); c != nil {
		on, value := im.flag(c, "start"), im.attr(c, "time")
		if on {
			im.timeout(c, "rsync/timeout", value)
		} else {
			im.note(c, "rsync/timeout", Changed, "", "off in sersync, where a transfer could hang for ever; lockstep gives one up that moves nothing for %s", im.base.Transfer.Timeout)
		}
	}
}

func (im *importer) port(e *element, setting, value string) {
	port, err := strconv.Atoi(value)
	if err != nil || port < 1 || port > 65535 {
		im.problem(e, "port", fmt.Sprintf("%q is not a port", value), "write 1 to 65535")
		return
	}
	im.base.Backup.Port = port
	if im.base.Transport == pair.SSH {
		im.note(e, setting, Kept, "backup.port", "%d, of ssh", port)
		return
	}
	im.note(e, setting, Kept, "backup.port", "%d. Stop the old daemon on the backup host before lockstep's takes the port", port)
}

func (im *importer) timeout(e *element, setting, value string) {
	seconds, err := strconv.Atoi(value)
	switch {
	case err != nil || seconds < 0:
		im.problem(e, "time", fmt.Sprintf("%q is not a number of seconds", value), "write a whole number in digits")
	case seconds == 0:
		im.note(e, setting, Changed, "transfer.timeout", "0 is no bound to rsync; lockstep gives a transfer up that moves nothing for %s", im.base.Transfer.Timeout)
	case seconds > 3600:
		im.base.Transfer.Timeout = pair.Duration(time.Hour)
		im.note(e, setting, Changed, "transfer.timeout", "%d seconds; an hour is the most that lockstep takes", seconds)
	default:
		im.base.Transfer.Timeout = pair.Duration(time.Duration(seconds) * time.Second)
		im.note(e, setting, Kept, "transfer.timeout", "%s", im.base.Transfer.Timeout)
	}
}

func (im *importer) failLog(sersync *element) {
	e := im.one(sersync, "failLog", false)
	if e == nil {
		return
	}
	file, minutes := im.attr(e, "path"), im.number(e, "timeToExecute")
	im.note(e, "failLog path", Changed, "", "%s is not written: what failed is kept as data, by name, never as a script that root runs; see lockstep status", file)
	wait := pair.Duration(time.Duration(min(max(minutes, 0), 1e6)) * time.Minute)
	if wait > 0 && wait < im.base.Retry.Max {
		im.base.Retry.Max = wait
		im.note(e, "failLog timeToExecute", Kept, "retry.max", "%s is the longest wait between two tries, which go on until they succeed; sersync forgot a file after the third", wait)
		return
	}
	im.note(e, "failLog timeToExecute", Changed, "retry.max", "tries go on until they succeed, %s apart at first and %s at most, instead of one try after %d minutes; sersync forgot a file after the third",
		im.base.Retry.Initial, im.base.Retry.Max, minutes)
}

func (im *importer) crontab(sersync *element) {
	e := im.one(sersync, "crontab", false)
	if e == nil {
		return
	}
	on, minutes := im.flag(e, "start"), im.number(e, "schedule")
	filter := im.one(e, "crontabfilter", false)
	filterOn := filter != nil && im.flag(filter, "start")
	if filter != nil {
		expressions := filter.all("exclude")
		for _, x := range expressions {
			pattern := im.attr(x, "expression")
			if on && filterOn && pattern != "" {
				im.base.Full.Exclude = append(im.base.Full.Exclude, pattern)
				im.note(x, "crontab/crontabfilter/exclude", Kept, "full.exclude", "%q", pattern)
			}
		}
		if !on || !filterOn {
			im.note(filter, "crontab/crontabfilter", Kept, "", "off, so its %d patterns are left out", len(expressions))
		}
	}
	if !on {
		im.note(e, "crontab", Changed, "full.every", "off in sersync; lockstep compares the two sides every %s, which finds what was changed on the backup. Write \"\" for only at start", im.base.Full.Every)
		return
	}
	im.crontabOn = !im.filterOn || filterOn
	if minutes <= 0 {
		minutes = 600 // what sersync takes then
	}
	every := pair.Duration(time.Duration(min(minutes, 1e6)) * time.Minute)
	im.base.Full.Every = every.String()
	if im.crontabOn {
		im.note(e, "crontab schedule", Kept, "full.every", "%s", every)
	} else {
		im.note(e, "crontab schedule", Changed, "full.every", "%s; sersync never ran it, because filter is on and crontabfilter is not. lockstep's excludes hold in full batches", every)
	}
}

// hiddenFiles writes down what sersync drops without a setting: events of files whose name begins with a dot, ends
// in ~ or is 4913, the name that vim tries. Its directories may begin with a dot. The full runs of -r and crontab send
// all of them; where crontab is on, they did reach the backup, and to leave them out would lose them.
func (im *importer) hiddenFiles() {
	const name = "(built in) names that sersync drops"
	if im.crontabOn {
		im.note(nil, name, Changed, "", "files named .*, *~ and 4913 are sent like all others: sersync sent them with each crontab run")
		return
	}
	im.base.Filter = append(im.base.Filter, "+ .*/", "- .*", "+ *~/", "- *~", "+ 4913/", "- 4913")
	im.note(nil, name, Changed, "filter", "files named .*, *~ and 4913 are left out, as sersync left them out of everything but its full run at start; directories of such names are sent. Remove these rules to back up .htaccess, .env and the like")
}
