// SPDX-License-Identifier: Apache-2.0

// Package pair is the pair definition: what a user writes to say that a directory on a backup host
// is to be kept equal to a directory on a source host.
//
// There is one schema, with one set of names and defaults, for YAML files, HCL and Ansible. [Parse]
// refuses unknown fields, wrong types and bad values, and reports all of them, each with the path of
// its field and what to write instead. The package is pure: it reads no file and knows no host.
package pair

import (
	"strings"
	"time"
)

// Pair is one pair definition. Its zero value is not valid; begin with [Defaults].
type Pair struct {
	Name      string   `json:"name"`
	Source    Source   `json:"source"`
	Backup    Backup   `json:"backup"`
	Transport string   `json:"transport"` // [Daemon], [SSH] or [None]
	Auth      Auth     `json:"auth"`
	Exclude   []string `json:"exclude"`
	Filter    []string `json:"filter"`
	Delete    Delete   `json:"delete"`
	Watch     Watch    `json:"watch"`
	Transfer  Transfer `json:"transfer"`
	Full      Full     `json:"full"`
	Retry     Retry    `json:"retry"`
	Hooks     []Hook   `json:"hooks"`
	Metrics   Metrics  `json:"metrics"`
	Paused    bool     `json:"paused"`
}

// OneHost is whether the definition itself says that one host is both ends.
func (p Pair) OneHost() bool {
	return strings.EqualFold(p.Source.Host, p.Backup.Host) || strings.EqualFold(p.Source.Address, p.Backup.Address) ||
		loopback(p.Source.Address) && loopback(p.Backup.Address)
}

// Source is the directory that is watched, and its host.
type Source struct {
	Host    string `json:"host"`    // how Terraform or Ansible reach it
	Path    string `json:"path"`    // absolute; an existing directory
	Address string `json:"address"` // what the backup host sees; goes into `hosts allow`. Default: Host
}

// Backup is the directory that is kept equal, its host, and the rsync daemon module that leads to it.
type Backup struct {
	Host    string `json:"host"`
	Path    string `json:"path"`    // absolute; created if absent
	Address string `json:"address"` // what the source host dials. Default: Host
	Port    int    `json:"port"`    // Default: [DefaultPort] of the transport
	Module  string `json:"module"`  // Default: the pair's name
	UID     string `json:"uid"`     // the module's uid; root keeps ownership
	GID     string `json:"gid"`
}

// Auth names the rsync user. The password is never part of the definition.
type Auth struct {
	User string `json:"user"` // rsyncd.conf(5) `auth users`
}

// Delete bounds what a deletion in the source may do to the backup.
type Delete struct {
	Enabled    bool `json:"enabled"`   // false: nothing is ever deleted on the backup
	MaxFiles   int  `json:"max_files"` // a deletion over BOTH limits is held until approved
	MaxPercent int  `json:"max_percent"`
}

// Watch says how changes are noticed and when a changed path is sent.
type Watch struct {
	Backend  string   `json:"backend"` // auto, fanotify, inotify
	Events   []string `json:"events"`  // create, modify, attrib, delete, move
	Delay    Duration `json:"delay"`   // quiet time of one path before it is sent
	MaxDelay Duration `json:"max_delay"`
}

// Transfer tunes the rsync runs.
type Transfer struct {
	Compress       string   `json:"compress"`        // "", zstd, lz4, zlibx, zlib
	BandwidthLimit string   `json:"bandwidth_limit"` // as rsync --bwlimit
	Timeout        Duration `json:"timeout"`
	Parallel       int      `json:"parallel"` // rsync runs at once
	Options        []string `json:"options"`  // further rsync options, from an allow-list
}

// Full schedules full batches beside the one at every start.
type Full struct {
	Every   string   `json:"every"` // a duration, a cron line, or "" for only at start
	Exclude []string `json:"exclude"`
}

// Retry bounds the back-off after a transfer that did not succeed.
type Retry struct {
	Initial Duration `json:"initial"`
	Max     Duration `json:"max"`
}

// Metrics says where Prometheus may scrape.
type Metrics struct {
	Listen string `json:"listen"` // host:port; "" = unix socket only
}

// Defaults returns a definition that has every default and lacks what only the user can say: the name,
// the two hosts and the two paths. No default is written anywhere else.
func Defaults() Pair {
	return Pair{
		Backup:    Backup{UID: "root", GID: "root"},
		Transport: Daemon,
		Auth:      Auth{User: "lockstep"},
		Exclude:   []string{},
		Filter:    []string{},
		Delete:    Delete{Enabled: true, MaxFiles: 1000, MaxPercent: 25},
		Watch: Watch{
			Backend:  "auto",
			Events:   []string{"create", "modify", "attrib", "delete", "move"},
			Delay:    Duration(20 * time.Millisecond),
			MaxDelay: Duration(5 * time.Second),
		},
		Transfer: Transfer{
			Timeout:  Duration(time.Minute),
			Parallel: 2,
			Options:  []string{},
		},
		Full:  Full{Every: "24h", Exclude: []string{}},
		Retry: Retry{Initial: Duration(time.Second), Max: Duration(5 * time.Minute)},
		Hooks: []Hook{},
	}
}

// Complete fills the fields whose default is another field: the addresses, which follow the hosts, the module,
// which follows the name, and the port, which follows the transport. Nil lists become empty ones, as [Parse] gives them. Calling it
// twice changes nothing more.
func (p *Pair) Complete() {
	if p.Source.Address == "" {
		p.Source.Address = p.Source.Host
	}
	if p.Backup.Address == "" {
		p.Backup.Address = p.Backup.Host
	}
	if p.Backup.Module == "" && !p.HooksOnly() {
		p.Backup.Module = p.Name
	}
	if p.Transport == "" {
		p.Transport = Daemon // as in a definition of a time that knew nothing else
	}
	if p.Backup.Port == 0 && !p.HooksOnly() {
		p.Backup.Port = DefaultPort(p.Transport)
	}
	for _, list := range []*[]string{&p.Exclude, &p.Filter, &p.Watch.Events, &p.Transfer.Options, &p.Full.Exclude} {
		if *list == nil {
			*list = []string{}
		}
	}
	hooks := make([]Hook, len(p.Hooks)) // the list may be shared with another copy of the definition
	copy(hooks, p.Hooks)
	for i := range hooks {
		hooks[i].complete()
	}
	p.Hooks = hooks
}
