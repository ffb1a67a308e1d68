# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts requests to the two hosts of a pair, each through its own connection."""

from __future__ import annotations

from ansible_collections.lockstep.replication.plugins.plugin_utils import _delegate

ACTION = 'lockstep.replication.pair_side'


def asker(plugin, hosts, executable, task_vars):
    """The function that _provision.Provision wants: ask(side, command, request) -> outcome."""

    def ask(side, command, request):
        outcome = _delegate.run_on(
            plugin, hosts[side], ACTION,
            dict(command=command, role=side, request=request, executable=executable), task_vars)
        # Ansible does not call an unreachable host failed.
        if not (outcome.get('reply') or 'status' in outcome):
            outcome['failed'] = True
        return outcome

    return ask
