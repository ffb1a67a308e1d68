// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/identityschema"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

var (
	_ resource.Resource                   = (*pairResource)(nil)
	_ resource.ResourceWithConfigure      = (*pairResource)(nil)
	_ resource.ResourceWithValidateConfig = (*pairResource)(nil)
	_ resource.ResourceWithModifyPlan     = (*pairResource)(nil)
	_ resource.ResourceWithImportState    = (*pairResource)(nil)
	_ resource.ResourceWithIdentity       = (*pairResource)(nil)
)

const (
	defaultReadTimeout  = 5 * time.Minute
	defaultWriteTimeout = 10 * time.Minute
)

// pairResource is lockstep_pair.
type pairResource struct{ client *client }

// pairIdentity tells a pair from all others, for Terraform 1.12 and later.
type pairIdentity struct {
	SourceHost types.String `tfsdk:"source_host"`
	Name       types.String `tfsdk:"name"`
}

func (r *pairResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_pair"
}

func (r *pairResource) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = pairSchema()
}

func (r *pairResource) IdentitySchema(_ context.Context, _ resource.IdentitySchemaRequest, resp *resource.IdentitySchemaResponse) {
	resp.IdentitySchema = identityschema.Schema{Attributes: map[string]identityschema.Attribute{
		"source_host": identityschema.StringAttribute{RequiredForImport: true, Description: "The source host, as in source.host."},
		"name":        identityschema.StringAttribute{RequiredForImport: true, Description: "The name of the pair."},
	}}
}

func (r *pairResource) Configure(_ context.Context, req resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	r.client, _ = req.ProviderData.(*client) // nil while Terraform only validates
}

// ValidateConfig lets the definition's own parser judge; it touches no host.
func (r *pairResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var m pairModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	_, problems := m.definition()
	resp.Diagnostics.Append(definitionDiagnostics(problems)...)
}

func (r *pairResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var m pairModel
	var password types.String
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("password_wo"), &password)...)
	limit, diags := m.Timeouts.Create(ctx, defaultWriteTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.client.quiet(ctx, password.ValueString()), limit, fmt.Errorf("timeouts.create = %s is over", limit))
	defer cancel()
	j, ok := r.job(m, password.ValueString(), &resp.Diagnostics)
	if !ok {
		return
	}
	j.create = true
	out, diags := j.run(ctx)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() && !out.kept {
		if out.installed {
			resp.Diagnostics.Append(j.withdraw(context.WithoutCancel(ctx))...)
			resp.Diagnostics.AddWarning("Nothing was kept", fmt.Sprintf("What this run had made for pair %q was undone on both hosts.", m.Name.ValueString()))
		}
		return
	}
	r.store(&m, out)
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
	resp.Diagnostics.Append(identify(ctx, resp.Identity, m)...)
}

func (r *pairResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var m, before pairModel
	var password types.String
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &before)...)
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("password_wo"), &password)...)
	limit, diags := m.Timeouts.Update(ctx, defaultWriteTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.client.quiet(ctx, password.ValueString()), limit, fmt.Errorf("timeouts.update = %s is over", limit))
	defer cancel()
	j, ok := r.job(m, password.ValueString(), &resp.Diagnostics)
	if !ok {
		return
	}
	j.rotate = !m.PasswordWOVersion.Equal(before.PasswordWOVersion)
	out, diags := j.run(ctx)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return // the state stays; the next refresh finds what is left to do
	}
	r.store(&m, out)
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
	resp.Diagnostics.Append(identify(ctx, resp.Identity, m)...)
}

// job prepares the exchange for a pair whose values are all known.
func (r *pairResource) job(m pairModel, password string, diags *diag.Diagnostics) (*job, bool) {
	p, problems := m.definition()
	diags.Append(definitionDiagnostics(problems)...)
	if diags.HasError() {
		return nil, false
	}
	e, ok := r.ends(p, diags)
	return &job{ends: e, password: password}, ok
}

// ends are the hosts of p, unless it is still not known how to reach them.
func (r *pairResource) ends(p pair.Pair, diags *diag.Diagnostics) (*ends, bool) {
	for _, host := range []string{p.Source.Host, p.Backup.Host} {
		if !r.client.known(host) {
			diags.AddError("Provider configuration not known", fmt.Sprintf("How to reach host %q is still not known.", host))
		}
	}
	if diags.HasError() {
		return nil, false
	}
	return r.client.ends(p), true
}

// store fills the computed attributes with what the hosts said.
func (r *pairResource) store(m *pairModel, out outcome) {
	for _, role := range roles {
		checks, version := *out.checks.at(role), types.StringNull()
		if checks == nil {
			checks = allSay(role, m.Transport.ValueString(), "not known: the apply was interrupted")
		}
		if v := *out.versions.at(role); v != "" {
			version = types.StringValue(v)
		}
		end := m.end(role)
		*end = with(*end, map[string]attr.Value{"checks": located(m.host(role), checks), "lockstep_version": version})
	}
	m.PasswordWO = types.StringNull()
}

func (r *pairResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var m pairModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	// Before anything else: a resource that is removed without an identity is an error to Terraform.
	resp.Diagnostics.Append(identify(ctx, resp.Identity, m)...)
	limit, diags := m.Timeouts.Read(ctx, defaultReadTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	r.client.mu.Lock()
	r.client.inState[m.ID.ValueString()] = true
	r.client.mu.Unlock()
	p := m.recorded()
	ctx, cancel := context.WithTimeoutCause(r.client.quiet(ctx), limit, fmt.Errorf("timeouts.read = %s is over", limit))
	defer cancel()
	if unknown := r.unknownHosts(p.Source.Host, p.Backup.Host); len(unknown) > 0 {
		resp.Diagnostics.AddWarning(fmt.Sprintf("Pair %q was not refreshed", p.Name),
			fmt.Sprintf("Known only after apply: %s. What was last known of the pair is kept.", strings.Join(unknown, ", ")))
		return
	}

	e := r.client.ends(p)
	var t trouble
	var replies both[*plan.Reply] // nil: lockstep is not installed, or, with on_unreachable = "warn", no answer
	var away both[bool]
	onBoth(func(role plan.Role) {
		h := e.host(role)
		b, err := h.present(ctx)
		if err == nil && b.path == "" {
			return
		}
		var reply plan.Reply
		if err == nil {
			reply, err = h.call(ctx, b.path, plan.Read, role, plan.Request{Pair: p})
		}
		var he *hostError
		switch {
		case err == nil:
			*replies.at(role) = &reply
			t.at(role).Append(h.problemDiagnostics(ctx, role, reply.Problems)...)
		case errors.As(err, &he) && he.Unreachable && r.client.onUnreachable == unreachableWarn:
			*away.at(role) = true
			t.at(role).AddWarning(fmt.Sprintf("%s host %q: not reachable", role, h.name),
				fmt.Sprintf("%s: %s: %v\n\nWhat was last known of this side is kept.", he.At, he.Step, he.Err))
		default:
			if errors.As(err, &he) && he.Unreachable {
				err = he.withHint("To plan without asking the hosts: terraform plan -refresh=false. " +
					"To go on with what was last known of a host that is down: on_unreachable = \"warn\" in the provider block.")
			}
			t.at(role).Append(hostDiagnostic(role, err))
		}
	})
	resp.Diagnostics.Append(t.all()...)
	if resp.Diagnostics.HasError() {
		return
	}
	if replies.source != nil && replies.backup != nil && !replies.source.Exists && !replies.backup.Exists {
		tflog.Warn(ctx, "the pair is on neither host any more", map[string]any{"pair": p.Name})
		resp.State.RemoveResource(ctx)
		return
	}
	for _, role := range roles {
		if *away.at(role) {
			continue
		}
		checks, version := allSay(role, p.Transport, "lockstep is not installed on this host"), types.StringNull()
		if reply := *replies.at(role); reply != nil {
			checks = checksOf(role, p.Transport, *reply)
			if role == plan.Source && replies.backup != nil {
				compareFingerprints(*reply, *replies.backup, checks)
			}
			version = types.StringValue(reply.Versions["lockstep"])
		}
		end := m.end(role)
		*end = with(*end, map[string]attr.Value{"checks": located(m.host(role), checks), "lockstep_version": version})
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

func (r *pairResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var m pairModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	limit, diags := m.Timeouts.Delete(ctx, defaultWriteTimeout)
	resp.Diagnostics.Append(diags...)
	e, ok := r.ends(m.recorded(), &resp.Diagnostics)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.client.quiet(ctx), limit, fmt.Errorf("timeouts.delete = %s is over", limit))
	defer cancel()
	release, err := useBoth(ctx, e.source, e.backup)
	if err != nil {
		resp.Diagnostics.AddError("Cancelled", err.Error())
		return
	}
	// Both must answer before one is changed. The source host goes first: an agent without its module would fail.
	away := e.unreachable(ctx)
	for _, role := range roles {
		h := e.host(role)
		_, err := h.look(ctx)
		if err == nil && len(away) == 0 {
			err = e.destroyOne(ctx, role)
		}
		if err != nil {
			if he, ok := errors.AsType[*hostError](err); ok && he.Unreachable {
				err = he.withHint("Nothing was changed on the other host. If this host is gone for good, run `lockstep destroy --role source " +
					m.Name.ValueString() + "` (or backup) on the other one, and then terraform state rm ADDRESS.")
			}
			resp.Diagnostics.Append(hostDiagnostic(role, err))
			if len(away) == 0 {
				break
			}
		}
	}
	release()
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(e.withdraw(ctx)...)
}

// ImportState takes over a pair that is on its hosts already. The source host's definition tells everything
// about it; where it is stored, its name is enough.
func (r *pairResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	host, name := "", ""
	if req.ID != "" {
		i := strings.LastIndex(req.ID, "/")
		if i <= 0 || !plan.ValidName(req.ID[i+1:]) {
			resp.Diagnostics.AddError("Not the id of a pair", fmt.Sprintf("%q is not SOURCE_HOST/NAME, as in: terraform import lockstep_pair.home nfs01/home", req.ID))
			return
		}
		host, name = req.ID[:i], req.ID[i+1:]
	} else if req.Identity != nil {
		var id pairIdentity
		resp.Diagnostics.Append(req.Identity.Get(ctx, &id)...)
		host, name = id.SourceHost.ValueString(), id.Name.ValueString()
	}
	if resp.Diagnostics.HasError() {
		return
	}
	if !r.client.known(host) {
		resp.Diagnostics.AddError("Provider configuration not known", fmt.Sprintf("An import needs host %q now, and how to reach it is known only after apply.", host))
		return
	}
	ctx, cancel := context.WithTimeout(r.client.quiet(ctx), defaultReadTimeout)
	defer cancel()
	h := r.client.host(host)
	b, err := h.present(ctx)
	if err == nil && b.path == "" {
		err = h.fail(ctx, "look for lockstep", errors.New("lockstep is not installed, so there is no pair to import"),
			"is it the source host of the pair? An import takes SOURCE_HOST/NAME")
	}
	var reply plan.Reply
	if err == nil {
		var only plan.Request
		only.Pair.Name = name
		var refused error
		reply, refused, err = h.ask(ctx, b.path, plan.Read, plan.Source, only)
		if refused != nil && err == nil {
			err = h.fail(ctx, "lockstep read", fmt.Errorf("the definition on the host is not one that this provider knows: %w", refused),
				"correct it there with `lockstep apply`, then import the pair")
		}
	}
	if err != nil {
		resp.Diagnostics.Append(hostDiagnostic(plan.Source, err))
		return
	}
	resp.Diagnostics.Append(h.problemDiagnostics(ctx, plan.Source, reply.Problems)...)
	if resp.Diagnostics.HasError() {
		return
	}
	if reply.Pair == nil {
		resp.Diagnostics.AddError(fmt.Sprintf("No pair %q on source host %q", name, host),
			fmt.Sprintf("%s holds no pair of this name as its source host. `ls /etc/lockstep/pairs` on the host lists those that it has.", h.pool.At(ctx, host)))
		return
	}
	p := *reply.Pair
	p.Source.Host = host // as the configuration that imports it names the host
	var m pairModel
	if err := m.take(p); err != nil {
		resp.Diagnostics.AddError("Unexpected definition", err.Error())
		return
	}
	m.Timeouts = timeouts.Value{Object: types.ObjectNull(timeoutTypes())}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
	resp.Diagnostics.Append(identify(ctx, resp.Identity, m)...)
}

// identify stores the identity; Terraform before 1.12 keeps none.
func identify(ctx context.Context, identity *tfsdk.ResourceIdentity, m pairModel) diag.Diagnostics {
	if identity == nil {
		return nil
	}
	return identity.Set(ctx, pairIdentity{SourceHost: types.StringValue(m.host(plan.Source)), Name: m.Name})
}

func timeoutTypes() map[string]attr.Type {
	if t, ok := pairSchema().Attributes["timeouts"].GetType().(timeouts.Type); ok {
		return t.AttrTypes
	}
	return nil
}
