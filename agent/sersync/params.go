// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// archived is one of the letters of -a, which lockstep always gives, and what to write for a params that lacks it.
type archived struct {
	letter byte
	long   string
	off    []string // options that turn it off; none where lockstep needs it
	what   string
}

// is tells whether an option is the letter, or what it stands for.
func (a archived) is(o option) bool { return o.name == "-"+string(a.letter) || o.name == a.long }

var archive = []archived{
	{'r', "--recursive", nil, "sends directories with what is in them"},
	{'l', "--links", nil, "sends symbolic links as links"},
	{'p', "--perms", []string{"--no-perms"}, ""},
	{'t', "--times", nil, "keeps modification times, by which it finds differences"},
	{'g', "--group", []string{"--no-group"}, ""},
	{'o', "--owner", []string{"--no-owner"}, ""},
	{'D', "--devices", []string{"--no-devices", "--no-specials"}, ""},
}

// Options of rsync that take a value, which a command line may give as an argument of its own.
const (
	shortWithValue = "efTBM@"
	longWithValue  = " --exclude --include --exclude-from --include-from --filter --bwlimit --timeout --contimeout --port --password-file" +
		" --rsh --rsync-path --backup-dir --suffix --chmod --max-size --min-size --max-delete --max-alloc --partial-dir --temp-dir --compare-dest" +
		" --copy-dest --link-dest --compress-level --zl --compress-choice --zc --skip-compress --block-size --address --sockopts --log-file" +
		" --log-file-format --out-format --info --debug --modify-window --checksum-choice --cc --checksum-seed --chown --usermap --groupmap" +
		" --iconv --files-from --protocol --outbuf --stop-after --stop-at --time-limit --write-batch --only-write-batch --read-batch" +
		" --remote-option --copy-as --early-input "
)

// What only says how rsync prints; lockstep reads it and has status, metrics and logs of its own.
const printing = " -v --verbose -q --quiet -h --human-readable -i --itemize-changes --progress --stats --info --debug --out-format" +
	" --log-file --log-file-format -8 --8-bit-output --outbuf --no-motd --msgs2stderr --stderr "

// option is one rsync option with its value.
type option struct {
	name, value string
	hasValue    bool
}

func (o option) String() string {
	if o.hasValue {
		return o.name + "=" + o.value
	}
	return o.name
}

// words splits params as the shell did to which sersync handed them.
func words(s string) ([]string, error) {
	var out []string
	var word strings.Builder
	inWord := false
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'' && c != quote, quote == '"' && c != quote && c != '\\' && c != '$' && c != '`':
			word.WriteByte(c)
		case quote != 0 && c == quote:
			quote = 0
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == '\\' && i+1 < len(s):
			i++
			if quote == '"' && strings.IndexByte("\"\\$`", s[i]) < 0 {
				word.WriteByte('\\')
			}
			word.WriteByte(s[i])
			inWord = true
		case strings.IndexByte("$`;|&<>()\n\\", c) >= 0:
			return nil, fmt.Errorf("%q means something to the shell that sersync ran it with", c)
		case c == ' ' || c == '\t' || c == '\r':
			if inWord {
				out = append(out, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote has no end")
	}
	if inWord {
		out = append(out, word.String())
	}
	return out, nil
}

// splitOptions takes a command line apart into single options.
func splitOptions(args []string) ([]option, error) {
	var out []option
	for i := 0; i < len(args); i++ {
		arg := args[i]
		next := func(name string) error {
			if i+1 == len(args) {
				return fmt.Errorf("%s lacks its value", name)
			}
			i++
			out = append(out, option{name, args[i], true})
			return nil
		}
		switch {
		case strings.HasPrefix(arg, "--"):
			name, value, has := strings.Cut(arg, "=")
			if !has && strings.Contains(longWithValue, " "+name+" ") {
				if err := next(name); err != nil {
					return nil, err
				}
				continue
			}
			out = append(out, option{name, value, has})
		case len(arg) > 1 && arg[0] == '-':
			for j := 1; j < len(arg); j++ {
				name := "-" + arg[j:j+1]
				if strings.IndexByte(shortWithValue, arg[j]) < 0 {
					out = append(out, option{name: name})
					continue
				}
				if rest := strings.TrimPrefix(arg[j+1:], "="); rest != "" {
					out = append(out, option{name, rest, true})
				} else if err := next(name); err != nil {
					return nil, err
				}
				break
			}
		default:
			return nil, fmt.Errorf("%q is no option", arg)
		}
	}
	return out, nil
}

// params turns `rsync/commonParams params` into fields of the definition.
func (im *importer) params(e *element, text string) {
	const setting = "rsync/commonParams"
	args, err := words(text)
	var opts []option
	if err == nil {
		opts, err = splitOptions(args)
	}
	if err != nil {
		im.note(e, setting, Refused, "", "params %q: %v; lockstep never starts a shell. Write what is needed in transfer.options", text, err)
		return
	}
	var letters string
	for _, o := range opts {
		switch o.name {
		case "-a", "--archive":
			letters += "rlptgoD"
		default:
			for _, a := range archive {
				if a.is(o) {
					letters += string(a.letter)
				}
			}
			if o.name == "--specials" {
				letters += "D"
			}
		}
	}
	// Patterns: exclude holds them while they only exclude; with an include among them their order counts.
	ordered := slices.ContainsFunc(opts, func(o option) bool { return o.name == "--include" || o.name == "--filter" || o.name == "-f" })
	for _, o := range opts {
		im.param(e, setting+" "+o.String(), o, ordered)
	}
	if strings.Contains(letters, "rlptgoD") {
		im.note(e, setting+" -a", Kept, "", "lockstep always gives it")
		return
	}
	for _, a := range archive {
		switch {
		case a.letter == 'p' && slices.ContainsFunc(opts, func(o option) bool { return o.name == "-A" || o.name == "--acls" }):
			// rsync(1): --acls implies --perms.
		case strings.IndexByte(letters, a.letter) >= 0:
			im.note(e, setting+" "+a.long, Kept, "", "lockstep always gives it")
		case a.off != nil:
			im.base.Transfer.Options = append(im.base.Transfer.Options, a.off...)
			im.note(e, setting, Kept, "transfer.options", "without %s: %s", a.long, strings.Join(a.off, " "))
		default:
			im.note(e, setting, Changed, "", "without %s; lockstep always %s", a.long, a.what)
		}
	}
}

// param handles one option. The letters of -a have been dealt with.
func (im *importer) param(e *element, setting string, o option, ordered bool) {
	p := &im.base
	switch {
	case slices.ContainsFunc(archive, func(a archived) bool { return a.is(o) }) || o.name == "-a" || o.name == "--archive" || o.name == "--specials":
		return
	case o.name == "-R" || o.name == "--relative":
		im.note(e, setting, Kept, "", "lockstep gives it where it is needed, as sersync did")
		return
	case strings.Contains(printing, " "+o.name+" "):
		im.note(e, setting, Changed, "", "dropped: it only said how rsync prints; see lockstep status and the journal")
		return
	}
	switch o.name {
	case "-z", "--compress":
		p.Transfer.Compress = "zlib"
		im.note(e, setting, Kept, "transfer.compress", "zlib, as sersync's rsync did; zstd costs less where both hosts have rsync 3.2 or later, and none is fastest on a local network")
	case "-P":
		im.note(e, setting, Changed, "", "dropped: lockstep decides itself where unfinished files are kept, and has progress in lockstep status")
	case "--partial", "--partial-dir", "--temp-dir", "-T", "--delay-updates":
		im.note(e, setting, Changed, "", "dropped: lockstep decides itself where unfinished files are kept")
	case "--del", "--delete", "--delete-before", "--delete-during", "--delete-delay", "--delete-after":
		im.deleteParam = true
		if im.deletes {
			im.note(e, setting, Changed, "delete.enabled", "deletions are on by inotify/delete already, and go through lockstep's own guard")
		} else {
			im.note(e, setting, Refused, "delete.enabled", "it deleted on the backup although inotify/delete is false; write enabled: true if deletions are meant")
		}
	case "--exclude":
		if ordered {
			im.addFilter(e, setting, "- "+o.value)
		} else {
			im.addExclude(e, setting, Kept, o.value, "")
		}
	case "--include":
		im.addFilter(e, setting, "+ "+o.value)
	case "--filter", "-f":
		im.addFilter(e, setting, o.value)
	case "--bwlimit":
		p.Transfer.BandwidthLimit = o.value
		if o.value == "0" {
			p.Transfer.BandwidthLimit = ""
		}
		im.note(e, setting, Kept, "transfer.bandwidth_limit", "of each rsync run; transfer.parallel of them go at once")
	case "--timeout":
		im.timeout(e, setting, o.value)
	case "--port":
		im.port(e, setting, o.value)
	case "--password-file":
		im.remoteBase.PasswordFile = o.value
		im.note(e, setting, Changed, "", "lockstep makes a password of its own and keeps it on the two hosts; the file is not read")
	case "-e", "--rsh":
		im.shell(e, setting, o.value)
	default:
		text := o.String()
		if o.name == "-B" { // one dash and a value
			text = "--block-size=" + o.value
		}
		name, problem := pair.CheckOption(text)
		if problem != nil {
			msg := problem.Msg
			if problem.Hint != "" && problem.Hint != "remove it" { // the import has
				msg += "; " + problem.Hint
			}
			im.note(e, setting, Refused, "", "%s", strings.TrimPrefix(strings.TrimPrefix(msg, fmt.Sprintf("%q is refused: ", text)), fmt.Sprintf("%q ", text)))
			return
		}
		if !slices.Contains(p.Transfer.Options, text) && !slices.Contains(p.Transfer.Options, name) {
			if !strings.Contains(text, "=") {
				text = name
			}
			p.Transfer.Options = append(p.Transfer.Options, text)
		}
		im.note(e, setting, Kept, "transfer.options", "%s", text)
	}
}

// shell reads a remote shell. Of ssh, lockstep has options of its own, and only the port is left.
func (im *importer) shell(e *element, setting, command string) {
	args, err := words(command)
	if err != nil || len(args) == 0 || path.Base(args[0]) != "ssh" {
		im.note(e, setting, Refused, "transport", "%q is not ssh, and lockstep runs no other remote shell", command)
		return
	}
	im.base.Transport, im.base.Backup.Port = pair.SSH, pair.DefaultPort(pair.SSH)
	im.remoteBase.Shell = args
	var dropped []string
	for i := 1; i < len(args); i++ {
		port, joined := strings.CutPrefix(args[i], "-p")
		if !joined {
			dropped = append(dropped, args[i])
			continue
		}
		if port == "" && i+1 < len(args) {
			i++
			port = args[i]
		}
		im.port(e, setting, port)
	}
	im.note(e, setting, Kept, "transport", "ssh")
	if len(dropped) > 0 {
		im.note(e, setting, Changed, "", "without %s: lockstep has a key and known hosts of its own for the pair, and takes nothing from ssh's configuration", strings.Join(dropped, " "))
	}
}

func (im *importer) addFilter(e *element, setting, rule string) {
	im.base.Filter = append(im.base.Filter, rule)
	im.note(e, setting, Kept, "filter", "%q; the order of includes and excludes counts, so they are filter rules", rule)
}
