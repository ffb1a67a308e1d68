# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the lockstep of one host, with the request on its standard input.

There is no module on the host: the command goes through the connection as it is. So the host needs no
Python, and a password is in no file, no argument and no debug output.
"""

from __future__ import annotations

import json
import shlex

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.lockstep.replication.plugins.plugin_utils import _reply

# sudo's secure_path lacks /usr/local/bin on some systems, and a login by ssh lacks the sbin directories.
_PATH = 'PATH="$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(('command', 'role', 'request', 'executable'))

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        del tmp
        args = self.validate_argument_spec(argument_spec=dict(
            command=dict(type='str', required=True, choices=['plan', 'apply', 'read', 'destroy', 'status']),
            role=dict(type='str', required=True, choices=['source', 'backup']),
            request=dict(type='dict', required=True, no_log=True),
            executable=dict(type='str', default='lockstep'),
        ))[1]
        # What is sent is what was given: the argument spec masks nothing, but it may copy.
        request = self._task.args['request']

        if not getattr(self._connection, 'has_pipelining', False):
            raise AnsibleActionFail(
                'connection "%s" has no way to give a command its standard input\n'
                '  hint: reach the host by a connection that supports pipelining, as ssh does' % self._connection.transport)

        command = args['command']
        if self._task.check_mode and command in ('apply', 'destroy'):
            request = dict(request, absent=command == 'destroy')
            command = 'plan'
        if command == 'status':
            argv = [args['executable'], 'status', '--json', str(request['pair']['name'])]
            data = None
        else:
            argv = [args['executable'], command, '--role', args['role'], '--json']
            data = json.dumps(dict(request, protocol=_reply.PROTOCOL)).encode()
        ran = self._low_level_execute_command(
            '%s %s' % (_PATH, ' '.join(shlex.quote(a) for a in argv)), in_data=data)

        if command == 'status':
            result.update(_status(ran, args['executable']))
        else:
            result.update(_reply.outcome(command, ran['rc'], ran['stdout'], ran['stderr'], args['executable']))
            result['changed'] = command in ('apply', 'destroy') and bool(result.get('reply', {}).get('changed'))
        return result


def _status(ran, executable):
    # A state other than `in step` has an exit status of its own and is an answer all the same.
    return _reply.missing(ran['rc'], ran['stderr'], executable) or dict(
        failed=False, rc=ran['rc'], status=_reply.parse(ran['stdout']), said=ran['stderr'].strip())
