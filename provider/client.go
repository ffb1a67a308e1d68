// SPDX-License-Identifier: Apache-2.0

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

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/lockstep-sync/lockstep/provider/internal/ssh"
)

// client is the configured provider: what resources and data sources work with.
type client struct {
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

	mu      sync.Mutex
	hosts   map[string]*host
	inState map[string]bool  // pairs that were read, by ID
	planned map[planned]bool // pairs that have a state, as planned
}

// planned tells pairs of one plan apart.
type planned struct{ id, sourcePath, backupHost, backupPath string }

func newClient(p *lockstepProvider) *client {
	c := &client{
		waitForHost: defaultWaitForHost, onUnreachable: unreachableError, install: installAuto,
		carried: &carried{dir: carriedDir(), version: p.version}, hostRoot: p.hostRoot,
		become: map[string]become{}, unknown: map[string]bool{}, hosts: map[string]*host{}, inState: map[string]bool{}, planned: map[planned]bool{},
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
