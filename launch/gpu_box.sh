#!/usr/bin/env bash
# Trains on one machine with NVIDIA GPUs: sets up, runs, and goes on after a failure.
#
#   launch/gpu_box.sh [options] rrm train rrm_7b.yaml model.path=… data.train=… output=runs/7b
#
# One process uses all GPUs of the machine. CUDA 13 needs driver 580 or later; with an older one CUDA 12 is installed.
#   --extra cuda13|cuda12   instead of looking at the driver
#   --restarts N            how often to start again after a failure (default 3); wrong input (exit code 2) is final
#   --dry-run               print the commands, run nothing
# Ctrl-C or SIGTERM: the run saves and ends. Log out meanwhile with tmux, or: nohup launch/gpu_box.sh … &

set -eu
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

extra='' restarts=3
while [ "$#" -gt 0 ]; do
  case $1 in
    --extra) extra=$(value "$@"); shift 2 ;;
    --restarts) restarts=$(value "$@"); is_number "$1" "$restarts"; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) usage "$0" ;;
    -*) die "no option $1" ;;
    *) break ;;
  esac
done
[ "$#" -gt 0 ] || usage "$0"

if [ -z "$extra" ]; then
  extra=cuda13
  if driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) && [ -n "$driver" ]; then
    [ "${driver%%.*}" -ge 580 ] || extra=cuda12
  elif [ "$dry_run" = 0 ]; then
    die "nvidia-smi shows no GPU; give --extra cuda13 or cuda12 to go on nevertheless"
  fi
fi

command=(python3 "$root/launch/local.py" --extra "$extra" "$@")
if [ "${2-}" = train ]; then
  case " $* " in *" --resume "* | *" --auto-resume "*) ;; *) command+=(--auto-resume) ;; esac
fi
if [ "$dry_run" = 1 ]; then
  run "${command[@]}"
  exit 0
fi

told=0
trap 'told=1; kill -TERM "$child" 2>/dev/null || true' TERM INT # the shell keeps Ctrl-C from what runs beside it
attempt=0
while :; do
  "${command[@]}" &
  child=$!
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal has ended the wait, not the run
    code=0
    wait "$child" || code=$?
  done
  if [ "$code" = 0 ] || [ "$code" = 2 ] || [ "$told" = 1 ] || [ "$attempt" -ge "$restarts" ]; then
    exit "$code"
  fi
  attempt=$((attempt + 1))
  say "exit code $code; restart $attempt of $restarts"
done
