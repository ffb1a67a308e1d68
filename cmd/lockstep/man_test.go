// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

const repository = "../.."

// manPage reads a manual page as words: without the macros, with -- for two Fl.
func manPage(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(repository + "/packaging/man/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("Fl Fl ", "--", "\\e", "\\").Replace(string(data))
}

var helpFlag = regexp.MustCompile(`(?m)^  --([a-z-]+)`)

// The manual names every command, and of every command every flag that it takes.
func TestManualNamesEveryCommandAndFlag(t *testing.T) {
	t.Parallel()
	page := manPage(t, "lockstep.8")
	sections := map[string]string{}
	for _, section := range strings.Split(page, "\n.It Ic ")[1:] {
		name := strings.Fields(section)[0]
		sections[name] += section
	}
	for _, c := range commands() {
		section, ok := sections[c.name]
		if !ok {
			t.Errorf("lockstep.8 has no .It Ic %s", c.name)
			continue
		}
		args := []string{c.name, "--help"}
		var out, help, other bytes.Buffer
		if status := dispatch(t.Context(), stdio{strings.NewReader(""), &out, &help}, args); status != exitOK {
			t.Errorf("lockstep %s: status %d: %s", strings.Join(args, " "), status, &help)
		}
		if status := dispatch(t.Context(), stdio{strings.NewReader(""), &out, &other}, []string{"help", c.name}); status != exitOK || other.String() != help.String() {
			t.Errorf("lockstep help %s: status %d: %s", c.name, status, &other)
		}
		if !strings.HasPrefix(help.String(), "usage: lockstep "+c.name) || !strings.Contains(strings.ToLower(help.String()), c.short) {
			t.Errorf("lockstep %s says %q", strings.Join(args, " "), &help)
		}
		flags := helpFlag.FindAllStringSubmatch(help.String(), -1)
		known := map[string]bool{"--help": true}
		for _, f := range flags {
			known["--"+f[1]] = true
			if !regexp.MustCompile("--" + f[1] + `\b`).MatchString(section) {
				t.Errorf("lockstep.8: %s: --%s is not there", c.name, f[1])
			}
		}
		// What an option list names, the command takes. The text below may speak of others.
		heading, _, _ := strings.Cut(section, "\n")
		for _, f := range regexp.MustCompile(`--[a-z-]+`).FindAllString(heading, -1) {
			if !known[f] {
				t.Errorf("lockstep.8: %s has no flag %s", c.name, f)
			}
		}
	}
	for _, status := range []int{exitOK, exitFailure, exitUsage, exitNotInStep, exitHeld, exitFailing, exitNoAgent, exitDiffers, exitTimeout, exitConfig} {
		if !regexp.MustCompile(`(?m)^\.It ` + strconv.Itoa(status) + `$`).MatchString(page) {
			t.Errorf("lockstep.8: exit status %d is not in the table", status)
		}
	}
}

// The manual of definitions names every field, and every rsync option that may be given.
func TestManualNamesEveryFieldAndOption(t *testing.T) {
	t.Parallel()
	page := manPage(t, "lockstep.yaml.5")
	for _, field := range fields(reflect.TypeFor[pair.Pair](), "") {
		if !regexp.MustCompile(`(?m)^\.It Li (.* , )?` + regexp.QuoteMeta(field) + `( ,|$)`).MatchString(page) {
			t.Errorf("lockstep.yaml.5: field %s is not there", field)
		}
	}
	for _, o := range pair.AllowedOptions() {
		if !regexp.MustCompile(regexp.QuoteMeta(o.Name) + `( |$|\n)`).MatchString(page) {
			t.Errorf("lockstep.yaml.5: option %s is not there", o.Name)
		}
	}
}

// fields lists the paths of the fields of a definition.
func fields(t reflect.Type, prefix string) []string {
	var paths []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Type.Kind() == reflect.Struct {
			paths = append(paths, fields(f.Type, prefix+name+".")...)
			continue
		}
		paths = append(paths, prefix+name)
	}
	return paths
}
