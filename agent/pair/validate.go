// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of a definition. Those of a pattern and a path are rsync's and the kernel's MAXPATHLEN: rsync drops a
// longer pattern with no more than a warning.
const (
	maxName     = 63
	maxText     = 4095
	maxPatterns = 1000
	maxParallel = 16
)

var (
	nameRule   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	hostRule   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})$`)
	userRule   = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	idRule     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	moduleRule = regexp.MustCompile(`^[^\s\pC\]\[/\\:=#;"'%&*?!,-][^\pC\]\[/\\:=#;"'%&*?!,]*$`)
	rateRule   = regexp.MustCompile(`^([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([bBkKmMgGtTpP]?)([bB]|[iI][bB])?$`)
)

// Validate returns everything wrong with a completed definition, nil when nothing is. What [Parse] returned
// is valid; it is for definitions that were built some other way.
func (p Pair) Validate() Problems {
	v := &validator{}
	if p.HooksOnly() {
		v.hooksOnly(p)
		return v.problems
	}
	v.name(p)
	v.hosts(p)
	v.paths(p)
	v.backup(p)
	v.patterns(p)
	v.deletions(p)
	v.watch(p)
	v.transfer(p)
	v.schedule(p)
	v.hooks(p)
	v.listen(p)
	return v.problems
}

type validator struct{ problems Problems }

func (v *validator) add(path, msg, hint string) {
	v.problems = append(v.problems, Problem{Path: path, Msg: msg, Hint: hint})
}

func (v *validator) name(p Pair) {
	switch {
	case p.Name == "":
		v.add("name", "is missing", "write a name for the pair, as in: name: data")
	case !nameRule.MatchString(p.Name):
		hint := fmt.Sprintf("a name has 1 to %d of a-z, 0-9 and -, and neither begins nor ends with -", maxName)
		if better := nearName(p.Name); better != "" {
			hint += "; write " + better
		}
		v.add("name", fmt.Sprintf("%q is not a name of a pair", p.Name), hint)
	}
}

// nearName makes a name out of s, or "".
func nearName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r == '_', r == '.', r == ' ', r == '/':
			return '-'
		}
		return -1
	}, strings.ToLower(s))
	s = strings.Trim(s, "-")
	if len(s) > maxName {
		s = strings.Trim(s[:maxName], "-")
	}
	if !nameRule.MatchString(s) {
		return ""
	}
	return s
}

func (v *validator) hosts(p Pair) {
	v.host("source.host", p.Source.Host, "write the source host's name or address")
	if p.Source.Address != p.Source.Host {
		v.host("source.address", p.Source.Address, "write the address that the backup host sees the source host under")
	}
	v.host("backup.host", p.Backup.Host, "write the backup host's name or address")
	if p.Backup.Address != p.Backup.Host {
		v.host("backup.address", p.Backup.Address, "write the address that the source host reaches the backup host under")
	}
}

func (v *validator) host(path, s, missing string) {
	if s == "" {
		v.add(path, "is missing", missing)
		return
	}
	if isHost(s) {
		return
	}
	hint := "write a host name or an IP address"
	switch {
	case strings.Contains(s, "@"):
		hint = "write the host alone; the login user belongs to the front end's connection settings"
	case strings.HasPrefix(s, "["):
		hint = "write an IPv6 address without brackets"
	case strings.Contains(s, "/"):
		hint = "write one host, not a network or a URL"
	case strings.Contains(s, "%"):
		hint = "write an address without a zone"
	case strings.Count(s, ":") == 1:
		hint = "write the host alone; ports have fields of their own"
	case !ascii(s):
		hint = "write an international name in its ASCII form (xn--…)"
	}
	v.add(path, fmt.Sprintf("%q is not a host name or an IP address", s), hint)
}

func isHost(s string) bool {
	if hostRule.MatchString(s) {
		return true
	}
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Zone() == ""
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII }) < 0
}

// Places where nothing is to be replicated from, or to, with why.
var (
	virtualDirs = []string{"/proc", "/sys", "/dev", "/run", "/var/run"}
	ownDirs     = []string{"/var/lib/lockstep"}
	systemDirs  = []string{"/bin", "/boot", "/efi", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"}
	// Under these there is data: memory files that tests use, removable disks, what the site installed.
	dataDirs = []string{"/dev/shm", "/run/media", "/usr/local"}
	// ProtectSystem=full of the daemon's unit (package unit), with what is mounted there; for the rest of it, see systemDirs.
	readOnlyDirs = []string{"/usr"}
	// These may hold a backup, but must not be one: what is not in the source is deleted.
	topDirs = []string{"/usr/local", "/var", "/var/lib", "/var/log", "/root", "/dev/shm", "/run/media"}
)

func (v *validator) paths(p Pair) {
	sourceOK := v.path("source.path", p.Source.Path, "write the directory to replicate, as in /data")
	backupOK := v.path("backup.path", p.Backup.Path, "write the directory to keep equal, as in /backup/data")
	if backupOK {
		switch dir := p.Backup.Path; {
		case below(dir, systemDirs...) && !below(dir, dataDirs...), slices.Contains(topDirs, dir):
			v.add("backup.path", dir+" belongs to the backup host's own system, and what is not in the source would be deleted from it",
				"write a directory that holds nothing else, as in /backup/"+cmp.Or(p.Name, "data"))
		case p.Transport == Daemon && below(dir, readOnlyDirs...):
			v.add("backup.path", dir+" is below /usr, which is read-only to lockstep's rsync daemon",
				"write a directory elsewhere, as in /backup/"+cmp.Or(p.Name, "data")+"; or transport: ssh, which does without that daemon")
		case strings.HasSuffix(dir, `\`), strings.HasSuffix(dir, " "):
			v.add("backup.path", "ends in a character that rsyncd.conf(5) can't keep at the end of a line", "choose another directory")
		}
	}
	if sourceOK && backupOK && p.OneHost() && (below(p.Source.Path, p.Backup.Path) || below(p.Backup.Path, p.Source.Path)) {
		v.add("backup.path", fmt.Sprintf("%s and %s are on the same host and one holds the other", p.Backup.Path, p.Source.Path),
			"choose directories that do not overlap, or two hosts")
	}
}

func (v *validator) path(field, s, missing string) bool {
	switch {
	case s == "":
		v.add(field, "is missing", missing)
	case !v.printable(field, s):
	case !strings.HasPrefix(s, "/"):
		v.add(field, fmt.Sprintf("%q is not an absolute path", s), "write it from the root, as in /data")
	case path.Clean(s) == "/":
		v.add(field, "the root of the host can't be replicated", "write a directory below it, as in /data")
	case path.Clean(s) != s:
		v.add(field, fmt.Sprintf("%q is not in its shortest form", s), "write "+path.Clean(s))
	case len(s) > maxText:
		v.add(field, fmt.Sprintf("is longer than %d bytes", maxText), "write a shorter one")
	case below(s, virtualDirs...) && !below(s, dataDirs...):
		v.add(field, s+" is made by the kernel or lives in memory; it is not data", "write a directory with data, as in /data")
	case below(s, ownDirs...):
		v.add(field, s+" holds lockstep's own state, which changes with every transfer", "write another directory")
	default:
		return true
	}
	return false
}

// printable refuses what no line of a configuration file or a log can hold.
func (v *validator) printable(field, s string) bool {
	switch {
	case !utf8.ValidString(s), strings.ContainsRune(s, utf8.RuneError):
		v.add(field, "is not UTF-8 text", "a definition can name UTF-8 paths only")
	case strings.IndexFunc(s, unicode.IsControl) >= 0:
		v.add(field, fmt.Sprintf("%q has a control character", s), "remove it")
	default:
		return true
	}
	return false
}

// below reports whether p is one of the directories or inside one.
func below(p string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") })
}

func loopback(s string) bool {
	addr, err := netip.ParseAddr(s)
	return strings.EqualFold(s, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

func (v *validator) backup(p Pair) {
	if p.Backup.Port < 1 || p.Backup.Port > 65535 {
		v.add("backup.port", fmt.Sprintf("%d is not a port", p.Backup.Port), fmt.Sprintf("write 1 to 65535; without it, it is %d", DefaultPort(p.Transport)))
	}
	if !slices.Contains(transports, p.Transport) {
		v.add("transport", fmt.Sprintf("%q is not a way to reach the backup host", p.Transport), "write "+strings.Join(transports, " or ")+nearest(p.Transport, transports))
	}
	switch m := p.Backup.Module; {
	case m == "" && p.Name == "": // told already
	case strings.EqualFold(strings.ReplaceAll(m, " ", ""), "global"): // rsync reads past case and white space
		v.add("backup.module", `"`+m+`" is the head of rsyncd.conf, not a module`, "write another name, as in "+cmp.Or(p.Name, "data")+"-data")
	case m == p.Name: // refused or accepted as the name
	case !moduleRule.MatchString(m), strings.HasSuffix(m, " "), strings.Contains(m, "  "), len(m) > 255, !utf8.ValidString(m):
		v.add("backup.module", fmt.Sprintf("%q can't name a module in rsyncd.conf(5)", m), "write letters, digits, -, _ and .")
	}
	v.id("backup.uid", p.Backup.UID, "user")
	v.id("backup.gid", p.Backup.GID, "group")
	if !userRule.MatchString(p.Auth.User) {
		v.add("auth.user", fmt.Sprintf("%q is not a name for an rsync user", p.Auth.User),
			"write a-z, 0-9, _ and -, at most 32, not beginning with a digit or -; it need not exist on either host")
	}
}

func (v *validator) id(path, s, what string) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil && n < 1<<32-1 && decimal.MatchString(s) {
		return
	}
	if !idRule.MatchString(s) {
		v.add(path, fmt.Sprintf("%q is not a %s name or number", s, what), "write root, or the "+what+" that is to own the files")
	}
}

func (v *validator) deletions(p Pair) {
	if p.Delete.MaxFiles < 0 {
		v.add("delete.max_files", "is below 0", "write 0 to hold by max_percent alone")
	}
	if p.Delete.MaxPercent < 0 || p.Delete.MaxPercent > 100 {
		v.add("delete.max_percent", fmt.Sprintf("%d is not a percentage", p.Delete.MaxPercent), "write 0 to 100")
	}
}

var (
	transports = []string{Daemon, SSH}
	backends   = []string{"auto", "fanotify", "inotify"}
	events     = []string{"create", "modify", "attrib", "delete", "move"}
	codecs     = []string{"zstd", "lz4", "zlibx", "zlib"}
)

func (v *validator) watch(p Pair) {
	w := p.Watch
	if !slices.Contains(backends, w.Backend) {
		v.add("watch.backend", fmt.Sprintf("%q is not a way to watch", w.Backend), "write "+strings.Join(backends, ", ")+nearest(w.Backend, backends))
	}
	if len(w.Events) == 0 {
		v.add("watch.events", "is empty, so nothing would be sent", "write some of "+strings.Join(events, ", "))
	}
	for i, e := range w.Events {
		at := fmt.Sprintf("watch.events[%d]", i)
		if !slices.Contains(events, e) {
			v.add(at, fmt.Sprintf("%q is not an event", e), "write some of "+strings.Join(events, ", ")+nearest(e, events))
		} else if slices.Index(w.Events, e) < i {
			v.add(at, fmt.Sprintf("%q is given twice", e), "remove it")
		}
	}
	v.span("watch.delay", w.Delay, time.Millisecond, time.Hour)
	if v.span("watch.max_delay", w.MaxDelay, time.Millisecond, 24*time.Hour) && w.MaxDelay < w.Delay {
		v.add("watch.max_delay", fmt.Sprintf("%s is shorter than watch.delay, %s", w.MaxDelay, w.Delay), "write "+w.Delay.String()+" or more")
	}
}

func nearest(s string, of []string) string {
	for _, o := range of {
		if s != "" && edits(strings.ToLower(s), o) <= 2 {
			return "; did you mean " + o + "?"
		}
	}
	return ""
}

func (v *validator) span(path string, d Duration, low, high time.Duration) bool {
	if time.Duration(d) >= low && time.Duration(d) <= high {
		return true
	}
	v.add(path, fmt.Sprintf("%s is out of range", d), fmt.Sprintf("write %s to %s", Duration(low), Duration(high)))
	return false
}

func (v *validator) transfer(p Pair) {
	t := p.Transfer
	if t.Compress != "" && !slices.Contains(codecs, t.Compress) {
		v.add("transfer.compress", fmt.Sprintf("%q is not a compression", t.Compress), `write "" for none, or `+strings.Join(codecs, ", ")+nearest(t.Compress, codecs))
	}
	if t.BandwidthLimit != "" {
		if msg, hint := checkRate(t.BandwidthLimit); msg != "" {
			v.add("transfer.bandwidth_limit", msg, hint)
		}
	}
	if v.span("transfer.timeout", t.Timeout, time.Second, time.Hour) && time.Duration(t.Timeout)%time.Second != 0 {
		v.add("transfer.timeout", fmt.Sprintf("%s is not a whole number of seconds, all that rsync takes", t.Timeout), "write "+Duration(time.Duration(t.Timeout).Round(time.Second)).String())
	}
	if t.Parallel < 1 || t.Parallel > maxParallel {
		v.add("transfer.parallel", fmt.Sprintf("%d rsync runs at once is out of range", t.Parallel), fmt.Sprintf("write 1 to %d", maxParallel))
	}
	names := make([]string, len(t.Options))
	for i, o := range t.Options {
		at := fmt.Sprintf("transfer.options[%d]", i)
		name, msg, hint := checkOption(o)
		if msg != "" {
			v.add(at, msg, hint)
			continue
		}
		if p.Transport == SSH && (name == "--contimeout" || name == "--address") {
			v.add(at, fmt.Sprintf("%q: rsync takes %s for a daemon that it dials itself, not for ssh", o, name), "remove it")
			continue
		}
		names[i] = name
		for j, earlier := range names[:i] {
			if exclusive(name, earlier) {
				v.add(at, fmt.Sprintf("%q after %q: only one of the two can hold", o, t.Options[j]), "remove one")
				break
			}
		}
	}
}

// checkRate checks what rsync --bwlimit takes: KiB/s, or with a suffix; less than 512 bytes a second is refused.
func checkRate(s string) (msg, hint string) {
	hint = "write KiB per second, or a suffix as in 800K, 1.5M, 2MB"
	m := rateRule.FindStringSubmatch(s)
	if m == nil || len(s) > 20 {
		return fmt.Sprintf("%q is not a rate that rsync --bwlimit takes", s), hint
	}
	n, err := strconv.ParseFloat(strings.TrimSuffix(m[1], "."), 64)
	if err != nil {
		return fmt.Sprintf("%q is not a rate that rsync --bwlimit takes", s), hint
	}
	if n == 0 {
		return "0 means no limit to rsync", `write ""`
	}
	base := 1024.0
	if m[3] != "" && len(m[3]) == 1 { // KB is 1000, K and KiB are 1024
		base = 1000
	}
	exponent := strings.Index("bkmgtp", strings.ToLower(m[2]))
	if m[2] == "" {
		exponent = 1
		if m[3] != "" { // "100B" or "100iB": the suffix letter is missing
			exponent = 0
		}
	}
	for range exponent {
		n *= base
	}
	switch {
	case n < 512:
		return fmt.Sprintf("%q is below rsync's least rate, 512 bytes a second", s), hint
	case n > 1<<60:
		return fmt.Sprintf("%q is more than rsync can count", s), `write "" for no limit`
	}
	return "", ""
}

func (v *validator) listen(p Pair) {
	s := p.Metrics.Listen
	if s == "" {
		return
	}
	i := strings.LastIndexByte(s, ':')
	host := s[:max(i, 0)]
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	ok := i >= 0 && err == nil && port > 0
	if inner, found := strings.CutPrefix(host, "["); found {
		inner, found = strings.CutSuffix(inner, "]")
		ok = ok && found && isHost(inner)
	} else if host != "" {
		ok = ok && hostRule.MatchString(host)
	}
	if !ok {
		v.add("metrics.listen", fmt.Sprintf("%q is not host:port", s), `write it as 127.0.0.1:9873, [::1]:9873, :9873 for every address, or "" for none`)
	}
}
