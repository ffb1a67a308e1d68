// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework-validators/int64validator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/defaults"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64default"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/listdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/objectdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// pairSchema is lockstep_pair: the fields of the pair definition under their own names, with the defaults of
// [pair.Defaults], and what only Terraform has. Values are checked by the definition's own parser.
func pairSchema() schema.Schema {
	d := pair.Defaults()
	replace := []planmodifier.String{stringplanmodifier.RequiresReplace()}
	checks := schema.MapAttribute{
		Computed: true, ElementType: types.StringType,
		MarkdownDescription: "What the host says of each object of the pair that it holds: `in sync`, or what differs. A plan with drift shows the object here; `apply` heals it.",
	}
	version := schema.StringAttribute{Computed: true, MarkdownDescription: "Version of `lockstep` on the host."}
	return schema.Schema{
		MarkdownDescription: "Keeps a directory on a backup host equal to a directory on a source host.\n\n" +
			"On the backup host it makes an rsync daemon module and its secrets file (or, with `transport = \"ssh\"`, a module that only the source host's ssh key leads to), on the source host a systemd service that watches the directory and runs rsync. " +
			"Nothing that it does here ever touches the data in the two directories: not `destroy`, not a replacement, not an import. " +
			"The password is made on the backup host and sealed to the source host; it is in no state, plan or log.",
		Attributes: map[string]schema.Attribute{
			"id": schema.StringAttribute{
				Computed: true, PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
				MarkdownDescription: "`SOURCE_HOST/NAME`; also what `terraform import` takes.",
			},
			"name": schema.StringAttribute{
				Required: true, PlanModifiers: replace,
				MarkdownDescription: "Names the pair, its unit `lockstep@NAME.service` and its module: a-z, 0-9 and -, up to 63. A change replaces the pair.",
			},
			"source": schema.SingleNestedAttribute{
				Required:            true,
				MarkdownDescription: "The directory that is watched.",
				Attributes: map[string]schema.Attribute{
					"host": schema.StringAttribute{Required: true, PlanModifiers: replace,
						MarkdownDescription: "The source host: a name of the provider's `hosts`, or whatever `ssh` reaches. A change replaces the pair."},
					"path": schema.StringAttribute{Required: true, PlanModifiers: replace,
						MarkdownDescription: "Absolute path of an existing directory. A change replaces the pair; no data is deleted."},
					"address": schema.StringAttribute{Optional: true, Computed: true,
						MarkdownDescription: "Address that the backup host sees the source host under; only it is let in. Default: the address in the provider's `hosts`, else `host`."},
					"checks":           checks,
					"lockstep_version": version,
				},
			},
			"backup": schema.SingleNestedAttribute{
				Required:            true,
				MarkdownDescription: "The directory that is kept equal, and the rsync daemon module that leads to it.",
				Attributes: map[string]schema.Attribute{
					"host": schema.StringAttribute{Required: true, PlanModifiers: replace,
						MarkdownDescription: "The backup host: a name of the provider's `hosts`, or whatever `ssh` reaches. A change replaces the pair."},
					"path": schema.StringAttribute{Required: true, PlanModifiers: replace,
						MarkdownDescription: "Absolute path; created if absent. A change replaces the pair; no data is deleted or moved."},
					"address": schema.StringAttribute{Optional: true, Computed: true,
						MarkdownDescription: "Address that the source host dials. Default: the address in the provider's `hosts`, else `host`."},
					"port": schema.Int64Attribute{Optional: true, Computed: true,
						MarkdownDescription: "Port that the source host dials: of the rsync daemon, which all pairs of a backup host share, or of sshd. Default: `873`, or `22` with `transport = \"ssh\"`."},
					"module": schema.StringAttribute{Optional: true, Computed: true,
						MarkdownDescription: "Name of the rsync module. Default: `name`."},
					"uid":              word(d.Backup.UID, "User that the module writes as; `root` keeps owners."),
					"gid":              word(d.Backup.GID, "Group that the module writes as."),
					"checks":           checks,
					"lockstep_version": version,
				},
			},
			"transport": word(d.Transport, "How the source host gets there: `daemon`, to the rsync daemon, or `ssh`, to sshd, with a key that is good for nothing but this module. A change switches in place; nothing is lost meanwhile."),
			"auth": groupOf("How the source host logs in.", map[string]schema.Attribute{
				"user": word(d.Auth.User, "rsync user, without the generation that is added to it (`lockstep-1`)."),
			}),
			"exclude": words(d.Exclude, "rsync patterns of what is not replicated; obeyed by watching, live batches and full batches alike."),
			"filter":  words(d.Filter, "rsync filter rules, for what `exclude` can't say."),
			"delete": groupOf("What a deletion in the source may do to the backup.", map[string]schema.Attribute{
				"enabled":     boolean(d.Delete.Enabled, "`false`: nothing is ever deleted on the backup."),
				"max_files":   number(d.Delete.MaxFiles, "A deletion of more entries than this, and of more than `max_percent`, is held until `lockstep approve NAME`."),
				"max_percent": number(d.Delete.MaxPercent, "See `max_files`; both limits must be exceeded. Of a source that was empty a moment ago this one alone decides."),
			}),
			"watch": groupOf("How changes are noticed and when they are sent.", map[string]schema.Attribute{
				"backend":   word(d.Watch.Backend, "`auto`, `fanotify` or `inotify`."),
				"events":    words(d.Watch.Events, "What counts as a change; some of `create`, `modify`, `attrib`, `delete`, `move`."),
				"delay":     span(d.Watch.Delay, "Quiet time of one path before it is sent."),
				"max_delay": span(d.Watch.MaxDelay, "A path that never goes quiet is sent at least this often."),
			}),
			"transfer": groupOf("The rsync runs.", map[string]schema.Attribute{
				"compress":        word(d.Transfer.Compress, "`zstd`, `lz4`, `zlibx`, `zlib`, or empty for none."),
				"bandwidth_limit": word(d.Transfer.BandwidthLimit, "As rsync's `--bwlimit`; empty for none."),
				"timeout":         span(d.Transfer.Timeout, "rsync's I/O timeout."),
				"parallel":        number(d.Transfer.Parallel, "How many rsync run at once."),
				"options":         words(d.Transfer.Options, "Further rsync options, from the list in lockstep.yaml(5)."),
			}),
			"full": groupOf("Comparisons of the whole tree, beside the one at every start.", map[string]schema.Attribute{
				"every":   word(d.Full.Every, "A duration, a cron line, or empty for only at start."),
				"exclude": words(d.Full.Exclude, "Patterns that full batches leave alone."),
			}),
			"retry": groupOf("The pause after a transfer that did not succeed.", map[string]schema.Attribute{
				"initial": span(d.Retry.Initial, "The first pause; it doubles from try to try."),
				"max":     span(d.Retry.Max, "The longest pause."),
			}),
			"hooks": schema.ListNestedAttribute{
				Optional: true, Computed: true,
				Default:             listdefault.StaticValue(types.ListValueMust(types.ObjectType{AttrTypes: hookTypes()}, nil)),
				NestedObject:        schema.NestedAttributeObject{Attributes: hookAttributes()},
				MarkdownDescription: withDefault("Who is told what has arrived on the backup: programs, sockets, web addresses. They run on the source host, after a batch has arrived and off the path of the transfers.", "[]"),
			},
			"metrics": groupOf("Prometheus metrics.", map[string]schema.Attribute{
				"listen": word(d.Metrics.Listen, "`host:port` to listen on; empty for the unix socket only."),
			}),
			"paused": boolean(d.Paused, "`true`: nothing is sent. Changes are gathered and go out when it is `false` again."),
			"password_wo": schema.StringAttribute{
				Optional: true, Sensitive: true, WriteOnly: true,
				Validators: []validator.String{
					stringvalidator.LengthAtLeast(1),
					stringvalidator.AlsoRequires(path.MatchRoot("password_wo_version")),
				},
				MarkdownDescription: "The rsync password, if it must be a given one. It goes to both hosts and is kept nowhere else. Without it the backup host makes one that nobody ever sees: leave it out. Sent only when the pair is created, when `password_wo_version` changes, or when it has to be mended on a host.",
			},
			"password_wo_version": schema.Int64Attribute{
				Optional:            true,
				Validators:          []validator.Int64{int64validator.AtLeast(0)},
				MarkdownDescription: "Change it to rotate the password, a made one as well as a given one. Transfers go on meanwhile: the backup host accepts both until the source host has switched.",
			},
			"timeouts": timeouts.Attributes(context.Background(), timeouts.Opts{
				Create: true, Read: true, Update: true, Delete: true,
				CreateDescription: "How long a creation may take, as in `10m` (default). It does not wait for the data to be copied.",
				ReadDescription:   "How long a refresh may take; default `5m`.",
				UpdateDescription: "How long an update may take; default `10m`.",
				DeleteDescription: "How long a destruction may take; default `10m`.",
			}),
		},
	}
}

// hookAttributes are the fields of one hook. Those that belong to one type are null for the others.
func hookAttributes() map[string]schema.Attribute {
	d := pair.DefaultHook()
	own := func(description string) schema.StringAttribute {
		return schema.StringAttribute{Optional: true, MarkdownDescription: description}
	}
	return map[string]schema.Attribute{
		"name":          schema.StringAttribute{Required: true, MarkdownDescription: "Names the hook within the pair."},
		"type":          schema.StringAttribute{Required: true, MarkdownDescription: "`command`, `socket` or `http`."},
		"include":       words(d.Include, "rsync patterns of the paths that it is told of; empty for all."),
		"timeout":       span(d.Timeout, "How long one call may take."),
		"retries":       number(d.Retries, "Further calls after one that failed."),
		"argv":          schema.ListAttribute{Optional: true, ElementType: types.StringType, MarkdownDescription: "command: program and arguments, without a shell. An argument `{path}` makes one call for each path; otherwise the paths of a batch come on standard input."},
		"ignore_errors": schema.BoolAttribute{Optional: true, MarkdownDescription: "command: any exit status is a success."},
		"network":       own("socket: `tcp` or `unix`; default as `address` looks."),
		"address":       own("socket: `host:port`, or the path of the socket."),
		"url":           own("http: where to; `{path}` in it makes one call for each path, otherwise each batch is sent as JSON."),
		"method":        own("http: default `POST`, with `{path}` in the URL `GET`."),
		"match":         own("http, with `{path}`: a regular expression for the absolute path; its first group becomes `{path}`."),
		"kind":          own("http, with `{path}`: `file` or `dir`; default both."),
		"headers_file":  own("http: a file on the source host, of mode 0600, with lines `Name: value`."),
	}
}

func hookTypes() map[string]attr.Type {
	out := map[string]attr.Type{}
	for key, a := range hookAttributes() {
		out[key] = a.GetType()
	}
	return out
}

// withDefault ends a description.
func withDefault(description, value string) string {
	if value == "" {
		value = `""`
	}
	return description + " Default: `" + value + "`."
}

func word(value, description string) schema.StringAttribute {
	return schema.StringAttribute{Optional: true, Computed: true, Default: stringdefault.StaticString(value),
		MarkdownDescription: withDefault(description, value)}
}

// span is a duration. Another spelling of the same time is no change.
func span(value pair.Duration, description string) schema.StringAttribute {
	a := word(value.String(), description)
	a.PlanModifiers = []planmodifier.String{sameSpan{}}
	return a
}

func number(value int, description string) schema.Int64Attribute {
	return schema.Int64Attribute{Optional: true, Computed: true, Default: int64default.StaticInt64(int64(value)),
		MarkdownDescription: withDefault(description, fmt.Sprint(value))}
}

func boolean(value bool, description string) schema.BoolAttribute {
	return schema.BoolAttribute{Optional: true, Computed: true, Default: booldefault.StaticBool(value),
		MarkdownDescription: withDefault(description, fmt.Sprint(value))}
}

func words(value []string, description string) schema.ListAttribute {
	said := "[]"
	if len(value) > 0 {
		said = `["` + strings.Join(value, `", "`) + `"]`
	}
	return schema.ListAttribute{Optional: true, Computed: true, ElementType: types.StringType,
		Default: listdefault.StaticValue(stringList(value)), MarkdownDescription: withDefault(description, said)}
}

// groupOf is an object that may be left out as a whole: it then has the defaults of its attributes.
func groupOf(description string, attributes map[string]schema.Attribute) schema.SingleNestedAttribute {
	attrTypes, values := map[string]attr.Type{}, map[string]attr.Value{}
	ctx := context.Background()
	for key, a := range attributes {
		attrTypes[key] = a.GetType()
		switch a := a.(type) {
		case schema.StringAttribute:
			var resp defaults.StringResponse
			a.Default.DefaultString(ctx, defaults.StringRequest{}, &resp)
			values[key] = resp.PlanValue
		case schema.Int64Attribute:
			var resp defaults.Int64Response
			a.Default.DefaultInt64(ctx, defaults.Int64Request{}, &resp)
			values[key] = resp.PlanValue
		case schema.BoolAttribute:
			var resp defaults.BoolResponse
			a.Default.DefaultBool(ctx, defaults.BoolRequest{}, &resp)
			values[key] = resp.PlanValue
		case schema.ListAttribute:
			var resp defaults.ListResponse
			a.Default.DefaultList(ctx, defaults.ListRequest{}, &resp)
			values[key] = resp.PlanValue
		}
	}
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true, Attributes: attributes, MarkdownDescription: description,
		Default: objectdefault.StaticValue(types.ObjectValueMust(attrTypes, values)),
	}
}

// sameSpan keeps the spelling of the state when the configuration means the same time: 60s is 1m.
type sameSpan struct{}

func (sameSpan) Description(context.Context) string {
	return "another spelling of the same time is no change"
}
func (sameSpan) MarkdownDescription(context.Context) string {
	return "another spelling of the same time is no change"
}

func (sameSpan) PlanModifyString(_ context.Context, req planmodifier.StringRequest, resp *planmodifier.StringResponse) {
	if slices.ContainsFunc([]types.String{req.StateValue, req.PlanValue}, func(v types.String) bool { return v.IsNull() || v.IsUnknown() }) {
		return
	}
	have, err1 := pair.ParseDuration(req.StateValue.ValueString())
	want, err2 := pair.ParseDuration(req.PlanValue.ValueString())
	if err1 == nil && err2 == nil && have == want {
		resp.PlanValue = req.StateValue
	}
}
