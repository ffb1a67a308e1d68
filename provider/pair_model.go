// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// pairModel is lockstep_pair as Terraform holds it. The groups are objects and not structs: in an
// import they are null, and in a plan they may be unknown.
type pairModel struct {
	ID                types.String   `tfsdk:"id"`
	Name              types.String   `tfsdk:"name"`
	Source            types.Object   `tfsdk:"source"`
	Backup            types.Object   `tfsdk:"backup"`
	Transport         types.String   `tfsdk:"transport"`
	Auth              types.Object   `tfsdk:"auth"`
	Exclude           types.List     `tfsdk:"exclude"`
	Filter            types.List     `tfsdk:"filter"`
	Delete            types.Object   `tfsdk:"delete"`
	Watch             types.Object   `tfsdk:"watch"`
	Transfer          types.Object   `tfsdk:"transfer"`
	Full              types.Object   `tfsdk:"full"`
	Retry             types.Object   `tfsdk:"retry"`
	Hooks             types.List     `tfsdk:"hooks"`
	Metrics           types.Object   `tfsdk:"metrics"`
	Paused            types.Bool     `tfsdk:"paused"`
	PasswordWO        types.String   `tfsdk:"password_wo"`
	PasswordWOVersion types.Int64    `tfsdk:"password_wo_version"`
	Timeouts          timeouts.Value `tfsdk:"timeouts"`
}

// fields are the attributes that make up the pair definition. They have the names of the definition, so the
// HCL is the third spelling of one schema, after YAML and JSON, and is read by the same parser.
func (m *pairModel) fields() map[string]attr.Value {
	return map[string]attr.Value{
		"name": m.Name, "source": m.Source, "backup": m.Backup, "transport": m.Transport, "auth": m.Auth, "exclude": m.Exclude, "filter": m.Filter,
		"delete": m.Delete, "watch": m.Watch, "transfer": m.Transfer, "full": m.Full, "retry": m.Retry, "hooks": m.Hooks, "metrics": m.Metrics,
		"paused": m.Paused,
	}
}

// computed are attributes inside the groups that are not part of the definition.
var computed = []string{"checks", "lockstep_version"}

// definition is the pair definition that the attributes spell. Values that are not known yet are left out, and
// so are the problems of the groups that they are in.
func (m *pairModel) definition() (pair.Pair, pair.Problems) {
	doc, unknown := map[string]any{}, map[string]bool{}
	for key, value := range m.fields() {
		if v, ok := document(value, key, unknown); ok {
			doc[key] = v
		}
	}
	for _, stand := range []struct{ group, key, value string }{ // to be valid, and different on the two hosts
		{"", "name", "unknown"}, {"source", "host", "source.invalid"}, {"source", "path", "/unknown/source"},
		{"backup", "host", "backup.invalid"}, {"backup", "path", "/unknown/backup"},
	} {
		if stand.group == "" {
			if unknown[stand.key] {
				doc[stand.key] = stand.value
			}
			continue
		}
		if unknown[stand.group] || unknown[stand.group+"."+stand.key] {
			group, _ := doc[stand.group].(map[string]any)
			if group == nil {
				group = map[string]any{}
				doc[stand.group] = group
			}
			group[stand.key] = stand.value
		}
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return pair.Pair{}, pair.Problems{{Msg: "bug: " + err.Error()}}
	}
	var p pair.Pair
	var problems pair.Problems
	if err := p.UnmarshalJSON(text); err != nil && !errors.As(err, &problems) {
		problems = pair.Problems{{Msg: err.Error()}}
	}
	var groups []string
	for at := range unknown {
		groups = append(groups, group(at))
	}
	return p, slices.DeleteFunc(problems, func(p pair.Problem) bool { return slices.Contains(groups, group(p.Path)) })
}

// recorded is the pair as the state has it, which is not judged: an earlier version may have taken what this one refuses, and the
// configuration may have been mended since. Of such a definition there is what it takes to find the pair; its hosts read and
// destroy it by its name.
func (m *pairModel) recorded() pair.Pair {
	p, problems := m.definition()
	if len(problems) == 0 {
		return p
	}
	p = pair.Pair{Name: m.Name.ValueString(), Transport: m.Transport.ValueString()}
	p.Source.Host, p.Backup.Host = m.host(plan.Source), m.host(plan.Backup)
	return p
}

// group is the attribute of the resource that a field's path begins with.
func group(field string) string {
	if i := strings.IndexAny(field, ".["); i >= 0 {
		return field[:i]
	}
	return field
}

// document turns a value into JSON's terms; ok is false for one that is null or unknown.
func document(value attr.Value, at string, unknown map[string]bool) (doc any, ok bool) {
	if value.IsUnknown() {
		unknown[at] = true
		return nil, false
	}
	if value.IsNull() {
		return nil, false
	}
	switch v := value.(type) {
	case types.String:
		return v.ValueString(), true
	case types.Bool:
		return v.ValueBool(), true
	case types.Int64:
		return v.ValueInt64(), true
	case types.List:
		list := []any{}
		for _, element := range v.Elements() {
			item, ok := document(element, at, unknown)
			if !ok {
				if unknown[at] {
					return nil, false
				}
				item = nil // a null in a list is for the parser to refuse
			}
			list = append(list, item)
		}
		return list, true
	case types.Object:
		object := map[string]any{}
		for key, value := range v.Attributes() {
			if slices.Contains(computed, key) {
				continue
			}
			if item, ok := document(value, at+"."+key, unknown); ok {
				object[key] = item
			}
		}
		return object, true
	}
	panic(fmt.Sprintf("bug: no JSON for %T", value))
}

// take fills the attributes of the definition from p; what is computed stays null.
func (m *pairModel) take(p pair.Pair) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	if doc["hooks"], err = json.Marshal(withoutDerived(p)); err != nil {
		return err
	}
	attributes := pairSchema().Attributes
	value := func(key string) attr.Value {
		v, e := fromJSON(attributes[key].GetType(), doc[key])
		err = errors.Join(err, e)
		return v
	}
	object := func(key string) types.Object { return value(key).(types.Object) } //nolint:forcetypeassert // by the schema
	list := func(key string) types.List { return value(key).(types.List) }       //nolint:forcetypeassert // by the schema
	m.Name = types.StringValue(p.Name)
	m.Source, m.Backup, m.Auth, m.Delete, m.Watch = object("source"), object("backup"), object("auth"), object("delete"), object("watch")
	m.Transfer, m.Full, m.Retry, m.Metrics = object("transfer"), object("full"), object("retry"), object("metrics")
	m.Exclude, m.Filter, m.Hooks, m.Paused = list("exclude"), list("filter"), list("hooks"), types.BoolValue(p.Paused)
	m.Transport = types.StringValue(p.Transport)
	m.ID = types.StringValue(pairID(p.Source.Host, p.Name))
	return err
}

// withoutDerived gives p's hooks without what the definition would fill in by itself: in HCL it is not written,
// and null.
func withoutDerived(p pair.Pair) []pair.Hook {
	full := slices.Clone(p.Hooks)
	bare := slices.Clone(p.Hooks)
	for i := range bare {
		bare[i].Network, bare[i].Method = "", ""
	}
	p.Hooks = slices.Clone(bare)
	p.Complete()
	for i := range bare {
		if p.Hooks[i].Network != full[i].Network {
			bare[i].Network = full[i].Network
		}
		if p.Hooks[i].Method != full[i].Method {
			bare[i].Method = full[i].Method
		}
	}
	return bare
}

// fromJSON reads a value of a type of our schema; nothing is null.
func fromJSON(t attr.Type, text json.RawMessage) (attr.Value, error) {
	switch t := t.(type) {
	case types.ObjectType:
		fields := map[string]json.RawMessage{}
		if text != nil {
			if err := json.Unmarshal(text, &fields); err != nil {
				return types.ObjectNull(t.AttrTypes), err
			}
		}
		values := map[string]attr.Value{}
		for key, inner := range t.AttrTypes {
			v, err := fromJSON(inner, fields[key])
			if err != nil {
				return types.ObjectNull(t.AttrTypes), fmt.Errorf("%s: %w", key, err)
			}
			values[key] = v
		}
		return types.ObjectValueMust(t.AttrTypes, values), nil
	case types.ListType:
		var items []json.RawMessage
		if text == nil {
			return types.ListNull(t.ElemType), nil
		}
		if err := json.Unmarshal(text, &items); err != nil {
			return types.ListNull(t.ElemType), err
		}
		values := make([]attr.Value, len(items))
		for i, item := range items {
			v, err := fromJSON(t.ElemType, item)
			if err != nil {
				return types.ListNull(t.ElemType), fmt.Errorf("[%d]: %w", i, err)
			}
			values[i] = v
		}
		return types.ListValueMust(t.ElemType, values), nil
	case types.MapType:
		return types.MapNull(t.ElemType), nil
	}
	switch t {
	case types.StringType:
		var v *string
		err := unmarshal(text, &v)
		return types.StringPointerValue(v), err
	case types.BoolType:
		var v *bool
		err := unmarshal(text, &v)
		return types.BoolPointerValue(v), err
	case types.Int64Type:
		var v *int64
		err := unmarshal(text, &v)
		return types.Int64PointerValue(v), err
	}
	panic(fmt.Sprintf("bug: no value for %s", t))
}

func unmarshal(text json.RawMessage, into any) error {
	if text == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

func stringList(items []string) types.List {
	values := make([]attr.Value, len(items))
	for i, item := range items {
		values[i] = types.StringValue(item)
	}
	return types.ListValueMust(types.StringType, values)
}

func stringMap(items map[string]string) types.Map {
	values := map[string]attr.Value{}
	for key, item := range items {
		values[key] = types.StringValue(item)
	}
	return types.MapValueMust(types.StringType, values)
}

// with gives a copy of an object with some attributes replaced.
func with(o types.Object, replace map[string]attr.Value) types.Object {
	values := maps.Clone(o.Attributes())
	maps.Copy(values, replace)
	return types.ObjectValueMust(o.AttributeTypes(context.Background()), values)
}

// end is the attribute of one end of the pair.
func (m *pairModel) end(role plan.Role) *types.Object {
	if role == plan.Source {
		return &m.Source
	}
	return &m.Backup
}

// text gives a string attribute of an object; empty if it is null, unknown or not there.
func text(o types.Object, key string) string {
	v, _ := o.Attributes()[key].(types.String)
	return v.ValueString()
}

// host is the name of one end's host; empty if it is not known.
func (m *pairModel) host(role plan.Role) string { return text(*m.end(role), "host") }

// pairID names a pair within a configuration; it is also what `terraform import` takes.
func pairID(host, name string) string { return host + "/" + name }

// allInSync is what every plan promises of one role's checks.
func allInSync(role plan.Role, transport string) map[string]string {
	return allSay(role, transport, plan.InSync)
}

// allSay gives every object of a role the same words.
func allSay(role plan.Role, transport, words string) map[string]string {
	checks := map[string]string{}
	for _, object := range plan.Objects(role, transport) {
		checks[object] = words
	}
	return checks
}

// located adds the host to what differs: a plan shows the line of the object, and hides the host's, which does
// not change.
func located(host string, checks map[string]string) types.Map {
	said := map[string]string{}
	for object, words := range checks {
		if words != plan.InSync {
			words = host + ": " + words
		}
		said[object] = words
	}
	return stringMap(said)
}

// checksOf completes what a host answered: an object that it does not mention is not known to be right.
func checksOf(role plan.Role, transport string, reply plan.Reply) map[string]string {
	checks := allSay(role, transport, "not checked by lockstep "+reply.Versions["lockstep"]+" on the host")
	for object, words := range reply.Checks {
		if _, ours := checks[object]; ours || words != plan.InSync {
			checks[object] = words
		}
	}
	return checks
}

// compareFingerprints adds to the source host's checks whether it has the password of the backup host. The two
// are compared here, in memory, and kept nowhere.
func compareFingerprints(source, backup plan.Reply, checks map[string]string) {
	if source.Fingerprint != "" && backup.Fingerprint != "" && source.Fingerprint != backup.Fingerprint && checks["secret"] == plan.InSync {
		checks["secret"] = "another password than the backup host's"
		if source.Pair != nil && source.Pair.Transport == pair.SSH {
			checks["secret"] += ", or other ssh keys"
		}
	}
}
