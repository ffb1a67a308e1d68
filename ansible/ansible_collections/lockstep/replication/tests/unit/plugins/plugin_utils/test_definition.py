# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible.errors import AnsibleError

from ansible_collections.lockstep.replication.plugins.plugin_utils import _definition

HOSTVARS = {'nfs01': {'ansible_host': '172.16.1.31'}, 'backup': {}}


def build(**args):
    args = dict(dict(name='data', source=dict(host='nfs01', path='/data'), backup=dict(host='backup', path='/b')), **args)
    return _definition.definition(args, lambda host: _definition.address_of(host, HOSTVARS))


def test_what_is_not_given_is_not_sent():
    assert build(exclude=None, auth=dict(user=None), backup=dict(host='backup', path='/b', port=None)) == dict(
        name='data', auth={},
        source=dict(host='nfs01', path='/data', address='172.16.1.31'),
        backup=dict(host='backup', path='/b', address='backup'))


def test_empty_and_false_are_values():
    pair = build(exclude=[], paused=False, full=dict(every='', exclude=None))
    assert (pair['exclude'], pair['paused'], pair['full']) == ([], False, dict(every=''))


def test_an_address_that_is_given_stays():
    assert build(source=dict(host='nfs01', path='/data', address='10.0.0.1'))['source']['address'] == '10.0.0.1'


def test_arguments_that_are_no_part_of_the_definition_stay_out():
    assert set(build(password='secret', state='present', rotate=True, executable='x')) == {'name', 'source', 'backup'}


def test_a_host_outside_the_inventory_is_refused():
    with pytest.raises(AnsibleError, match='host "nobody" is not in the inventory'):
        build(backup=dict(host='nobody', path='/b'))


def test_a_path_is_needed_unless_absent():
    with pytest.raises(AnsibleError, match='backup.path is missing'):
        build(backup=dict(host='backup', path=None))
    assert 'path' not in build(backup=dict(host='backup', path=None), state='absent')['backup']
