// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// trouble collects diagnostics from both hosts, in the order of the roles.
type trouble struct{ both[diag.Diagnostics] }

func (t *trouble) all() diag.Diagnostics { return append(slices.Clone(t.source), t.backup...) }

// hostDiagnostic says what went wrong on a host, or on the way to it.
func hostDiagnostic(role plan.Role, err error) diag.Diagnostic {
	var e *hostError
	if !errors.As(err, &e) {
		return diag.NewErrorDiagnostic("Unexpected error", err.Error())
	}
	detail := fmt.Sprintf("%s: %s: %v", e.At, e.Step, e.Err)
	if e.Hint != "" {
		detail += "\n\n" + e.Hint
	}
	if role == "" {
		return diag.NewErrorDiagnostic(fmt.Sprintf("host %q: %s", e.Host, e.summary()), detail)
	}
	return diag.NewAttributeErrorDiagnostic(path.Root(string(role)), fmt.Sprintf("%s host %q: %s", role, e.Host, e.summary()), detail)
}

// summary is the error in a few words.
func (e *hostError) summary() string {
	switch e.Step {
	case "resolve":
		return "where it is is not known"
	case "connect":
		return "not reachable"
	case "host key":
		return "host key refused"
	case "log in":
		return "log-in refused"
	case "sudo":
		return "sudo refused"
	}
	return e.Step + " failed"
}

// problemDiagnostics turns what a host found wrong into diagnostics, each at its attribute.
func (h *host) problemDiagnostics(ctx context.Context, role plan.Role, problems []pair.Problem) diag.Diagnostics {
	var diags diag.Diagnostics
	at := h.pool.At(ctx, h.name)
	for _, p := range problems {
		where := fmt.Sprintf("%s host %q", role, h.name)
		summary := where + ": " + strings.TrimPrefix(p.Path+": ", ": ") + p.Msg
		detail := fmt.Sprintf("Found on %s.", at)
		if p.Hint != "" {
			detail += "\n\n" + p.Hint
		}
		diags.AddAttributeError(attributeOf(role, p.Path), h.redact(summary), h.redact(detail))
	}
	return diags
}

// warningDiagnostics turns what a host warns of into diagnostics.
func (h *host) warningDiagnostics(ctx context.Context, role plan.Role, warnings []pair.Problem) diag.Diagnostics {
	var diags diag.Diagnostics
	for _, d := range h.problemDiagnostics(ctx, role, warnings) {
		if at, ok := d.(diag.DiagnosticWithPath); ok {
			diags.AddAttributeWarning(at.Path(), d.Summary(), d.Detail())
		}
	}
	return diags
}

// attributeOf is the attribute of the resource that a field's path, or an object of a role, belongs to.
func attributeOf(role plan.Role, field string) path.Path {
	root := group(field)
	if root == "password" {
		return path.Root("password_wo")
	}
	if _, ok := pairSchema().Attributes[root]; ok && root != "definition" {
		return path.Root(root)
	}
	return path.Root(string(role))
}

// definitionDiagnostics turns what is wrong with a definition into diagnostics.
func definitionDiagnostics(problems pair.Problems) diag.Diagnostics {
	var diags diag.Diagnostics
	for _, p := range problems {
		detail := p.Hint
		if detail == "" {
			detail = "See lockstep.yaml(5)."
		} else {
			detail = strings.ToUpper(detail[:1]) + detail[1:] + "."
		}
		summary := p.Msg
		if p.Path != "" {
			summary = p.Path + ": " + summary
		}
		if root := group(p.Path); root != "" {
			diags.AddAttributeError(path.Root(root), summary, detail)
			continue
		}
		diags.AddError(summary, detail)
	}
	return diags
}
