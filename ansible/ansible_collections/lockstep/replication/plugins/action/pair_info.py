# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells what both hosts hold of a pair, and what its agent says."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from ansible_collections.lockstep.replication.plugins.plugin_utils import _definition, _provision, _reply, _sides


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        del tmp
        host = dict(type='dict', options=dict(host=dict(type='str', required=True)))
        args = self.validate_argument_spec(argument_spec=dict(
            name=dict(type='str', required=True), source=host, backup=host,
            executable=dict(type='str', default='lockstep')))[1]
        hosts = {side: (args[side] or {}).get('host') for side in _provision.SIDES}
        hosts['source'] = hosts['source'] or self._task.delegate_to or task_vars['inventory_hostname']
        ask = _sides.asker(self, hosts, args['executable'], task_vars)
        request = dict(pair=dict(name=args['name']))
        replies = {}
        try:
            replies['source'] = self._reply_of(hosts, 'source', ask('source', 'read', request))
            status = self._answer_of(hosts, 'source', ask('source', 'status', request))
            if not hosts['backup']:
                hosts['backup'] = ((replies['source'].get('pair') or {}).get('backup') or {}).get('host')
            if hosts['backup']:
                _definition.require_host(hosts['backup'], task_vars['hostvars'])
                replies['backup'] = self._reply_of(hosts, 'backup', ask('backup', 'read', request))
        except _provision.Refused as refused:
            result.update(refused.result)
            return result
        result.update(report(args['name'], hosts, replies, status.get('status')))
        return result

    def _reply_of(self, hosts, side, outcome):
        return self._answer_of(hosts, side, outcome)['reply']

    def _answer_of(self, hosts, side, outcome):
        if outcome.get('failed'):
            raise _provision.Refused(_provision.words(side, hosts[side], outcome))
        return outcome


def report(name, hosts, replies, status):
    """What is returned, from the replies of the hosts and the status of the agent."""
    out = dict(changed=False, name=name, status=status, backup=None)
    out['exists'] = any(reply.get('exists') for reply in replies.values())
    out['state'] = (status or {}).get('state') or 'no agent'
    differences = []
    for side, reply in replies.items():
        out[side] = dict(
            host=hosts[side],
            exists=bool(reply.get('exists')),
            checks=reply.get('checks') or {},
            definition=reply.get('pair'),
            fingerprint=reply.get('fingerprint') or '',
            versions=reply.get('versions') or {},
        )
        if not reply.get('exists'):
            differences.append('%s: host %s holds nothing of the pair' % (side, hosts[side]))
            continue
        for what, words in sorted((reply.get('checks') or {}).items()):
            if words != _reply.IN_SYNC:
                differences.append('%s: %s: %s' % (side, what, words))
    if all(out[side] and out[side]['exists'] for side in _provision.SIDES):
        source, backup = (out[side] for side in _provision.SIDES)
        if source['definition'] != backup['definition']:
            differences.append('the two hosts have stored different definitions')
        if source['fingerprint'] != backup['fingerprint']:
            ssh = (source['definition'] or {}).get('transport') == 'ssh'
            differences.append('the two hosts have different passwords' + (', or do not know each other by their ssh keys' if ssh else ''))
    out['differences'] = differences
    out['in_step'] = out['state'] == 'in step' and out['backup'] is not None and not differences
    return out
