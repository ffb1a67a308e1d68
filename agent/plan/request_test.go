// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/plan"
)

func TestRequestTakesEveryForm(t *testing.T) {
	t.Parallel()
	const yaml = "name: data\nsource: {host: nfs01, path: /data}\nbackup: {host: backup, path: /backup/nfs01}\n"
	const definition = `{"name":"data","source":{"host":"nfs01","path":"/data"},"backup":{"host":"backup","path":"/backup/nfs01"}}`
	for name, text := range map[string]string{
		"yaml": yaml, "json definition": definition,
		"request": `{"protocol":1,"password":"hunter2","pair":` + definition + `}`,
	} {
		req, problems := plan.ParseRequest([]byte(text), plan.Plan)
		if len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
			continue
		}
		if req.Protocol != plan.Protocol || req.Pair.Backup.Module != "data" || req.Pair.Backup.Port != 873 {
			t.Errorf("%s: %+v", name, req)
		}
		again, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if back, problems := plan.ParseRequest(again, plan.Plan); len(problems) > 0 || back.Pair.Source != req.Pair.Source || back.Password != req.Password {
			t.Errorf("%s: written as %s, read back with %v", name, again, problems)
		}
	}
	if req, problems := plan.ParseRequest([]byte(`{"protocol":1,"absent":true,"pair":{"name":"data"}}`), plan.Plan); len(problems) > 0 || req.Pair.Name != "data" {
		t.Errorf("plan of absence by name: %+v, %v", req, problems)
	}
	for _, verb := range []plan.Verb{plan.Read, plan.Destroy} {
		req, problems := plan.ParseRequest([]byte(`{"protocol":1,"pair":{"name":"data"}}`), verb)
		if len(problems) > 0 || req.Pair.Name != "data" {
			t.Errorf("%s by name: %+v, %v", verb, req, problems)
		}
	}
}

func TestRequestProblemsNameTheField(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                  "standard input is empty",
		`{"protocol":2,"pair":{}}`:          "protocol: the request has protocol 2",
		`{"protocol":1,"pair":{"nme":"x"}}`: "nme",
		`{"protocol":1,"pairs":{}}`:         "pairs",
		`{"protocol":1,"password":7}`:       "not valid",
		`{"protocol":1,"pair":{"name":"data","source":{"host":"a","path":"data"},"backup":{"host":"b","path":"/b","port":0}}}`: "source.path",
		"name: data\nsource: {host: a, path: /a}\nbackup: {host: b, path: /b, prt: 1}\n":                                       "prt",
	} {
		_, problems := plan.ParseRequest([]byte(text), plan.Apply)
		if len(problems) == 0 || !strings.Contains(problems.Error(), want) {
			t.Errorf("%s: %v, want %q", text, problems, want)
		}
	}
	for _, name := range []string{"", "../../etc", "a/b", "Data", "-"} {
		data, _ := json.Marshal(map[string]any{"protocol": 1, "pair": map[string]string{"name": name}})
		if _, problems := plan.ParseRequest(data, plan.Destroy); len(problems) == 0 {
			t.Errorf("destroy of %q was accepted", name)
		}
	}
}

func TestBadRequestShowsNoPassword(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`{"protocol":1,"password":"hunter2"`, `{"protocol":1,"password":"hunter2","x":1}`, `{"protocol":1,"password":["hunter2"]}`, `{"password":"hunter2"}`} {
		if _, problems := plan.ParseRequest([]byte(text), plan.Apply); strings.Contains(problems.Error(), "hunter2") {
			t.Errorf("%s: %v", text, problems)
		}
	}
}
