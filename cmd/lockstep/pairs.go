// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// runRoot has the runtime directory of each agent; see lockstep(8) FILES.
const runRoot = "/run/lockstep"

// pairsHere tells whoever named a pair that this host does not have which ones it has.
func pairsHere() string {
	names := defined("")
	if len(names) == 0 {
		return "no pair is applied on this host; is it the right one?"
	}
	return "this host has no pair of that name; it has " + strings.Join(names, ", ")
}

// defined lists the pairs whose definitions apply has put on the host whose files are below root, "" for this one.
func defined(root string) []string {
	files, err := filepath.Glob(root + plan.DefinitionFile("*"))
	if err != nil {
		return nil // only for a malformed pattern
	}
	names := make([]string, len(files))
	for i, file := range files {
		names[i] = strings.TrimSuffix(filepath.Base(file), ".yaml")
	}
	return names
}

// keepsBackup is whether the host is the backup host of a pair. It may be its source host as well.
func keepsBackup(root, pair string) bool {
	return exists(root+plan.SecretsFile(pair)) || exists(root+plan.ModuleFile(pair)) || exists(root+plan.SSHConfFile(pair))
}

// onlyBackup is whether the host is the backup host of a pair and not its source host as well. Whoever is not root may not look for the
// password; the state of the agent tells as well, once it has been started.
func onlyBackup(root, pair string) bool {
	if !keepsBackup(root, pair) {
		return false
	}
	secret := root + plan.SecretFile(pair)
	return missing(secret) || !exists(secret) && missing(filepath.Join(root+plan.StateDir, pair))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// missing is not the contrary of exists: what may not be looked at is neither.
func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// pairFlags are the flags of every command that talks to an agent.
type pairFlags struct {
	*flag.FlagSet
	runtimeDir string
}

func newPairFlags(std stdio, name, args string) *pairFlags {
	f := &pairFlags{FlagSet: newFlags(std, "", name+" "+args)}
	f.StringVar(&f.runtimeDir, "runtime-dir", "", "runtime `directory` of a stand-alone agent")
	return f
}

// parse gives the pair's name, "" without one.
func (f *pairFlags) parse(args []string) (name string, err error) {
	if name, err = oneArgument(f.FlagSet, args); err != nil {
		return "", err
	}
	if filepath.Base(name) != name && name != "" {
		return "", notAName(name)
	}
	return name, nil
}

// given is whether a flag is on the command line, be it with its preset.
func (f *pairFlags) given(name string) bool {
	found := false
	f.Visit(func(flag *flag.Flag) { found = found || flag.Name == name })
	return found
}

func notAName(name string) error {
	return usageError(fmt.Errorf("%q is not the name of a pair\nhint: a name has a-z, 0-9 and -; lockstep status lists the pairs of this host", name))
}

// one returns the client for the one agent that the arguments name: by name, by its runtime directory, or because it is
// the only one on this host.
func (f *pairFlags) one(args []string) (*client, error) {
	name, err := f.parse(args)
	if err != nil {
		return nil, err
	}
	return f.client(name)
}

func (f *pairFlags) client(name string) (*client, error) {
	switch {
	case f.runtimeDir != "":
		dir, err := filepath.Abs(f.runtimeDir)
		if err != nil {
			return nil, err
		}
		return newClient(dir, dir), nil
	case name != "":
		return newClient(name, filepath.Join(runRoot, name)), nil
	}
	return only(agents(""))
}

// only is the one pair that there is.
func only(all []*client) (*client, error) {
	switch len(all) {
	case 0:
		return nil, noAgent()
	case 1:
		return all[0], nil
	default:
		var names []string
		for _, c := range all {
			names = append(names, c.name)
		}
		return nil, usageError(fmt.Errorf("this host has %d pairs: name one of %s", len(names), strings.Join(names, ", ")))
	}
}

func noAgent() error {
	hint := pairsHere()
	if len(defined("")) > 0 {
		hint = "systemctl list-units --all 'lockstep@*'; on a backup host there is none, ask on the source host"
	}
	return &statusError{exitNoAgent, errors.New("no agent runs on this host\nhint: " + hint)}
}

// agents returns a client for the agent of every pair of the host: of those that have a socket, and of those that should have one.
func agents(root string) []*client {
	sockets, err := filepath.Glob(filepath.Join(root+runRoot, "*", replicate.SocketName))
	if err != nil {
		return nil // only for a malformed pattern
	}
	var names []string
	for _, s := range sockets {
		names = append(names, filepath.Base(filepath.Dir(s)))
	}
	for _, name := range defined(root) {
		if !onlyBackup(root, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out []*client
	for _, name := range slices.Compact(names) {
		out = append(out, newClient(name, filepath.Join(root+runRoot, name)))
	}
	return out
}
