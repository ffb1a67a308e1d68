// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
)

// newLog gives an agent its log: the journal when standard error leads there, else standard error.
func newLog(w io.Writer, pair string, debug bool) *slog.Logger {
	opts := &slog.HandlerOptions{}
	if debug {
		opts.Level = slog.LevelDebug
	}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	// An error means a JOURNAL_STREAM that systemd did not write.
	if direct, err := journal.StderrIsJournalStream(); err == nil && direct {
		h = newJournalHandler(h, journal.Send)
	}
	return slog.New(h).With("pair", pair)
}

// journalHandler logs to the journal in its native protocol: a sentence for people, every attribute as a field, and
// the MESSAGE_ID of the table. What the journal does not take goes to the handler below it.
type journalHandler struct {
	slog.Handler // decides about levels
	send         func(message string, priority journal.Priority, vars map[string]string) error
	ids          map[[2]string]string // text and state to id
	attrs        []slog.Attr
}

func newJournalHandler(below slog.Handler, send func(string, journal.Priority, map[string]string) error) *journalHandler {
	h := &journalHandler{Handler: below, send: send, ids: map[[2]string]string{}}
	for _, m := range messages() {
		h.ids[[2]string{m.text, m.state}] = m.id
	}
	return h
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.Handler = h.Handler.WithAttrs(attrs)
	with.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return &with
}

// WithGroup leaves the keys as they are: agents use no groups, and a field of the journal has one name.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.Handler = h.Handler.WithGroup(name)
	return &with
}

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, a)
		return true
	})
	vars := map[string]string{"SYSLOG_IDENTIFIER": "lockstep"}
	values := map[string]string{}
	for _, a := range attrs {
		// A path may hold any byte; journald takes them, and journalctl shows them with -a.
		values[a.Key] = a.Value.Resolve().String()
		if name := field(a.Key); name != "" {
			vars[name] = values[a.Key]
		}
	}
	if id := h.ids[[2]string{r.Message, ""}]; id != "" {
		vars["MESSAGE_ID"] = id
	} else if id := h.ids[[2]string{r.Message, values["state"]}]; id != "" {
		vars["MESSAGE_ID"] = id
	}
	maps.DeleteFunc(vars, func(_, v string) bool { return v == "" })
	if h.send(sentence(r.Message, attrs, values), priority(r.Level), vars) != nil {
		return h.Handler.Handle(ctx, r)
	}
	return nil
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

// field is the journal's name for a key: PAIR and PATH, which one searches by, and all others behind LOCKSTEP_, apart from
// systemd's own and other programs' fields. Journald takes capitals, digits and underscores.
func field(key string) string {
	name := strings.Map(func(r rune) rune {
		if r = unicode.ToUpper(r); r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, key)
	switch name {
	case "":
		return ""
	case "PAIR", "PATH":
		return name
	}
	return "LOCKSTEP_" + name
}

// sentence is what people read: what happened, to which path, why, further values, and what to do.
func sentence(text string, attrs []slog.Attr, values map[string]string) string {
	if text == "state" {
		text = values["state"]
	}
	var b strings.Builder
	b.WriteString(text)
	if path := values["path"]; path != "" {
		b.WriteString(": " + visible(path))
	}
	for _, key := range []string{"reason", "err"} {
		if cause := values[key]; cause != "" {
			b.WriteString(": " + cause)
		}
	}
	var rest []string
	for _, a := range attrs {
		switch value := values[a.Key]; a.Key {
		case "pair", "state", "path", "reason", "err", "hint":
		default:
			if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == '"' || r == ')' || !unicode.IsPrint(r) }) {
				value = strconv.Quote(value)
			}
			rest = append(rest, a.Key+"="+value)
		}
	}
	if len(rest) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(rest, " "))
	}
	if hint := values["hint"]; hint != "" {
		b.WriteString("; hint: " + hint)
	}
	return b.String()
}
