// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/replicate"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// level is what a finding of the doctor means.
type level string

const (
	levelOK   level = "ok"
	levelWarn level = "warn" // works, and should be looked at
	levelFail level = "fail" // does not work
	levelSkip level = "skip" // cannot be seen, or makes no sense after what failed before
)

// finding is what the doctor saw in one step.
type finding struct {
	Check string `json:"check"`
	Level level  `json:"level"`
	Saw   string `json:"saw"`
	Do    string `json:"do,omitempty"`
}

// doctor runs the path of a pair from this host to the module on the backup host, once.
type doctor struct {
	std      stdio
	json     bool
	name     string // of the unit; "" = stand-alone
	files    runFiles
	rsync    string
	timeout  time.Duration
	machine  *host.Machine
	pair     pair.Pair
	user     string
	backend  string // of the agent that runs
	right    bool   // the source directory is known to be the one that the pair was made for
	findings []finding
	failed   bool
}

func runDoctor(ctx context.Context, std stdio, args []string) error {
	f := newPairFlags(std, "doctor", "[NAME] [--json] [--definition FILE --password-file FILE]")
	d := &doctor{std: std}
	asJSON := f.Bool("json", false, "print JSON")
	f.StringVar(&d.files.definition, "definition", "", "pair definition `file` (default "+pairsDir+"/NAME.yaml)")
	f.StringVar(&d.files.password, "password-file", "", "rsync password `file` (default "+secretsDir+"/NAME)")
	f.StringVar(&d.rsync, "rsync", "", "rsync `binary` (default: the one in PATH)")
	f.DurationVar(&d.timeout, "timeout", 10*time.Second, "a step that waits longer than this `time` has failed")
	name, err := f.parse(args)
	if err != nil {
		return err
	}
	d.json, d.files.runtime = *asJSON, f.runtimeDir
	standAlone := d.files.definition != "" && d.files.password != ""
	if name == "" && !standAlone {
		if name, err = onlyPair(pairsDir); err != nil {
			return err
		}
	}
	if name != "" {
		d.name = name
		d.files.definition = cmp.Or(d.files.definition, filepath.Join(pairsDir, name+".yaml"))
		d.files.password = cmp.Or(d.files.password, filepath.Join(secretsDir, name))
		d.files.sshKey, d.files.knownHosts = plan.SSHKeyFile(name), plan.KnownHostsFile(name)
		d.files.runtime = cmp.Or(d.files.runtime, filepath.Join(runRoot, name))
	}
	if d.machine, err = host.New(); err != nil {
		return err
	}
	defer d.machine.Close()
	d.examine(ctx)
	if d.json {
		reply := struct {
			Pair   string    `json:"pair"`
			OK     bool      `json:"ok"`
			Checks []finding `json:"checks"`
		}{cmp.Or(d.pair.Name, name), !d.failed, d.findings}
		if err := printJSON(std.out, reply); err != nil {
			return err
		}
	}
	if d.failed {
		return &statusError{status: exitFailure}
	}
	return nil
}

// onlyPair is the name of the only definition in a directory.
func onlyPair(dir string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	switch {
	case err != nil:
		return "", err
	case len(found) != 1:
		return "", usageError(fmt.Errorf("%s are defined in %s: name one of them, or give --definition and --password-file", count(len(found), "pair"), dir))
	}
	return strings.TrimSuffix(filepath.Base(found[0]), ".yaml"), nil
}

// tell adds a finding and prints it at once: some steps take their time.
func (d *doctor) tell(check string, l level, saw, do string) {
	d.findings = append(d.findings, finding{check, l, saw, do})
	d.failed = d.failed || l == levelFail
	if d.json {
		return
	}
	line := fmt.Sprintf("%-4s  %-10s  %s", l, check, visible(saw))
	if do != "" {
		line += " -> " + visible(do)
	}
	fmt.Fprintln(d.std.out, line)
}

// failure tells of an error, whose second line may say what to do.
func (d *doctor) failure(check string, err error, do string) {
	saw, hint, _ := strings.Cut(err.Error(), "\nhint: ")
	var lines []string
	for line := range strings.Lines(saw) {
		lines = append(lines, strings.TrimSpace(line))
	}
	d.tell(check, levelFail, strings.Join(lines, "; "), cmp.Or(hint, do))
}

// steps after the definition, in the order of the path. One that returns false ends the path: what comes later depends on it.
func (d *doctor) examine(ctx context.Context) {
	if !d.definition() {
		return
	}
	if d.onBackup() {
		d.examineBackup(ctx)
		return
	}
	d.source()
	d.unit(ctx)
	d.agent(ctx)
	d.limits(ctx)
	if d.pair.HooksOnly() {
		d.tell("backup", levelSkip, "the pair has none: hooks are told of what changes", "")
		return
	}
	runner := d.localRsync(ctx)
	path := []struct {
		check string
		do    func() bool
	}{
		{"password", d.password},
		{"name", func() bool { return d.resolve(ctx) }},
		{"connect", func() bool { return d.connect(ctx) }},
		{"login", func() bool { return runner != nil && d.login(ctx, runner) }},
		{"canary", func() bool { return d.canary(ctx, runner) }},
	}
	for i, step := range path {
		if step.check == "login" && runner == nil || !step.do() {
			var rest []string
			for _, later := range path[i+1:] {
				rest = append(rest, later.check)
			}
			if len(rest) > 0 {
				d.tell(strings.Join(rest, ","), levelSkip, "not tried after what failed above", "")
			}
			break
		}
	}
	d.tell("space", levelSkip, "the free space of the backup is not visible from here, only whether it is full", "on "+d.pair.Backup.Host+": lockstep doctor "+d.pair.Name)
	d.clock()
}

func (d *doctor) definition() bool {
	data, err := os.ReadFile(d.files.definition)
	if err != nil {
		d.failure("definition", err, "is this the source host, and is the pair applied on it? lockstep read --role source")
		return false
	}
	p, err := pair.Parse(data)
	if err != nil {
		d.failure("definition", err, "lockstep check "+d.files.definition)
		return false
	}
	d.pair = p
	if d.name != "" && p.Name != d.name {
		d.tell("definition", levelFail, fmt.Sprintf("%s: name is %q", d.files.definition, p.Name), "name the file as the pair")
		return false
	}
	if p.HooksOnly() {
		d.tell("definition", levelOK, fmt.Sprintf("%s: hooks for %s, without a backup", d.files.definition, p.Source.Path), "")
		return true
	}
	d.tell("definition", levelOK, fmt.Sprintf("%s: %s to %s on %s", d.files.definition, p.Source.Path, p.Backup.Path, p.Backup.Host), "")
	return true
}

func (d *doctor) source() {
	root, err := transfer.OpenRoot(d.pair.Source.Path)
	if err != nil {
		d.failure("source", err, "mount or make the directory; nothing is deleted on the backup while it is missing")
		return
	}
	defer root.Close() //nolint:errcheck // only a handle
	id, err := root.Identity()
	if err != nil {
		d.failure("source", err, "")
		return
	}
	if d.name != "" {
		var known struct{ Path, Identity string }
		data, err := os.ReadFile(filepath.Join(stateRoot, d.name, "source.json"))
		noted := err == nil && json.Unmarshal(data, &known) == nil && known.Path == d.pair.Source.Path
		d.right = noted && known.Identity == id.String()
		if noted && !d.right {
			d.tell("source", levelFail, d.pair.Source.Path+" is not the directory that the pair was made for: it was unmounted or replaced, and nothing is sent",
				"mount it; or, if this directory is meant, lockstep approve "+d.name)
			return
		}
	}
	empty, err := root.Empty()
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.tell("source", levelWarn, d.pair.Source.Path+" may not be read by this user", "run doctor as root; the agent of a unit may read it")
	case err != nil:
		d.failure("source", err, "")
	case empty:
		d.tell("source", levelWarn, d.pair.Source.Path+" is empty", "is something to be mounted there?")
	default:
		d.tell("source", levelOK, fmt.Sprintf("%s is there (%s)", d.pair.Source.Path, id), "")
	}
}

func (d *doctor) unit(ctx context.Context) {
	if d.name == "" {
		d.tell("unit", levelSkip, "stand-alone, no unit", "")
		return
	}
	name := unit.AgentName(d.name)
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	u, err := d.machine.Units.Unit(ctx, name)
	switch apply := "lockstep apply --role source puts it back"; {
	case err != nil:
		d.tell("unit", levelSkip, strings.ReplaceAll(err.Error(), "\n", "; "), "")
	case u.Masked:
		d.tell("unit", levelFail, name+" is masked", "systemctl unmask "+name)
	case !u.Loaded:
		d.tell("unit", levelFail, "systemd has no "+name, apply)
	case !u.Active:
		d.tell("unit", levelFail, name+" is "+u.State, "journalctl -u "+name+"; systemctl start "+name)
	case !u.Ready:
		d.tell("unit", levelWarn, fmt.Sprintf("%s is %s, not ready yet: %s", name, u.State, u.Status), "journalctl -u "+name)
	case !u.Enabled:
		d.tell("unit", levelWarn, name+" runs and is not enabled: it will not come back after a reboot", "systemctl enable "+name)
	case u.Stale:
		d.tell("unit", levelWarn, name+" runs, and its file was changed since", "systemctl daemon-reload; systemctl restart "+name)
	default:
		d.tell("unit", levelOK, name+" is enabled and "+u.State, "")
	}
}

// agent asks the one that runs, if there is one.
func (d *doctor) agent(ctx context.Context) {
	if d.files.runtime == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	s, err := newClient(cmp.Or(d.name, d.files.runtime), d.files.runtime).status(ctx)
	if err != nil {
		d.failure("agent", err, "")
		return
	}
	d.backend = s.Watch.Backend
	words := string(s.State)
	if s.Reason != "" {
		words += ": " + s.Reason
	}
	switch s.State {
	case replicate.InStep, replicate.Behind, replicate.Starting, replicate.HooksOnly:
		d.right = d.right || s.State != replicate.Starting
		d.tell("agent", levelOK, words, "")
	case replicate.Degraded, replicate.Paused, replicate.Held:
		d.right = d.right || s.State == replicate.Degraded
		d.tell("agent", levelWarn, words, s.Hint)
	case replicate.Failing:
		d.tell("agent", levelFail, words, s.Hint)
	default:
		d.tell("agent", levelWarn, words+" (of another version)", s.Hint)
	}
	for _, fault := range s.Watch.Faults {
		d.tell("agent", levelWarn, "watch: "+fault, s.Hint)
	}
}

// limits is about inotify; with fanotify there is none to speak of.
func (d *doctor) limits(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	if d.backend == "fanotify" || d.backend == "" && d.pair.Watch.Backend != "inotify" && canFanotify(ctx, d.pair.Source.Path) {
		d.tell("limits", levelOK, "fanotify can watch "+d.pair.Source.Path+" with one mark; no limit matters", "")
		return
	}
	facts, err := d.machine.System.Inspect(ctx, host.Query{Sysctls: []string{plan.MaxUserWatches}, CountIn: d.pair.Source.Path})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		d.failure("limits", err, "")
		return
	}
	limit, _ := strconv.Atoi(facts.Sysctls[plan.MaxUserWatches]) // 0: not known
	atLeast := ""
	if !facts.CountAll {
		atLeast = "at least "
	}
	saw := fmt.Sprintf("inotify needs %s%d watches for %s, %s allows %d", atLeast, facts.Count, d.pair.Source.Path, plan.MaxUserWatches, limit)
	switch do := fmt.Sprintf("sysctl -w %s=%d, and lockstep apply --role source for the next boot", plan.MaxUserWatches, 4*max(facts.Count, 1<<16)); {
	case limit == 0:
		d.tell("limits", levelSkip, plan.MaxUserWatches+" cannot be read here", "")
	case facts.Count > limit:
		d.tell("limits", levelFail, saw, do)
	case 10*facts.Count > 8*limit:
		d.tell("limits", levelWarn, saw, do)
	default:
		d.tell("limits", levelOK, saw, "")
	}
}

func (d *doctor) localRsync(ctx context.Context) *transfer.Runner {
	d.user = d.pair.Auth.User
	if user, err := readPassword(d.files.password); err == nil && user != "" {
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
		d.tell("rsync", levelWarn, "rsync "+runner.Version()+" here: "+facts.Rsync.Fault, "install another version than 3.4.3")
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
		d.failure("password", err, "run doctor as root; lockstep apply --role source makes the file")
	case info.Mode().Perm()&0o007 != 0:
		d.tell("password", levelFail, fmt.Sprintf("%s may be read by others (mode %04o), and rsync does not take it", d.files.password, info.Mode().Perm()),
			"chmod 0600 "+d.files.password)
	default:
		d.tell("password", levelOK, fmt.Sprintf("%s, for user %s", d.files.password, d.user), "")
		return true
	}
	return false
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
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

// connect dials the daemon and reads its greeting, as in "@RSYNCD: 32.0 sha512 sha256 sha1 md5 md4".
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
	if d.pair.Transport == pair.SSH {
		return d.sshGreeting(at, line, err)
	}
	words := strings.Fields(strings.TrimPrefix(line, "@RSYNCD:"))
	switch {
	case err != nil && line == "":
		d.failure("greeting", fmt.Errorf("%s says nothing: %w", at, err), "is another service listening there, or does a firewall cut in?")
		return false
	case !strings.HasPrefix(line, "@RSYNCD: ") || len(words) == 0:
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
func (d *doctor) sshGreeting(at, line string, err error) bool {
	switch {
	case err != nil && line == "":
		d.failure("greeting", fmt.Errorf("%s says nothing: %w", at, err), "is another service listening there, or does a firewall cut in?")
		return false
	case !strings.HasPrefix(line, "SSH-"):
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
