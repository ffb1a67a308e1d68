// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// hardened is the module that lockstep makes on a backup host, as far as it has to do with what runs may do.
func hardened(accepted []string) []string {
	settings := []string{
		"write only = yes", "list = no", "numeric ids = yes", "munge symlinks = no", "strict modes = yes",
		"hosts allow = 127.0.0.1", "hosts deny = *", "reverse lookup = no", "forward lookup = no", "timeout = 600",
		"refuse options = * !" + strings.Join(accepted, " !"),
	}
	if os.Geteuid() == 0 {
		settings = append(settings, "uid = 0", "gid = *", "use chroot = yes")
	}
	return settings
}

// everyRun does each kind of run with every field of Options set, and reports what a module refuses.
func everyRun(f *fixture) (refused string) {
	f.Helper()
	check := func(res Result) {
		if res.Class == Permanent && strings.Contains(res.Message, "refuses the rsync option") {
			refused = res.Message
		} else if res.Class != Done || len(res.Failed) > 0 {
			// A daemon that refuses compression says so outside the protocol, and one that refuses to delete
			// takes the entries of missing paths for broken ones.
			refused = res.Message
		}
	}
	ignore := func(Item) error { return nil }
	f.make(dir{"a": file("x"), "d": dir{"f": file("y")}, "was": dir{"f": file("")}})
	check(f.r.Probe(f.Context()))
	_, res := f.r.BackupEmpty(f.Context(), f.root())
	check(res)
	check(f.run(Job{Kind: Tree, Paths: []string{""}}))
	f.rm("was")
	f.write("was", "a file now")
	check(f.send("a", "d/f"))
	check(f.r.ListMissing(f.Context(), f.root(), []string{"was", "gone"}, ignore))
	check(f.run(Job{Kind: Send, Paths: []string{"was"}, Force: true}))
	f.rm("d")
	check(f.del("d"))
	check(f.r.List(f.Context(), f.root(), ListOptions{Delete: true, Checksum: true}, ignore))
	return refused
}

func TestModuleNeedsToAcceptNoMoreThanTheRequiredOptions(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) {
		o.Compress, o.BandwidthLimit, o.Timeout = "zlib", "100m", 30*time.Second
		o.Exclude, o.Filter, o.FullExclude = []string{"*.tmp"}, []string{"P x"}, []string{"*.iso"}
	}, hardened(RequiredOptions())...)
	if refused := everyRun(f); refused != "" {
		t.Error(refused)
	}
	for _, compress := range []string{"zstd", "lz4", "zlibx"} {
		if os.Getenv("RSYNCTEST_DAEMON") != "" {
			break // it may not have them
		}
		f.opts.Compress = compress
		var err error
		if f.r, err = New(f.opts); err != nil {
			t.Log(err)
			continue
		}
		if res := f.r.Probe(f.Context()); res.Class != Done {
			t.Errorf("%s: %+v", compress, res)
		}
	}
	f.opts.Compress = ""
	f.runner()
	f.done(f.r.Canary(f.Context()))
}

// Each option that a definition may add goes with those of every run. The list is that of agent/pair.
func TestExtraOptionsGoWithOurs(t *testing.T) {
	t.Parallel()
	options := []string{
		"--acls", "--xattrs", "--hard-links", "--sparse", "--inplace", "--preallocate", "--fsync", "--fuzzy", "--whole-file", "--no-whole-file",
		"--checksum", "--numeric-ids", "--no-owner", "--no-group", "--no-perms", "--no-devices", "--no-specials", "--omit-dir-times",
		"--omit-link-times", "--ipv4", "--checksum-choice=md5", "--compress-level=3", "--skip-compress=gz/jpg", "--chmod=go-w", "--chown=0:0",
		"--usermap=*:0", "--groupmap=*:0", "--max-alloc=2G", "--block-size=4096", "--contimeout=7", "--address=127.0.0.1",
	}
	for some := range slices.Chunk(options, 5) { // a daemon for each costs more than it saves
		t.Run(some[0], func(t *testing.T) {
			t.Parallel()
			tryExtra(t, some)
		})
	}
}

func tryExtra(t *testing.T, options []string) {
	f := newFixture(t)
	for _, o := range options {
		f.r.opts.Extra = []string{o}
		f.r.opts.Exclude = []string{"*.tmp"}
		f.rm("a")
		f.rm("d")
		f.make(dir{"a": file(o), "d": dir{"f": file(o)}})
		want := func(res Result) {
			t.Helper()
			if res.Class != Done || len(res.Failed)+len(res.Changed) > 0 {
				if os.Geteuid() != 0 && strings.Contains(res.Message, "Operation not permitted") {
					return // owners
				}
				t.Errorf("%s: %+v", o, res)
			}
		}
		want(f.send("a", "d", "d/f"))
		want(f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
			if it.Path != "" && !it.Dir {
				t.Errorf("%s: differs afterwards: %+v", o, it)
			}
			return nil
		}))
		f.rm("d")
		want(f.del("d"))
		if f.backupHas("d") {
			t.Errorf("%s: not deleted", o)
		}
	}
}
