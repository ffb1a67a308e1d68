#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Stands in for sersync 2.5 in tests: reads a confxml.xml, and sends what changes with the command lines that sersync
# runs, and with its faults. It looks every 0.2 s instead of asking inotify. Names have no line breaks.
#   - events of files called .*, *~ and 4913 are dropped
#   - a name to delete goes to rsync as a pattern, without escaping
#   - while the file $SERSYNC_OVERFLOW exists, what it reads is lost, as after a queue overflow
# It writes the number of its looks to $SERSYNC_LOOKS.
set -u
conf=confxml.xml once=no daemon=no
while getopts rdn:o:m: flag; do
	case $flag in
	r) once=yes ;;
	d) daemon=yes ;;
	o) conf=$OPTARG ;;
	*) ;;
	esac
done
# Comments that take one line, as in the distributed file, are left out.
text=$(sed 's/<!--.*-->//' "$conf")
attr() { printf '%s\n' "$text" | sed -n "s/.*<$1 [^>]*$2=\"\([^\"]*\)\".*/\1/p" | head -n 1; }
watch=$(attr localpath watch) ip=$(attr remote ip) module=$(attr remote name) params=$(attr commonParams params)
to=$ip::$module options=
[ "$(attr auth start)" != true ] || { to=$(attr auth users)@$to options="--password-file=$(attr auth passwordfile)"; }
[ "$(attr userDefinedPort start)" != true ] || options="$options --port=$(attr userDefinedPort port)"
[ "$(attr timeout start)" != true ] || options="$options --timeout=$(attr timeout time)"
delete=
[ "$(attr delete start)" != true ] || delete=--delete

look() {
	cd "$watch" && find . -mindepth 1 \( -type d -printf '%p\t%y\t0\n' -o -printf '%p\t%y\t%C@\n' \) 2>/dev/null | LC_ALL=C sort
}

send() { # path, type
	name=${1##*/}
	if [ "$2" != d ]; then
		case $name in .* | *~ | 4913) return ;; esac
	fi
	# shellcheck disable=SC2086 # the options are words
	(cd "$watch" && rsync $params -R "$1" "$to" $options >/dev/null 2>&1)
}

remove() { # path, type
	[ -n "$delete" ] || return 0
	name=${1##*/}
	if [ "$2" != d ]; then
		case $name in .* | *~ | 4913) return ;; esac
	fi
	path=${1#./} above=
	set --
	rest=$path
	while [ "$rest" != "${rest#*/}" ]; do
		above=$above${rest%%/*}/
		rest=${rest#*/}
		set -- "$@" "--include=$above"
	done
	set -- "$@" "--include=$path" "--include=$path/***" '--exclude=*'
	# shellcheck disable=SC2086
	(cd "$watch" && rsync $params -R --delete ./ "$@" "$to" $options >/dev/null 2>&1)
}

run() {
	[ -d "$watch" ] || exit 1
	# shellcheck disable=SC2086
	[ $once = no ] || (cd "$watch" && rsync $params -R $delete ./ "$to" $options >/dev/null 2>&1)
	dir=$(mktemp -d) looks=0
	trap 'rm -rf "$dir"; exit 0' TERM INT
	(look) >"$dir/was"
	while :; do
		[ -z "${SERSYNC_LOOKS-}" ] || echo $looks >"$SERSYNC_LOOKS"
		looks=$((looks + 1))
		sleep 0.2
		(look) >"$dir/is"
		if [ -z "${SERSYNC_OVERFLOW-}" ] || [ ! -e "$SERSYNC_OVERFLOW" ]; then
			LC_ALL=C comm -13 "$dir/was" "$dir/is" >"$dir/changed"
			while IFS='	' read -r path type _; do send "$path" "$type"; done <"$dir/changed"
			cut -f 1,2 "$dir/was" >"$dir/names.was"
			cut -f 1,2 "$dir/is" >"$dir/names.is"
			LC_ALL=C comm -23 "$dir/names.was" "$dir/names.is" >"$dir/gone"
			while IFS='	' read -r path type; do remove "$path" "$type"; done <"$dir/gone"
		fi
		mv "$dir/is" "$dir/was"
	done
}

if [ $daemon = yes ]; then
	(
		exec </dev/null >/dev/null 2>&1
		run
	) &
else
	run
fi
