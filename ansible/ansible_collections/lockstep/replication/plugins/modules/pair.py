# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The work is done by the action plugin of the same name; this file is its documentation.

DOCUMENTATION = r'''
module: pair
short_description: Keep a directory on a backup host equal to a directory on a source host
version_added: 1.0.0
description:
  - Makes both hosts of a pair so from one pair definition.
    On the backup host that is an rsync daemon module and its secrets file, on the source host an agent under
    systemd that watches the directory and runs rsync.
  - One task provisions both hosts, each through the connection that the inventory has for it. It is written for the source host,
    and can run on any host.
  - Both hosts are asked first. Nothing is changed on either unless both answer and neither finds a problem.
  - The password of the rsync module is made on the backup host and passed on to the source host encrypted, so that it is on no third
    machine. Ansible never sees it.
  - The data of neither host is touched, also not by O(state=absent).
  - The options that make the definition have the same names and the same defaults as in the definition file C(lockstep.yaml) and in the
    Terraform resource C(lockstep_pair). An option that is not given has the default of the lockstep on the hosts.
requirements:
  - The package C(lockstep) on both hosts, which the role P(lockstep.replication.pair#role) installs. No Python.
options:
  name:
    description:
      - Names the pair, its unit C(lockstep@NAME.service), its files and, unless O(backup.module) is given, its rsync module.
      - Lower-case letters, digits and hyphens, at most 63.
    type: str
    required: true
  state:
    description:
      - V(present) makes both hosts as the definition says.
      - V(absent) removes from the source host, and then from the backup host, what lockstep made. The data of both stays.
    type: str
    choices: [present, absent]
    default: present
  source:
    description:
      - The directory that is watched, and its host.
    type: dict
    required: true
    suboptions:
      host:
        description:
          - The inventory name of the source host.
        type: str
        required: true
      path:
        description:
          - An absolute path of an existing directory. Required when O(state=present).
        type: str
      address:
        description:
          - What the backup host sees of the source host. It alone is let in.
          - The default is the host's C(ansible_host), else O(source.host).
        type: str
  backup:
    description:
      - The directory that is kept equal, its host, and the module that leads to it.
    type: dict
    required: true
    suboptions:
      host:
        description:
          - The inventory name of the backup host.
        type: str
        required: true
      path:
        description:
          - An absolute path. It is created if it is not there. Required when O(state=present).
        type: str
      address:
        description:
          - What the source host dials.
          - The default is the host's C(ansible_host), else O(backup.host).
        type: str
      port:
        description:
          - The port of the rsync daemon, or of sshd. The default is V(873), and V(22) with transport V(ssh).
        type: int
      module:
        description:
          - The name of the rsync module. The default is O(name).
        type: str
      uid:
        description:
          - The user as which the module writes. The default is V(root), which alone can keep ownership.
        type: str
      gid:
        description:
          - The group as which the module writes. The default is V(root).
        type: str
  transport:
    description:
      - How the source host gets to the module, V(daemon) by the rsync daemon, V(ssh) by sshd with a key that is good for nothing but
        this module. The default is V(daemon).
      - A change switches in place, and nothing is lost meanwhile.
    type: str
  auth:
    description:
      - The rsync user.
    type: dict
    suboptions:
      user:
        description:
          - The name in C(auth users) of the module. The default is V(lockstep).
        type: str
  password:
    description:
      - A password to use instead of one that the backup host makes. It goes to both hosts on the standard input of lockstep.
      - Keep it in Ansible Vault. Without it the password never leaves the two hosts, which is better.
    type: str
  rotate:
    description:
      - Makes a new password. No transfer fails meanwhile. A task with V(true) always changes something.
      - With O(password), that is the new one.
    type: bool
    default: false
  exclude:
    description:
      - rsync exclude patterns. They are obeyed by the watcher, by live batches and by full batches. The default is V([]).
    type: list
    elements: str
  filter:
    description:
      - rsync filter rules, for what O(exclude) can not say. The default is V([]).
    type: list
    elements: str
  delete:
    description:
      - Bounds what a deletion in the source may do to the backup.
    type: dict
    suboptions:
      enabled:
        description:
          - With V(false) nothing is ever deleted on the backup. The default is V(true).
        type: bool
      max_files:
        description:
          - A deletion of more entries than this, and of more than O(delete.max_percent), is held until it is approved. The default is V(1000).
        type: int
      max_percent:
        description:
          - A deletion of a larger share than this, and of more than O(delete.max_files), is held until it is approved. The default is V(25).
        type: int
  watch:
    description:
      - How changes are noticed, and when a changed path is sent.
    type: dict
    suboptions:
      backend:
        description:
          - V(auto), V(fanotify) or V(inotify). The default is V(auto).
        type: str
      events:
        description:
          - The events that count. The default is V([create, modify, attrib, delete, move]).
        type: list
        elements: str
      delay:
        description:
          - How long a path has to be quiet before it is sent. The default is V(20ms).
        type: str
      max_delay:
        description:
          - A path that never goes quiet is sent at least this often. The default is V(5s).
        type: str
  transfer:
    description:
      - Tunes the rsync runs.
    type: dict
    suboptions:
      compress:
        description:
          - V(zstd), V(lz4), V(zlibx), V(zlib) or empty, for no compression. The default is V("").
        type: str
      bandwidth_limit:
        description:
          - As C(--bwlimit) of rsync, or empty for no limit. The default is V("").
        type: str
      timeout:
        description:
          - How long rsync may see no data move. The default is V(1m).
        type: str
      parallel:
        description:
          - How many rsync runs there may be at once. The default is V(2).
        type: int
      options:
        description:
          - Further rsync options, from a list of those that are safe. The default is V([]).
        type: list
        elements: str
  full:
    description:
      - Schedules full batches beside the one at every start.
    type: dict
    suboptions:
      every:
        description:
          - A duration, a cron line, or empty for only at start. The default is V(24h).
        type: str
      exclude:
        description:
          - rsync exclude patterns of full batches alone. The default is V([]).
        type: list
        elements: str
  retry:
    description:
      - Bounds the wait after a transfer that did not succeed.
    type: dict
    suboptions:
      initial:
        description:
          - The first wait. The default is V(1s).
        type: str
      max:
        description:
          - The longest wait. The default is V(5m).
        type: str
  hooks:
    description:
      - What runs after a batch has arrived. The default is V([]).
    type: list
    elements: dict
  metrics:
    description:
      - Where Prometheus may scrape.
    type: dict
    suboptions:
      listen:
        description:
          - A host and a port, or empty for the UNIX socket alone. The default is V("").
        type: str
  paused:
    description:
      - V(true) leaves the agent running and sends nothing. The default is V(false).
    type: bool
notes:
  - With C(--limit) of the source host, the backup host is provisioned as well, as with C(delegate_to).
  - If the backup host can't be reached, the task fails and names it. The host of the play stays in the play.
  - Put C(no_log) on a task that loops over items with passwords in them, because Ansible prints the items of a loop.
seealso:
  - module: lockstep.replication.pair_info
  - module: lockstep.replication.pair_side
extends_documentation_fragment:
  - lockstep.replication.attributes
  - lockstep.replication.attributes.both_hosts
  - lockstep.replication.attributes.executable
attributes:
  check_mode:
    support: full
    details:
      - Each host says what it would change. A password that is not made yet is not shown.
      - A host without lockstep can not say it. In check mode, where an installation is only simulated, the task is then changed, with a warning.
      - When something would be changed, a firewall or SELinux that is seen in the way on the backup host is a warning, with the command that opens the way.
  diff_mode:
    support: full
    details:
      - Every path is led by the host it is on. Passwords are not shown.
author:
  - The lockstep authors (@lockstep-sync)
'''

EXAMPLES = r'''
- name: Keep /backup/nfs01 on backup equal to /data on nfs01
  lockstep.replication.pair:
    name: data
    source:
      host: nfs01
      path: /data
    backup:
      host: backup
      path: /backup/nfs01
    exclude:
      - "*.tmp"
      - .cache/

- name: Several pairs, with the hosts' addresses in the replication network
  lockstep.replication.pair:
    name: "{{ inventory_hostname_short }}-{{ item.name }}"
    source:
      host: "{{ inventory_hostname }}"
      path: "{{ item.path }}"
      address: 172.16.1.31
    backup:
      host: backup
      path: /backup/{{ inventory_hostname }}/{{ item.name }}
      address: 172.16.1.41
  loop:
    - { name: data, path: /data }
    - { name: home, path: /home }

- name: Use a password of our own
  lockstep.replication.pair:
    name: data
    source: { host: nfs01, path: /data }
    backup: { host: backup, path: /backup/nfs01 }
    password: "{{ vault_lockstep_password }}"

- name: Change the password
  lockstep.replication.pair:
    name: data
    source: { host: nfs01, path: /data }
    backup: { host: backup, path: /backup/nfs01 }
    rotate: true

- name: Stop replicating, and leave the data of both hosts as it is
  lockstep.replication.pair:
    name: data
    source: { host: nfs01 }
    backup: { host: backup }
    state: absent
'''

RETURN = r'''
name:
  description: The name of the pair.
  type: str
  returned: always
  sample: data
source:
  description: What was found, and changed or to be changed, on the source host.
  type: dict
  returned: when the source host answered
  contains:
    host:
      description: The inventory name.
      type: str
      sample: nfs01
    changed:
      description: Whether this host was changed, or would be.
      type: bool
    changes:
      description: The changes in order.
      type: list
      elements: dict
      contains:
        object:
          description: What it belongs to.
          type: str
          sample: unit
        path:
          description: The file, the unit or the directory.
          type: str
          sample: /etc/lockstep/pairs/data.yaml
        action:
          description: What was done, or would be.
          type: str
          sample: create
    checks:
      description: For each object of the host V(in sync), or what differs.
      type: dict
      sample: {definition: in sync, service: in sync}
    fingerprint:
      description: A keyed hash of the password. It is equal on both hosts.
      type: str
    versions:
      description: The versions of lockstep and of what it uses.
      type: dict
      sample: {lockstep: 1.0.0, rsync: 3.2.7}
backup:
  description: The same of the backup host.
  type: dict
  returned: when the backup host answered
problems:
  description: What both hosts found wrong before anything was changed.
  type: list
  elements: dict
  returned: when there are any
  contains:
    host:
      description: The inventory name.
      type: str
    side:
      description: V(source) or V(backup).
      type: str
    field:
      description: The field of the definition, or the object of the host.
      type: str
      sample: backup.port
    message:
      description: What is wrong.
      type: str
    hint:
      description: What to write or to do instead.
      type: str
'''
