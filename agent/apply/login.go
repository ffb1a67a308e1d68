// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// With transport ssh the two hosts also have to know each other's ssh keys. The source host's travels with the key that the
// password is sealed to, those of the backup host with the sealed password; so front ends relay no more than before, and
// what the source host pins has come over connections that were verified when the pair was made.

// newSSHKey makes a pair's private key, in OpenSSH's format.
func newSSHKey(pairName string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "lockstep pair "+pairName)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// publicSSHKey is type and key of a private key's public half; "" when it is none.
func publicSSHKey(private []byte) string {
	signer, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// sshKey reads the pair's private key; nil when there is none, or none as lockstep wrote it.
func (s *session) sshKey() (key []byte, err error) {
	file := plan.SSHKeyFile(s.req.Pair.Name)
	f, err := s.m.Files.Read(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, host.ErrNotOwned) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if _, last := s.rec.wrote(file, f.Data); !last || publicSSHKey(f.Data) == "" {
		return nil, nil
	}
	return f.Data, nil
}

// hostKeys are what the backup host's sshd must show: as the sealed password brought them, else as they are kept.
func (s *session) hostKeys(told []string) []string {
	if told != nil {
		return told
	}
	file := plan.KnownHostsFile(s.req.Pair.Name)
	f, err := s.m.Files.Read(file)
	if _, last := s.rec.wrote(file, f.Data); err != nil || !last {
		return nil
	}
	var keys []string
	for line := range strings.Lines(string(f.Data)) {
		if _, key, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			keys = append(keys, key)
		}
	}
	return keys
}

// answer is what a source host shows to who relays: the key to seal to and, with transport ssh, the pair's ssh key.
func answer(seal, sshKey string) string { return strings.TrimSpace(seal + " " + sshKey) }

// recipient takes an answer apart. An ssh key is checked: it becomes part of a line that is more than a key.
func recipient(text string) (seal, sshKey string, err error) {
	seal, sshKey, _ = strings.Cut(strings.TrimSpace(text), " ")
	if sshKey == "" {
		return seal, "", nil
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(sshKey))
	if err != nil || len(options) > 0 || key.Type() != ssh.KeyAlgoED25519 {
		return "", "", errors.New("--recipient has an ssh key that no source host made")
	}
	return seal, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), nil
}

// acquainted is a fingerprint that also tells whether the two hosts know each other's ssh keys. As long as one of them
// does not, there is none.
func acquainted(p plan.Definition, secret plan.Secret, sshKey string, hostKeys []string) string {
	switch {
	case !plan.BySSH(p):
		return fingerprint(p.Name, secret)
	case sshKey == "" || len(hostKeys) == 0:
		return ""
	}
	keys := append([]string{sshKey}, slices.Sorted(slices.Values(hostKeys))...)
	return fingerprint(p.Name, secret, keys...)
}

// login finds out how the source host is let in on this backup host: by which line in which file. The key is the one that the
// request brings, else the one that was let in before.
func (s *session) login(in *plan.BackupInputs) error {
	in.AuthorizedKeys, in.SSHKey = s.facts.SSHD.AuthorizedKeys(), s.rec.Pairs[s.req.Pair.Name][plan.Backup].SSHKey
	if s.req.Recipient == "" {
		return nil
	}
	_, key, err := recipient(s.req.Recipient)
	if err != nil {
		return stop("login", err.Error(), "give the public_key that the source host answered")
	}
	if key != "" {
		in.SSHKey = key
	}
	return nil
}

// confirmed is whether the source host has shown that it has what this host gives it.
func (s *session) confirmed() bool {
	return s.req.Fingerprint != "" && s.req.Fingerprint == s.reply.Fingerprint
}

// left is the transport that the pair had before, as long as it is kept for a source host that has not switched.
func (s *session) left() string {
	switch name := s.req.Pair.Name; {
	case plan.BySSH(s.req.Pair) && s.has(plan.ModuleFile(name)):
		return "the rsync daemon"
	case !plan.BySSH(s.req.Pair) && s.has(plan.SSHConfFile(name)):
		return "ssh"
	}
	return ""
}

// has is whether a file of ours is there. The record alone does not tell: an apply may have been killed after removing it.
func (s *session) has(file string) bool {
	_, err := s.m.Files.Read(file)
	return err == nil && s.rec.Files[file] != ""
}

// superseded lists what another definition of the pair had: a line in another file, and what belongs to the other transport
// once the source host has switched.
func (s *session) superseded(in plan.BackupInputs) plan.State {
	name := s.req.Pair.Name
	gone := plan.State{}
	if s.left() != "" && s.confirmed() {
		gone = s.leadsTo(name, !plan.BySSH(s.req.Pair))
	}
	before := s.rec.Pairs[name][plan.Backup]
	if plan.BySSH(s.req.Pair) && before.AuthorizedKeys != "" && before.AuthorizedKeys != in.AuthorizedKeys {
		gone.Lines = map[string]plan.Line{before.AuthorizedKeys: {Object: "login", Pair: name, Key: before.SSHKey}}
	}
	return gone
}

// leadsTo lists what leads to a pair's directory by one transport, and what the last pair that has it leaves.
func (s *session) leadsTo(name string, bySSH bool) plan.State {
	gone := plan.State{Files: map[string]plan.File{}, Lines: map[string]plan.Line{}, Units: map[string]plan.Unit{}}
	module := plan.ModuleFile
	if bySSH {
		module = plan.SSHConfFile
	}
	last := !slices.ContainsFunc(s.rec.others(name, plan.Backup), func(other string) bool { return s.has(module(other)) })
	gone.Files[module(name)] = plan.File{Object: "module", Rank: plan.RankModule}
	if before := s.rec.Pairs[name][plan.Backup]; bySSH && before.AuthorizedKeys != "" {
		gone.Lines[before.AuthorizedKeys] = plan.Line{Object: "login", Pair: name, Key: before.SSHKey}
	}
	switch {
	case !last:
	case bySSH:
		gone.Files[plan.SSHDir] = plan.File{Object: "module", Rank: plan.RankDir, Dir: true}
	default:
		gone.Units[unit.RsyncdName] = plan.Unit{Object: "daemon"}
		gone.Files[plan.RsyncdConf] = plan.File{Object: "daemon", Rank: plan.RankConfig}
		gone.Files[plan.SystemdDir+"/"+unit.RsyncdName] = plan.File{Object: "daemon", Rank: plan.RankUnit}
		gone.Files[plan.RsyncdDir] = plan.File{Object: "module", Rank: plan.RankDir, Dir: true}
	}
	return gone
}

// writeLine puts a line into a file of somebody else's, which keeps its owner, its mode and all other bytes.
func (s *session) writeLine(step plan.Step) error {
	f, err := s.m.Files.Read(step.Path)
	if errors.Is(err, fs.ErrNotExist) {
		dir := path.Dir(step.Path)
		if _, err := s.m.Files.Read(dir); errors.Is(err, fs.ErrNotExist) {
			s.rec.Dirs[dir] = true
			if err := s.rec.save(s.m.Files); err != nil {
				return err
			}
			if err := s.m.Files.Write(dir, host.File{Dir: true, Mode: 0o700, Owner: "root", Group: "root"}); err != nil {
				return err
			}
		}
		s.rec.Made[step.Path] = true
		f, err = host.File{Mode: 0o600, Owner: "root", Group: "root"}, s.rec.save(s.m.Files)
	}
	if err != nil {
		return err
	}
	f.Data = step.Line.Put(f.Data)
	return s.m.Files.Write(step.Path, f)
}

// removeLine takes the pair's line out of a file; a file that is empty then and that lockstep made goes too.
func (s *session) removeLine(step plan.Step) (bool, error) {
	f, err := s.m.Files.Read(step.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, s.forget(step.Path)
	}
	if err != nil {
		return false, err
	}
	line := step.Line
	line.Text = ""
	left := line.Put(f.Data)
	if len(left) == 0 && s.rec.Made[step.Path] {
		if err := s.m.Files.Remove(step.Path); err != nil {
			return false, err
		}
		return true, s.forget(step.Path)
	}
	if bytes.Equal(left, f.Data) {
		return false, nil
	}
	f.Data = left
	return true, s.m.Files.Write(step.Path, f)
}

// forgetGone drops those files of somebody else's from the record that are gone, and what was made for them.
func (s *session) forgetGone(lines map[string]plan.Line) error {
	var errs []error
	for p := range lines {
		if _, err := s.m.Files.Read(p); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, s.forget(p))
		}
	}
	return errors.Join(errs...)
}

// forget drops a file that is gone from the record, with its directory if nothing else came to be in it.
func (s *session) forget(file string) error {
	delete(s.rec.Made, file)
	if dir := path.Dir(file); s.rec.Dirs[dir] {
		if err := s.m.Files.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, host.ErrNotEmpty) {
			return err
		}
		delete(s.rec.Dirs, dir)
	}
	return s.rec.save(s.m.Files)
}

// shellProblem tells why ssh did not get to the backup host's daemon.
func (s *session) shellProblem(said string) error {
	p := s.req.Pair
	at := fmt.Sprintf("%s, port %d", p.Backup.Address, p.Backup.Port)
	switch {
	case strings.Contains(said, "Host key verification failed"), strings.Contains(said, "host key is known"):
		return stop("login", fmt.Sprintf("what answers at %s is not the backup host: it shows another ssh host key than the backup host told", at),
			"see to backup.address and backup.port; if sshd was given new keys, restart it, and apply again")
	case strings.Contains(said, "Permission denied"):
		return stop("login", fmt.Sprintf("sshd at %s refuses the pair's key", at),
			"apply the backup role first, and relay the public_key of this host; if it stays, the log of sshd on the backup host tells why (modes of /root/.ssh, AllowUsers)")
	}
	return stop("backup.address", fmt.Sprintf("the source host cannot reach %s by ssh: %s", at, said),
		"see to sshd on the backup host, and to names, routes and firewalls between the two hosts, or write another backup.address or backup.port")
}
