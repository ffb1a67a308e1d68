# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest

from ansible_collections.lockstep.replication.plugins.plugin_utils import _reply


@pytest.mark.parametrize('printed', [
    '{"protocol": 1}\n',
    'Last login: today\nbash: warning: {x}\n{"protocol": 1}\n',
    '{ not json\n{"protocol": 1}\nbye\n',
    '{\n  "protocol": 1\n}\n',
])
def test_a_reply_is_found_among_what_a_login_shell_prints(printed):
    assert _reply.parse(printed) == {'protocol': 1}


@pytest.mark.parametrize('printed', ['', 'no', '[1]', '{"protocol": 1', 'x{"protocol": 1}'])
def test_what_is_no_reply_is_none(printed):
    assert _reply.parse(printed) is None


def outcome(rc=0, stdout='', stderr='', **reply):
    return _reply.outcome('plan', rc, json.dumps(dict(reply)) if reply else stdout, stderr)


def test_a_plan_with_changes_is_an_answer():
    assert outcome(rc=7, protocol=1, changed=True) == dict(failed=False, rc=7, reply=dict(protocol=1, changed=True))


def test_a_missing_program_says_how_to_install_it():
    got = outcome(rc=127, stderr='sh: 1: lockstep: not found')
    assert got['failed'] and got['missing']
    assert 'lockstep.replication.pair' in got['hint']


def test_problems_fail_with_their_hints():
    got = outcome(rc=1, protocol=1, problems=[
        dict(field='backup.port', message='873 is taken', hint='write 874'), dict(field='', message='another')])
    assert got['failed']
    assert got['msg'] == 'backup.port: 873 is taken\n  hint: write 874\nanother'


def test_another_protocol_fails():
    got = outcome(protocol=2)
    assert got['failed']
    assert got['msg'] == 'lockstep plan answered in protocol 2, and this collection speaks 1'


def test_a_status_without_a_problem_fails_all_the_same():
    assert outcome(rc=1, protocol=1, stderr='it broke')['msg'] == 'lockstep plan ended with status 1: it broke'


def test_no_reply_fails_with_what_was_said():
    assert outcome(rc=1, stderr='sudo: a password is required')['msg'] == (
        'lockstep plan ended with status 1 and said: sudo: a password is required')


@pytest.mark.parametrize('change, shown', [
    (dict(object='service', path='lockstep@data.service', action='start'), 'nfs01:lockstep@data.service: start\n'),
    (dict(object='definition', path='/a', action='create', diff='--- /dev/null\n+++ /a\n@@ -0,0 +1,1 @@\n+x\n'),
     '--- /dev/null\n+++ nfs01:/a\n@@ -0,0 +1,1 @@\n+x\n'),
    (dict(object='definition', path='/a', action='delete', diff='--- /a\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-x\n'),
     '--- nfs01:/a\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-x\n'),
    # A removed line that looks like a header is not one.
    (dict(object='module', path='/a', action='update', diff='--- /a\n+++ /a\n@@ -1,1 +1,1 @@\n--- /a\n+y\n'),
     '--- nfs01:/a\n+++ nfs01:/a\n@@ -1,1 +1,1 @@\n--- /a\n+y\n'),
    (dict(object='secrets', path='/a', action='update', diff='/a: mode 0644, owner root:root -> mode 0600, owner root:root\n'),
     'nfs01:/a: mode 0644, owner root:root -> mode 0600, owner root:root\n'),
    (dict(object='directory', path='/b', action='create', diff='directory /b (mode 0700, owner root:root)\n'),
     'directory nfs01:/b (mode 0700, owner root:root)\n'),
    (dict(object='limits', path='fs.x', action='update', diff='-fs.x = 1\n+fs.x = 2\n'), 'nfs01:fs.x\n-fs.x = 1\n+fs.x = 2\n'),
])
def test_every_path_in_a_diff_is_led_by_its_host(change, shown):
    assert _reply.diff('nfs01', [change]) == [{'prepared': shown}]
