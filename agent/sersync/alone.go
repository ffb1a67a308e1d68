// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// plugins that sersync has.
var pluginNames = []string{"command", "socket", "http", "refreshCDN"}

// aboutWatching lists the settings that count when sersync -m runs a plugin alone.
var aboutWatching = []string{"host", "debug", "fileSystem", "filter", "inotify", "localpath", "plugin"}

// alone makes the pair of `sersync -m PLUGIN`: it watches, and runs one plugin, without rsync. The pairs of the remotes and
// what the file says of them is forgotten.
func (im *importer) alone(root *element, name string) []pair.Pair {
	im.notes = slices.DeleteFunc(im.notes, func(n Note) bool {
		head, _, _ := strings.Cut(n.Setting, " ")
		head, _, _ = strings.Cut(head, "/")
		return !slices.Contains(aboutWatching, head) || strings.HasPrefix(n.Setting, "plugin ")
	})
	for i, n := range im.notes {
		if strings.HasPrefix(n.Field, "delete.") {
			im.notes[i].Field, im.notes[i].Text = "", "deletions are told if watch.events has delete"
		}
		im.notes[i].Text = strings.Replace(im.notes[i].Text, "off; a full batch still finds such changes", "off", 1)
	}
	im.live, im.started = Live{}, nil
	i := slices.IndexFunc(root.all("plugin"), func(e *element) bool { return im.attr(e, "name") == name })
	if !slices.Contains(pluginNames, name) || i < 0 {
		im.problems = append(im.problems, pair.Problem{Path: "plugin", Msg: fmt.Sprintf("line %d: there are no settings of a plugin %q", root.line, name), Hint: "name one of " + strings.Join(pluginNames, ", ") + " whose settings are in the file"})
		return nil
	}
	e := root.all("plugin")[i]
	im.started = []*element{e}
	if local := im.one(e, "localpath", false); local != nil {
		if watch := path.Clean(im.attr(local, "watch")); watch != im.base.Source.Path {
			im.base.Source.Path = watch
			im.note(local, "plugin "+name+" localpath", Kept, "source.path", "%s, in place of what is replicated", watch)
		}
	}
	p := pair.Defaults()
	p.Name, p.Transport = pairName(name, "", false, nil), pair.None
	p.Source, p.Exclude, p.Watch = im.base.Source, im.base.Exclude, im.base.Watch
	p.Complete()
	im.note(e, "sersync -m "+name, Kept, "transport", "none: it watches and runs its hooks, without a backup")
	im.note(nil, "(built in) names that sersync drops", Changed, "", "files named .*, *~ and 4913 are told like all others; list them in exclude to leave them out")
	return []pair.Pair{p}
}
