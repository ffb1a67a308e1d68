// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Commands whose first argument is the name of a pair; the shell completes it from the definitions on this host.
var pairCommands = []string{"run", "status", "wait", "sync", "verify", "pause", "resume", "approve", "doctor"}

// runCompletion prints a completion script for one shell. It completes commands and pair names, and leaves files to the shell.
func runCompletion(_ context.Context, std stdio, args []string) error {
	flags := newFlags(std, "The packages install these.\n", "completion bash|zsh|fish")
	if err := flags.Parse(args); err != nil {
		return flagError(err)
	}
	if flags.NArg() != 1 {
		return usageError(errors.New("completion: want one of bash, zsh, fish"))
	}
	scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	script, ok := scripts[flags.Arg(0)]
	if !ok {
		return usageError(fmt.Errorf("completion: unknown shell %q; want bash, zsh or fish", flags.Arg(0)))
	}
	var names, zsh, fish []string
	for _, c := range commands() {
		names = append(names, c.name)
		zsh = append(zsh, fmt.Sprintf("    '%s:%s'", c.name, strings.ReplaceAll(strings.ReplaceAll(c.short, "'", ""), ":", " -")))
		fish = append(fish, fmt.Sprintf("complete -c lockstep -n __fish_use_subcommand -f -a %s -d '%s'", c.name, strings.ReplaceAll(c.short, "'", "")))
	}
	script = strings.NewReplacer(
		"@COMMANDS@", strings.Join(names, " "),
		"@NAMED@", strings.Join(pairCommands, " "),
		"@NAMED_CASE@", strings.Join(pairCommands, "|"),
		"@ZSH@", strings.Join(zsh, "\n"),
		"@FISH@", strings.Join(fish, "\n"),
	).Replace(script)
	_, err := fmt.Fprint(std.out, script)
	return err
}

const bashCompletion = `# bash completion for lockstep
_lockstep() {
    local cur=${COMP_WORDS[COMP_CWORD]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$cur"))
        return
    fi
    case ${COMP_WORDS[1]} in
    @NAMED_CASE@)
        local f names=
        for f in /etc/lockstep/pairs/*.yaml; do
            f=${f##*/}
            names="$names ${f%.yaml}"
        done
        COMPREPLY=($(compgen -W "$names" -- "$cur"))
        ;;
    *)
        COMPREPLY=($(compgen -f -- "$cur"))
        ;;
    esac
}
complete -F _lockstep lockstep
`

const zshCompletion = `#compdef lockstep
_lockstep() {
  local -a commands
  commands=(
@ZSH@
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case $words[2] in
    @NAMED_CASE@)
      local -a pairs
      pairs=(/etc/lockstep/pairs/*.yaml(N:t:r))
      compadd -a pairs
      ;;
    *)
      _files
      ;;
  esac
}
_lockstep "$@"
`

const fishCompletion = `# fish completion for lockstep
@FISH@
complete -c lockstep -n '__fish_seen_subcommand_from @NAMED@' -f -a '(for f in /etc/lockstep/pairs/*.yaml; basename $f .yaml; end)'
`
