# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Provisions both hosts of a pair from one task."""

from __future__ import annotations

from ansible.errors import AnsibleError
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.action import ActionBase

from ansible_collections.lockstep.replication.plugins.plugin_utils import _definition, _provision, _sides


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        del tmp
        hostvars = task_vars['hostvars']
        try:
            args = self.validate_argument_spec(argument_spec=_definition.argument_spec())[1]
            pair = _definition.definition(args, lambda host: _definition.address_of(host, hostvars))
        except AnsibleError as err:
            # A mistake of the user, for which Ansible would print a traceback.
            return dict(result, failed=True, msg=to_text(err))
        present = args['state'] == 'present'

        run = _provision.Provision(
            pair,
            _sides.asker(self, {side: pair[side]['host'] for side in _provision.SIDES}, args['executable'], task_vars),
            self._task.check_mode,
        )
        try:
            if present:
                run.present(args['password'], args['rotate'])
            else:
                run.absent()
            result.update(run.result())
        except _provision.Refused as refused:
            result.update(refused.result)
            unreachable = result.pop('unreachable_sides', [])
            # The host of the task itself may be lost to the play. Any other is only a reason to fail.
            if [pair[side]['host'] for side in unreachable] == [task_vars['inventory_hostname']]:
                result['unreachable'] = True
                del result['failed']  # would come first
        if self._task.diff:
            result['diff'] = run.diff()
        return result
