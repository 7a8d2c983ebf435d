# What the scripts beside it share: sourced, not run. Bash 3.2 and later.
# shellcheck shell=bash

# shellcheck disable=SC2034 # used by those that source this
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=0

say() { printf '[launch] %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# A command as one line that a shell reads back as the same words.
quoted() {
  local word space='' escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        word=${word//\'/"$escaped"} # quoted, as Bash 5.2 reads & and backslashes in it otherwise
        word="'$word'"
        ;;
    esac
    printf '%s%s' "$space" "$word"
    space=' '
  done
}

# Runs a command, or prints it with --dry-run.
run() {
  if [ "$dry_run" = 1 ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# The comment at the head of a script, from its second line on, is its help.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
  exit 0
}

needed() {
  [ -n "$2" ] || die "$1 is needed; --help says more"
}

# An option's value, where there is one.
value() {
  [ "$#" -ge 2 ] || die "$1 needs a value"
  printf '%s' "$2"
}

is_number() {
  case $2 in
    '' | *[!0-9]*) die "$1 takes a number, not '$2'" ;;
  esac
}
