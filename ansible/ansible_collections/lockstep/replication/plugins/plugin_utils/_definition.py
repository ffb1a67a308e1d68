# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pair definition as Ansible arguments.

The types are here because Ansible turns what templates render into text; the values are judged by
the lockstep of the hosts, which also has the defaults. So an option that is not given is not sent.
"""

from __future__ import annotations

from ansible.errors import AnsibleError


def _text(**more):
    return dict(type='str', **more)


def _texts():
    return dict(type='list', elements='str')


def _number():
    return dict(type='int')


def _group(options, **more):
    return dict(type='dict', options=options, **more)


# The options of a pair definition, apart from its name, its hosts and its paths.
SETTINGS = dict(
    transport=_text(),
    auth=_group(dict(user=_text())),
    exclude=_texts(),
    filter=_texts(),
    delete=_group(dict(enabled=dict(type='bool'), max_files=_number(), max_percent=_number())),
    watch=_group(dict(backend=_text(), events=_texts(), delay=_text(), max_delay=_text())),
    transfer=_group(dict(
        compress=_text(), bandwidth_limit=_text(), timeout=_text(), parallel=_number(), options=_texts())),
    full=_group(dict(every=_text(), exclude=_texts())),
    retry=_group(dict(initial=_text(), max=_text())),
    hooks=dict(type='list', elements='dict'),
    metrics=_group(dict(listen=_text())),
    paused=dict(type='bool'),
)

SOURCE = dict(host=_text(required=True), path=_text(), address=_text())

BACKUP = dict(
    host=_text(required=True), path=_text(), address=_text(), port=_number(), module=_text(), uid=_text(), gid=_text())


def argument_spec():
    """The arguments of lockstep.replication.pair."""
    return dict(
        SETTINGS,
        name=_text(required=True),
        source=_group(SOURCE, required=True),
        backup=_group(BACKUP, required=True),
        state=_text(choices=['present', 'absent'], default='present'),
        password=_text(no_log=True),
        rotate=dict(type='bool', default=False),
        executable=_text(default='lockstep'),
    )


def prune(value):
    """Drops what was not given: the argument spec leaves None in its place."""
    if isinstance(value, dict):
        return {str(k): prune(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [prune(v) for v in value]
    return value


def definition(args, address_of):
    """Builds the pair definition from validated arguments.

    address_of tells the address at which an inventory host is reached. It stands in for an address that
    is not given, because the two hosts need not know each other by the names of the inventory.
    """
    pair = prune({k: args.get(k) for k in list(SETTINGS) + ['name', 'source', 'backup']})
    for side in ('source', 'backup'):
        if args.get('state') != 'absent' and not pair[side].get('path'):
            raise AnsibleError('%s.path is missing\n  hint: only state absent does without' % side)
        if not pair[side].get('address'):
            pair[side]['address'] = address_of(pair[side]['host'])
    return pair


def address_of(host, hostvars):
    """The address of an inventory host: ansible_host, else its name."""
    known = require_host(host, hostvars)
    address = known['ansible_host'] if 'ansible_host' in known else None
    return str(address or host)


def require_host(host, hostvars):
    """The variables of an inventory host; an error that says where a host must be written if there is none."""
    if host not in hostvars:
        raise AnsibleError(
            'host "%s" is not in the inventory\n'
            '  hint: source.host and backup.host are inventory names; add the host to the inventory, and its address as ansible_host'
            % host)
    return hostvars[host]
