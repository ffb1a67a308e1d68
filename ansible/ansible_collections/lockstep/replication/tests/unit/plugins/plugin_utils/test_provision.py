# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.lockstep.replication.plugins.plugin_utils import _provision

PAIR = dict(name='data', source=dict(host='nfs01'), backup=dict(host='vault'))


class Hosts:
    """Two hosts that answer from a script and remember what they were asked."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def __call__(self, side, command, request):
        assert request['pair'] is PAIR
        step = '%s %s' % (side, command)
        self.asked.append((step, {k: v for k, v in request.items() if k != 'pair'}))
        answer = self.answers.get(step.replace(' ', '_'), {})
        if isinstance(answer, list):
            answer = answer.pop(0)
        if 'msg' in answer:
            return dict(answer, failed=True)
        return dict(failed=False, reply=dict(dict(protocol=1, changed=False, changes=[], fingerprint='f'), **answer))

    def steps(self):
        return [step for step, request in self.asked]


CHANGE = dict(changed=True, changes=[dict(object='definition', path='/x', action='create')])


def test_a_pair_that_is_there_costs_two_requests():
    hosts = Hosts()
    run = _provision.Provision(PAIR, hosts)
    run.present()
    assert hosts.asked == [('source plan', {}), ('backup plan', dict(fingerprint='f'))]
    assert run.result()['changed'] is False
    assert run.diff() == []


def test_a_new_pair_is_made_key_first_then_backup_then_source():
    hosts = Hosts(
        source_plan=dict(CHANGE, fingerprint=''), backup_plan=dict(CHANGE, fingerprint=''),
        source_apply=[dict(public_key='K', fingerprint=''), CHANGE], backup_apply=[dict(CHANGE, sealed_password='S'), {}])
    run = _provision.Provision(PAIR, hosts)
    run.present()
    assert hosts.asked == [
        ('source plan', {}),
        ('backup plan', {}),
        ('source apply', dict(prepare=True)),
        ('backup apply', dict(recipient='K')),
        ('source apply', dict(sealed_password='S')),
        ('backup apply', dict(fingerprint='f')),
    ]
    result = run.result()
    assert result['changed'] and result['source']['changed'] and result['backup']['changed']
    assert len(run.diff()) == 2


@pytest.mark.parametrize('source, backup, words', [
    ('a', 'b', 'the two hosts have different passwords'),
    ('', 'b', 'the source host has no password that the backup host knows'),
    ('a', '', 'the source host has no password that the backup host knows'),
])
def test_passwords_that_do_not_match_are_a_change(source, backup, words):
    hosts = Hosts(source_plan=dict(fingerprint=source), backup_plan=dict(fingerprint=backup))
    run = _provision.Provision(PAIR, hosts, check_mode=True)
    run.present()
    assert run.result()['changed']
    assert words in run.diff()[0]['prepared']
    assert hosts.steps() == ['source plan', 'backup plan']

    hosts = Hosts(
        source_plan=dict(fingerprint=source), backup_plan=dict(fingerprint=backup), source_apply=[{}, CHANGE])
    run = _provision.Provision(PAIR, hosts)
    run.present()
    assert hosts.steps()[2:] == ['source apply', 'backup apply', 'source apply', 'backup apply']


def test_a_given_password_goes_to_both_hosts_and_the_sealed_one_is_relayed_too():
    hosts = Hosts(source_plan=CHANGE, source_apply=[dict(public_key='K'), {}], backup_apply=[dict(sealed_password='S'), {}])
    _provision.Provision(PAIR, hosts).present(password='P')
    assert [request.get('password') for step, request in hosts.asked] == ['P', 'P', None, 'P', 'P', 'P']
    assert hosts.asked[4][1]['sealed_password'] == 'S'


def test_rotate_goes_to_the_backup_host_once():
    hosts = Hosts(backup_plan=CHANGE)
    _provision.Provision(PAIR, hosts).present(rotate=True)
    assert [step for step, request in hosts.asked if request.get('rotate')] == ['backup plan', 'backup apply']
    assert not hosts.asked[-1][1].get('rotate')


def test_both_hosts_are_asked_even_when_the_first_finds_a_problem():
    problem = dict(msg='source.path: /x', reply=dict(problems=[dict(field='source.path', message='/x', hint='h')]))
    hosts = Hosts(source_plan=problem, backup_plan=dict(msg='ssh: no route', unreachable=True))
    with pytest.raises(_provision.Refused) as refused:
        _provision.Provision(PAIR, hosts).present()
    assert hosts.steps() == ['source plan', 'backup plan']
    result = refused.value.result
    assert result['msg'] == 'pair "data": nothing was changed\nsource host nfs01: source.path: /x\nbackup host vault: unreachable: ssh: no route'
    assert result['problems'] == [dict(field='source.path', message='/x', hint='h', host='nfs01', side='source')]
    assert result['unreachable_sides'] == ['backup']
    assert result['changed'] is False


def test_a_failure_between_the_two_hosts_says_what_was_changed():
    hosts = Hosts(source_plan=CHANGE, source_apply=[dict(public_key='K'), dict(msg='disk full')], backup_apply=[CHANGE])
    with pytest.raises(_provision.Refused) as refused:
        _provision.Provision(PAIR, hosts).present()
    assert 'and backup host vault was changed before that\nsource host nfs01: disk full' in refused.value.result['msg']
    assert refused.value.result['changed'] is True
    assert hosts.steps()[-1] == 'source apply'


def test_a_host_without_lockstep_is_a_change_in_check_mode_and_a_failure_otherwise():
    missing = dict(msg='lockstep is not installed', missing=True)
    run = _provision.Provision(PAIR, Hosts(backup_plan=missing), check_mode=True)
    run.present()
    assert run.result()['changed']
    assert 'backup host vault has no lockstep yet' in run.result()['warnings'][0]
    with pytest.raises(_provision.Refused):
        _provision.Provision(PAIR, Hosts(backup_plan=missing)).present()


def test_what_a_host_warns_of_is_a_warning_when_something_changes():
    warnings = [dict(field='firewall', message='ufw is active', hint='ufw allow')]
    run = _provision.Provision(PAIR, Hosts(backup_plan=dict(CHANGE, warnings=warnings)), check_mode=True)
    run.present()
    assert run.result()['warnings'] == ['backup host vault: firewall: ufw is active\n  hint: ufw allow']
    run = _provision.Provision(PAIR, Hosts(backup_plan=dict(warnings=warnings)))
    run.present()
    assert 'warnings' not in run.result()


def test_check_mode_does_not_hide_a_problem_of_the_other_host():
    hosts = Hosts(source_plan=dict(msg='no such directory'), backup_plan=dict(msg='not installed', missing=True))
    with pytest.raises(_provision.Refused) as refused:
        _provision.Provision(PAIR, hosts, check_mode=True).present()
    assert 'no such directory' in refused.value.result['msg']


def test_absent_removes_the_source_first():
    hosts = Hosts(source_plan=CHANGE, backup_plan=CHANGE, source_destroy=CHANGE, backup_destroy=CHANGE)
    run = _provision.Provision(PAIR, hosts)
    run.absent()
    assert hosts.steps() == ['source plan', 'backup plan', 'source destroy', 'backup destroy']
    assert all(request == dict(absent=True) for step, request in hosts.asked[:2])
    assert run.result()['changed']


def test_absent_changes_nothing_unless_both_answer():
    hosts = Hosts(source_plan=CHANGE, backup_plan=dict(msg='no route', unreachable=True))
    with pytest.raises(_provision.Refused):
        _provision.Provision(PAIR, hosts).absent()
    assert hosts.steps() == ['source plan', 'backup plan']
