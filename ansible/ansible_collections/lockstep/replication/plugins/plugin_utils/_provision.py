# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which the two hosts of a pair are asked and changed.

Both are asked first, and nothing is changed unless both answer without a problem. Present: the key of the
source host, the backup host, the source host; so the agent never starts before there is a module to talk
to. Absent: the source host first; so no agent is left to run against a module that is gone. agent/plan/protocol.go
of the lockstep sources tells what each request does.

It knows nothing of Ansible: it is given a function that puts a request to a host.
"""

from __future__ import annotations

from ansible_collections.lockstep.replication.plugins.plugin_utils import _reply

SIDES = ('source', 'backup')


class Refused(Exception):
    """The end of a run, with the result to return."""

    def __init__(self, msg, **result):
        super().__init__(msg)
        self.result = dict(result, failed=True, msg=msg)


def words(side, host, outcome):
    """What went wrong on a host, for people, each line with the side and the host."""
    text = outcome.get('msg') or 'no answer'
    if outcome.get('unreachable'):
        text = 'unreachable: %s' % text.strip()
    lines = [line if line.startswith('  ') else '%s host %s: %s' % (side, host, line) for line in text.split('\n')]
    if outcome.get('hint'):
        lines.append('  hint: %s' % outcome['hint'])
    return '\n'.join(lines)


class Provision:
    """One run over both hosts of a pair.

    ask(side, command, request) puts a request to the host of a side and returns the outcome: failed, reply,
    msg, and missing, unreachable and hint where they apply.
    """

    def __init__(self, pair, ask, check_mode=False):
        self.pair = pair
        self.hosts = {side: pair[side]['host'] for side in SIDES}
        self.ask = ask
        self.check_mode = check_mode
        self.warnings = []
        self.replies = {}
        self.changes = {side: [] for side in SIDES}
        self.changed = {side: False for side in SIDES}

    def result(self):
        """What has been found and done so far."""
        out = dict(name=self.pair['name'], changed=any(self.changed.values()))
        for side, reply in self.replies.items():
            out[side] = dict(
                host=self.hosts[side],
                changed=self.changed[side],
                # The text of a change is in the diff, for those who ask for it.
                changes=[{k: v for k, v in change.items() if k != 'diff'} for change in self.changes[side]],
                checks=reply.get('checks') or {},
                fingerprint=reply.get('fingerprint') or '',
                versions=reply.get('versions') or {},
            )
        if self.warnings:
            out['warnings'] = self.warnings
        return out

    def diff(self):
        entries = []
        for side in SIDES:
            entries += _reply.diff(self.hosts[side], self.changes[side])
        return entries

    def present(self, password=None, rotate=False):
        given = dict(password=password) if password else {}
        # The backup host compares its password with the source host's, so the source host is asked first.
        outcomes = dict(source=self._ask('source', 'plan', **given))
        source = outcomes['source'].get('reply') or {}
        outcomes['backup'] = self._ask(
            'backup', 'plan', rotate=rotate, recipient=source.get('public_key'),
            fingerprint=source.get('fingerprint'), **given)
        if not self._take_plans(outcomes):
            return
        mismatch = self._password_mismatch()
        if not any(self.changed.values()) and not mismatch:
            return
        if not self.check_mode:
            self._apply_present(given, rotate)
        elif mismatch:
            self.changed['source'] = True
            self.changes['source'].append(dict(
                object='secret', path='/etc/lockstep/secrets/' + self.pair['name'], action='update', note=mismatch))

    def _apply_present(self, given, rotate):
        self._begin_changes()
        source = self._change('source', 'apply', prepare=True)
        backup = self._change('backup', 'apply', recipient=source.get('public_key'), rotate=rotate, **given)
        source = self._change('source', 'apply', sealed_password=backup.get('sealed_password'), **given)
        # From now on the source host uses the password, so the module need not take an older one any more.
        self._change('backup', 'apply', fingerprint=source.get('fingerprint'), **given)

    def absent(self):
        outcomes = {side: self._ask(side, 'plan', absent=True) for side in SIDES}
        if not self._take_plans(outcomes) or self.check_mode or not any(self.changed.values()):
            return
        self._begin_changes()
        for side in SIDES:
            self._change(side, 'destroy')

    def _request(self, fields):
        request = {name: value for name, value in fields.items() if value}
        request['pair'] = self.pair
        return request

    def _ask(self, side, command, **fields):
        return self.ask(side, command, self._request(fields))

    def _take_plans(self, outcomes):
        """Takes over what both hosts answered. False when a host could not say and that is all right."""
        failed = {side: o for side, o in outcomes.items() if o.get('failed')}
        for side, o in outcomes.items():
            if o.get('reply'):
                self._take(side, o['reply'])
        unknown = [side for side, o in failed.items() if o.get('missing') and self.check_mode]
        failed = {side: o for side, o in failed.items() if side not in unknown}
        if failed:
            raise self._refused(failed)
        for side in unknown:
            self.changed[side] = True
            self.warnings.append(
                '%s host %s has no lockstep yet, so what would be changed there is not known' % (side, self.hosts[side]))
        if any(self.changed.values()):  # a pair that is there and stays as it is was told before
            for side, reply in self.replies.items():
                for w in reply.get('warnings') or []:
                    self.warnings.append('%s host %s: %s' % (side, self.hosts[side], _reply.problem_text(w)))
        return not unknown

    def _refused(self, failed):
        problems = []
        for side, o in failed.items():
            for p in (o.get('reply') or {}).get('problems') or []:
                problems.append(dict(p, host=self.hosts[side], side=side))
        result = dict(name=self.pair['name'])
        if problems:
            result['problems'] = problems
        return Refused(
            'pair "%s": nothing was changed\n%s' % (self.pair['name'], '\n'.join(words(s, self.hosts[s], o) for s, o in failed.items())),
            changed=False, unreachable_sides=[s for s, o in failed.items() if o.get('unreachable')], **result)

    def _take(self, side, reply):
        self.replies[side] = reply
        self.changes[side] = self.changes[side] + (reply.get('changes') or [])
        self.changed[side] = self.changed[side] or bool(reply.get('changed'))

    def _begin_changes(self):
        """From here on, what is reported is what was done and not what was planned."""
        self.changes = {side: [] for side in SIDES}
        self.changed = {side: False for side in SIDES}

    def _change(self, side, command, **fields):
        o = self._ask(side, command, **fields)
        reply = o.get('reply') or {}
        if reply:
            self._take(side, reply)
        if o.get('failed'):
            other = 'backup' if side == 'source' else 'source'
            done = 'and %s host %s was changed before that' % (other, self.hosts[other])
            if not self.changed[other]:
                done = 'and %s host %s was not changed' % (other, self.hosts[other])
            raise Refused(
                'pair "%s": lockstep %s did not succeed, %s\n%s\n  hint: run the task again when that is mended; it goes on from there'
                % (self.pair['name'], command, done, words(side, self.hosts[side], o)), **self.result())
        return reply

    def _password_mismatch(self):
        """What is wrong between the passwords of two hosts that have nothing to change by themselves, or ""."""
        if any(self.changed.values()):
            return ''
        source, backup = (self.replies[side].get('fingerprint') for side in SIDES)
        if source and source == backup:
            return ''
        if source and backup:
            return 'the two hosts have different passwords%s' % (
                ', or do not know each other by their ssh keys' if self.pair.get('transport') == 'ssh' else '')
        return 'the source host has no password that the backup host knows'
