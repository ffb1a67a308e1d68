# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The work is done by the action plugin of the same name; this file is its documentation.

DOCUMENTATION = r'''
module: pair_side
short_description: Give one request to the lockstep of one host
version_added: 1.0.0
description:
  - Runs C(lockstep) on the host of the task, with the request on its standard input, and returns its reply.
  - M(lockstep.replication.pair) and M(lockstep.replication.pair_info) use it for each of their two hosts. It is of use by itself where one
    control node can't reach both hosts, and the requests are relayed by other means.
  - The host needs no Python.
options:
  command:
    description:
      - What to ask for. V(plan), V(read) and V(status) change nothing.
      - In check mode V(apply) and V(destroy) only tell what they would do.
    type: str
    required: true
    choices: [plan, apply, read, destroy, status]
  role:
    description:
      - The end of the pair that the host is.
    type: str
    required: true
    choices: [source, backup]
  request:
    description:
      - The request. Its C(pair) is the pair definition. V(status) reads nothing of it but the name.
    type: dict
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details:
      - The reply has the diffs of the host.
extends_documentation_fragment:
  - lockstep.replication.attributes
  - lockstep.replication.attributes.executable
seealso:
  - module: lockstep.replication.pair
author:
  - The lockstep authors (@lockstep-sync)
'''

EXAMPLES = r'''
- name: See what this host would change
  lockstep.replication.pair_side:
    command: plan
    role: backup
    request:
      pair:
        name: data
        source: { host: 172.16.1.31, path: /data }
        backup: { host: 172.16.1.41, path: /backup/nfs01 }
  register: backup_plan
'''

RETURN = r'''
reply:
  description: What lockstep answered.
  type: dict
  returned: when it answered, except for O(command=status)
  sample: {protocol: 1, changed: false, changes: [], checks: {module: in sync}}
status:
  description: The live status of the pair, null when no agent answers.
  type: dict
  returned: O(command=status)
said:
  description: What lockstep said on standard error.
  type: str
  returned: O(command=status)
missing:
  description: Whether lockstep is not installed.
  type: bool
  returned: when it is not
rc:
  description: The exit status of lockstep.
  type: int
  returned: when it ran
'''
