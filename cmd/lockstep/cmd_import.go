// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/sersync"
)

// runImport is `lockstep import sersync`: pair definitions out of a confxml.xml on standard output, and on standard
// error what became of each setting. It ends with exitFailure when a setting was refused or is missing, with
// exitUsage, and no definition, when the file is one that sersync could not have run with.
func runImport(ctx context.Context, std stdio, args []string) error {
	if len(args) == 1 && isHelp(args[0]) {
		args = []string{"sersync", "--help"}
	}
	if len(args) == 0 || args[0] != "sersync" {
		return usageError(errors.New("import: want import sersync FILE\nhint: lockstep help import"))
	}
	flags := newFlags(std, "FILE is sersync's confxml.xml, or - for standard input.\n",
		"import sersync FILE [OPTIONS]", "import sersync FILE --compare [--for LONG] [--settle LONG] [--json]")
	as := flags.String("as", string(sersync.YAML), "write `FORMAT`: yaml, terraform or ansible")
	dir := flags.String("dir", "", "write each definition to NAME.yaml in this `DIRECTORY`, over no existing file")
	opts := sersync.Options{BackupPaths: map[string]string{}}
	flags.StringVar(&opts.SourceHost, "source-host", "", "the `HOST` that sersync runs on")
	flags.Func("backup-path", "the directory of rsync module MODULE on the backup host, as rsyncd.conf there has it: `[MODULE=]DIRECTORY`; may be given several times", func(s string) error {
		module, path, named := strings.Cut(s, "=")
		if !named || strings.HasPrefix(s, "/") {
			module, path = "", s
		}
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%q is not an absolute path", path)
		}
		opts.BackupPaths[module] = path
		return nil
	})
	flags.StringVar(&opts.Plugin, "plugin", "", "as sersync -m: this plugin alone, `command, socket, http or refreshCDN`, without replication")
	compare := flags.Bool("compare", false, "print no definition: tell, beside the sersync that runs, what lockstep would do otherwise. It changes nothing on either host")
	var with compareOptions
	durationVar(flags, &with.length, "for", 0, "with --compare: for how `long` (default until Ctrl-C)")
	durationVar(flags, &with.settle, "settle", time.Minute, "with --compare: how `long` sersync may take before a difference counts")
	durationVar(flags, &with.every, "every", 10*time.Second, "with --compare: the least `time` from one comparison to the next")
	flags.StringVar(&with.passwordFile, "password-file", "", "with --compare: the rsync password `FILE` (default: that of confxml.xml)")
	flags.StringVar(&with.rsync, "rsync", "", "with --compare: rsync `binary` (default: the one in PATH)")
	flags.BoolVar(&with.asJSON, "json", false, "with --compare: print the report as JSON")
	files, err := parseMixed(flags, args[1:])
	switch {
	case err != nil:
		return flagError(err)
	case len(files) != 1:
		return usageError(errors.New("import sersync: want one FILE"))
	case !slices.Contains(sersync.Formats, sersync.Format(*as)):
		return usageError(fmt.Errorf("import sersync: --as %s: there are yaml, terraform and ansible", *as))
	case *dir != "" && *as != string(sersync.YAML):
		return usageError(errors.New("import sersync: --dir is for --as yaml"))
	}
	if err := with.check(flags, *compare); err != nil {
		return usageError(fmt.Errorf("import sersync: %w", err))
	}
	data, err := readInput(std, files[0])
	if err != nil {
		return usageError(err)
	}
	result, err := sersync.Parse(data, opts)
	if err != nil {
		return usageError(inFile(files[0], err))
	}
	for _, note := range result.Notes {
		if !*compare || note.Outcome == sersync.Refused {
			fmt.Fprintf(std.err, "%s: %s\n", files[0], note)
		}
	}
	if *compare {
		return compareSersync(ctx, std, files[0], result, with)
	}
	if *dir != "" {
		err = writeDefinitions(std, *dir, result)
	} else {
		var text string
		if text, err = result.Render(sersync.Format(*as)); err == nil {
			_, err = io.WriteString(std.out, text)
		}
	}
	if err != nil {
		return err
	}
	if result.Complete() {
		return nil
	}
	refused, missing := 0, 0
	for _, note := range result.Notes {
		switch note.Outcome {
		case sersync.Refused:
			refused++
		case sersync.Missing:
			missing++
		}
	}
	msg := fmt.Sprintf("%s: %d refused, %d missing", files[0], refused, missing)
	if missing > 0 {
		msg += "\nhint: --source-host and --backup-path say what confxml.xml does not"
	}
	return &statusError{exitFailure, errors.New(msg)}
}

// writeDefinitions writes each definition to a file of its own. Everything is checked before anything is written.
func writeDefinitions(std stdio, dir string, result *sersync.Result) error {
	for _, p := range result.Pairs {
		file := filepath.Join(dir, p.Name+".yaml")
		if _, err := os.Lstat(file); err == nil {
			return fmt.Errorf("%s is there already\nhint: move it away, or give another --dir", file)
		}
	}
	for i, p := range result.Pairs {
		one := &sersync.Result{Pairs: result.Pairs[i : i+1], Notes: result.Notes}
		text, err := one.Render(sersync.YAML)
		if err != nil {
			return err
		}
		file := filepath.Join(dir, p.Name+".yaml")
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, text)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(std.out, file); err != nil {
			return err
		}
	}
	return nil
}
