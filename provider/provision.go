// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// ends are the two hosts of one pair; source and backup may be the same host.
type ends struct {
	client *client
	source *host
	backup *host
	// pair is as the configuration or the state has it.
	pair pair.Pair
}

func (c *client) ends(p pair.Pair) *ends {
	return &ends{client: c, source: c.host(p.Source.Host), backup: c.host(p.Backup.Host), pair: p}
}

func (e *ends) host(role plan.Role) *host {
	if role == plan.Source {
		return e.source
	}
	return e.backup
}

// both holds one value for each role.
type both[T any] struct{ source, backup T }

func (b *both[T]) at(role plan.Role) *T {
	if role == plan.Source {
		return &b.source
	}
	return &b.backup
}

var roles = []plan.Role{plan.Source, plan.Backup}

// preflight plans on both hosts without changing anything. All problems of both are told in one go.
func (e *ends) preflight(ctx context.Context, req plan.Request) (both[plan.Reply], diag.Diagnostics) {
	var replies both[plan.Reply]
	var t trouble
	req.Pair = e.pair
	onBoth(func(role plan.Role) {
		h := e.host(role)
		b, err := h.trial(ctx)
		if err != nil {
			t.at(role).Append(hostDiagnostic(role, err))
			return
		}
		defer b.done()
		if b.warning != "" {
			t.at(role).AddAttributeWarning(path.Root(string(role)), fmt.Sprintf("%s host %q: lockstep is older than the provider", role, h.name), b.warning)
		}
		reply, err := h.call(ctx, b.path, plan.Plan, role, req)
		if err != nil {
			t.at(role).Append(hostDiagnostic(role, err))
			return
		}
		if b.staged != nil { // it is about the temporary directory; the installed one is root's
			reply.Problems = slices.DeleteFunc(reply.Problems, func(p pair.Problem) bool { return p.Path == plan.ProgramProblem })
		}
		*replies.at(role) = reply
		t.at(role).Append(h.problemDiagnostics(ctx, role, reply.Problems)...)
		t.at(role).Append(h.warningDiagnostics(ctx, role, reply.Warnings)...)
	})
	return replies, t.all()
}

// unstage removes what preflight has put on the hosts for a while.
func (e *ends) unstage() { onBoth(func(role plan.Role) { e.host(role).unstage() }) }

// unreachable lists the hosts that do not answer.
func (e *ends) unreachable(ctx context.Context) (names []string) {
	for _, role := range roles {
		var h *hostError
		if _, err := e.host(role).look(ctx); errors.As(err, &h) && h.Unreachable {
			names = append(names, e.host(role).name)
		}
	}
	return names
}

// existing refuses to create a pair that is on both hosts already. inState is whether the state that this run began with has it.
func (e *ends) existing(replies both[plan.Reply], inState bool) diag.Diagnostics {
	var diags diag.Diagnostics
	if !replies.source.Exists || !replies.backup.Exists {
		return diags
	}
	summary := fmt.Sprintf("Pair %q exists already on both hosts", e.pair.Name)
	if inState {
		diags.AddAttributeError(path.Root("name"), summary,
			"This state has it, under another address or marked as tainted. Its new address is told by a block in the configuration:\n\n"+
				"    moved {\n      from = lockstep_pair.OLD\n      to   = lockstep_pair.NEW\n    }\n\nWhat is tainted is healed in place after\n\n    terraform untaint ADDRESS")
	} else {
		id := pairID(e.pair.Source.Host, e.pair.Name)
		diags.AddAttributeError(path.Root("name"), summary,
			fmt.Sprintf("It is on source host %q and backup host %q, and not in this state. Take it over with\n\n    terraform import lockstep_pair.NAME %s\n\nor, in the configuration,\n\n    import {\n      to = lockstep_pair.NAME\n      id = %q\n    }",
				e.source.name, e.backup.name, id, id))
	}
	return diags
}

// job is one run of the exchange that makes a pair what its definition says.
type job struct {
	*ends
	create   bool   // nothing of it is expected on the hosts; what is made is undone if it fails
	rotate   bool   // make a new password generation
	password string // given by the user; empty: the backup host makes one
}

// outcome is what the hosts say afterwards.
type outcome struct {
	checks   both[map[string]string]
	versions both[string]
	begun    both[bool] // an apply was tried there
	kept     bool       // create: what was made could not be undone, so it must be remembered
	// installed is set once the hosts may have been changed.
	installed bool
}

func (o *outcome) take(role plan.Role, transport string, reply plan.Reply) {
	*o.checks.at(role) = checksOf(role, transport, reply)
	*o.versions.at(role) = reply.Versions["lockstep"]
}

// run does it, in the order that the protocol prescribes: plan on both hosts, and nothing is changed unless
// both agree; then the source host's key, the backup host, the source host, and the end of a rotation.
func (j *job) run(ctx context.Context) (outcome, diag.Diagnostics) {
	var out outcome
	release, err := useBoth(ctx, j.source, j.backup)
	if err != nil {
		return out, diag.Diagnostics{diag.NewErrorDiagnostic("Cancelled", err.Error())}
	}
	defer release()
	if j.create {
		if diags := j.waitForHosts(ctx); diags.HasError() {
			return out, diags
		}
	}
	replies, diags := j.preflight(ctx, plan.Request{Rotate: j.rotate, Password: j.password})
	if j.create && !diags.HasError() {
		diags.Append(j.existing(replies, false)...)
	}
	if diags.HasError() {
		j.unstage()
		return out, diags
	}

	var t trouble
	var binaries both[binary]
	onBoth(func(role plan.Role) {
		b, err := j.host(role).ready(ctx)
		*binaries.at(role) = b
		if err != nil {
			t.at(role).Append(hostDiagnostic(role, err))
		}
	})
	diags.Append(t.all()...)
	if !diags.HasError() {
		var failed diag.Diagnostics
		out, failed = j.exchange(ctx, replies, binaries)
		diags.Append(failed...)
	}
	out.installed = true
	if diags.HasError() && j.create {
		undo := j.undo(ctx, replies, out.begun)
		out.kept = undo.HasError()
		diags.Append(undo...)
	}
	return out, diags
}

func (j *job) waitForHosts(ctx context.Context) diag.Diagnostics {
	var t trouble
	onBoth(func(role plan.Role) {
		h := j.host(role)
		if err := h.pool.Wait(ctx, h.name, j.client.waitForHost); err != nil {
			t.at(role).Append(hostDiagnostic(role, h.fail(ctx, "connect", err, "")))
		}
	})
	return t.all()
}

// exchange applies the definition. before are the replies of the plan.
func (j *job) exchange(ctx context.Context, before both[plan.Reply], binaries both[binary]) (outcome, diag.Diagnostics) {
	var out outcome
	var diags diag.Diagnostics
	apply := func(role plan.Role, req plan.Request) (plan.Reply, bool) {
		req.Pair = j.pair
		h := j.host(role)
		*out.begun.at(role) = true
		reply, err := h.call(ctx, binaries.at(role).path, plan.Apply, role, req)
		if err != nil {
			diags.Append(hostDiagnostic(role, err))
			return reply, false
		}
		for _, change := range reply.Changes {
			tflog.Info(ctx, "changed", map[string]any{"host": h.name, "role": string(role), "object": change.Object, "path": change.Path, "action": change.Action})
		}
		diags.Append(h.problemDiagnostics(ctx, role, reply.Problems)...)
		return reply, len(reply.Problems) == 0
	}

	key, ok := apply(plan.Source, plan.Request{Prepare: true})
	if !ok {
		return out, diags
	}
	// A given password may be another one in every run: it goes out only where a password is to be set.
	lost := before.source.Fingerprint == "" || before.source.Fingerprint != before.backup.Fingerprint
	password := ""
	if j.create || j.rotate || lost {
		password = j.password
	}
	backup, ok := apply(plan.Backup, plan.Request{Recipient: key.PublicKey, Rotate: j.rotate, Password: password})
	if !ok {
		return out, diags
	}
	out.take(plan.Backup, j.pair.Transport, backup)
	source, ok := apply(plan.Source, plan.Request{SealedPassword: backup.SealedPassword, Password: password})
	if !ok {
		return out, diags
	}
	out.take(plan.Source, j.pair.Transport, source)
	if source.Fingerprint != backup.Fingerprint {
		diags.AddAttributeError(path.Root("source"), fmt.Sprintf("source host %q: it did not take over the password", j.source.name),
			"After the exchange the two hosts answer different fingerprints of the password (with transport ssh, also of each other's ssh keys). This is a bug of lockstep; apply again, and report it if it stays.")
		return out, diags
	}
	if before.backup.Exists { // a rotation ends when the source host has shown that it has switched
		backup, ok = apply(plan.Backup, plan.Request{Fingerprint: source.Fingerprint})
		if !ok {
			return out, diags
		}
		out.take(plan.Backup, j.pair.Transport, backup)
	}
	diags.Append(j.verify(ctx, out, binaries.source.path)...)
	return out, diags
}

// undoTime bounds the undoing after a failure, whose own time may be up.
const undoTime = 2 * time.Minute

// undo removes what this run has made: the pair from the hosts that did not have it before, source first.
func (j *job) undo(ctx context.Context, before both[plan.Reply], begun both[bool]) diag.Diagnostics {
	var diags diag.Diagnostics
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	for _, role := range roles {
		h := j.host(role)
		if before.at(role).Exists || !*begun.at(role) {
			continue
		}
		err := j.destroyOne(ctx, role)
		if err == nil && role == plan.Backup {
			err = j.removeEmpty(ctx, before.backup)
		}
		if err != nil {
			diags.Append(hostDiagnostic(role, err))
			diags.AddAttributeError(path.Root(string(role)), fmt.Sprintf("%s host %q: what this run had made could not be undone", role, h.name),
				fmt.Sprintf("Parts of pair %q are still there; no data was touched. Terraform marks the pair as tainted. When the cause is gone,\n\n"+
					"    terraform untaint ADDRESS\n    terraform apply\n\nheals it in place.", j.pair.Name))
		}
	}
	return diags
}

// removeEmpty removes the backup directory, and those above it, if this run made them and nothing has come into
// them; destroy leaves directories alone.
func (j *job) removeEmpty(ctx context.Context, before plan.Reply) error {
	var made []string
	for _, c := range before.Changes {
		if c.Object == "directory" && c.Action == "create" && strings.HasPrefix(j.pair.Backup.Path+"/", c.Path+"/") {
			made = append(made, c.Path)
		}
	}
	if len(made) == 0 {
		return nil
	}
	slices.SortFunc(made, func(a, b string) int { return len(b) - len(a) })
	return j.backup.shell(ctx, "remove the empty backup directory", `rmdir -- "$@" 2>/dev/null || true`, made...)
}

// destroyOne removes the pair from one host.
func (e *ends) destroyOne(ctx context.Context, role plan.Role) error {
	h := e.host(role)
	b, err := h.present(ctx)
	if err == nil && b.path == "" { // removed by hand: what it made may still be there
		b, err = h.trial(ctx)
	}
	if err != nil {
		return err
	}
	defer b.done()
	reply, err := h.call(ctx, b.path, plan.Destroy, role, plan.Request{Pair: e.pair})
	if err != nil {
		return err
	}
	if len(reply.Problems) > 0 {
		p := reply.Problems[0]
		return h.fail(ctx, "lockstep destroy", errors.New(pair.Problems(reply.Problems).Error()), p.Hint)
	}
	return nil
}

// withdraw removes the uploaded binaries from hosts that have no pair any more. The caller uses neither host.
func (e *ends) withdraw(ctx context.Context) diag.Diagnostics {
	var t trouble
	onBoth(func(role plan.Role) {
		if role == plan.Backup && e.source == e.backup {
			return
		}
		h := e.host(role)
		err := h.withdraw(ctx, func() (bool, error) {
			b, err := h.present(ctx)
			if err != nil || b.path == "" {
				return false, err
			}
			reply, err := h.call(ctx, b.path, plan.Destroy, role, plan.Request{Pair: e.pair}) // once more: it counts
			return err == nil && len(reply.Problems) == 0 && reply.Remaining == 0, err
		})
		if err != nil {
			t.at(role).Append(diag.NewWarningDiagnostic(fmt.Sprintf("%s host %q: the lockstep binary stays", role, h.name),
				fmt.Sprintf("The pair is gone; only the binary that was uploaded could not be removed: %v", err)))
		}
	})
	return t.all()
}
