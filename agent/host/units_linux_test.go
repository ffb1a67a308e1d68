// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// manager is systemd's side of its connections, as far as [units] has to do with it. Its fields are set before the first call.
type manager struct {
	units   map[string]map[string]any // properties of Unit and Service
	listed  []string                  // what is left in the slice
	refuses map[string]string         // D-Bus errors, by method
	result  string                    // of every job; "" = it never ends
	slow    bool                      // a job ends only when somebody has looked at its unit meanwhile

	group   sync.WaitGroup
	mu      sync.Mutex
	calls   []string
	clients []*client
	waiting []func() // jobs
	jobs    uint32
}

type client struct {
	conn net.Conn
	mu   sync.Mutex
}

// managed are units whose systemd is m.
func managed(t *testing.T, m *manager) *units {
	t.Helper()
	u := &units{dial: func(context.Context) (*systemd.Conn, error) {
		return systemd.NewConnection(m.dial)
	}}
	t.Cleanup(func() {
		u.close()
		m.group.Wait() // every connection has been closed
	})
	return u
}

func (m *manager) dial() (*dbus.Conn, error) {
	ours, theirs := net.Pipe()
	m.mu.Lock()
	c := &client{conn: ours}
	m.clients = append(m.clients, c)
	m.mu.Unlock()
	m.group.Go(func() { m.serve(c) })
	conn, err := dbus.NewConn(theirs)
	if err != nil {
		return nil, err
	}
	return conn, conn.Auth([]dbus.Auth{dbus.AuthAnonymous()})
}

// serve speaks the D-Bus specification's authentication protocol, and then answers calls.
func (m *manager) serve(c *client) {
	defer c.conn.Close()
	in := bufio.NewReader(c.conn)
	for _, answer := range []string{"REJECTED ANONYMOUS\r\n", "OK 1234deadbeef\r\n"} { // to AUTH, and AUTH ANONYMOUS
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		if _, err := c.conn.Write([]byte(answer)); err != nil {
			return
		}
	}
	if _, err := in.ReadString('\n'); err != nil { // BEGIN
		return
	}
	for {
		call, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		body, failure := m.answer(call)
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(call.Serial())}}
		if failure != "" {
			reply.Type, reply.Body = dbus.TypeError, []any{failure}
			reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.systemd1.NoSuchUnit")
		}
		if len(reply.Body) > 0 {
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(reply.Body...))
		}
		m.send(c, reply)
		if !m.slow {
			m.end()
		}
	}
}

func (m *manager) send(c *client, msg *dbus.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = msg.EncodeTo(c.conn, binary.LittleEndian) // a client may have gone
}

// end ends the jobs that wait for it.
func (m *manager) end() {
	m.mu.Lock()
	jobs := m.waiting
	m.waiting = nil
	m.mu.Unlock()
	for _, job := range jobs {
		job()
	}
}

func (m *manager) answer(call *dbus.Message) (body []any, failure string) {
	method, _ := call.Headers[dbus.FieldMember].Value().(string)
	object, _ := call.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	m.mu.Lock()
	defer m.mu.Unlock()
	if failure := m.refuses[method]; failure != "" {
		return nil, failure
	}
	switch method {
	case "Hello", "AddMatch":
		return nil, ""
	case "GetAll":
		for name, properties := range m.units {
			if systemd.PathBusEscape(name) != path.Base(string(object)) {
				continue
			}
			of := map[string]dbus.Variant{}
			for key, value := range properties {
				if inService := key == "MainPID" || key == "StatusText"; inService == strings.HasSuffix(fmt.Sprint(call.Body[0]), ".Service") {
					of[key] = dbus.MakeVariant(value)
				}
			}
			if m.slow {
				m.group.Go(m.end) // after the reply, or before it: both are right
			}
			return []any{of}, ""
		}
		return nil, "Unit not found."
	case "Get":
		return []any{dbus.MakeVariant("252 (252.39-1~deb12u1)")}, ""
	case "ListUnitsByPatterns":
		type status struct {
			Name, Description, Load, Active, Sub, Followed string
			Path                                           dbus.ObjectPath
			JobID                                          uint32
			JobType                                        string
			JobPath                                        dbus.ObjectPath
		}
		list := []status{}
		for _, name := range m.listed {
			list = append(list, status{Name: name, Path: "/", JobPath: "/"})
		}
		return []any{list}, ""
	}
	var args []string
	for _, arg := range call.Body {
		if names, ok := arg.([]string); ok {
			args = append(args, names...)
		} else if text, ok := arg.(string); ok {
			args = append(args, text)
		}
	}
	m.calls = append(m.calls, strings.Join(append([]string{method}, args...), " "))
	type change struct{ Type, File, Destination string }
	switch method {
	case "EnableUnitFiles":
		return []any{true, []change{{"symlink", "/a", "/b"}}}, ""
	case "DisableUnitFiles", "UnmaskUnitFiles":
		return []any{[]change{}}, ""
	case "StartUnit", "StopUnit", "RestartUnit", "ReloadUnit":
		m.jobs++
		id := m.jobs
		job := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", id))
		if m.result != "" {
			clients := slices.Clone(m.clients)
			m.waiting = append(m.waiting, func() {
				signal := &dbus.Message{Type: dbus.TypeSignal, Body: []any{id, job, args[0], m.result}, Headers: map[dbus.HeaderField]dbus.Variant{
					dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/systemd1")), dbus.FieldMember: dbus.MakeVariant("JobRemoved"),
					dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.systemd1.Manager"), dbus.FieldSignature: dbus.MakeVariant(dbus.ParseSignatureMust("uoss"))}}
				for _, c := range clients {
					m.send(c, signal)
				}
			})
		}
		return []any{job}, ""
	}
	return nil, ""
}

func (m *manager) called() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

func TestUnitIsReadAsSystemdTellsIt(t *testing.T) {
	t.Parallel()
	properties := func(load, active, sub, file string, pid uint32, status string, stale bool) map[string]any {
		return map[string]any{"LoadState": load, "ActiveState": active, "SubState": sub, "UnitFileState": file, "NeedDaemonReload": stale, "MainPID": pid, "StatusText": status}
	}
	all := map[string]map[string]any{
		"running@a.service":  properties("loaded", "active", "running", "enabled", 7, "in step", false),
		"starting@a.service": properties("loaded", "activating", "start", "enabled-runtime", 8, "watching", false),
		"reloads.service":    properties("loaded", "reloading", "reload", "disabled", 9, "", true),
		"failed.service":     properties("loaded", "failed", "failed", "enabled", 0, "words of a dead process", false),
		"stopped.service":    properties("loaded", "inactive", "dead", "disabled", 0, "", false),
		"masked.service":     properties("masked", "inactive", "dead", "masked", 0, "", false),
		"masked-now.service": properties("masked", "inactive", "dead", "masked-runtime", 0, "", false),
		"none.service":       properties("not-found", "inactive", "dead", "", 0, "", false),
	}
	want := map[string]Unit{
		"running@a.service":  {Loaded: true, Active: true, Ready: true, Enabled: true, State: "active (running)", Status: "in step", PID: 7},
		"starting@a.service": {Loaded: true, Active: true, Enabled: true, State: "activating (start)", Status: "watching", PID: 8},
		"reloads.service":    {Loaded: true, Active: true, Ready: true, Stale: true, State: "reloading (reload)", PID: 9},
		"failed.service":     {Loaded: true, Enabled: true, State: "failed (failed)"},
		"stopped.service":    {Loaded: true, State: "inactive (dead)"},
		"masked.service":     {Masked: true, State: "inactive (dead)"},
		"masked-now.service": {Masked: true, State: "inactive (dead)"},
		"none.service":       {State: "inactive (dead)"},
	}
	u := managed(t, &manager{units: all})
	for name := range all {
		got, err := u.Unit(t.Context(), name)
		if diff := cmp.Diff(want[name], got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	if _, err := u.Unit(t.Context(), "gone.service"); err == nil || err.Error() != "unit gone.service: Unit not found." {
		t.Errorf("%v", err)
	}
	if version, err := u.version(t.Context()); err != nil || version != "252 (252.39-1~deb12u1)" {
		t.Errorf("version %q, %v", version, err)
	}
}

func TestActionIsTheCallsThatSystemdNeeds(t *testing.T) {
	t.Parallel()
	const name = "lockstep@data.service"
	for _, tt := range []struct {
		action Action
		listed []string
		want   []string
	}{
		{action: Start, want: []string{"StartUnit " + name + " replace"}},
		{action: Restart, want: []string{"RestartUnit " + name + " replace"}},
		{action: Reload, want: []string{"ReloadUnit " + name + " replace"}},
		{action: Stop, listed: []string{"lockstep-rsyncd.service"}, want: []string{"StopUnit " + name + " replace", "ResetFailedUnit " + name}},
		{action: Stop, want: []string{"StopUnit " + name + " replace", "ResetFailedUnit " + name, "StopUnit lockstep.slice replace"}}, // the last
		{action: Enable, want: []string{"UnmaskUnitFiles " + name, "EnableUnitFiles " + name, "Reload"}},
		{action: Disable, want: []string{"DisableUnitFiles " + name, "Reload"}},
	} {
		m := &manager{result: "done", listed: tt.listed}
		if err := managed(t, m).Do(t.Context(), name, tt.action); err != nil {
			t.Errorf("%s: %v", tt.action, err)
		}
		if diff := cmp.Diff(tt.want, m.called()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.action, diff)
		}
	}
	if err := managed(t, &manager{}).Do(t.Context(), name, "freeze"); err == nil || err.Error() != `bug: unit action "freeze"` {
		t.Errorf("%v", err)
	}
}

func TestActionThatFailsNamesTheUnit(t *testing.T) {
	t.Parallel()
	const name = "lockstep@data.service"
	for _, tt := range []struct {
		action  Action
		result  string
		refuses map[string]string
		want    string
	}{
		{action: Start, result: "failed", want: "start " + name + ": job failed"},
		{action: Restart, result: "dependency", want: "restart " + name + ": job dependency"},
		{action: Reload, result: "timeout", want: "reload " + name + ": job timeout"},
		{action: Stop, result: "canceled", want: "stop " + name + ": job canceled"},
		{action: Start, refuses: map[string]string{"StartUnit": "Unit not found."}, want: "start " + name + ": Unit not found."},
		{action: Enable, refuses: map[string]string{"UnmaskUnitFiles": "Read-only file system"}, want: "unmask " + name + ": Read-only file system"},
		{action: Enable, refuses: map[string]string{"EnableUnitFiles": "No such file"}, want: "enable " + name + ": No such file"},
		{action: Disable, refuses: map[string]string{"DisableUnitFiles": "Access denied"}, want: "disable " + name + ": Access denied"},
		{action: Disable, refuses: map[string]string{"Reload": "Access denied"}, want: "daemon-reload: Access denied"},
	} {
		err := managed(t, &manager{result: tt.result, refuses: tt.refuses}).Do(t.Context(), name, tt.action)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v, want %q", tt.action, err, tt.want)
		}
	}
	// What is not needed may fail: nothing had failed, nothing can be listed, the slice has gone.
	for _, method := range []string{"ResetFailedUnit", "ListUnitsByPatterns"} {
		if err := managed(t, &manager{result: "done", refuses: map[string]string{method: "no"}}).Do(t.Context(), name, Stop); err != nil {
			t.Errorf("stop without %s: %v", method, err)
		}
	}
}

func TestJobIsWaitedForWhileItsUnitIsLookedAt(t *testing.T) {
	t.Parallel()
	const name = "lockstep@data.service"
	unit := map[string]map[string]any{name: {"LoadState": "loaded", "ActiveState": "activating", "SubState": "start"}}
	if err := managed(t, &manager{result: "done", slow: true, units: unit}).Do(t.Context(), name, Start); err != nil {
		t.Error(err)
	}
	err := managed(t, &manager{result: "done", slow: true}).Do(t.Context(), name, Start)
	if err == nil || err.Error() != "unit "+name+": Unit not found." {
		t.Errorf("of a unit that has gone meanwhile: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = managed(t, &manager{}).Do(ctx, name, Start)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "start "+name+": ") {
		t.Errorf("of a job that never ends: %v", err)
	}
}

func TestConnectionThatBrokeIsMadeAgain(t *testing.T) {
	t.Parallel()
	m := &manager{units: map[string]map[string]any{"a.service": {"ActiveState": "active"}}}
	u := managed(t, m)
	if _, err := u.Unit(t.Context(), "a.service"); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.clients[1].conn.Close() // of two, the one for signals
	m.mu.Unlock()
	// The client learns of it from its reader, whenever that runs.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got, err := u.Unit(t.Context(), "a.service")
		if err != nil || !got.Ready || time.Now().After(deadline) {
			t.Fatalf("%+v, %v", got, err)
		}
		m.mu.Lock()
		made := len(m.clients)
		m.mu.Unlock()
		if made == 4 {
			break
		}
	}
	u.close()
	u.close() // once more is no harm
}

func TestNoSystemdIsToldByEveryCall(t *testing.T) {
	t.Parallel()
	refused := errors.New("connection refused")
	u := &units{dial: func(context.Context) (*systemd.Conn, error) { return nil, refused }}
	_, unitErr := u.Unit(t.Context(), "a.service")
	_, versionErr := u.version(t.Context())
	for _, err := range []error{unitErr, versionErr, u.Do(t.Context(), "a.service", Start), u.DaemonReload(t.Context())} {
		if !errors.Is(err, refused) || err.Error() != "connect to systemd: connection refused" {
			t.Errorf("%v", err)
		}
	}
}
