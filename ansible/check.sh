#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks the Ansible collection: ansible-lint, ansible-test sanity, units and integration (on this machine, with a
# lockstep that only pretends), and that the built collection installs without a network and works.
#
#   ansible/check.sh [lint] [sanity] [units] [integration] [build]      all of them by default
#
# It needs the packages of Debian 12 alone, which .ci/deps installs. Caches and reports go to build/ansible in the repository, and
# nothing to the home directory.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
collection=$here/ansible_collections/lockstep/replication
work=$here/../build/ansible
"$here/../.ci/deps" ansible

mkdir -p "$work/home"
work=$(cd "$work" && pwd)
# Debian's Python comes first, because Debian's packages are for it.
export PATH="/usr/bin:/bin:/usr/sbin:/sbin" HOME="$work/home" LC_ALL=C.UTF-8
export ANSIBLE_COLLECTIONS_PATH="$here" ANSIBLE_HOME="$work/home/.ansible"
unset ANSIBLE_CONFIG ANSIBLE_DEBUG ANSIBLE_KEEP_REMOTE_FILES PYTHONPATH || true
python=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# ansible-test makes a virtual environment for each of these tests and wants to fill it by pip, from the network. It
# takes one that is there, so here are some that see Debian's packages. It says only by failing what they are called.
venvs() {
    stamp=$work/home/venvs-$(dpkg-query -W -f '${Version}' ansible-core)-$python
    [ ! -e "$stamp" ] || return 0
    echo "== preparing ansible-test (once)"
    rm -rf "$HOME/.ansible/test/venv"
    for test in ansible-doc import pep8 pylint runtime-metadata validate-modules yamllint; do
        for round in 1 2 3; do # import needs two
            ansible-test sanity --test "$test" --python "$python" >"$work/venv-$test-$round.log" 2>&1 || true
            for venv in "$HOME"/.ansible/test/venv/sanity*/"$python"/*; do
                if [ ! -d "$venv" ] || [ -e "$venv/marker.txt" ]; then continue; fi
                rm -rf "$venv"
                /usr/bin/python3 -m venv --system-site-packages --without-pip "$venv"
                echo '[]' >"$venv/meta.install.json"
                echo '{"yaml": true, "cloader": true}' >"$venv/meta.yaml.json"
                : >"$venv/marker.txt"
            done
        done
    done
    : >"$stamp"
}

lint() {
    echo "== ansible-lint"
    (cd "$collection" && ansible-lint --offline --profile production -q)
    (cd "$here/../examples/ansible" && ansible-lint --offline --profile production -q site.yml)
}

sanity() {
    venvs
    echo "== ansible-test sanity"
    # changelog needs antsibull-changelog, which Debian has not.
    ansible-test sanity --python "$python" --skip-test changelog
    version=$(sed -n 's/^version: //p' galaxy.yml)
    if ! grep -qx "v$version" CHANGELOG.rst || ! grep -q "^  $version:" changelogs/changelog.yaml; then
        echo "ansible/check.sh: version $version is in galaxy.yml, and not in CHANGELOG.rst or changelogs/changelog.yaml" >&2
        return 1
    fi
}

units() {
    echo "== ansible-test units"
    ansible-test units --python "$python"
}

integration() {
    echo "== ansible-test integration"
    ansible-test integration --python "$python" --color no >"$work/integration.log" 2>&1 || {
        cat "$work/integration.log"
        return 1
    }
    # A target that ran nothing must not pass.
    for target in tests/integration/targets/lockstep_*; do
        grep -q "^TASK \[$(basename "$target") : " "$work/integration.log" || {
            echo "ansible/check.sh: integration target $(basename "$target") ran no task" >&2
            return 1
        }
    done
    grep '^testhost ' "$work/integration.log"
}

build() {
    echo "== build, install offline, use"
    rm -rf "$work/dist" "$work/installed"
    mkdir -p "$work/dist" "$work/installed"
    ansible-galaxy collection build --output-path "$work/dist" "$collection"
    # With this path alone: the sources here would count as installed.
    ANSIBLE_COLLECTIONS_PATH="$work/installed" \
        ansible-galaxy collection install "$work"/dist/lockstep-replication-*.tar.gz --offline -p "$work/installed" >/dev/null
    for module in pair pair_info pair_side; do
        (cd / && ANSIBLE_COLLECTIONS_PATH="$work/installed" ansible-doc -t module "lockstep.replication.$module" >/dev/null)
    done
    (cd / && ANSIBLE_COLLECTIONS_PATH="$work/installed" ansible-playbook -i localhost, "$here/testdata/installed.yml" \
        -e "fake=$collection/tests/integration/targets/setup_fake/files/lockstep.py" -e "work=$work/installed")
}

cd "$collection"
[ $# -gt 0 ] || set -- lint sanity units integration build
for step; do
    case $step in
    lint | sanity | units | integration | build) "$step" ;;
    *)
        echo "ansible/check.sh: no step called \"$step\"" >&2
        exit 2
        ;;
    esac
done
