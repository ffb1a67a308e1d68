// SPDX-License-Identifier: Apache-2.0

// Package provider is the Terraform provider of lockstep.
//
// It is thin: the lockstep binary on the two hosts does the work, as `lockstep plan|apply|read|destroy`
// describes it, and the provider carries requests and replies over ssh, in the order that makes a pair
// without a moment in which half of it works. It uploads that binary where it is missing. Nothing secret
// is kept: not in state, not in a plan file, not in a log; a password that the hosts make is sealed from
// one to the other. It never deletes, moves or writes anything in the two directories of a pair.
package provider

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-validators/int64validator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/provider/internal/ssh"
)

var (
	_ provider.Provider                   = (*lockstepProvider)(nil)
	_ provider.ProviderWithValidateConfig = (*lockstepProvider)(nil)
)

// New gives the provider; version is that of the release, and of the host binaries that it carries.
func New(version string) func() provider.Provider {
	return func() provider.Provider { return &lockstepProvider{version: version} }
}

type lockstepProvider struct {
	version string
	// hostRoot, in tests, is a directory that stands for the root of a host.
	hostRoot func(host string) string
	started  func(*client) // in tests: told of what Configure made
}

func (p *lockstepProvider) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName = "lockstep"
	resp.Version = p.version
}

const (
	unreachableError = "error"
	unreachableWarn  = "warn"

	defaultWaitForHost = 2 * time.Minute
)

func (p *lockstepProvider) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	user := "User to log in as. Anyone but root needs `sudo`, see `become`."
	port := "Port of sshd."
	key := "Content of the private key. Best an ephemeral variable; without `private_key`, `private_key_file` and `agent`, the keys of ssh_config, the agent and `~/.ssh` are tried."
	keyFile := "File of the private key. If it is protected by a passphrase, `ssh-add` it first."
	agent := "Whether to offer the keys of ssh-agent. Default: only if no key is given here."
	becomeAttribute := func(more string) schema.SingleNestedAttribute {
		return schema.SingleNestedAttribute{
			Optional:            true,
			MarkdownDescription: "How to get root's rights on the host." + more,
			Attributes: map[string]schema.Attribute{
				"method": schema.StringAttribute{
					Optional: true, Validators: []validator.String{stringvalidator.OneOf("sudo", "none")},
					MarkdownDescription: "`sudo` or `none`. Default: `sudo`, unless the log-in is root's.",
				},
				"password": schema.StringAttribute{
					Optional: true, Sensitive: true,
					MarkdownDescription: "Password for sudo, if it asks for one. It goes to sudo's standard input. Best an ephemeral variable.",
				},
			},
		}
	}
	resp.Schema = schema.Schema{
		MarkdownDescription: "Keeps a directory on a backup host equal to a directory on a source host, in real time. " +
			"The provider reaches the hosts over ssh, as your own `ssh` would, and uploads the `lockstep` binary to those that have none.",
		Attributes: map[string]schema.Attribute{
			"ssh": schema.SingleNestedAttribute{
				Optional:            true,
				MarkdownDescription: "Defaults for every host. What is not set is taken from ssh_config, as `ssh -G HOST` tells it.",
				Attributes: map[string]schema.Attribute{
					"user":             schema.StringAttribute{Optional: true, MarkdownDescription: user},
					"port":             schema.Int64Attribute{Optional: true, Validators: []validator.Int64{int64validator.Between(1, 65535)}, MarkdownDescription: port},
					"private_key":      schema.StringAttribute{Optional: true, Sensitive: true, MarkdownDescription: key},
					"private_key_file": schema.StringAttribute{Optional: true, MarkdownDescription: keyFile},
					"agent":            schema.BoolAttribute{Optional: true, MarkdownDescription: agent},
					"config_file": schema.StringAttribute{Optional: true,
						MarkdownDescription: "The ssh_config to read instead of the usual ones; `none` reads none."},
					"known_hosts_file": schema.StringAttribute{Optional: true,
						MarkdownDescription: "File with the known host keys. Default: as ssh_config says, `~/.ssh/known_hosts` as a rule; none if `known_hosts` is given."},
					"known_hosts": schema.StringAttribute{Optional: true,
						MarkdownDescription: "Content of a known_hosts file, for machines without a home such as CI runners."},
					"host_key_policy": schema.StringAttribute{Optional: true,
						Validators: []validator.String{stringvalidator.OneOf(string(ssh.Strict), string(ssh.AcceptNew), string(ssh.Insecure))},
						MarkdownDescription: "What to do with a host key that is not known. `strict` (default): refuse, and print the key ready to paste. " +
							"`accept-new`: write it to the known_hosts file; a changed key is refused. `insecure`: accept any key; a warning reminds of it."},
					"connect_timeout": schema.StringAttribute{Optional: true, Validators: []validator.String{durationValidator{}},
						MarkdownDescription: "How long to wait for one host's answer. Default: `15s`."},
					"wait_for_host": schema.StringAttribute{Optional: true, Validators: []validator.String{durationValidator{}},
						MarkdownDescription: fmt.Sprintf("How long a host may take to boot before a new pair is created on it. Default: `%s`.", pair.Duration(defaultWaitForHost))},
					"become": becomeAttribute(""),
				},
			},
			"hosts": schema.MapNestedAttribute{
				Optional: true,
				MarkdownDescription: "The hosts, by the names that pairs use in `source.host` and `backup.host`. " +
					"A host that is not listed is reached under its name, as `ssh NAME` would.",
				NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
					"address": schema.StringAttribute{Optional: true,
						MarkdownDescription: "Name or IP address to dial. It is also the default of a pair's `source.address` and `backup.address`."},
					"user": schema.StringAttribute{Optional: true, MarkdownDescription: user},
					"port": schema.Int64Attribute{Optional: true, Validators: []validator.Int64{int64validator.Between(1, 65535)}, MarkdownDescription: port},
					"host_key": schema.StringAttribute{Optional: true, Validators: []validator.String{hostKeyValidator{}},
						MarkdownDescription: "The host's public key as in `/etc/ssh/ssh_host_ed25519_key.pub`: `ssh-ed25519 AAAA…`; several, one a line. If given, no known_hosts file is read for this host."},
					"private_key":      schema.StringAttribute{Optional: true, Sensitive: true, MarkdownDescription: key},
					"private_key_file": schema.StringAttribute{Optional: true, MarkdownDescription: keyFile},
					"agent":            schema.BoolAttribute{Optional: true, MarkdownDescription: agent},
					"jump": schema.ListAttribute{Optional: true, ElementType: types.StringType,
						MarkdownDescription: "Hosts to go through, in this order: names of this map, or `user@host:port`. Their host keys are checked as well. Default: ProxyJump of ssh_config; `[]` goes straight."},
					"become": becomeAttribute(" It replaces that of `ssh` as a whole."),
				}},
			},
			"on_unreachable": schema.StringAttribute{
				Optional: true, Validators: []validator.String{stringvalidator.OneOf(unreachableError, unreachableWarn)},
				MarkdownDescription: "What a refresh does when a host does not answer. `error` (default): stop. `warn`: warn, and keep what was last known of it. A pair is never dropped from state because a host is down.",
			},
			"host_binary": schema.SingleNestedAttribute{
				Optional:            true,
				MarkdownDescription: "How the `lockstep` binary gets onto the hosts.",
				Attributes: map[string]schema.Attribute{
					"install": schema.StringAttribute{Optional: true, Validators: []validator.String{stringvalidator.OneOf(installAuto, installPackage)},
						MarkdownDescription: "`auto` (default): upload it to `/usr/local/bin` where there is none, and keep an uploaded one up to date; a packaged one is used as it is. `package`: never upload; the hosts must have the package."},
					"directory": schema.StringAttribute{Optional: true,
						MarkdownDescription: "Directory with `lockstep_linux_amd64` and `lockstep_linux_arm64`. Default: the provider's own; a release carries both."},
				},
			},
		},
	}
}

type providerModel struct {
	SSH           types.Object `tfsdk:"ssh"`
	Hosts         types.Map    `tfsdk:"hosts"`
	OnUnreachable types.String `tfsdk:"on_unreachable"`
	HostBinary    types.Object `tfsdk:"host_binary"`
}

type sshModel struct {
	User           types.String `tfsdk:"user"`
	Port           types.Int64  `tfsdk:"port"`
	PrivateKey     types.String `tfsdk:"private_key"`
	PrivateKeyFile types.String `tfsdk:"private_key_file"`
	Agent          types.Bool   `tfsdk:"agent"`
	ConfigFile     types.String `tfsdk:"config_file"`
	KnownHostsFile types.String `tfsdk:"known_hosts_file"`
	KnownHosts     types.String `tfsdk:"known_hosts"`
	HostKeyPolicy  types.String `tfsdk:"host_key_policy"`
	ConnectTimeout types.String `tfsdk:"connect_timeout"`
	WaitForHost    types.String `tfsdk:"wait_for_host"`
	Become         types.Object `tfsdk:"become"`
}

type hostModel struct {
	Address        types.String `tfsdk:"address"`
	User           types.String `tfsdk:"user"`
	Port           types.Int64  `tfsdk:"port"`
	HostKey        types.String `tfsdk:"host_key"`
	PrivateKey     types.String `tfsdk:"private_key"`
	PrivateKeyFile types.String `tfsdk:"private_key_file"`
	Agent          types.Bool   `tfsdk:"agent"`
	Jump           types.List   `tfsdk:"jump"`
	Become         types.Object `tfsdk:"become"`
}

type becomeModel struct {
	Method   types.String `tfsdk:"method"`
	Password types.String `tfsdk:"password"`
}

type hostBinaryModel struct {
	Install   types.String `tfsdk:"install"`
	Directory types.String `tfsdk:"directory"`
}

// ValidateConfig finds what contradicts itself. What is not known yet is not looked at.
func (p *lockstepProvider) ValidateConfig(ctx context.Context, req provider.ValidateConfigRequest, resp *provider.ValidateConfigResponse) {
	var m providerModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	c := newClient(p)
	c.read(ctx, m, &resp.Diagnostics)
}

// Configure dials nothing and opens no key: values that are not known before apply are no error here, and a
// provider that has nothing to do needs no host.
func (p *lockstepProvider) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var m providerModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	c := newClient(p)
	c.read(ctx, m, &resp.Diagnostics)
	if resp.Diagnostics.HasError() {
		return
	}
	if c.config.Policy == ssh.Insecure {
		resp.Diagnostics.AddAttributeWarning(path.Root("ssh"), "Host keys are not checked",
			"ssh.host_key_policy is \"insecure\": anybody between this machine and the hosts can read and change what is sent. "+
				"Set hosts.NAME.host_key, or known_hosts, and remove the policy.")
	}
	c.config.Log = slog.New(&tflogHandler{ctx: ctx, client: c})
	c.pool = ssh.New(c.config)
	if p.started != nil {
		p.started(c)
	}
	resp.ResourceData = c
	resp.DataSourceData = c
}

func (p *lockstepProvider) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{func() resource.Resource { return &pairResource{} }}
}

func (p *lockstepProvider) DataSources(context.Context) []func() datasource.DataSource {
	return []func() datasource.DataSource{
		func() datasource.DataSource { return &pairDataSource{} },
		func() datasource.DataSource { return &hostDataSource{} },
	}
}

// durationValidator takes what time.ParseDuration takes, if it is more than nothing.
type durationValidator struct{}

func (durationValidator) Description(context.Context) string {
	return "a duration such as 20ms, 5s or 24h"
}
func (v durationValidator) MarkdownDescription(context.Context) string {
	return v.Description(context.Background())
}

func (durationValidator) ValidateString(_ context.Context, req validator.StringRequest, resp *validator.StringResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	if d, err := time.ParseDuration(req.ConfigValue.ValueString()); err != nil || d <= 0 {
		resp.Diagnostics.AddAttributeError(rootOf(req.Path), "Not a duration",
			fmt.Sprintf("%s: %q is not a duration; write it as 15s, 2m or 1h.", req.Path, req.ConfigValue.ValueString()))
	}
}

// hostKeyValidator takes public keys.
type hostKeyValidator struct{}

func (hostKeyValidator) Description(context.Context) string {
	return "one or several public keys, one a line"
}
func (v hostKeyValidator) MarkdownDescription(context.Context) string {
	return v.Description(context.Background())
}

func (hostKeyValidator) ValidateString(_ context.Context, req validator.StringRequest, resp *validator.StringResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	if _, err := ssh.ParseHostKeys(req.ConfigValue.ValueString()); err != nil {
		resp.Diagnostics.AddAttributeError(rootOf(req.Path), "Not a host key", fmt.Sprintf("%s: %v.", req.Path, err))
	}
}

// rootOf is the attribute that Terraform can point at in the configuration: a path into a nested attribute
// makes it show the first line of the whole block instead. The full path belongs in the text.
func rootOf(p path.Path) path.Path {
	if steps := p.Steps(); len(steps) > 0 {
		if name, ok := steps[0].(path.PathStepAttributeName); ok {
			return path.Root(string(name))
		}
	}
	return p
}
