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
// `lockstep plan|apply|read|destroy --role ROLE --json`.
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
	// Rotate makes a new password generation even though a valid one exists (backup role only).
	Rotate bool `json:"rotate,omitempty"`
}

// Reply is what the host binary answers on standard output.
type Reply struct {
	Protocol int      `json:"protocol"`
	Changed  bool     `json:"changed"` // plan: would change; apply and destroy: did change
	Changes  []Change `json:"changes"`
	// Checks has one entry for each object of the role: "in sync" or what differs, in words.
	// Source: definition, secret, unit, service, limits, source_dir.
	// Backup: definition, module, secrets, daemon, directory.
	Checks map[string]string `json:"checks"`
	// Exists is whether this host holds any object of the pair.
	Exists bool `json:"exists"`
	// Pair is the definition as stored on this host; nil when there is none. For import.
	Pair           *pair.Pair        `json:"pair,omitempty"`
	PublicKey      string            `json:"public_key,omitempty"`
	SealedPassword string            `json:"sealed_password,omitempty"`
	Fingerprint    string            `json:"fingerprint,omitempty"`
	Versions       map[string]string `json:"versions,omitempty"` // lockstep, rsync, systemd, kernel, os
	Remaining      int               `json:"remaining"`          // pairs of any role left on this host after destroy
	Problems       []pair.Problem    `json:"problems,omitempty"`
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
