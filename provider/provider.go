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
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-validators/int64validator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"
	"github.com/hashicorp/terraform-plugin-log/tflog"

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
						MarkdownDescription: fmt.Sprintf("How long a host may take to boot before a new pair is created on it. Default: `%s`.", shortDuration(defaultWaitForHost))},
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

// client is the configured provider: what resources and data sources work with.
type client struct {
	version       string
	pool          *ssh.Pool
	config        ssh.Config
	waitForHost   time.Duration
	onUnreachable string
	install       string
	carried       *carried
	hostRoot      func(string) string

	become     map[string]become // by host; "" is the default
	allUnknown bool              // something that concerns every host is not known yet
	unknown    map[string]bool   // hosts of which something is not known yet
	secrets    []string

	mu        sync.Mutex
	hosts     map[string]*host
	replacing map[string]bool // pairs, as source host and name, that this plan replaces
}

func newClient(p *lockstepProvider) *client {
	c := &client{
		version: p.version, waitForHost: defaultWaitForHost, onUnreachable: unreachableError, install: installAuto,
		carried: &carried{dir: carriedDir(), version: p.version}, hostRoot: p.hostRoot,
		become: map[string]become{}, unknown: map[string]bool{}, hosts: map[string]*host{}, replacing: map[string]bool{},
	}
	if c.hostRoot == nil {
		c.hostRoot = func(string) string { return "" }
	}
	return c
}

// known reports whether everything is known that is needed to reach a host.
func (c *client) known(name string) bool { return !c.allUnknown && !c.unknown[name] }

// host gives the one object that stands for a host in this process.
func (c *client) host(name string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[name]
	if h == nil {
		b, ok := c.become[name]
		if !ok {
			b = c.become[""]
		}
		h = newHost(name, c.pool, b, c.install, c.carried, pathsBelow(c.hostRoot(name)), c.redact)
		c.hosts[name] = h
	}
	return h
}

// address is the default for the address of a pair's end: that of the hosts map, or the name itself.
func (c *client) address(host string) string {
	if o, ok := c.config.Hosts[host]; ok && o.Address != "" {
		return o.Address
	}
	return host
}

// redact takes every secret of the provider out of a text.
func (c *client) redact(s string) string {
	for _, secret := range c.secrets {
		s = strings.ReplaceAll(s, secret, "(redacted)")
	}
	return s
}

// quiet keeps secrets out of everything that is logged with the context. Few values are secret, and each
// costs a search in every line, so it is done where a method begins.
func (c *client) quiet(ctx context.Context, more ...string) context.Context {
	ctx = tflog.MaskFieldValuesWithFieldKeys(ctx, "password", "private_key", "sealed_password")
	for _, s := range slices.Concat(c.secrets, more) {
		if s != "" {
			ctx = tflog.MaskAllFieldValuesStrings(ctx, s)
			ctx = tflog.MaskMessageStrings(ctx, s)
		}
	}
	return ctx
}

// read takes over the configuration.
func (c *client) read(ctx context.Context, m providerModel, diags *diag.Diagnostics) {
	c.config.Hosts = map[string]ssh.Options{}
	if m.OnUnreachable.ValueString() != "" {
		c.onUnreachable = m.OnUnreachable.ValueString()
	}
	if m.OnUnreachable.IsUnknown() || m.SSH.IsUnknown() || m.Hosts.IsUnknown() || m.HostBinary.IsUnknown() {
		c.allUnknown = true
	}
	if !m.SSH.IsNull() && !m.SSH.IsUnknown() {
		c.readSSH(ctx, m.SSH, diags)
	}
	if !m.Hosts.IsNull() && !m.Hosts.IsUnknown() {
		elements := m.Hosts.Elements()
		for _, name := range slices.Sorted(maps.Keys(elements)) {
			if object, ok := elements[name].(types.Object); ok {
				c.readHost(ctx, name, object, diags)
			}
		}
	}
	if !m.HostBinary.IsNull() && !m.HostBinary.IsUnknown() {
		var b hostBinaryModel
		diags.Append(m.HostBinary.As(ctx, &b, basetypes.ObjectAsOptions{})...)
		if b.Install.IsUnknown() || b.Directory.IsUnknown() {
			c.allUnknown = true
		}
		if v := b.Install.ValueString(); v != "" {
			c.install = v
		}
		if v := b.Directory.ValueString(); v != "" {
			c.carried.dir = v
		}
	}
}

func (c *client) readSSH(ctx context.Context, object types.Object, diags *diag.Diagnostics) {
	var s sshModel
	diags.Append(object.As(ctx, &s, basetypes.ObjectAsOptions{})...)
	if diags.HasError() {
		return
	}
	for _, v := range object.Attributes() {
		c.allUnknown = c.allUnknown || v.IsUnknown()
	}
	root := path.Root("ssh")
	c.config.Defaults = c.options(hostModel{User: s.User, Port: s.Port, PrivateKey: s.PrivateKey, PrivateKeyFile: s.PrivateKeyFile, Agent: s.Agent}, root, "ssh", diags)
	c.config.ConfigFile = s.ConfigFile.ValueString()
	c.config.KnownHostsFile = s.KnownHostsFile.ValueString()
	c.config.KnownHosts = s.KnownHosts.ValueString()
	c.config.Policy = ssh.Policy(s.HostKeyPolicy.ValueString())
	if v := s.ConnectTimeout.ValueString(); v != "" {
		c.config.ConnectTimeout, _ = time.ParseDuration(v) // validated
	}
	if v := s.WaitForHost.ValueString(); v != "" {
		c.waitForHost, _ = time.ParseDuration(v)
	}
	if unknown := c.readBecome(ctx, "", s.Become, root, "ssh.become", diags); unknown {
		c.allUnknown = true
	}
}

func (c *client) readHost(ctx context.Context, name string, object types.Object, diags *diag.Diagnostics) {
	if object.IsUnknown() {
		c.unknown[name] = true
		return
	}
	var h hostModel
	diags.Append(object.As(ctx, &h, basetypes.ObjectAsOptions{})...)
	if diags.HasError() {
		return
	}
	for _, v := range object.Attributes() {
		if v.IsUnknown() {
			c.unknown[name] = true
		}
	}
	root, text := path.Root("hosts"), fmt.Sprintf("hosts[%q]", name)
	o := c.options(h, root, text, diags)
	if !h.Jump.IsNull() && !h.Jump.IsUnknown() {
		o.Jump = []string{}
		for i, v := range h.Jump.Elements() {
			hop, ok := v.(types.String)
			switch {
			case !ok || hop.IsUnknown():
				c.unknown[name] = true
			case hop.ValueString() == "":
				diags.AddAttributeError(root, "Jump host without a name", fmt.Sprintf("%s.jump[%d] is empty; write a name of the hosts map, or user@host:port.", text, i))
			default:
				o.Jump = append(o.Jump, hop.ValueString())
			}
		}
	}
	c.config.Hosts[name] = o
	if unknown := c.readBecome(ctx, name, h.Become, root, text+".become", diags); unknown {
		c.unknown[name] = true
	}
}

func (c *client) options(h hostModel, root path.Path, text string, diags *diag.Diagnostics) ssh.Options {
	o := ssh.Options{
		Address: h.Address.ValueString(), User: h.User.ValueString(), Port: int(h.Port.ValueInt64()), HostKeys: h.HostKey.ValueString(),
		PrivateKey: h.PrivateKey.ValueString(), PrivateKeyFile: h.PrivateKeyFile.ValueString(),
	}
	if !h.Agent.IsNull() && !h.Agent.IsUnknown() {
		o.Agent = h.Agent.ValueBoolPointer()
	}
	if o.PrivateKey != "" && o.PrivateKeyFile != "" {
		diags.AddAttributeError(root, "Two private keys", fmt.Sprintf("%s has private_key and private_key_file; keep one of the two.", text))
	}
	c.secret(o.PrivateKey)
	return o
}

// readBecome reports whether something of it is not known yet.
func (c *client) readBecome(ctx context.Context, name string, object types.Object, root path.Path, text string, diags *diag.Diagnostics) bool {
	if object.IsNull() || object.IsUnknown() {
		return object.IsUnknown()
	}
	var b becomeModel
	diags.Append(object.As(ctx, &b, basetypes.ObjectAsOptions{})...)
	out := become{Method: b.Method.ValueString(), Password: b.Password.ValueString()}
	if out.Method == "none" && out.Password != "" {
		diags.AddAttributeError(root, "Password without sudo", text+".password is given, and method is \"none\"; remove one of the two.")
	}
	if strings.ContainsAny(out.Password, "\n\x00") {
		diags.AddAttributeError(root, "Password with a line break", text+".password has a line break or a NUL; sudo reads one line.")
	}
	c.secret(out.Password)
	c.become[name] = out
	return b.Method.IsUnknown() || b.Password.IsUnknown()
}

func (c *client) secret(s string) {
	if s != "" && !slices.Contains(c.secrets, s) {
		c.secrets = append(c.secrets, s)
	}
}

// tflogHandler hands the ssh package's log lines to Terraform's log.
type tflogHandler struct {
	ctx    context.Context
	client *client
}

func (h *tflogHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *tflogHandler) Handle(_ context.Context, r slog.Record) error {
	fields := map[string]any{}
	r.Attrs(func(a slog.Attr) bool {
		fields[a.Key] = h.client.redact(a.Value.String())
		return true
	})
	tflog.Debug(h.client.quiet(h.ctx), "ssh: "+r.Message, fields)
	return nil
}

func (h *tflogHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *tflogHandler) WithGroup(string) slog.Handler      { return h }

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

// shortDuration renders a duration without the zero units that package time adds.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
