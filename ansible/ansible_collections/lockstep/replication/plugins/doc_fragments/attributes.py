# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment(object):

    # What all actions of the collection have in common.
    DOCUMENTATION = r'''
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
  action:
    description: Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  become:
    description: Is usable alongside C(become) keywords.
    support: full
    details:
      - lockstep has to be root on both hosts. What the task says of C(become) is valid for both, and variables of a host come first, as with C(delegate_to).
  connection:
    description: Uses the target's configured connection information to execute code on it.
    support: full
    details:
      - The connection has to support pipelining, because requests go to the standard input of lockstep and into no file.
  delegation:
    description: Can be used in conjunction with C(delegate_to) and related keywords.
    support: full
  platform:
    description: Target OS/families that can be operated against.
    support: full
    platforms: linux
'''

    # The module runs on the hosts that its options name.
    BOTH_HOSTS = r'''
options: {}
attributes:
  delegation:
    details:
      - The hosts are those of O(source.host) and O(backup.host), wherever the task runs.
  bypass_host_loop:
    description: Forces a C(global) task that does not execute per host, this bypasses per host templating and serial, throttle and other loop considerations.
    support: none
'''

    # How to find lockstep on a host.
    EXECUTABLE = r'''
options:
  executable:
    description:
      - The lockstep of the hosts, a name that their shell finds or a path.
    type: str
    default: lockstep
'''
