// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/lockstep-sync/lockstep/agent/plan"
)

var (
	_ datasource.DataSourceWithConfigure = (*pairDataSource)(nil)
	_ datasource.DataSourceWithConfigure = (*hostDataSource)(nil)
)

// told is a text that a host tells.
func told(description string) schema.StringAttribute {
	return schema.StringAttribute{Computed: true, MarkdownDescription: description}
}

// pairDataSource is data.lockstep_pair: how a pair is right now. Such values are not in the resource: they
// would differ in every plan.
type pairDataSource struct{ client *client }

type pairStatusModel struct {
	Name            types.String  `tfsdk:"name"`
	Host            types.String  `tfsdk:"host"`
	State           types.String  `tfsdk:"state"`
	Reason          types.String  `tfsdk:"reason"`
	Hint            types.String  `tfsdk:"hint"`
	Since           types.String  `tfsdk:"since"`
	InStep          types.Bool    `tfsdk:"in_step"`
	LagSeconds      types.Float64 `tfsdk:"lag_seconds"`
	LastInStep      types.String  `tfsdk:"last_in_step"`
	Backlog         types.Int64   `tfsdk:"backlog"`
	Held            types.Int64   `tfsdk:"held"`
	HeldReason      types.String  `tfsdk:"held_reason"`
	HeldPaths       types.List    `tfsdk:"held_paths"`
	FailedPaths     types.Int64   `tfsdk:"failed_paths"`
	WatchBackend    types.String  `tfsdk:"watch_backend"`
	FullRunning     types.Bool    `tfsdk:"full_running"`
	LastFull        types.String  `tfsdk:"last_full"`
	LatencyP50      types.Float64 `tfsdk:"latency_p50_seconds"`
	LatencyP99      types.Float64 `tfsdk:"latency_p99_seconds"`
	LockstepVersion types.String  `tfsdk:"lockstep_version"`
}

func (d *pairDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_pair"
}

func (d *pairDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	count := func(description string) schema.Int64Attribute {
		return schema.Int64Attribute{Computed: true, MarkdownDescription: description}
	}
	seconds := func(description string) schema.Float64Attribute {
		return schema.Float64Attribute{Computed: true, MarkdownDescription: description}
	}
	resp.Schema = schema.Schema{
		MarkdownDescription: "How a pair is right now, as `lockstep status NAME` on its source host says. Made for `check` blocks.",
		Attributes: map[string]schema.Attribute{
			"name":  schema.StringAttribute{Required: true, MarkdownDescription: "Name of the pair."},
			"host":  schema.StringAttribute{Required: true, MarkdownDescription: "Its source host."},
			"state": told("`starting`, `in step`, `behind`, `degraded`, `held`, `paused`, `failing`, `hooks only`; or `not running`, which `lockstep status` calls `no agent` or `no answer`."),
			"in_step": schema.BoolAttribute{Computed: true,
				MarkdownDescription: "Whether the state is `in step`."},
			"reason":              told("Why the state is what it is; empty if there is nothing to say."),
			"hint":                told("What to do about it, if known."),
			"since":               told("When the state began (RFC 3339)."),
			"lag_seconds":         seconds("Age of the oldest change that is not on the backup; null if no agent answers."),
			"last_in_step":        told("When the pair was last in step (RFC 3339); null if never since the agent started."),
			"backlog":             count("Paths that are not on the backup yet."),
			"held":                count("Entries that would be deleted on the backup and wait for `lockstep approve NAME`."),
			"held_reason":         told("Why they wait; empty if none does."),
			"held_paths":          schema.ListAttribute{Computed: true, ElementType: types.StringType, MarkdownDescription: "The first of them."},
			"failed_paths":        count("Paths that could not be read or written; `lockstep status NAME` lists them."),
			"watch_backend":       told("`fanotify` or `inotify`."),
			"full_running":        schema.BoolAttribute{Computed: true, MarkdownDescription: "Whether both trees are being compared."},
			"last_full":           told("When that was last completed (RFC 3339); null if never since the agent started."),
			"latency_p50_seconds": seconds("Median time from a change to its arrival."),
			"latency_p99_seconds": seconds("The same for the slowest hundredth."),
			"lockstep_version":    told("Version of `lockstep` on the source host."),
		},
	}
}

func (d *pairDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, _ *datasource.ConfigureResponse) {
	d.client, _ = req.ProviderData.(*client)
}

func (d *pairDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m pairStatusModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() || !d.client.reachable(m.Host.ValueString(), &resp.Diagnostics) {
		return
	}
	ctx, cancel := context.WithTimeout(d.client.quiet(ctx), defaultReadTimeout)
	defer cancel()
	if !plan.ValidName(m.Name.ValueString()) {
		resp.Diagnostics.AddError("Not the name of a pair", fmt.Sprintf("%q is not the name of a pair: a-z, 0-9 and -.", m.Name.ValueString()))
		return
	}
	h := d.client.host(m.Host.ValueString())
	release, err := useBoth(ctx, h, h)
	if err != nil {
		resp.Diagnostics.AddError("Cancelled", err.Error())
		return
	}
	defer release()
	b, err := h.present(ctx)
	if err == nil && b.path == "" {
		err = h.fail(ctx, "look for lockstep", errors.New("lockstep is not installed on this host"),
			"is it the source host of the pair? A lockstep_pair installs lockstep there: let the data source depend on it")
	}
	var s agentStatus
	if err == nil {
		s, err = h.status(ctx, b.path, m.Name.ValueString())
	}
	if err != nil {
		resp.Diagnostics.Append(hostDiagnostic("", err))
		return
	}
	m.State, m.InStep = types.StringValue(s.State), types.BoolValue(s.State == "in step")
	m.Reason, m.Hint = types.StringValue(s.Reason), types.StringValue(s.Hint)
	m.Since, m.LastInStep, m.LastFull = instant(&s.Since), instant(s.LastInStep), instant(s.Full.Last)
	m.Backlog, m.FailedPaths = types.Int64Value(s.Backlog.Paths), types.Int64Value(s.Ledger.Count)
	m.LagSeconds = types.Float64Value(s.LagSeconds)
	m.LatencyP50, m.LatencyP99 = types.Float64Value(s.Latency.P50), types.Float64Value(s.Latency.P99)
	m.Held, m.HeldReason, m.HeldPaths = types.Int64Value(0), types.StringValue(""), stringList(nil)
	if s.Held != nil {
		m.Held, m.HeldReason, m.HeldPaths = types.Int64Value(s.Held.Count), types.StringValue(s.Held.Reason), stringList(s.Held.Paths)
	}
	m.WatchBackend, m.FullRunning = types.StringValue(s.Watch.Backend), types.BoolValue(s.Full.Running)
	m.LockstepVersion = types.StringValue(b.version)
	if s.State == notRunning { // nobody has counted: 0 would say that nothing is behind
		m.LagSeconds, m.LatencyP50, m.LatencyP99 = types.Float64Null(), types.Float64Null(), types.Float64Null()
		m.Backlog, m.Held, m.FailedPaths = types.Int64Null(), types.Int64Null(), types.Int64Null()
		m.FullRunning, m.WatchBackend = types.BoolNull(), types.StringNull()
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// instant is a time as Terraform's functions take it; null if there is none.
func instant(t *time.Time) types.String {
	if t == nil || t.IsZero() {
		return types.StringNull()
	}
	return types.StringValue(t.UTC().Format(time.RFC3339))
}

// reachable refuses a host that the provider cannot reach before apply.
func (c *client) reachable(host string, diags *diag.Diagnostics) bool {
	if c.known(host) {
		return true
	}
	diags.AddError("Provider configuration not known", fmt.Sprintf("How to reach host %q is known only after apply; let the data source depend on what makes the host.", host))
	return false
}

// hostDataSource is data.lockstep_host: what a host is, found out without root's rights and without a change.
type hostDataSource struct{ client *client }

type hostInfoModel struct {
	Host            types.String `tfsdk:"host"`
	Address         types.String `tfsdk:"address"`
	HostKey         types.String `tfsdk:"host_key"`
	OS              types.String `tfsdk:"os"`
	Machine         types.String `tfsdk:"machine"`
	KernelVersion   types.String `tfsdk:"kernel_version"`
	SystemdVersion  types.String `tfsdk:"systemd_version"`
	RsyncVersion    types.String `tfsdk:"rsync_version"`
	LockstepVersion types.String `tfsdk:"lockstep_version"`
	LockstepPath    types.String `tfsdk:"lockstep_path"`
	InstalledBy     types.String `tfsdk:"installed_by"`
}

func (d *hostDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_host"
}

func (d *hostDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "What a host is. It is looked at over ssh without sudo, and nothing is installed for it.",
		Attributes: map[string]schema.Attribute{
			"host":             schema.StringAttribute{Required: true, MarkdownDescription: "A name of the provider's `hosts`, or whatever `ssh` reaches."},
			"address":          told("How it was reached: `user@address:port`."),
			"host_key":         told("The host key that it showed, as `hosts.NAME.host_key` takes it."),
			"os":               told("Name of the distribution."),
			"machine":          told("As `uname -m`."),
			"kernel_version":   told("As `uname -r`."),
			"systemd_version":  told("Null if there is none."),
			"rsync_version":    told("Null if it is not installed."),
			"lockstep_version": told("Null if it is not installed."),
			"lockstep_path":    told("Where it is."),
			"installed_by":     told("`package`, `upload` (by this provider) or `hand`."),
		},
	}
}

func (d *hostDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, _ *datasource.ConfigureResponse) {
	d.client, _ = req.ProviderData.(*client)
}

func (d *hostDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m hostInfoModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() || !d.client.reachable(m.Host.ValueString(), &resp.Diagnostics) {
		return
	}
	ctx, cancel := context.WithTimeout(d.client.quiet(ctx), defaultReadTimeout)
	defer cancel()
	h := d.client.host(m.Host.ValueString())
	f, err := h.look(ctx)
	key := ""
	if err == nil {
		key, err = h.pool.HostKey(ctx, h.name)
	}
	if err != nil {
		resp.Diagnostics.Append(hostDiagnostic("", h.fail(ctx, "look at the host", err, "")))
		return
	}
	or := func(s string) types.String {
		if s == "" {
			return types.StringNull()
		}
		return types.StringValue(s)
	}
	m.Address, m.HostKey = types.StringValue(h.pool.At(ctx, h.name)), types.StringValue(key)
	m.OS, m.Machine, m.KernelVersion = or(f.OS), or(f.Machine), or(f.Kernel)
	m.SystemdVersion, m.RsyncVersion = or(f.Systemd), or(f.Rsync)
	m.LockstepVersion, m.LockstepPath, m.InstalledBy = or(f.Version), or(f.Binary), or(string(f.Owner))
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}
