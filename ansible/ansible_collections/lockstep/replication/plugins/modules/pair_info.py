# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The work is done by the action plugin of the same name; this file is its documentation.

DOCUMENTATION = r'''
module: pair_info
short_description: Tell whether a pair is in step, and what both hosts hold of it
version_added: 1.0.0
description:
  - Returns the live status of the agent on the source host, and what each host holds of the pair compared with the definition that it
    has stored.
  - Changes nothing.
requirements:
  - The package C(lockstep) on both hosts. No Python.
options:
  name:
    description:
      - The name of the pair.
    type: str
    required: true
  source:
    description:
      - The source host. The default is the host of the task, and with C(delegate_to) the one that it names.
    type: dict
    suboptions:
      host:
        description:
          - The inventory name of the source host.
        type: str
        required: true
  backup:
    description:
      - The backup host. The default is the one that the definition on the source host names.
    type: dict
    suboptions:
      host:
        description:
          - The inventory name of the backup host.
        type: str
        required: true
attributes:
  check_mode:
    support: full
    details:
      - This action does not modify state.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
extends_documentation_fragment:
  - lockstep.replication.attributes
  - lockstep.replication.attributes.both_hosts
  - lockstep.replication.attributes.executable
seealso:
  - module: lockstep.replication.pair
author:
  - The lockstep authors (@lockstep-sync)
'''

EXAMPLES = r'''
- name: Ask for the pair of this host
  lockstep.replication.pair_info:
    name: data
  register: data

- name: Stop when the backup lags behind
  ansible.builtin.assert:
    that: data.in_step
    fail_msg: "{{ data.state }}"
'''

RETURN = r'''
name:
  description: The name of the pair.
  type: str
  returned: success
exists:
  description: Whether either host holds anything of the pair.
  type: bool
  returned: success
in_step:
  description: Whether the agent says that the backup is in step, and both hosts are as their definitions say.
  type: bool
  returned: success
state:
  description: The state of the agent, as C(lockstep status) tells it; V(no agent) when none answers.
  type: str
  returned: success
  sample: in step
status:
  description: All that C(lockstep status --json) tells, null when no agent answers.
  type: dict
  returned: success
differences:
  description: What differs from the definitions, or between them, in words.
  type: list
  elements: str
  returned: success
  sample: ["backup: module: mode is 0644, not 0600"]
source:
  description: What the source host holds.
  type: dict
  returned: success
  contains:
    host:
      description: The inventory name.
      type: str
      sample: nfs01
    exists:
      description: Whether the host holds anything of the pair.
      type: bool
    checks:
      description: For each object of the host V(in sync), or what differs.
      type: dict
      sample: {definition: in sync, service: in sync}
    definition:
      description: The definition that the host has stored, null when there is none.
      type: dict
    fingerprint:
      description: A keyed hash of the password. It is equal on both hosts.
      type: str
    versions:
      description: The versions of lockstep and of what it uses.
      type: dict
      sample: {lockstep: 1.0.0, rsync: 3.2.7}
backup:
  description: What the backup host holds, in the same form. Null when no backup host is given and the source host knows none.
  type: dict
  returned: success
'''
