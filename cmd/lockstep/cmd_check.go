// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

// runCheck is `lockstep check`: all problems of definitions, without a host being asked. It ends with exitUsage when
// there is one.
func runCheck(_ context.Context, std stdio, args []string) error {
	flags := newFlags(std, "FILE is a pair definition, or - for standard input.\n", "check FILE...")
	if err := flags.Parse(args); err != nil {
		return flagError(err)
	}
	if flags.NArg() == 0 {
		return usageError(errors.New("check: no FILE given"))
	}
	var errs []string
	good := map[string]pair.Pair{}
	var order []string
	for _, file := range flags.Args() {
		data, err := readInput(std, file)
		if err != nil {
			errs = append(errs, err.Error())
			continue
		}
		p, err := pair.Parse(data)
		if err != nil {
			errs = append(errs, inFile(file, err).Error())
			continue
		}
		for _, other := range order {
			if problem := clash(p, good[other]); problem != nil {
				errs = append(errs, fmt.Sprintf("%s: %s, given in %s", file, problem, other))
			}
		}
		good[file] = p
		order = append(order, file)
		if _, err := fmt.Fprintf(std.out, "%s: pair %s is valid\n", file, p.Name); err != nil {
			return err
		}
	}
	if len(errs) > 0 {
		return usageError(errors.New(strings.Join(errs, "\n")))
	}
	return nil
}

// clash says why two definitions can't both hold.
func clash(p, other pair.Pair) *pair.Problem {
	inside := func(a, b string) bool { return a == b || strings.HasPrefix(a, b+"/") }
	sameBackup := !p.HooksOnly() && !other.HooksOnly() &&
		(strings.EqualFold(p.Backup.Host, other.Backup.Host) || strings.EqualFold(p.Backup.Address, other.Backup.Address))
	switch {
	case p.Name == other.Name:
		return &pair.Problem{Path: "name", Msg: fmt.Sprintf("%q is the name of another pair", p.Name)}
	case sameBackup && (inside(p.Backup.Path, other.Backup.Path) || inside(other.Backup.Path, p.Backup.Path)):
		return &pair.Problem{Path: "backup.path", Msg: fmt.Sprintf("%s overlaps %s of pair %s", p.Backup.Path, other.Backup.Path, other.Name)}
	case sameBackup && rsyncd.SameModule(p.Backup.Module, other.Backup.Module):
		return &pair.Problem{Path: "backup.module", Msg: fmt.Sprintf("%q is the module of pair %s", p.Backup.Module, other.Name)}
	}
	return nil
}
