#!/usr/bin/env bash
# Trains on Cloud TPU VMs: v4, v5e, v5p or v6e, one slice, by a queued resource. Needs gcloud, logged in.
#
#   launch/tpu_vm.sh create  --name rrm --zone us-east5-a --type v5p-128 [--spot] [--runtime VERSION]
#   launch/tpu_vm.sh install --name rrm --zone us-east5-a [--mount 'COMMAND']
#   launch/tpu_vm.sh run     --name rrm --zone us-east5-a -- rrm train rrm_32b.yaml output=/mnt/rrm/32b …
#   launch/tpu_vm.sh watch   --name rrm --zone us-east5-a --type v5p-128 [--spot] [--mount 'COMMAND'] -- rrm train …
#   launch/tpu_vm.sh logs    --name rrm --zone us-east5-a [--worker 3]
#   launch/tpu_vm.sh status|stop|delete --name rrm --zone us-east5-a
#
# create   asks for the slice and waits until it is there (at any time, by the queue).
# install  runs COMMAND on every host, puts the commit that is checked out here on it, and sets it up. COMMAND mounts
#          the file system that output= is on, the same on all hosts (docs/pods.md).
# run      starts the command on every host, and returns.
# watch    until the run is complete: after a failure starts it again (--restarts N, default 10; wrong input is final);
#          after a preemption makes the slice anew, installs and runs. Goes on in this terminal; may be started again.
# logs     follows the log of one host (0 has the metrics). stop: the run saves and ends. delete: gives the slice back.
# Everywhere: --project P, and --dry-run, which prints the commands and runs nothing.

set -eu
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

verb=${1-} name='' zone='' type='' runtime='' project='' mount=true worker=0 restarts=10 every=${RRM_POLL_SECONDS:-60}
spot=() command=()
case $verb in
  '' | -h | --help) usage "$0" ;;
  create | install | run | watch | logs | status | stop | delete) shift ;;
  *) die "no verb '$verb'; --help shows them" ;;
esac
while [ "$#" -gt 0 ]; do
  case $1 in
    --name) name=$(value "$@"); shift 2 ;;
    --zone) zone=$(value "$@"); shift 2 ;;
    --type) type=$(value "$@"); shift 2 ;;
    --runtime) runtime=$(value "$@"); shift 2 ;;
    --project) project=$(value "$@"); shift 2 ;;
    --mount) mount=$(value "$@"); shift 2 ;;
    --worker) worker=$(value "$@"); is_number "$1" "$worker"; shift 2 ;;
    --restarts) restarts=$(value "$@"); is_number "$1" "$restarts"; shift 2 ;;
    --spot) spot=(--spot); shift ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) usage "$0" ;;
    --) shift; command=("$@"); break ;;
    *) die "no option $1; the command to run stands after --" ;;
  esac
done
needed --name "$name"
needed --zone "$zone"
where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")

queued() { run gcloud compute tpus queued-resources "$@" "${where[@]}"; }

# on WORKERS COMMAND: on one host, by its number, or on all.
on() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null; }

create() {
  needed --type "$type"
  if [ -z "$runtime" ]; then
    case $type in
      v4-*) runtime=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) die "--type $type: give --runtime as well, as the release notes of Cloud TPU say" ;;
    esac
  fi
  queued create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" ${spot[@]+"${spot[@]}"}
  if [ "$dry_run" = 1 ]; then
    say "then, every $every s until it says ACTIVE:"
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
    return
  fi
  local now='' before=''
  while :; do
    now=$(state) || now=''
    [ "$now" = "$before" ] || say "$name: ${now:-unknown}"
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED) die "$name is $now; see: $(quoted gcloud compute tpus queued-resources describe "$name" "${where[@]}")" ;;
    esac
    sleep "$every"
  done
}

install() {
  local bundle=/tmp/rrm.bundle
  [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] || say "changes that are not committed stay here"
  [ "$dry_run" = 1 ] || bundle=$(mktemp -d)/rrm.bundle
  run git -C "$root" bundle create -q "$bundle" HEAD
  run gcloud compute tpus tpu-vm scp "$bundle" "$name:rrm.bundle" "${where[@]}" --worker=all
  [ "$dry_run" = 1 ] || rm -r "$(dirname "$bundle")"
  on all "$mount"
  # The image's Python lacks venv, by which local.py gets uv.
  on all 'sudo apt-get -q update && sudo apt-get -q -y install git python3-venv'
  on all 'rm -rf rrm && git clone -q rrm.bundle rrm && cd rrm && python3 launch/local.py --extra tpu rrm --help > /dev/null'
}

# The shell around the run outlives what stops the run, to note its exit code.
start() {
  local inner line
  [ "${#command[@]}" -gt 0 ] || die "give the command to run after --"
  line=$(quoted "${command[@]}")
  [ "${command[1]-}" != train ] || line="$line --distributed on --auto-resume"
  inner="trap : TERM; echo \$\$ > train.pid; python3 launch/local.py --extra tpu $line >> train.log 2>&1; echo \$? > train.exit"
  on all "cd rrm && { [ ! -f train.pid ] || kill -KILL -- -\$(cat train.pid) 2> /dev/null || true; } && rm -f train.exit && (setsid nohup bash -c $(quoted "$inner") < /dev/null > /dev/null 2>&1 &)"
}

status() {
  on "$worker" 'cd rrm; if [ ! -f train.exit ]; then echo running; elif tail -n 5 train.log | grep -q "go on with the same command"; then echo stopped; else cat train.exit; fi'
}

remove() { queued delete "$name" --force --quiet; }

again() {
  say "$name was $1: making it anew"
  remove || true
  create
  install
  start
}

watch() {
  local attempt=0 now code
  needed --type "$type"
  if [ "$dry_run" = 1 ]; then
    say "every $every s:"
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
    status
    say "when the run has failed:"
    start
    say "when the slice is SUSPENDED, FAILED or not there:"
    again preempted
    return
  fi
  while :; do
    now=$(state) || now=''
    case $now in
      ACTIVE)
        code=$(status 2>/dev/null) || code=unreachable
        case $code in
          running | unreachable) ;;
          0) say "complete" && return ;;
          2) on 0 'tail -n 20 rrm/train.log' && die "wrong input; the log above says which" ;;
          *)
            [ "$attempt" -lt "$restarts" ] || die "exit code $code after $restarts restarts"
            attempt=$((attempt + 1))
            say "exit code $code; restart $attempt of $restarts"
            start || true # unreachable just now: the next round sees
            ;;
        esac
        ;;
      SUSPENDED | FAILED) again "$now" ;;
      '') # not there, unless it is gcloud that fails
        if gcloud compute tpus queued-resources list "${where[@]}" '--format=value(name)' >/dev/null 2>&1; then again "not there"; fi
        ;;
      *) say "$name: $now" ;;
    esac
    sleep "$every"
  done
}

case $verb in
  run) start ;;
  logs) on "$worker" 'tail -n 100 -F rrm/train.log' ;;
  stop) on all "kill -TERM -- -\$(cat rrm/train.pid)" ;;
  delete) remove ;;
  *) "$verb" ;;
esac
