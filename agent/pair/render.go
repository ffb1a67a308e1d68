// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
)

// Render returns the definition as YAML, every field spelt out, in the order of the documentation. A pair of hooks only
// has no fields that are about a backup.
// Parse(Render(p)) is p for every completed, valid definition.
func (p Pair) Render() []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	list := func(indent, key string, items []string) {
		if len(items) == 0 {
			line("%s%s: []", indent, key)
			return
		}
		line("%s%s:", indent, key)
		for _, item := range items {
			line("%s  - %s", indent, scalar(item))
		}
	}
	line("name: %s", scalar(p.Name))
	line("source:")
	line("  host: %s", scalar(p.Source.Host))
	line("  path: %s", scalar(p.Source.Path))
	line("  address: %s", scalar(p.Source.Address))
	if !p.HooksOnly() {
		line("backup:")
		line("  host: %s", scalar(p.Backup.Host))
		line("  path: %s", scalar(p.Backup.Path))
		line("  address: %s", scalar(p.Backup.Address))
		line("  port: %d", p.Backup.Port)
		line("  module: %s", scalar(p.Backup.Module))
		line("  uid: %s", scalar(p.Backup.UID))
		line("  gid: %s", scalar(p.Backup.GID))
	}
	line("transport: %s", scalar(p.Transport))
	if !p.HooksOnly() {
		line("auth:")
		line("  user: %s", scalar(p.Auth.User))
	}
	list("", "exclude", p.Exclude)
	if !p.HooksOnly() {
		list("", "filter", p.Filter)
		line("delete:")
		line("  enabled: %t", p.Delete.Enabled)
		line("  max_files: %d", p.Delete.MaxFiles)
		line("  max_percent: %d", p.Delete.MaxPercent)
	}
	line("watch:")
	line("  backend: %s", scalar(p.Watch.Backend))
	list("  ", "events", p.Watch.Events)
	line("  delay: %s", p.Watch.Delay)
	line("  max_delay: %s", p.Watch.MaxDelay)
	if !p.HooksOnly() {
		line("transfer:")
		line("  compress: %s", scalar(p.Transfer.Compress))
		line("  bandwidth_limit: %s", scalar(p.Transfer.BandwidthLimit))
		line("  timeout: %s", p.Transfer.Timeout)
		line("  parallel: %d", p.Transfer.Parallel)
		list("  ", "options", p.Transfer.Options)
		line("full:")
		line("  every: %s", scalar(p.Full.Every))
		list("  ", "exclude", p.Full.Exclude)
		line("retry:")
		line("  initial: %s", p.Retry.Initial)
		line("  max: %s", p.Retry.Max)
	}
	renderHooks(p.Hooks, line, list)
	line("metrics:")
	line("  listen: %s", scalar(p.Metrics.Listen))
	line("paused: %t", p.Paused)
	return b.Bytes()
}

// plainWord matches text that every YAML reader takes for a string without quotes, as long as it is not
// one of the words in reservedWord.
var plainWord = regexp.MustCompile(`^[A-Za-z/_][A-Za-z0-9/_.-]*$|^[0-9]{1,3}(\.[0-9]{1,3}){3}$|^[0-9]+(ms|s|m|h)$`)

// scalar renders s as a YAML scalar. Go's escapes are all YAML's too, when s is UTF-8.
func scalar(s string) string {
	if plainWord.MatchString(s) && !reservedWord(s) {
		return s
	}
	return strconv.Quote(s)
}
