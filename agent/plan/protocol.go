// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/lockstep-sync/lockstep/agent/pair"

// Protocol is the version of the request and the reply that front ends and host binary exchange.
const Protocol = 1

// Role is the end of the pair that a host plays.
type Role string

const (
	Source Role = "source"
	Backup Role = "backup"
)

// Request is what a front end writes, as JSON, to the standard input of
// `lockstep plan|apply|read|destroy --role ROLE --json`. Read and destroy need the pair's name only; read then
// compares the host with the definition that is stored there.
//
// A front end that makes a pair calls, in this order:
//
//  1. plan on the source host, then plan on the backup host, and goes on only if both have no problems
//  2. apply with prepare on the source host: answers public_key, having made the host's key if it had none
//  3. apply with recipient (and password, rotate) on the backup host: answers sealed_password and fingerprint
//  4. apply with sealed_password (and the same password) on the source host: answers fingerprint
//  5. apply with that fingerprint on the backup host: ends a rotation, and otherwise changes nothing
//
// The same calls heal and update a pair. The sealed password is to be relayed also when the user gave the
// password: it carries the user name and what the fingerprint is made with. When the read (or plan) of either
// side answers other fingerprints, or an empty one, steps 2 to 5 mend it.
//
// What goes from host to host means nothing to who relays it. With transport ssh, public_key also has the pair's ssh key,
// sealed_password the host keys of the backup host's sshd, and the fingerprint is of these two as well.
type Request struct {
	Protocol int       `json:"protocol"`
	Pair     pair.Pair `json:"pair"`
	// Recipient is the source host's public key (base64), to which the backup host seals the password.
	Recipient string `json:"recipient,omitempty"`
	// SealedPassword is the backup host's answer, relayed to the source host (base64).
	SealedPassword string `json:"sealed_password,omitempty"`
	// Password is a password given by the user; it goes to both hosts instead of a generated one.
	Password string `json:"password,omitempty"`
	// Fingerprint is the other side's keyed fingerprint. The backup host compares it with its own; when its
	// newest generation matches, `apply` drops the older generations that a rotation kept valid.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Prepare makes `apply` on the source host stop after it has made sure of the host's key: the reply has
	// public_key, and nothing else is looked at.
	Prepare bool `json:"prepare,omitempty"`
	// Rotate makes a new password generation even though a valid one exists (backup role only).
	Rotate bool `json:"rotate,omitempty"`
	// Absent makes `plan` answer what `destroy` would do. It needs the pair's name only, as destroy does.
	Absent bool `json:"absent,omitempty"`
}

// Reply is what the host binary answers on standard output.
type Reply struct {
	Protocol int      `json:"protocol"`
	Changed  bool     `json:"changed"` // plan: would change; apply and destroy: did change
	Changes  []Change `json:"changes"`
	// Checks has one entry for each object of the role: "in sync" or what differs, in words.
	// Source: definition, secret, unit, service, limits, source_dir. Backup: definition, module, secrets, daemon,
	// directory. With transport ssh both have login, and the backup host no daemon.
	Checks map[string]string `json:"checks"`
	// Exists is whether this host holds any object of the pair in this role.
	Exists bool `json:"exists"`
	// Pair is the definition as stored on this host; nil when there is none. For import.
	Pair           *pair.Pair        `json:"pair,omitempty"`
	PublicKey      string            `json:"public_key,omitempty"`
	SealedPassword string            `json:"sealed_password,omitempty"`
	Fingerprint    string            `json:"fingerprint,omitempty"`
	Versions       map[string]string `json:"versions,omitempty"` // lockstep, rsync, systemd, kernel, os, arch
	Remaining      int               `json:"remaining"`          // pairs of any role left on this host after destroy
	Problems       []pair.Problem    `json:"problems,omitempty"`
	// Warnings are what may come to be in the way, as far as plan and apply on the backup host see it: nothing is held up by them.
	Warnings []pair.Problem `json:"warnings,omitempty"`
}

// InSync is the value of a check that found nothing to differ.
const InSync = "in sync"

// Change is one difference between the desired and the current state of a host.
type Change struct {
	Object string `json:"object"`         // as in Reply.Checks
	Path   string `json:"path"`           // the file, unit or directory
	Action string `json:"action"`         // create, update, delete, start, stop, restart, enable, disable, reload
	Diff   string `json:"diff,omitempty"` // unified diff without secrets
}
