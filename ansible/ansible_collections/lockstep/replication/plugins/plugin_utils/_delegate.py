# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One action on another host of the inventory, from within an action.

It is what delegate_to does, with the connection, the user and the become settings of that host. Ansible
has no public call for it, so this file is the only one that uses names which ansible-core does not
promise to keep. Arguments are matched by name, because they differ: TaskExecutor wants new_stdin up to
ansible-core 2.18 and variable_manager from 2.16 on.
"""

from __future__ import annotations

import inspect

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.executor.task_executor import TaskExecutor
from ansible.playbook.play_context import PlayContext
from ansible.plugins import loader as plugin_loaders
from ansible.utils.unsafe_proxy import wrap_var

# Keywords of the task that must not act a second time inside it. What says how to reach and to become
# (connection, remote_user, become, vars) stays, and so do check_mode, diff and no_log.
_CLEARED = dict(
    loop=None, loop_with=None, when=[], until=[], retries=None, register=None, changed_when=[], failed_when=[],
    notify=None, async_val=0, poll=0, timeout=0, throttle=0, module_defaults=[], run_once=False,
    ignore_errors=False, ignore_unreachable=False, delegate_facts=False,
)

_BECOME_PASSWORDS = (
    'ansible_become_password', 'ansible_become_pass', 'ansible_sudo_pass', 'ansible_su_pass', 'ansible_doas_pass')


def run_on(plugin, host, action, args, task_vars):
    """Runs an action on an inventory host and returns its result.

    A host that can't be reached is a result too. As an exception it would make Ansible drop the host of
    the play, which may be another one.
    """
    hostvars = task_vars['hostvars']
    variables = hostvars._variable_manager

    task = plugin._task.copy(exclude_tasks=True)
    for name, value in _CLEARED.items():
        setattr(task, name, value)
    task.action = action
    if hasattr(type(task), 'resolved_action'):  # a read-only property since ansible-core 2.19
        task._resolved_action = action
    else:
        task.resolved_action = action
    task.args = wrap_var(args)  # what a user gave has been templated already
    task.delegate_to = host

    job_vars = dict(task_vars)
    job_vars['ansible_delegated_vars'] = {host: _variables_of(host, task, task_vars)}

    result = _call(TaskExecutor, dict(
        host=hostvars._inventory.get_host(task_vars['inventory_hostname']),
        task=task,
        job_vars=job_vars,
        play_context=_play_context(plugin, task, task_vars),
        new_stdin=getattr(plugin._connection, '_new_stdin', None),
        loader=plugin._loader,
        shared_loader_obj=getattr(plugin, '_shared_loader_obj', None) or plugin_loaders,
        final_q=None,  # is for loops, retries and async, which are cleared
        variable_manager=variables,
    )).run()
    return dict(result)


def _variables_of(host, task, task_vars):
    """The variables that delegate_to would see: those of the host, under those of the play and the task."""
    hostvars = task_vars['hostvars']
    known = _call(hostvars._variable_manager.get_vars, dict(
        play=_play(task), host=hostvars._inventory.get_host(host), task=task, include_hostvars=True,
        include_delegate_to=False,
    ))
    known['inventory_hostname'] = task_vars['inventory_hostname']
    return known


def _play_context(plugin, task, task_vars):
    """A play context as the play began with it.

    The one of the plugin already holds the user and the passwords of the task's own host, which must not
    be tried on another. Passwords that were asked for on the terminal are for all hosts.
    """
    current = plugin._play_context
    passwords = {}
    if not any(name in task_vars for name in C.MAGIC_VARIABLE_MAPPING['password']):
        passwords['conn_pass'] = current.password
    if not any(name in task_vars for name in _BECOME_PASSWORDS):
        passwords['become_pass'] = current.become_pass
    return PlayContext(_play(task), passwords, current.connection_lockfd)


def _play(task):
    parent = task._parent
    while parent is not None and not hasattr(parent, '_play'):
        parent = parent._parent
    return getattr(parent, '_play', None)


def _call(function, offered):
    """Calls a function with those of the offered arguments that it takes."""
    takes = inspect.signature(function).parameters
    missing = [name for name, p in takes.items()
               if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in offered]
    if missing:
        raise AnsibleError(
            'this ansible-core is not supported yet: %s wants %s\n  hint: update the collection lockstep.replication'
            % (function.__name__, ', '.join(missing)))
    return function(**{name: value for name, value in offered.items() if name in takes})
