# -*- coding: utf-8 -*-
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lockstep of a host answers, read and put into words."""

from __future__ import annotations

import json

PROTOCOL = 1

IN_SYNC = 'in sync'

INSTALL_HINT = 'install the lockstep package on it; the role lockstep.replication.pair does'


def parse(text):
    """The JSON object in what a host printed, or None.

    A login shell may print lines of its own before it.
    """
    start = 0
    while True:
        start = text.find('{', start)
        if start < 0:
            return None
        if start == 0 or text[start - 1] == '\n':
            try:
                value = json.JSONDecoder().raw_decode(text, start)[0]
            except ValueError:
                value = None
            if isinstance(value, dict):
                return value
        start += 1


def missing(rc, stderr, executable):
    """What it means that the shell of a host did not find the program; None when it did."""
    if rc == 127 or (rc == 126 and 'No such file' in stderr):
        return dict(failed=True, missing=True, rc=rc, msg='%s is not installed' % executable, hint=INSTALL_HINT)
    return None


def outcome(command, rc, stdout, stderr, executable='lockstep'):
    """Turns what a host printed into a result: the reply, or what went wrong in words."""
    absent = missing(rc, stderr, executable)
    if absent:
        return absent
    reply = parse(stdout)
    if reply is None:
        said = (stderr or stdout).strip() or 'nothing'
        return dict(failed=True, rc=rc, msg='lockstep %s ended with status %d and said: %s' % (command, rc, said))
    if reply.get('protocol') != PROTOCOL:
        return dict(
            failed=True, rc=rc, reply=reply,
            msg='lockstep %s answered in protocol %s, and this collection speaks %s' % (command, reply.get('protocol'), PROTOCOL),
            hint='update the older one of the two, the lockstep package on the host or the collection')
    problems = reply.get('problems') or []
    if problems:
        return dict(failed=True, rc=rc, reply=reply, msg='\n'.join(problem_text(p) for p in problems))
    if rc not in (0, 7):  # 7: a plan with changes
        return dict(
            failed=True, rc=rc, reply=reply, msg='lockstep %s ended with status %d: %s' % (command, rc, stderr.strip()))
    return dict(failed=False, rc=rc, reply=reply)


def problem_text(problem):
    """A problem as `lockstep` itself prints it."""
    text = problem.get('message', '')
    if problem.get('field'):
        text = '%s: %s' % (problem['field'], text)
    if problem.get('hint'):
        text += '\n  hint: %s' % problem['hint']
    return text


def diff(host, changes):
    """The changes of one host as entries of Ansible's diff.

    Two hosts have files of the same path, so every path is led by its host. A change without text, as the
    start of a unit, is one line.
    """
    return [{'prepared': _with_host(host, change)} for change in changes]


def _with_host(host, change):
    path = change.get('path') or change.get('object') or ''
    place = '%s:%s' % (host, path)
    text = (change.get('diff') or '').rstrip('\n')
    if not text:
        return '%s: %s\n' % (place, change.get('note') or change.get('action'))
    lines = text.split('\n')
    for i, line in enumerate(lines):
        if line.startswith('@@'):
            break
        # The header of a file, a change of its mode, and a directory, as lockstep writes them.
        for form in ('--- %s', '+++ %s', '%s: ', 'directory %s '):
            start = form % path
            if line == start or (line.startswith(start) and form[-1] in ' '):
                lines[i] = form % place + line[len(start):]
                break
    if not any(place in line for line in lines):
        lines.insert(0, place)
    return '\n'.join(lines) + '\n'
