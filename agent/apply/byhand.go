// SPDX-License-Identifier: Apache-2.0

package apply

import "github.com/lockstep-sync/lockstep/agent/plan"

// unknownToSource is what the source host will not know after an apply of the backup role alone, of a pair that is there already. A
// front end brings it over; a person has to be told. newest is the password that the module is to take.
func (s *session) unknownToSource(newest plan.Secret) (ws []plan.Problem) {
	old := s.reply.Pair
	if !s.cmd.ByHand || !s.reply.Exists || s.cmd.Verb == plan.Read {
		return nil
	}
	p := s.req.Pair
	made := s.rec.Pairs[p.Name][plan.Backup].Secrets[newest.User] != s.rec.digest(secretLine(newest))
	if made && s.req.Recipient == "" && s.req.Password == "" {
		w := plan.Problem{Path: "secrets", Msg: "a new password was made; the source host does not have it yet",
			Hint: "bring it over: on the source host, lockstep apply --role source --definition FILE --prepare prints a KEY; here, lockstep apply --role backup" +
				" --definition FILE --recipient KEY prints a TEXT; on the source host, lockstep apply --role source --definition FILE --sealed-password TEXT"}
		if s.cmd.Verb == plan.Plan {
			w.Msg = "apply would make a new password, which the source host does not have"
		}
		ws = append(ws, w)
	}
	if s.cmd.Verb != plan.Apply || old == nil {
		return ws
	}
	switch {
	case old.Backup.Module != p.Backup.Module:
		ws = append(ws, plan.Problem{Path: "backup.module", Msg: "the agent does not know of the new module yet, and goes on sending to the old one",
			Hint: "apply the source role now"})
	case old.Backup.Path != p.Backup.Path:
		ws = append(ws, plan.Problem{Path: "backup.path", Msg: "the agent does not know yet that the backup is in another directory, and may call the pair in step though that is empty",
			Hint: "apply the source role now, or lockstep sync " + p.Name + " on the source host"})
	}
	return ws
}
