// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Demo tells the story of lockstep on two throw-away hosts: one apply, files that follow, a change by hand
// that is found and healed, a cable that is pulled, a destroy that leaves the data. `make demo` runs it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	repository := flag.String("repository", ".", "where examples/ and build/ are")
	flag.Parse()
	s := &story{out: os.Stdout, color: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == ""}
	err := s.tell(ctx, *repository)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; the hosts are gone")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// story is the demo while it is told.
type story struct {
	out   io.Writer
	color bool
	part  int
	fresh bool // nothing was printed since the chapter's title

	lab            *lab.Lab
	source, backup *lab.Host
	dir            string // Terraform's working directory
	rc             string // Terraform's CLI configuration
}

func (s *story) tell(ctx context.Context, repository string) (err error) {
	if _, err := exec.LookPath("terraform"); err != nil {
		return errors.New("terraform is not in PATH\nhint: https://developer.hashicorp.com/terraform/install; without it: build/lockstep demo")
	}
	if s.rc, err = filepath.Abs(filepath.Join(repository, "build", "terraform.rc")); err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp("", "lockstep-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)

	s.chapter("Two hosts, straight from the installer")
	s.say("nfs01 has the data, backup has the room. Both have sshd, systemd, rsync and sudo, and nothing else.")
	if s.lab, err = lab.Start(ctx, lab.Options{Log: s.out}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.lab.Close()) }()
	s.source, s.backup = s.lab.Host("nfs01"), s.lab.Host("backup")
	if err := s.on(ctx, s.source, `mkdir -p /data/projects && for i in $(seq 500); do echo "report $i" >/data/projects/report-$i.txt; done && ls /data/projects | wc -l`); err != nil {
		return err
	}

	for _, part := range []func(context.Context) error{
		func(ctx context.Context) error {
			return s.apply(ctx, filepath.Join(repository, "examples", "terraform"))
		},
		s.follow, s.drift, s.outage, s.destroy,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	s.chapter("What to look at next")
	fmt.Fprint(s.out, `  examples/           the same pair for Terraform, Ansible and by hand
  make lab            keeps two such hosts running, to try things yourself
  build/lockstep demo the replication alone, on this machine, without root
  DESIGN.md           why it is built so, and what it does to never lose your data
  make test           proves all of this, and what happens when things break

`)
	return nil
}

func (s *story) apply(ctx context.Context, example string) error {
	s.chapter("One definition, one apply")
	if err := s.example(example); err != nil {
		return err
	}
	main, err := os.ReadFile(filepath.Join(s.dir, "main.tf"))
	if err != nil {
		return err
	}
	at := strings.Index(string(main), "resource ")
	s.say("The pair, from examples/terraform/main.tf:")
	s.indent(strings.NewReader(string(main)[max(at, 0):]), "")
	if err := s.terraform(ctx, "successfully initialized", "init"); err != nil {
		return err
	}
	if err := s.terraform(ctx, "Plan:", "apply", "-auto-approve"); err != nil {
		return err
	}
	s.say("The password between the two was made on backup and sealed for nfs01. Terraform never saw it.")
	if err := s.on(ctx, s.source, "lockstep wait data --timeout 1m"); err != nil {
		return err
	}
	return s.on(ctx, s.backup, "ls /backup/nfs01/projects | wc -l")
}

// example copies the example and adds, in a file of its own, how Terraform reaches the lab.
func (s *story) example(from string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.tf"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no example in %s", from)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.dir, filepath.Base(file)), text, 0o644); err != nil {
			return err
		}
	}
	override := fmt.Sprintf("provider \"lockstep\" {\n  ssh   = { config_file = %q }\n  hosts = {}\n}\n", s.lab.SSHConfigFile())
	return os.WriteFile(filepath.Join(s.dir, "lab_override.tf"), []byte(override), 0o644)
}

func (s *story) follow(ctx context.Context) error {
	s.chapter("What happens on nfs01 happens on backup")
	const files = 20
	s.say(fmt.Sprintf("%d files are written to nfs01:/data, one after the other. Until each is on backup:", files))
	var took []time.Duration
	for i := range files {
		d, err := s.arrival(ctx, fmt.Sprintf("note-%02d.txt", i), fmt.Sprintf("note %d, %s\n", i, time.Now()))
		if err != nil {
			return err
		}
		took = append(took, d)
		fmt.Fprintf(s.out, "    note-%02d.txt %6.1f ms  %s\n", i, float64(d.Microseconds())/1000, strings.Repeat("▪", min(60, int(d.Milliseconds()/4)+1)))
	}
	slices.Sort(took)
	s.say(fmt.Sprintf("median %.1f ms, longest %.1f ms", float64(took[files/2].Microseconds())/1000, float64(took[files-1].Microseconds())/1000))
	s.say("Renames, modes, links, deletions and names that nobody should use follow as well:")
	if err := s.on(ctx, s.source, `cd /data && mv projects 'projects [2026]' && chmod 0600 note-00.txt && ln -s note-01.txt newest && rm note-02.txt && touch -- '-rf ; # *' && lockstep wait data`); err != nil {
		return err
	}
	if err := s.on(ctx, s.backup, `ls -lA /backup/nfs01 | head -n 8`); err != nil {
		return err
	}
	return s.on(ctx, s.source, "lockstep status data")
}

// arrival writes a file on nfs01 and says how long it takes to backup. Both hosts have this machine's clock.
func (s *story) arrival(ctx context.Context, name, content string) (time.Duration, error) {
	from, to := s.source.Path("/data/"+name), s.backup.Path("/backup/nfs01/"+name)
	begin := time.Now()
	if err := os.WriteFile(from, []byte(content), 0o644); err != nil {
		return 0, err
	}
	for time.Since(begin) < 30*time.Second && ctx.Err() == nil {
		if got, err := os.ReadFile(to); err == nil && string(got) == content {
			return time.Since(begin), nil
		}
		time.Sleep(500 * time.Microsecond)
	}
	return 0, fmt.Errorf("%s did not arrive on backup", name)
}

func (s *story) drift(ctx context.Context) error {
	s.chapter("Somebody changes a host by hand")
	if err := s.on(ctx, s.backup, "sed -i 's/^max connections.*//; $a max connections = 1' /etc/lockstep/rsyncd.d/data.conf"); err != nil {
		return err
	}
	s.say("terraform plan names the host and the object:")
	if err := s.terraform(ctx, "will be updated", "plan"); err != nil {
		return err
	}
	s.say("terraform apply heals it, and then there is nothing to do:")
	if err := s.terraform(ctx, "Plan:", "apply", "-auto-approve"); err != nil {
		return err
	}
	return s.terraform(ctx, "No changes", "plan")
}

func (s *story) outage(ctx context.Context) error {
	s.chapter("Somebody pulls the cable of backup")
	if err := s.backup.CutOff(ctx); err != nil {
		return err
	}
	if err := s.on(ctx, s.source, "cd /data && for i in $(seq 100); do echo $i >while-away-$i; done"); err != nil {
		return err
	}
	s.say("A few seconds later, the status tells the truth:")
	if err := s.until(ctx, func() bool {
		state, lag := s.state(ctx)
		return state == "failing" || lag > 5*time.Second
	}); err != nil {
		return err
	}
	if err := s.show(ctx, s.source, "lockstep status data"); err != nil { // its exit status says that it is not in step
		return err
	}
	s.say("The cable is back. Nobody does anything. Waiting for the pair to be in step:")
	begin := time.Now()
	if err := s.backup.Restore(ctx); err != nil {
		return err
	}
	if err := s.until(ctx, func() bool { state, _ := s.state(ctx); return state == "in step" }); err != nil {
		return err
	}
	s.say(fmt.Sprintf("In step again %.1f s later.", time.Since(begin).Seconds()))
	return s.on(ctx, s.backup, "ls /backup/nfs01 | grep -c while-away")
}

// state is what the agent says of itself, and how old the oldest change is that is not on the backup.
func (s *story) state(ctx context.Context) (state string, lag time.Duration) {
	out, _ := s.source.Run(ctx, "lockstep", "status", "data", "--json") // its exit status tells the state, too
	var status struct {
		State      string  `json:"state"`
		LagSeconds float64 `json:"lag_seconds"`
	}
	if json.Unmarshal([]byte(out), &status) != nil {
		return "", 0
	}
	return status.State, time.Duration(status.LagSeconds * float64(time.Second))
}

// until waits until what is true, with a sign of life every second.
func (s *story) until(ctx context.Context, what func() bool) error {
	begin, dots := time.Now(), 0
	for !what() {
		elapsed := time.Since(begin)
		if elapsed > 2*time.Minute {
			return errors.New("waited for two minutes in vain")
		}
		if n := int(elapsed.Seconds()); n > dots {
			if dots == 0 {
				fmt.Fprint(s.out, "    ")
			}
			fmt.Fprint(s.out, strings.Repeat(".", n-dots))
			dots = n
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	if dots > 0 {
		fmt.Fprintln(s.out)
	}
	return nil
}

func (s *story) destroy(ctx context.Context) error {
	s.chapter("Enough")
	if err := s.terraform(ctx, "Plan:", "destroy", "-auto-approve"); err != nil {
		return err
	}
	s.say("Lockstep is gone from both hosts. The data is where it was:")
	if err := s.on(ctx, s.source, "ls /data | wc -l; ls -d /etc/lockstep 2>&1 || true"); err != nil {
		return err
	}
	return s.on(ctx, s.backup, "ls /backup/nfs01 | wc -l; ls -d /etc/lockstep 2>&1 || true")
}

func (s *story) chapter(title string) {
	s.part++
	fmt.Fprintf(s.out, "\n%s\n\n", s.paint("1;36", fmt.Sprintf("%d. %s", s.part, title)))
	s.fresh = true
}

func (s *story) say(text string) {
	if !s.fresh {
		fmt.Fprintln(s.out)
	}
	s.fresh = false
	fmt.Fprintf(s.out, "  %s\n", text)
}

func (s *story) paint(code, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// on runs a command on a host, as root, with the command and what it says shown.
func (s *story) on(ctx context.Context, h *lab.Host, script string) error {
	if said, err := s.command(h.Command(ctx, "sh", "-c", script), h.Name+"# "+script, ""); err != nil {
		return fmt.Errorf("%s: %s: %w\n%s", h.Name, script, err, said)
	}
	return nil
}

// show is on for a command whose exit status does not matter.
func (s *story) show(ctx context.Context, h *lab.Host, script string) error {
	_, err := s.command(h.Command(ctx, "sh", "-c", script), h.Name+"# "+script, "")
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// terraform shows what terraform says from the first line on that has from in it; if it fails, all of it.
func (s *story) terraform(ctx context.Context, from string, args ...string) error {
	cmd := s.lab.Command(ctx, append([]string{"terraform"}, args...)...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "TF_CLI_CONFIG_FILE="+s.rc, "TF_IN_AUTOMATION=1", "TF_INPUT=0")
	if !s.color {
		cmd.Env = append(cmd.Env, "TF_CLI_ARGS=-no-color")
	}
	if said, err := s.command(cmd, "$ terraform "+strings.Join(args, " "), from); err != nil {
		return fmt.Errorf("terraform %s: %w\n%s", args[0], err, said)
	}
	return nil
}

// command runs cmd and shows what it says as it comes, from the first line on that has from in it. It
// returns all that was said.
func (s *story) command(cmd *exec.Cmd, shown, from string) (string, error) {
	s.say(s.paint("1", shown))
	r, w := io.Pipe()
	var said bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.indent(io.TeeReader(r, &said), from)
	}()
	cmd.Stdout, cmd.Stderr = w, w
	err := cmd.Run()
	w.Close() //nolint:errcheck // of a pipe it never fails
	<-done
	return said.String(), err
}

// indent prints what it reads from the first line on that has from in it, without runs of empty lines.
func (s *story) indent(r io.Reader, from string) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	shown, empty := from == "", true
	for lines.Scan() {
		shown = shown || strings.Contains(lines.Text(), from)
		if now := strings.TrimSpace(lines.Text()) == ""; shown && (!now || !empty) {
			fmt.Fprintf(s.out, "    %s\n", lines.Text())
			empty = now
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line that is too long must not stop the command
}
