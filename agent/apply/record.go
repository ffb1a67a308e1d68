// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// record is what lockstep knows of a host and cannot see there: which files, directories and users it made,
// what it last wrote, and what each unit was started with. It is written before the change that it tells of,
// so that an apply that was killed finds nothing that it takes for somebody else's.
type record struct {
	Version int `json:"version"`
	// Key makes the digests useless to who has only them; secrets have digests, too.
	Key   []byte                              `json:"key"`
	User  bool                                `json:"user,omitempty"`  // the user was made
	Files map[string]string                   `json:"files,omitempty"` // path to digest
	Dirs  map[string]bool                     `json:"dirs,omitempty"`
	Made  map[string]bool                     `json:"made,omitempty"` // files made for the sake of a line, which are not lockstep's
	Runs  map[string]plan.Runs                `json:"runs,omitempty"` // by unit
	Pairs map[string]map[plan.Role]pairRecord `json:"pairs,omitempty"`
}

// pairRecord is what is known of a pair in one role.
type pairRecord struct {
	Ends      ends              `json:"ends,omitzero"`
	Watches   int               `json:"watches,omitempty"`   // source: directories to watch with inotify
	FS        string            `json:"fs,omitempty"`        // backup: filesystem of the directory
	Mount     bool              `json:"mount,omitempty"`     // backup: the directory was a mount point at some apply
	Addresses []string          `json:"addresses,omitempty"` // backup: what source.address last resolved to
	Secrets   map[string]string `json:"secrets,omitempty"`   // backup: user to digest of what was written

	// Backup, with transport ssh:

	AuthorizedKeys string   `json:"authorized_keys,omitempty"` // the file with the pair's line
	SSHKey         string   `json:"ssh_key,omitempty"`         // the key in it
	HostKeys       []string `json:"host_keys,omitempty"`       // what the source host was told of sshd
}

// ends are the fields of the applied definition that keep other pairs away, for a time when the file cannot be read.
type ends struct {
	SourceHost    string `json:"source_host"`
	SourceAddress string `json:"source_address"`
	SourcePath    string `json:"source_path"`
	BackupHost    string `json:"backup_host"`
	BackupAddress string `json:"backup_address"`
	BackupPath    string `json:"backup_path"`
	Module        string `json:"module"`
	Port          int    `json:"port"`
	Transport     string `json:"transport"`
}

func endsOf(p plan.Definition) ends {
	return ends{p.Source.Host, p.Source.Address, p.Source.Path, p.Backup.Host, p.Backup.Address, p.Backup.Path, p.Backup.Module, p.Backup.Port, p.Transport}
}

// definition is the part of one that e has.
func (e ends) definition(name string) plan.Definition {
	p := plan.Definition{Name: name, Transport: e.Transport}
	p.Source.Host, p.Source.Address, p.Source.Path = e.SourceHost, e.SourceAddress, e.SourcePath
	p.Backup.Host, p.Backup.Address, p.Backup.Path, p.Backup.Module, p.Backup.Port = e.BackupHost, e.BackupAddress, e.BackupPath, e.Module, e.Port
	return p
}

// ends is what the record has of a pair's definition.
func (r *record) ends(pair string) (plan.Definition, bool) {
	for _, role := range r.roles(pair) {
		if p := r.Pairs[pair][role]; p.Ends != (ends{}) {
			return p.Ends.definition(pair), true
		}
	}
	return plan.Definition{}, false
}

const recordVersion = 1

func loadRecord(files host.Files) (*record, error) {
	r := &record{Version: recordVersion}
	f, err := files.Read(plan.RecordFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.Key = make([]byte, 32)
		rand.Read(r.Key) // never fails, see crypto/rand
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(f.Data, r); err != nil {
			return nil, stop("definition", fmt.Sprintf("%s: %v", plan.RecordFile, err), "move "+plan.RecordFile+" away and apply every pair of this host again")
		}
		if r.Version != recordVersion {
			return nil, stop("definition", fmt.Sprintf("%s: version %d, this lockstep knows %d", plan.RecordFile, r.Version, recordVersion),
				"use the lockstep that wrote it, or a newer one")
		}
	}
	if r.Files == nil {
		r.Files = map[string]string{}
	}
	if r.Dirs == nil {
		r.Dirs = map[string]bool{}
	}
	if r.Made == nil {
		r.Made = map[string]bool{}
	}
	if r.Runs == nil {
		r.Runs = map[string]plan.Runs{}
	}
	if r.Pairs == nil {
		r.Pairs = map[string]map[plan.Role]pairRecord{}
	}
	return r, nil
}

// save writes the record, or removes it and its directory when it has nothing to tell.
func (r *record) save(files host.Files) error {
	if len(r.Pairs) == 0 && len(r.Files) == 0 && len(r.Dirs) == 0 && len(r.Made) == 0 && !r.User {
		if err := files.Remove(plan.RecordFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Whoever made it: systemd makes it again for the next agent that starts.
		if err := files.Remove(plan.StateDir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, host.ErrNotEmpty) {
			return err
		}
		return nil
	}
	if _, err := files.Read(plan.StateDir); errors.Is(err, fs.ErrNotExist) {
		if err := files.Write(plan.StateDir, host.File{Dir: true, Mode: 0o755, Owner: "root", Group: "root"}); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return files.Write(plan.RecordFile, host.File{Mode: 0o600, Owner: "root", Group: "root", Data: append(data, '\n')})
}

func (r *record) digest(data []byte) string {
	h := hmac.New(sha256.New, r.Key)
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}

// wrote is whether lockstep wrote a file, and whether data is what it wrote last.
func (r *record) wrote(path string, data []byte) (ever, last bool) {
	digest, ever := r.Files[path]
	return ever, ever && digest == r.digest(data)
}

func (r *record) roles(pair string) []plan.Role {
	return slices.Sorted(maps.Keys(r.Pairs[pair]))
}

func (r *record) setPair(pair string, role plan.Role, p pairRecord) {
	if r.Pairs[pair] == nil {
		r.Pairs[pair] = map[plan.Role]pairRecord{}
	}
	r.Pairs[pair][role] = p
}

func (r *record) dropPair(pair string, role plan.Role) {
	delete(r.Pairs[pair], role)
	if len(r.Pairs[pair]) == 0 {
		delete(r.Pairs, pair)
	}
}

// others lists the pairs that have a role here beside this one.
func (r *record) others(pair string, role plan.Role) []string {
	var names []string
	for name, roles := range r.Pairs {
		if _, ok := roles[role]; ok && name != pair {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
