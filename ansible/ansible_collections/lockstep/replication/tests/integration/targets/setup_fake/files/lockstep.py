# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lockstep that keeps both hosts of a pair in a folder beside it.

It speaks the protocol of the real one, so the tests of the collection need no root, no systemd and no second
machine. Files in the folder `faults` make a role misbehave: SIDE.missing, SIDE.garbage, SIDE.problem,
SIDE.COMMAND (fails).
"""

import hashlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
STATE = os.path.join(HERE, 'state')
OBJECTS = {'source': ('definition', 'secret', 'unit'), 'backup': ('definition', 'module', 'secrets')}


def fault(role, kind):
    return os.path.exists(os.path.join(HERE, 'faults', '%s.%s' % (role, kind)))


def say(reply, status=0):
    print(json.dumps(reply))
    sys.exit(status)


def seal(key, password):
    # Not secret. It stands for ciphertext, which a front end must relay and not look into.
    return 'sealed:%s:%s' % (key, password[::-1])


def fingerprint(password):
    return hashlib.sha256(b'fake' + password.encode()).hexdigest()[:16] if password else ''


def text(pair):
    return json.dumps(pair, indent=1, sort_keys=True).split('\n')


class Host:
    def __init__(self, role, name):
        self.path = os.path.join(STATE, '%s-%s.json' % (role, name))
        self.role = role
        self.held = {}
        if os.path.exists(self.path):
            with open(self.path, encoding='utf-8') as f:
                self.held = json.load(f)

    def store(self):
        if self.held:
            with open(self.path, 'w', encoding='utf-8') as f:
                json.dump(self.held, f)
        elif os.path.exists(self.path):
            os.remove(self.path)


def desired(host, request):
    """What the host should hold after the request, and what differs."""
    want = dict(host.held, pair=request['pair'])
    if host.role == 'source':
        sealed = request.get('sealed_password', '')
        if request.get('password'):
            want['password'] = request['password']
        elif sealed:
            assert sealed.startswith('sealed:%s:' % host.held.get('key')), 'sealed to another key'
            want['password'] = sealed.rsplit(':', 1)[1][::-1]
    else:
        if request.get('password'):
            want['password'] = request['password']
        elif not want.get('password') or request.get('rotate'):
            want['password'] = '%s-%d' % (os.urandom(12).hex(), want.get('generation', 0))
            want['generation'] = want.get('generation', 0) + 1
    return want


def changes(host, want):
    out = []
    held = host.held
    definition = '/etc/lockstep/pairs/%s.yaml' % want['pair']['name']
    if held.get('pair') != want['pair']:
        before = text(held['pair']) if held.get('pair') else []
        out.append(dict(
            object='definition', path=definition, action='update' if before else 'create',
            diff='\n'.join(['--- ' + definition, '+++ ' + definition, '@@ -1 +1 @@']
                           + ['-' + line for line in before] + ['+' + line for line in text(want['pair'])]) + '\n'))
    if held.get('password') != want.get('password') or (host.role == 'source' and not want.get('password')):
        out.append(dict(object='secret' if host.role == 'source' else 'secrets',
                        path='/etc/lockstep/secrets/' + want['pair']['name'], action='update' if held.get('password') else 'create'))
    if host.role == 'source' and not held.get('pair'):
        out.append(dict(object='unit', path='lockstep@%s.service' % want['pair']['name'], action='start'))
    return out


def main():
    command = sys.argv[1]
    if command == 'status':
        name = sys.argv[3]
        held = Host('source', name).held
        if not held.get('pair'):
            print('lockstep: no agent answers for pair "%s"' % name, file=sys.stderr)
            sys.exit(6)
        say(dict(name=name, state='in step'))
    assert sys.argv[2] == '--role' and sys.argv[4:] == ['--json'], sys.argv
    role = sys.argv[3]
    with open(os.path.join(STATE, 'log.jsonl'), 'a', encoding='utf-8') as f:
        raw = sys.stdin.read()
        f.write(json.dumps([role, command, json.loads(raw)]) + '\n')
    if fault(role, 'missing'):
        print('sh: 1: lockstep: not found', file=sys.stderr)
        sys.exit(127)
    if fault(role, 'garbage'):
        print('Segmentation fault', file=sys.stderr)
        sys.exit(139)
    request = json.loads(raw)
    assert request['protocol'] == 1
    unknown = set(request) - {'protocol', 'pair', 'recipient', 'sealed_password', 'password', 'fingerprint', 'prepare', 'rotate', 'absent'}
    assert not unknown, unknown
    host = Host(role, request['pair']['name'])
    reply = dict(protocol=1, changed=False, changes=[], checks={o: 'in sync' for o in OBJECTS[role]}, exists=bool(host.held.get('pair')))
    if fault(role, 'problem') or fault(role, command):
        reply['problems'] = [dict(field='%s.path' % role, message='/nowhere does not exist', hint='create it')]
        say(reply, 2)
    if host.held.get('pair'):
        reply['pair'] = host.held['pair']
    reply['versions'] = dict(lockstep='1.0.0-fake')

    if command == 'read':
        reply['fingerprint'] = fingerprint(host.held.get('password'))
        if fault(role, 'drift'):
            reply['checks'][OBJECTS[role][0]] = 'mode is 0644, not 0600'
        say(reply)
    if request.get('prepare'):
        assert role == 'source' and command == 'apply'
        if 'key' not in host.held:
            host.held['key'] = os.urandom(4).hex()
            host.store()
        say(dict(reply, public_key=host.held['key']))
    if command == 'destroy' or command == 'plan' and request.get('absent'):
        if host.held.get('pair'):
            reply['changes'] = [dict(object='definition', path='/etc/lockstep/pairs/%s.yaml' % request['pair']['name'], action='delete')]
            reply['changed'] = True
        if command == 'destroy':
            host.held = {}
            host.store()
        say(reply)
    want = desired(host, request)
    reply['changes'] = changes(host, want)
    reply['changed'] = bool(reply['changes'])
    if command == 'apply':
        host.held = want
        host.store()
        reply['exists'] = True
    reply['fingerprint'] = fingerprint(host.held.get('password'))
    if role == 'source':
        reply['public_key'] = host.held.get('key', '')
    elif command == 'apply' and request.get('recipient'):
        reply['sealed_password'] = seal(request['recipient'], want['password'])
    say(reply)


main()
