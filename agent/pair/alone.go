// SPDX-License-Identifier: Apache-2.0

package pair

import "reflect"

// None is the transport of a pair without a backup: its source is watched, and hooks are told of what changes.
const None = "none"

// HooksOnly reports whether the pair has no backup.
func (p Pair) HooksOnly() bool { return p.Transport == None }

// hooksOnly checks what a pair without a backup may say.
func (v *validator) hooksOnly(p Pair) {
	v.name(p)
	v.host("source.host", p.Source.Host, "write the source host's name or address")
	if p.Source.Address != p.Source.Host {
		v.host("source.address", p.Source.Address, "write the source host's address")
	}
	v.path("source.path", p.Source.Path, "write the directory to watch, as in /data")
	v.patterns(p)
	v.watch(p)
	v.listen(p)
	d := Defaults()
	if p.Backup != d.Backup {
		v.add("backup", "a pair with transport none has no backup",
			"remove it. Such a pair lives on one host, without Terraform and Ansible, which make pairs of two: write the definition there, and lockstep apply --role source --definition FILE")
	}
	for _, f := range []struct {
		name   string
		is, no any
	}{
		{"auth", p.Auth, d.Auth}, {"filter", p.Filter, d.Filter}, {"delete", p.Delete, d.Delete},
		{"transfer", p.Transfer, d.Transfer}, {"full", p.Full, d.Full}, {"retry", p.Retry, d.Retry},
	} {
		if !reflect.DeepEqual(f.is, f.no) {
			v.add(f.name, "is about a backup, which a pair with transport none does not have", "remove it")
		}
	}
	if len(p.Hooks) == 0 {
		v.add("hooks", "is empty, so a pair with transport none would do nothing", "write whom to tell; see lockstep.yaml(5)")
	}
	v.hooks(p)
}
