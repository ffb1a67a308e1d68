// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fanRecord is an event as the kernel writes it.
func fanRecord(mask uint64, infos ...string) string {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.FAN_EVENT_METADATA_LEN+len(strings.Join(infos, ""))))
	b = append(b, unix.FANOTIFY_METADATA_VERSION, 0)
	b = binary.NativeEndian.AppendUint16(b, unix.FAN_EVENT_METADATA_LEN)
	b = binary.NativeEndian.AppendUint64(b, mask)
	b = binary.NativeEndian.AppendUint32(b, 1<<32-1) // FAN_NOFD
	b = binary.NativeEndian.AppendUint32(b, 1)
	return string(b) + strings.Join(infos, "")
}

// fanInfo is one piece of information of such an event.
func fanInfo(kind byte, body string) string {
	return string(binary.NativeEndian.AppendUint16([]byte{kind, 0}, uint16(fanInfoHeader+len(body)))) + body
}

// fanBody has a handle of a stated length, which need not be its own, and a name.
func fanBody(length int, handle, name string) string {
	b := binary.NativeEndian.AppendUint32([]byte("fsidfsid"), uint32(length))
	return string(binary.NativeEndian.AppendUint32(b, 1)) + handle + name
}

func TestFanEventIsReadAsDocumented(t *testing.T) {
	t.Parallel()
	const named, dirOnly, other = unix.FAN_EVENT_INFO_TYPE_DFID_NAME, unix.FAN_EVENT_INFO_TYPE_DFID, unix.FAN_EVENT_INFO_TYPE_PIDFD
	dir := fanBody(4, "abcd", "")
	for name, c := range map[string]struct {
		record string
		want   fanEvent
		bad    bool
	}{
		"no information":            {record: fanRecord(unix.FAN_Q_OVERFLOW), want: fanEvent{mask: unix.FAN_Q_OVERFLOW}},
		"name, with its padding":    {record: fanRecord(unix.FAN_CREATE, fanInfo(named, dir+"file\x00\x00\x00\x00")), want: fanEvent{unix.FAN_CREATE, []byte(dir), []byte("file")}},
		"directory alone":           {record: fanRecord(unix.FAN_ATTRIB, fanInfo(dirOnly, dir)), want: fanEvent{unix.FAN_ATTRIB, []byte(dir), nil}},
		"information not asked for": {record: fanRecord(unix.FAN_MODIFY, fanInfo(other, "1234"), fanInfo(named, dir+"a\x00")), want: fanEvent{unix.FAN_MODIFY, []byte(dir), []byte("a")}},
		"cut off":                   {record: fanRecord(unix.FAN_CREATE)[:10], bad: true},
		"longer than what was read": {record: fanRecord(unix.FAN_CREATE, fanInfo(named, dir))[:30], bad: true},
		"another version":           {record: strings.Replace(fanRecord(unix.FAN_CREATE), "\x03", "\x04", 1), bad: true},
		"information without end":   {record: fanRecord(unix.FAN_CREATE, "\x02\x00\xff\x00"), bad: true},
		"information of length 0":   {record: fanRecord(unix.FAN_CREATE, "\x02\x00\x00\x00"), bad: true},
		"no handle":                 {record: fanRecord(unix.FAN_CREATE, fanInfo(named, "fsid")), bad: true},
		"handle longer than that":   {record: fanRecord(unix.FAN_CREATE, fanInfo(named, fanBody(9, "abcd", "x\x00"))), bad: true},
		"handle of any length":      {record: fanRecord(unix.FAN_CREATE, fanInfo(named, fanBody(maxHandle+1, strings.Repeat("h", 200), ""))), bad: true},
	} {
		const next = "next"
		record := c.record
		if !c.bad {
			record += next
		}
		e, rest, err := nextFanEvent([]byte(record))
		switch {
		case c.bad:
			if !errors.Is(err, errFanotifyEvent) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || string(rest) != next || fmt.Sprint(e) != fmt.Sprint(c.want):
			t.Errorf("%s: %v, rest %q, %v, want %v", name, e, rest, err, c.want)
		}
	}
}

// A rename may have been among what was lost, so nothing is known any more of where directories are.
func TestLostFanEventsStandForTheWholeTree(t *testing.T) {
	t.Parallel()
	w, err := newWatcher(Options{Root: t.TempDir(), Backend: "inotify"}, defaultTuning())
	if err != nil {
		t.Fatal(err)
	}
	f := &fanotify{watcher: w}
	f.cache.put("a", place{rel: "a"})
	if err := f.handleAll([]byte(fanRecord(unix.FAN_Q_OVERFLOW))); err != nil {
		t.Fatal(err)
	}
	if _, known := f.cache.get([]byte("a")); known {
		t.Error("a directory is still where it was")
	}
	if len(w.out.queue) != 1 || !errors.Is(w.out.queue[0].Fault, ErrOverflow) || !covered(w.out.queue[0].Events, "a/b") {
		t.Errorf("%+v", w.out.queue)
	}
}

func TestDirectoriesOfTheLastEventsAreRemembered(t *testing.T) {
	t.Parallel()
	var c dirCache
	key := func(i int) string { return fmt.Sprint(i) }
	for i := range 3 * fanCache {
		c.put(key(i), place{rel: key(i)})
		if p, ok := c.get([]byte(key(0))); !ok || p.rel != key(0) { // asked for all the time
			t.Fatalf("after %d others, directory 0 is %+v, %v", i, p, ok)
		}
	}
	for i := 2*fanCache + 2; i < 3*fanCache; i++ {
		if p, ok := c.get([]byte(key(i))); !ok || p.rel != key(i) {
			t.Fatalf("directory %d is %+v, %v", i, p, ok)
		}
	}
	if n := len(c.young) + len(c.old); n > 2*fanCache {
		t.Errorf("%d directories are remembered", n)
	}
}
