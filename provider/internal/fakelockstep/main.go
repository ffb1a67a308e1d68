// SPDX-License-Identifier: Apache-2.0

// Fakelockstep stands for the lockstep program on the hosts of the provider's tests. It keeps each object of a
// pair as a file below $LOCKSTEP_TEST_ROOT, so that a test can edit it by hand, and does as it is told by files
// named after its faults. It is a program of its own because the test binary, started again, is slow with -race.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

func main() {
	os.Exit(fakeLockstep(os.Getenv("LOCKSTEP_FAKE_VERSION"), os.Args[1:]))
}

func fakeLockstep(version string, args []string) int {
	root := os.Getenv("LOCKSTEP_TEST_ROOT")
	f := fakeProgram{root: root, version: version}
	f.append("calls.log", strings.Join(args, " ")+"\n")
	f.append("environ.log", strings.Join(os.Environ(), "\n")+"\n")
	switch args[0] {
	case "version":
		fmt.Println("lockstep " + version)
		return 0
	case "status":
		return f.status(args[1])
	case "doctor":
		text := f.read("doctor.json")
		if text == "" {
			text = `{"ok":true,"checks":[{"check":"canary","level":"ok","saw":"it came back"}]}`
		}
		fmt.Println(text)
		return 0
	}
	verb, role := plan.Verb(args[0]), plan.Role(args[2])
	in, _ := io.ReadAll(os.Stdin)
	req, problems := plan.ParseRequest(in, verb)
	reply := plan.Reply{Protocol: plan.Protocol, Changes: []plan.Change{}, Checks: map[string]string{},
		Versions: map[string]string{"lockstep": version, "rsync": "3.5.0"}, Problems: problems}
	if len(problems) == 0 {
		if text := f.read(fmt.Sprintf("fault-%s-%s", verb, role)); text != "" && (!req.Prepare || f.read("fault-late") == "") {
			if strings.HasPrefix(text, "crash") {
				fmt.Fprintln(os.Stderr, "panic: "+text)
				return 2
			}
			if err := json.Unmarshal([]byte(text), &reply.Problems); err != nil {
				panic(err)
			}
		} else {
			f.do(verb, role, req, &reply)
			if text := f.read(fmt.Sprintf("warnings-%s-%s", verb, role)); text != "" {
				if err := json.Unmarshal([]byte(text), &reply.Warnings); err != nil {
					panic(err)
				}
			}
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(struct {
		plan.Reply
		Pair json.RawMessage `json:"pair,omitempty"` // not judged, as if an older version took it
	}{reply, f.stored})
	if len(reply.Problems) > 0 {
		return 1
	}
	return 0
}

type fakeProgram struct {
	root, version string
	stored        json.RawMessage // the definition of the pair that is asked for
}

func (f fakeProgram) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(f.root, name))
	return string(text)
}

func (f fakeProgram) write(name, text string) {
	name = filepath.Join(f.root, name)
	_ = os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		panic(err)
	}
}

func (f fakeProgram) append(name, text string) {
	file, err := os.OpenFile(filepath.Join(f.root, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer file.Close() //nolint:errcheck // a test sees what is missing
	_, _ = file.WriteString(text)
}

func (f fakeProgram) status(name string) int {
	if text := f.read("status.json"); text != "" {
		fmt.Println(text)
		return 3
	}
	if f.read("pairs/"+name+"/source/service") == "" {
		fmt.Fprintf(os.Stderr, "lockstep: no agent answers for pair %q\nhint: systemctl status lockstep@%s\n", name, name)
		return 6
	}
	fmt.Println(`{"pair":"` + name + `","state":"in step","since":"2026-11-22T20:00:00Z","lag_seconds":0.5,"backlog":{"paths":2},"watch":{"backend":"inotify"},"full":{"last":"2026-11-22T20:00:01Z"}}`)
	return 0
}

// fingerprint and seal stand for the real ones: neither shows the password.
func fingerprint(password string) string {
	if password == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("fingerprint" + password))
	return hex.EncodeToString(sum[:8])
}

func seal(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return hex.EncodeToString(b)
}

func open(s string) string {
	b, _ := hex.DecodeString(s)
	slices.Reverse(b)
	return string(b)
}

func (f *fakeProgram) do(verb plan.Verb, role plan.Role, req plan.Request, reply *plan.Reply) {
	name := req.Pair.Name
	dir := "pairs/" + name + "/" + string(role) + "/"
	secretObject := map[plan.Role]string{plan.Source: "secret", plan.Backup: "secrets"}[role]
	if verb == plan.Destroy {
		_, err := os.Stat(filepath.Join(f.root, dir))
		reply.Changed = err == nil
		_ = os.RemoveAll(filepath.Join(f.root, dir))
		_ = os.Remove(filepath.Join(f.root, "pairs", name))
		left, _ := os.ReadDir(filepath.Join(f.root, "pairs"))
		reply.Remaining = len(left)
		if len(left) == 0 {
			_ = os.Remove(filepath.Join(f.root, "pairs"))
		}
		return
	}
	if role == plan.Source && req.Prepare {
		f.write("key", "key of "+f.root)
		reply.PublicKey = "public"
		return
	}
	var stored pair.Pair
	if text := f.read(dir + "definition"); text != "" {
		reply.Exists = true
		if json.Valid([]byte(text)) {
			f.stored = json.RawMessage(text)
		}
		if json.Unmarshal([]byte(text), &stored) == nil {
			if req.Pair.Backup.Path == "" {
				req.Pair = stored
			}
			if other := plan.OtherPair(req.Pair, stored); len(other) > 0 && verb != plan.Read {
				reply.Problems = other
				return
			}
		}
	}
	want := map[string]string{}
	for _, object := range plan.Objects(role, req.Pair.Transport) {
		want[object] = fmt.Sprintf("%s of %s\n", object, name)
	}
	text, _ := json.Marshal(req.Pair)
	want["definition"] = string(text)
	password := f.read(dir + secretObject)
	if verb == plan.Apply && role == plan.Backup && (password == "" || req.Rotate || req.Password != "") {
		n, _ := strconv.Atoi(f.read("generation"))
		f.write("generation", strconv.Itoa(n+1))
		password = fmt.Sprintf("made-by-the-backup-host-%d", n+1)
		if req.Password != "" {
			password = req.Password
		}
	}
	if verb == plan.Apply && role == plan.Source && req.SealedPassword != "" {
		password = open(req.SealedPassword)
	}
	want[secretObject] = password
	for _, object := range slices.Sorted(maps.Keys(want)) {
		have := f.read(dir + object)
		switch {
		case have == "":
			reply.Checks[object] = "missing"
		case have != want[object]:
			reply.Checks[object] = "changed by hand: " + dir + object
		default:
			reply.Checks[object] = plan.InSync
			continue
		}
		reply.Changed = true
		change := plan.Change{Object: object, Path: dir + object, Action: "update"}
		if object == "directory" && f.read("makes-directory") != "" { // a real one
			change.Path, change.Action = req.Pair.Backup.Path, "create"
			if verb == plan.Apply {
				_ = os.Mkdir(req.Pair.Backup.Path, 0o755)
			}
		}
		reply.Changes = append(reply.Changes, change)
		if verb == plan.Apply {
			f.write(dir+object, want[object])
			reply.Checks[object] = plan.InSync
		}
	}
	reply.Fingerprint = fingerprint(password)
	if verb == plan.Apply {
		reply.Exists = true
		if role == plan.Backup && req.Recipient != "" {
			reply.SealedPassword = seal(password)
		}
		f.append("applied.log", fmt.Sprintf("%s rotate=%t password=%t sealed=%t fingerprint=%t changed=%t\n", role, req.Rotate, req.Password != "",
			req.SealedPassword != "", req.Fingerprint != "", reply.Changed))
	}
}
