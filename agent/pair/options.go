// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Option is one rsync option that `transfer.options` may hold.
type Option struct {
	Name  string // --acls
	Short string // -A, or ""
	Value string // what stands after =, for people; "" when there is none
	rule  *regexp.Regexp
}

// AllowedOptions lists every option that `transfer.options` may hold. An option is on it when it changes what is
// kept of a file, or how fast, and can neither delete, nor leave a difference that the next comparison does not
// see, nor run or read anything else. A module of our own must not refuse any of them.
func AllowedOptions() []Option {
	return slices.Clone(options)
}

var options = []Option{
	{Name: "--acls", Short: "-A"},
	{Name: "--xattrs", Short: "-X"},
	{Name: "--hard-links", Short: "-H"},
	{Name: "--sparse", Short: "-S"},
	{Name: "--preallocate"},
	{Name: "--fsync"},
	{Name: "--fuzzy", Short: "-y"},
	{Name: "--whole-file", Short: "-W"},
	{Name: "--no-whole-file"},
	{Name: "--checksum", Short: "-c"},
	{Name: "--numeric-ids"},
	{Name: "--no-owner"},
	{Name: "--no-group"},
	{Name: "--no-perms"},
	{Name: "--no-devices"},
	{Name: "--no-specials"},
	{Name: "--omit-dir-times", Short: "-O"},
	{Name: "--omit-link-times", Short: "-J"},
	{Name: "--ipv4", Short: "-4"},
	{Name: "--ipv6", Short: "-6"},
	{Name: "--checksum-choice", Value: "xxh128, xxh3, xxh64, md5, md4, sha1 or auto",
		rule: regexp.MustCompile(`^(auto|xxh128|xxh3|xxh64|xxhash|md5|md4|sha1)$`)},
	{Name: "--compress-level", Value: "a number", rule: regexp.MustCompile(`^-?[0-9]{1,6}$`)},
	{Name: "--skip-compress", Value: "suffixes with / between, as in gz/jpg/mp[34]",
		rule: regexp.MustCompile(`^[A-Za-z0-9._+\[\]:-]+(/[A-Za-z0-9._+\[\]:-]+)*$`)},
	{Name: "--chmod", Value: "changes of mode, as in D755,F644 or go-w",
		rule: regexp.MustCompile(`^[DF]?([0-7]{3,4}|[ugoa]*[-+=][rwxXst]*)(,[DF]?([0-7]{3,4}|[ugoa]*[-+=][rwxXst]*))*$`)},
	{Name: "--chown", Value: "USER:GROUP", rule: regexp.MustCompile(`^([A-Za-z0-9_.-]*:[A-Za-z0-9_.-]+|[A-Za-z0-9_.-]+:?)$`)},
	{Name: "--usermap", Value: "FROM:TO,…", rule: idMap},
	{Name: "--groupmap", Value: "FROM:TO,…", rule: idMap},
	{Name: "--max-alloc", Value: "a size, as in 2G", rule: regexp.MustCompile(`^[0-9]{1,12}([kKmMgGtT]([iI]?[bB])?)?$`)},
	{Name: "--block-size", Value: "bytes, 1 to 131072", rule: regexp.MustCompile(`^([1-9][0-9]{0,4}|1[0-2][0-9]{4}|130[0-9]{3}|131(0[0-6][0-9]|07[0-2]))$`)},
	{Name: "--contimeout", Value: "seconds, 1 to 3600", rule: regexp.MustCompile(`^([1-9][0-9]{0,2}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)$`)},
	{Name: "--address", Value: "the IP address to dial from", rule: regexp.MustCompile(`^[0-9A-Fa-f.:]+$`)},
}

var idMap = regexp.MustCompile(`^[A-Za-z0-9_.*?-]+:[A-Za-z0-9_.-]+(,[A-Za-z0-9_.*?-]+:[A-Za-z0-9_.-]+)*$`)

// aliases are other spellings that rsync takes.
var aliases = map[string]string{
	"--cc": "--checksum-choice", "--zl": "--compress-level", "--no-W": "--no-whole-file", "--no-D": "--no-devices",
	"--no-o": "--no-owner", "--no-g": "--no-group", "--no-p": "--no-perms",
}

// exclusive reports whether only one of two options can be given; rsync ends on some of these pairs, and takes the
// later one of others.
func exclusive(a, b string) bool {
	either := func(x, y string) bool { return a == x && b == y || a == y && b == x }
	return a == b || either("--ipv4", "--ipv6") || either("--whole-file", "--no-whole-file") ||
		either("--chown", "--usermap") || either("--chown", "--groupmap") || either("--acls", "--no-perms")
}

// refusedOption says why an option is refused and what to write instead, for those that people reach for.
// A name that ends in * stands for all that begin so.
var refusedOption = []struct{ names, msg, hint string }{
	{"-e --rsh --rsync-path --copy-as --daemon --config --dparam --server --sender --early-input", "it runs or configures another program", ""},
	{"-M --remote-option --old-args --secluded-args -s --trust-sender --protocol --blocking-io", "it changes how the two rsyncs talk, behind lockstep's back", ""},
	{"--del --delete*", "lockstep sends every deletion through its own guard", "see the delete group"},
	{"--ignore-errors", "after a read error rsync would delete files that it could not see", ""},
	{"--force --max-delete --ignore-missing-args", "lockstep decides itself what is deleted", "see the delete group"},
	{"--remove-source-files --remove-sent-files", "it deletes from the source", ""},
	{"-b --backup --backup-dir --suffix", "keeping deleted or replaced files is not built yet", ""},
	{"--files-from --from0 -0 --exclude-from --include-from --read-batch --write-batch --only-write-batch", "it reads or writes a file that lockstep does not watch", ""},
	{"--exclude --include -C --cvs-exclude -F", "the watcher has to know it too", "write the pattern in exclude, or the rule in filter"},
	{"-f --filter", "the watcher has to know it too", "write the rule in filter"},
	{"--password-file", "lockstep keeps the password itself", ""},
	{"--port", "it has a field of its own", "write backup.port"},
	{"--timeout", "it has a field of its own", "write transfer.timeout"},
	{"--bwlimit", "it has a field of its own", "write transfer.bandwidth_limit"},
	{"-z --compress --compress-choice --zc --no-compress -zz --new-compress --old-compress", "it has a field of its own", "write transfer.compress"},
	{"-n --dry-run --list-only", "nothing would arrive", "write paused: true to stop a pair"},
	{"-u --update", "a file that is newer on the backup would differ for ever and not be told", ""},
	{"--existing --ignore-non-existing --ignore-existing --size-only --max-size --min-size", "files would differ for ever and not be told", "write exclude for what is not to be replicated"},
	{"-I --ignore-times", "every comparison would find every file different", "write --checksum to compare contents"},
	{"--no-times --no-t -@ --modify-window", "lockstep finds differences by exact times", ""},
	{"-L --copy-links --copy-unsafe-links -k --copy-dirlinks", "what a link leads to is not watched", "replicate the directory that it leads to as a pair of its own"},
	{"-K --keep-dirlinks --insecure-links", "files could be written outside the backup directory", ""},
	{"-x --one-file-system", "it would hide mounted directories from a comparison but not from the watcher", "exclude them by name"},
	{"--inplace", "a file would be half written under its own name while it is sent, and rsync can't keep what is unfinished apart then", ""},
	{"--append --append-verify", "a file that was rewritten would be corrupted", ""},
	{"--partial --partial-dir -P --temp-dir -T --delay-updates", "lockstep decides itself where unfinished files are kept", ""},
	{"-m --prune-empty-dirs --no-recursive --no-r -d --dirs --no-links --no-l --safe-links --munge-links --iconv", "the backup would not be equal, or not under the same names", ""},
	{"--open-noatime", "it needs the privilege CAP_FOWNER, which the agent does not have", ""},
	{"--super --fake-super", "it belongs to the module on the backup host", "write backup.uid"},
	{"--log-file --log-file-format --out-format -v --verbose -q --quiet --info --debug --stderr --stats --progress -i --itemize-changes -h --human-readable -8 --8-bit-output --outbuf --msgs2stderr --no-motd", "lockstep reads what rsync prints", ""},
	{"--sockopts", "lockstep sets TCP_NODELAY itself", ""},
	{"-a --archive -r --recursive -l --links -p --perms -t --times -g --group -o --owner -D --devices --specials -R --relative", "lockstep gives it already", ""},
	{"--stop-after --time-limit --stop-at", "a batch would be cut short", ""},
}

// CheckOption tells whether `transfer.options` may hold an option. It returns the option's full name, and the
// problem with it or nil.
func CheckOption(option string) (name string, problem *Problem) {
	name, msg, hint := checkOption(option)
	if msg != "" {
		return name, &Problem{Path: "transfer.options", Msg: msg, Hint: hint}
	}
	return name, nil
}

// checkOption returns the option's full name, or what is wrong with it.
func checkOption(s string) (name, msg, hint string) {
	name, value, hasValue := strings.Cut(s, "=")
	if full, ok := aliases[name]; ok {
		name = full
	}
	for _, o := range options {
		if name != o.Name && (name != o.Short || o.Short == "") {
			continue
		}
		switch {
		case o.rule == nil && hasValue:
			return o.Name, fmt.Sprintf("%q: %s takes no value", s, o.Name), "write " + o.Name
		case o.rule != nil && !hasValue:
			return o.Name, fmt.Sprintf("%q lacks its value", s), "write " + o.Name + "=…: " + o.Value
		case o.rule != nil && !o.rule.MatchString(value):
			return o.Name, fmt.Sprintf("%q: %q is not what %s takes", s, value, o.Name), "write " + o.Value
		}
		return o.Name, "", ""
	}
	first, _, _ := strings.Cut(name, " ") // "-e ssh"
	for _, r := range refusedOption {
		for pattern := range strings.FieldsSeq(r.names) {
			prefix, wild := strings.CutSuffix(pattern, "*")
			if first == pattern || wild && strings.HasPrefix(name, prefix) {
				return name, fmt.Sprintf("%q is refused: %s", s, r.msg), cmp.Or(r.hint, "remove it")
			}
		}
	}
	hint = "the man page lockstep.yaml(5) lists the options"
	switch {
	case strings.ContainsAny(s, " \t"):
		hint = "write each option as an item of its own, and its value after ="
	case len(name) > 2 && name[0] == '-' && name[1] != '-':
		hint = "write each option as an item of its own, as in --acls"
	case !strings.HasPrefix(s, "-"):
		hint = "an option begins with --"
	default:
		for _, o := range options {
			if edits(name, o.Name) <= 2 {
				hint = "did you mean " + o.Name + "?"
			}
		}
	}
	return name, fmt.Sprintf("%q is not among the rsync options that lockstep passes on", s), hint
}
