// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// ModifyPlan fills in what follows from other values, promises that every check will be in sync, and asks the
// hosts, as far as they can be reached, whether what is planned will work.
func (r *pairResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if r.client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.client.quiet(ctx), defaultReadTimeout)
	defer cancel()
	if req.Plan.Raw.IsNull() {
		var state pairModel
		resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
		if resp.Diagnostics.HasError() {
			return
		}
		resp.Diagnostics.AddWarning(fmt.Sprintf("Pair %q will be removed, its data stays", state.Name.ValueString()),
			fmt.Sprintf("Replication stops, and what lockstep made is removed from both hosts. Nothing is deleted in %s:%s or in %s:%s.",
				state.host(plan.Source), text(state.Source, "path"), state.host(plan.Backup), text(state.Backup, "path")))
		return
	}
	var config, planned pairModel
	var state *pairModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &config)...)
	resp.Diagnostics.Append(req.Plan.Get(ctx, &planned)...)
	if !req.State.Raw.IsNull() {
		state = &pairModel{}
		resp.Diagnostics.Append(req.State.Get(ctx, state)...)
	}
	if resp.Diagnostics.HasError() {
		return
	}
	var password types.String
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("password_wo"), &password)...)

	for _, role := range roles {
		r.planAddress(role, config, &planned, state)
	}
	if module, ok := config.Backup.Attributes()["module"]; ok && module.IsNull() && !planned.Backup.IsUnknown() {
		planned.Backup = with(planned.Backup, map[string]attr.Value{"module": planned.Name})
	}
	if port, ok := config.Backup.Attributes()["port"]; ok && port.IsNull() && !planned.Backup.IsUnknown() {
		value := types.Int64Unknown()
		if !planned.Transport.IsUnknown() {
			value = types.Int64Value(int64(pair.DefaultPort(planned.Transport.ValueString())))
		}
		planned.Backup = with(planned.Backup, map[string]attr.Value{"port": value})
	}
	planned.ID = types.StringUnknown()
	if host, known := planned.Source.Attributes()["host"].(types.String); known && !host.IsUnknown() && !planned.Name.IsUnknown() {
		planned.ID = types.StringValue(pairID(host.ValueString(), planned.Name.ValueString()))
	}
	replaced := state != nil && replaces(planned, *state)
	change := state == nil || replaced || differs(planned, *state)
	// Twice, because an upgrade that is due on one host makes the other one be asked too.
	var versions both[types.String]
	for range 2 {
		var diags diag.Diagnostics
		for _, role := range roles {
			*versions.at(role) = r.planVersion(ctx, role, planned, state, replaced, &change, &diags)
		}
		resp.Diagnostics.Append(diags...)
	}
	for _, role := range roles {
		end := planned.end(role)
		if end.IsUnknown() {
			continue
		}
		checks := types.MapUnknown(types.StringType) // of a new pair they say nothing that is not plain
		if state != nil && !replaced && !planned.Transport.IsUnknown() {
			checks = stringMap(allInSync(role, planned.Transport.ValueString()))
		}
		*end = with(*end, map[string]attr.Value{"checks": checks, "lockstep_version": *versions.at(role)})
	}
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(resp.Plan.Set(ctx, &planned)...)
	if state != nil {
		r.remember(planned)
	}
	if change && !resp.Diagnostics.HasError() {
		r.preflight(ctx, planned, state, replaced, &resp.Diagnostics)
	}
}

// planAddress plans the address of one end when the configuration does not give it.
func (r *pairResource) planAddress(role plan.Role, config pairModel, planned, state *pairModel) {
	given, ok := config.end(role).Attributes()["address"]
	end := planned.end(role)
	if !ok || !given.IsNull() || end.IsUnknown() || end.IsNull() {
		return
	}
	host, _ := end.Attributes()["host"].(types.String)
	var address attr.Value = types.StringUnknown()
	switch {
	case host.IsUnknown():
	case r.client.known(host.ValueString()):
		address = types.StringValue(r.client.address(host.ValueString()))
	case state != nil && state.host(role) == host.ValueString():
		address = state.end(role).Attributes()["address"]
	}
	*end = with(*end, map[string]attr.Value{"address": address})
}

// planVersion is what lockstep's version on a host will be after apply. It may find a change to be due.
func (r *pairResource) planVersion(ctx context.Context, role plan.Role, planned pairModel, state *pairModel, replaced bool, change *bool, diags *diag.Diagnostics) types.String {
	name := planned.host(role)
	if state == nil || replaced || name == "" {
		return types.StringUnknown()
	}
	have, _ := state.end(role).Attributes()["lockstep_version"].(types.String)
	if !r.client.known(name) {
		if *change {
			return types.StringUnknown()
		}
		return have
	}
	// The host is asked even when nothing else changes: Terraform plans again within apply, without a refresh,
	// and an upgrade that was promised must then be found once more.
	h := r.client.host(name)
	f, err := h.look(ctx)
	var w wanted
	if err == nil {
		w, err = h.want(ctx, f)
	}
	if err != nil {
		if *change {
			diags.Append(hostDiagnostic(role, err))
		}
		return have
	}
	if w.upload == nil && f.Owner != byUpload {
		// It is the administrator's, who may upgrade it between plan and apply. That alone is nothing to apply.
		if *change {
			return types.StringUnknown()
		}
		return have
	}
	after := h.versionAfter(f, w)
	if w.upload != nil || after != have.ValueString() {
		*change = true
	}
	if after == "" {
		return types.StringUnknown()
	}
	return types.StringValue(after)
}

// replaces reports whether an attribute changes that cannot change in place.
func replaces(planned, state pairModel) bool {
	if !planned.Name.Equal(state.Name) {
		return true
	}
	for _, role := range roles {
		for _, key := range []string{"host", "path"} {
			now, before := planned.end(role).Attributes()[key], state.end(role).Attributes()[key]
			if now == nil || before == nil || !now.Equal(before) {
				return true
			}
		}
	}
	return false
}

// asWarnings lets a plan go on that only heals what differs on the hosts, and cannot as things are: an apply tells the same as
// an error and changes nothing, and other resources need not wait for it. Above all, Terraform makes such a plan before a
// destroy, which must not be kept from removing a pair by what is wrong with it.
func asWarnings(found diag.Diagnostics) diag.Diagnostics {
	var warnings diag.Diagnostics
	for _, d := range found {
		if at, ok := d.(diag.DiagnosticWithPath); ok && d.Severity() == diag.SeverityError {
			d = diag.NewAttributeWarningDiagnostic(at.Path(), d.Summary(), d.Detail()+"\n\nUntil then an apply cannot heal what differs.")
		}
		warnings.Append(d)
	}
	return warnings
}

// changes reports whether the plan changes anything of the definition or the password.
func changes(planned, state pairModel) bool {
	if !planned.PasswordWOVersion.Equal(state.PasswordWOVersion) {
		return true
	}
	have := state.fields()
	for key, value := range planned.fields() {
		if key != "source" && key != "backup" && !value.Equal(have[key]) {
			return true
		}
	}
	for _, role := range roles {
		before := state.end(role).Attributes()
		for key, value := range planned.end(role).Attributes() {
			if !slices.Contains(computed, key) && !value.Equal(before[key]) {
				return true
			}
		}
	}
	return false
}

// differs reports whether the plan changes anything of the definition, the password or the checks.
func differs(planned, state pairModel) bool {
	if changes(planned, state) {
		return true
	}
	for _, role := range roles {
		if !stringMap(allInSync(role, planned.Transport.ValueString())).Equal(state.end(role).Attributes()["checks"]) {
			return true
		}
	}
	return false
}

// preflight asks both hosts before anything is approved.
func (r *pairResource) preflight(ctx context.Context, planned pairModel, state *pairModel, replaced bool, diags *diag.Diagnostics) {
	if replaced {
		diags.AddWarning(fmt.Sprintf("Pair %q will be replaced, its data stays", state.Name.ValueString()),
			fmt.Sprintf("Replication from %s:%s stops and begins anew as planned. Nothing is deleted or moved in %s:%s by that; what the new pair does to its own backup directory is another matter: see delete.",
				state.host(plan.Source), text(state.Source, "path"), state.host(plan.Backup), text(state.Backup, "path")))
		return
	}
	if state == nil && r.replacement(planned) {
		return
	}
	p, problems := planned.definition()
	diags.Append(definitionDiagnostics(problems)...)
	if diags.HasError() {
		return
	}
	unknown := map[string]bool{}
	for key, value := range planned.fields() {
		document(value, key, unknown)
	}
	for _, key := range computed { // known only after apply by their nature
		delete(unknown, "source."+key)
		delete(unknown, "backup."+key)
	}
	name := planned.Name.ValueString()
	if len(unknown) > 0 || !r.client.known(p.Source.Host) || !r.client.known(p.Backup.Host) {
		diags.AddWarning(fmt.Sprintf("Pair %q is not checked on its hosts before apply", name),
			"Something is known only after apply: "+strings.Join(append(slices.Sorted(maps.Keys(unknown)), r.unknownHosts(p.Source.Host, p.Backup.Host)...), ", ")+
				". The apply itself checks both hosts before it changes anything.")
		return
	}
	e := r.client.ends(p)
	release, err := useBoth(ctx, e.source, e.backup)
	if err != nil {
		diags.AddError("Cancelled", err.Error())
		return
	}
	defer release()
	defer func() {
		if diags.HasError() {
			e.unstage()
		}
	}()
	if away := e.unreachable(ctx); state == nil && len(away) > 0 {
		diags.AddWarning(fmt.Sprintf("Pair %q is not checked on its hosts before apply", name),
			fmt.Sprintf("Not reachable yet: %s. The apply waits up to %s for a host that is booting, and checks both hosts before it changes anything.",
				strings.Join(away, ", "), pair.Duration(r.client.waitForHost)))
		return
	}
	replies, found := e.preflight(ctx, plan.Request{})
	failed := found.HasError()
	if state != nil && !changes(planned, *state) {
		found = asWarnings(found)
	}
	diags.Append(found...)
	if failed {
		return
	}
	if state == nil {
		r.client.mu.Lock()
		inState := r.client.inState[planned.ID.ValueString()]
		r.client.mu.Unlock()
		diags.Append(e.existing(replies, inState)...)
	}
	for _, role := range roles {
		for _, c := range replies.at(role).Changes {
			tflog.Info(ctx, "will change", map[string]any{"host": e.host(role).name, "role": string(role), "object": c.Object, "path": c.Path, "action": c.Action})
		}
	}
}

// remember notes a pair that has a state. Terraform plans the pair that replaces it, be it by -replace, in a call of its own, which does
// not tell that: the hosts still hold the one that goes away, and would find it in the way.
func (r *pairResource) remember(m pairModel) {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	r.client.planned[m.planned()] = true
}

// replacement reports whether the new pair replaces one that was planned before.
func (r *pairResource) replacement(m pairModel) bool {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	return r.client.planned[m.planned()]
}

func (m pairModel) planned() planned {
	return planned{m.ID.ValueString(), text(m.Source, "path"), m.host(plan.Backup), text(m.Backup, "path")}
}

func (r *pairResource) unknownHosts(names ...string) []string {
	var out []string
	for _, name := range names {
		if !r.client.known(name) {
			out = append(out, fmt.Sprintf("how to reach %q", name))
		}
	}
	return slices.Compact(out)
}
