# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import yaml

from ansible_collections.lockstep.replication.plugins.action import pair_info
from ansible_collections.lockstep.replication.plugins.modules import pair as pair_module
from ansible_collections.lockstep.replication.plugins.plugin_utils import _definition


def documented(options):
    out = {}
    for name, o in options.items():
        out[name] = {k: o[k] for k in ('type', 'elements', 'required', 'choices', 'default') if k in o}
        if 'suboptions' in o:
            out[name]['options'] = documented(o['suboptions'])
    return out


def accepted(spec):
    out = {}
    for name, o in spec.items():
        out[name] = {k: v for k, v in o.items() if k not in ('options', 'no_log')}
        if 'options' in o:
            out[name]['options'] = accepted(o['options'])
    return out


def test_pair_accepts_what_it_documents():
    documentation = documented(yaml.safe_load(pair_module.DOCUMENTATION)['options'])
    executable = documentation.setdefault('executable', dict(type='str', default='lockstep'))  # from a fragment
    assert executable['type'] == 'str'
    assert accepted(_definition.argument_spec()) == documentation


def test_the_password_is_the_only_secret_argument():
    assert [name for name, o in _definition.argument_spec().items() if o.get('no_log')] == ['password']


def reply(**more):
    return dict(dict(exists=True, checks=dict(definition='in sync'), pair=dict(name='data'), fingerprint='f'), **more)


def report(source, backup, state='in step'):
    hosts = dict(source='nfs01', backup='vault')
    return pair_info.report('data', hosts, dict(source=source, backup=backup), dict(state=state) if state else None)


def test_in_step_needs_the_agent_and_both_hosts():
    assert report(reply(), reply())['in_step'] is True
    assert report(reply(), reply(), 'behind')['in_step'] is False
    assert report(reply(), reply(), None)['state'] == 'no agent'
    drifted = report(reply(), reply(checks=dict(definition='in sync', module='is missing')))
    assert (drifted['in_step'], drifted['differences']) == (False, ['backup: module: is missing'])
    assert report(reply(), reply(fingerprint='g'))['differences'] == ['the two hosts have different passwords']
    assert report(reply(), reply(pair=dict(name='other')))['differences'] == ['the two hosts have stored different definitions']
    assert report(reply(), dict(exists=False))['differences'] == ['backup: host vault holds nothing of the pair']


def test_an_unknown_backup_host_is_not_in_step():
    got = pair_info.report('data', dict(source='nfs01', backup=None), dict(source=reply()), dict(state='in step'))
    assert (got['in_step'], got['backup']) == (False, None)
