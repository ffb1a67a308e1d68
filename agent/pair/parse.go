// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxSize is the largest definition that [Parse] reads, in bytes. One with a thousand exclude patterns has
// about 30,000.
const MaxSize = 1 << 20

// Parse reads a definition, YAML or JSON, over the [Defaults], completes it and validates it. The error is
// [Problems]: all that can be found in one go, with line numbers.
func Parse(data []byte) (Pair, error) {
	node, ps := tree(data)
	if len(ps) > 0 {
		return Pair{}, ps
	}
	p, ps := decode(node)
	if len(ps) > 0 {
		return Pair{}, ps
	}
	return p, nil
}

// decoder walks the nodes of one definition and collects what is wrong with them.
type decoder struct {
	problems Problems
	line     map[string]int  // of each field that was met
	failed   map[string]bool // fields that hold no value; to validate them would report them twice
}

// field is one key of an object: a value, or a group of further fields. One that is refused is there for its message.
type field struct {
	key     string
	read    func(n *yaml.Node, path string)
	group   []field
	refused string
	hint    string
}

func (d *decoder) add(n *yaml.Node, path, msg, hint string) {
	if n.Line > 0 {
		msg = fmt.Sprintf("line %d: %s", n.Line, msg)
	}
	d.problems = append(d.problems, Problem{Path: path, Msg: msg, Hint: hint})
	d.failed[path] = true
}

func decode(n *yaml.Node) (Pair, Problems) {
	p := Defaults()
	d := &decoder{line: map[string]int{}, failed: map[string]bool{}}
	d.object(pairFields(d, &p), n, "")
	_, given := d.line["backup.port"]
	zero := given && p.Backup.Port == 0 && !d.failed["backup.port"]
	p.Complete()
	if zero {
		p.Backup.Port = 0 // what was written, and no default
	}
	for _, problem := range p.Validate() {
		if d.covered(problem.Path) {
			continue
		}
		if line := d.line[problem.Path]; line > 0 {
			problem.Msg = fmt.Sprintf("line %d: %s", line, problem.Msg)
		}
		d.problems = append(d.problems, problem)
	}
	return p, d.problems
}

// covered reports whether path or an object around it could not be read.
func (d *decoder) covered(path string) bool {
	for {
		if d.failed[path] {
			return true
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return path != "" && d.failed[""] // the whole definition is not an object
		}
		path = path[:i]
	}
}

// pairFields is the schema: every key, where it goes, and how it is read.
func pairFields(d *decoder, p *Pair) []field {
	return []field{
		{key: "name", read: d.text(&p.Name)},
		{key: "source", group: []field{
			{key: "host", read: d.text(&p.Source.Host)},
			{key: "path", read: d.text(&p.Source.Path)},
			{key: "address", read: d.text(&p.Source.Address)},
		}},
		{key: "backup", group: []field{
			{key: "host", read: d.text(&p.Backup.Host)},
			{key: "path", read: d.text(&p.Backup.Path)},
			{key: "address", read: d.text(&p.Backup.Address)},
			{key: "port", read: d.number(&p.Backup.Port)},
			{key: "module", read: d.text(&p.Backup.Module)},
			{key: "uid", read: d.textOrNumber(&p.Backup.UID)},
			{key: "gid", read: d.textOrNumber(&p.Backup.GID)},
		}},
		{key: "transport", read: d.text(&p.Transport)},
		{key: "auth", group: []field{
			{key: "user", read: d.text(&p.Auth.User)},
			{key: "password", refused: "the password is never part of the definition",
				hint: "remove it; lockstep makes one, or give it to the front end (password_wo, vault)"},
		}},
		{key: "exclude", read: d.texts(&p.Exclude)},
		{key: "filter", read: d.texts(&p.Filter)},
		{key: "delete", group: []field{
			{key: "enabled", read: d.boolean(&p.Delete.Enabled)},
			{key: "max_files", read: d.number(&p.Delete.MaxFiles)},
			{key: "max_percent", read: d.number(&p.Delete.MaxPercent)},
			{key: "keep", refused: "keeping deleted files is not built yet", hint: "remove it"},
		}},
		{key: "watch", group: []field{
			{key: "backend", read: d.text(&p.Watch.Backend)},
			{key: "events", read: d.texts(&p.Watch.Events)},
			{key: "delay", read: d.duration(&p.Watch.Delay)},
			{key: "max_delay", read: d.duration(&p.Watch.MaxDelay)},
		}},
		{key: "transfer", group: []field{
			{key: "compress", read: d.text(&p.Transfer.Compress)},
			{key: "bandwidth_limit", read: d.textOrNumber(&p.Transfer.BandwidthLimit)},
			{key: "timeout", read: d.duration(&p.Transfer.Timeout)},
			{key: "parallel", read: d.number(&p.Transfer.Parallel)},
			{key: "options", read: d.texts(&p.Transfer.Options)},
		}},
		{key: "full", group: []field{
			{key: "every", read: d.text(&p.Full.Every)},
			{key: "exclude", read: d.texts(&p.Full.Exclude)},
		}},
		{key: "retry", group: []field{
			{key: "initial", read: d.duration(&p.Retry.Initial)},
			{key: "max", read: d.duration(&p.Retry.Max)},
		}},
		{key: "hooks", read: d.hooks(&p.Hooks)},
		{key: "metrics", group: []field{
			{key: "listen", read: d.text(&p.Metrics.Listen)},
		}},
		{key: "paused", read: d.boolean(&p.Paused)},
	}
}

// places lists the path of every field that has a value.
func places(fields []field, above string) (paths []string) {
	for _, f := range fields {
		switch at := join(above, f.key); {
		case f.group != nil:
			paths = append(paths, places(f.group, at)...)
		case f.read != nil:
			paths = append(paths, at)
		}
	}
	return paths
}

func (d *decoder) object(fields []field, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode || !d.untagged(n, path) {
		if !d.failed[path] {
			var keys []string
			for _, f := range fields {
				if f.refused == "" {
					keys = append(keys, f.key)
				}
			}
			d.add(n, path, fmt.Sprintf("%s is %s, not a group of fields", cmp.Or(path, "the definition"), kind(n)),
				"write one or more of these below it: "+strings.Join(keys, ", "))
		}
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.add(k, path, "a key is "+kind(k)+", not a name", "write field: value; quote a text that begins with [ or {")
			continue
		}
		at := join(path, k.Value)
		if first, ok := seen[k.Value]; ok {
			msg := "given twice"
			if first > 0 {
				msg = fmt.Sprintf("given twice, first in line %d", first)
			}
			d.add(k, at, msg, "keep one of the two")
			continue
		}
		seen[k.Value] = k.Line
		d.line[at] = v.Line
		f := slices.IndexFunc(fields, func(f field) bool { return f.key == k.Value })
		switch {
		case f < 0:
			d.unknown(k, path, at, fields)
		case fields[f].refused != "":
			d.add(k, at, fields[f].refused, fields[f].hint)
		case fields[f].group != nil:
			d.object(fields[f].group, v, at)
		default:
			fields[f].read(v, at)
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) unknown(k *yaml.Node, path, at string, fields []field) {
	best, distance := "", 1+len(k.Value)/2 // more edits than that and it is another word
	if distance > 4 {
		distance = 4
	}
	var keys []string
	for _, f := range fields {
		if f.refused != "" {
			continue
		}
		keys = append(keys, f.key)
		if n := edits(k.Value, f.key); n < distance {
			best, distance = f.key, n
		}
	}
	hint := "known here: " + strings.Join(keys, ", ")
	elsewhere := ""
	for _, place := range places(pairFields(d, &Pair{}), "") {
		if place[strings.LastIndexByte(place, '.')+1:] == k.Value {
			elsewhere = place
		}
	}
	switch {
	case best != "":
		hint = "did you mean " + join(path, best) + "?"
	case elsewhere != "":
		hint = "it belongs in " + elsewhere
	case k.Value == "<<":
		hint = "merge keys are not read; write the fields out"
	case k.Value == "password" || k.Value == "secret":
		hint = "the password is never part of the definition"
	}
	d.add(k, at, "unknown field "+strconv.Quote(k.Value), hint)
}

// edits counts the insertions, deletions, replacements and swaps of neighbours that turn a into b.
// Of texts whose lengths differ by more than any caller minds it gives only that difference.
func edits(a, b string) int {
	if apart := max(len(a)-len(b), len(b)-len(a)); apart > 8 {
		return apart
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			n := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				n = min(n, rows[i-2][j-2]+1)
			}
			rows[i][j] = n
		}
	}
	return rows[len(a)][len(b)]
}

// kind names what was written, for people.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a group of fields"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "a reference to an anchor"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	case "!!timestamp":
		return "a date"
	}
	return "text"
}

// untagged refuses what a definition has no use for and readers disagree about: anchors and explicit types.
func (d *decoder) untagged(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		d.add(n, path, "*"+n.Value+" refers to an anchor; anchors are not read", "write the value out, or quote it if it is a pattern: "+strconv.Quote("*"+n.Value))
	case n.Anchor != "":
		d.add(n, path, "&"+n.Anchor+" sets an anchor; anchors are not read", "write the value out, or quote it if it is text: "+strconv.Quote("&"+n.Anchor))
	case n.Style&yaml.TaggedStyle != 0:
		d.add(n, path, n.Tag+" names a type; types are not read", "remove it, or quote it if it is text: "+strconv.Quote(n.Tag))
	default:
		return true
	}
	return false
}

// reservedWord reports whether s without quotes is not text, or not text to every YAML reader: YAML 1.1, which
// Ansible reads, takes on, off, yes, no, y and n for booleans.
func reservedWord(s string) bool {
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "~", "":
		return true
	}
	return false
}

func (d *decoder) scalar(n *yaml.Node, path, want, hint string) bool {
	if !d.untagged(n, path) {
		return false
	}
	if n.Kind != yaml.ScalarNode {
		d.add(n, path, "is "+kind(n)+", not "+want, hint)
		return false
	}
	if n.ShortTag() == "!!null" {
		d.add(n, path, "has no value", "write "+want+", or remove the line")
		return false
	}
	return true
}

func quoted(n *yaml.Node) bool {
	return n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
}

func (d *decoder) text(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if !d.scalar(n, path, "text", "") {
			return
		}
		if !quoted(n) && (n.ShortTag() != "!!str" || reservedWord(n.Value)) {
			msg := n.Value + " is " + kind(n) + ", not text"
			if n.ShortTag() == "!!str" {
				msg = n.Value + " without quotes is a boolean to some YAML readers"
			}
			d.add(n, path, msg, "write "+strconv.Quote(n.Value))
			return
		}
		*dst = n.Value
	}
}

// textOrNumber reads a text field whose value is often a number: user ids, rates.
func (d *decoder) textOrNumber(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if n.Kind == yaml.ScalarNode && n.Anchor == "" && n.Style == 0 && decimal.MatchString(n.Value) {
			*dst = n.Value
			return
		}
		d.text(dst)(n, path)
	}
}

var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

func (d *decoder) number(dst *int) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if !d.scalar(n, path, "a number", "") {
			return
		}
		hint := "write a whole number in digits"
		if bare := strings.TrimLeft(n.Value, "0"); decimal.MatchString(bare) {
			hint = "write " + bare
		}
		switch {
		case quoted(n):
			d.add(n, path, strconv.Quote(n.Value)+" is text, not a number", hint+" without quotes")
		case n.ShortTag() == "!!bool" || !decimal.MatchString(n.Value):
			msg := n.Value + " is not a whole number"
			if strings.HasPrefix(n.Value, "0") && strings.Trim(n.Value, "0123456789") == "" {
				msg = n.Value + " begins with 0, which makes it octal to some YAML readers"
			}
			d.add(n, path, msg, hint)
		default:
			v, err := strconv.Atoi(n.Value)
			if err != nil {
				d.add(n, path, n.Value+" is too large", "")
				return
			}
			*dst = v
		}
	}
}

func (d *decoder) boolean(dst *bool) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if !d.scalar(n, path, "true or false", "write true or false") {
			return
		}
		if quoted(n) || n.ShortTag() != "!!bool" {
			msg, hint := strconv.Quote(n.Value)+" is not true or false", "write true or false, without quotes"
			switch word := strings.ToLower(n.Value); {
			case quoted(n) && (word == "true" || word == "false"):
				msg, hint = strconv.Quote(n.Value)+" is text, not true or false", "write "+word+" without quotes"
			case word == "y" || word == "yes" || word == "on" || edits(word, "true") < 2:
				hint = "write true"
			case word == "n" || word == "no" || word == "off" || edits(word, "false") < 3:
				hint = "write false"
			}
			d.add(n, path, msg, hint)
			return
		}
		*dst = strings.EqualFold(n.Value, "true")
	}
}

func (d *decoder) duration(dst *Duration) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if !d.scalar(n, path, "a duration", "write it as 20ms, 5s or 24h") {
			return
		}
		v, err := ParseDuration(n.Value)
		if err != nil {
			d.add(n, path, err.Error(), DurationHint(n.Value))
			return
		}
		*dst = v
	}
}

func (d *decoder) texts(dst *[]string) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if !d.untagged(n, path) {
			return
		}
		if n.Kind != yaml.SequenceNode {
			hint := "write a list, as [\"a\", \"b\"], or [] for none"
			if n.Kind == yaml.ScalarNode && n.Value != "" && n.ShortTag() == "!!str" {
				hint = "write [" + strconv.Quote(n.Value) + "]"
			}
			d.add(n, path, "is "+kind(n)+", not a list", hint)
			return
		}
		list := make([]string, len(n.Content))
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.line[at] = item.Line
			if item.Kind == yaml.ScalarNode && item.ShortTag() == "!!null" && !quoted(item) {
				hint := "remove the item; text that begins with # must be in quotes"
				if item.Value != "" {
					hint = "write " + strconv.Quote(item.Value)
				}
				d.add(item, at, "has no value", hint)
				continue
			}
			d.text(&list[i])(item, at)
		}
		*dst = list
	}
}
