#!/usr/bin/env bash
# Trains on Google Kubernetes Engine, on TPUs (TPU7x too) or GPUs: fills in gke_jobset.yaml, and applies it.
#
#   launch/gke.sh apply --name rrm --image IMAGE --claim CLAIM --hosts 16 --tpu tpu-v5p-slice --topology 4x4x4 \
#       -- rrm train rrm_32b.yaml output=/mnt/rrm/32b …
#   launch/gke.sh apply --name rrm --image IMAGE --claim CLAIM --hosts 4 --gpu nvidia-h100-80gb -- rrm train …
#   launch/gke.sh logs|status|delete --name rrm
#
# --image     built from launch/Dockerfile; --claim: a ReadWriteMany volume claim, mounted at /mnt/rrm on every host.
# --hosts     pods, one a host: for a TPU slice its chips divided by --chips.
# --chips N   chips or GPUs a host (default 4 TPU chips, 8 GPUs).
# --restarts N  how often the set is started again when a pod fails (default 10); wrong input (exit code 2) is final.
# --dry-run   prints the YAML and the commands, runs nothing.
# The cluster needs JobSet 0.6 or later, and a node pool of that kind: docs/pods.md.

set -eu
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

verb=${1-} name='' image='' claim='' hosts='' tpu='' topology='' gpu='' chips='' restarts=10
command=()
case $verb in
  '' | -h | --help) usage "$0" ;;
  apply | logs | status | delete) shift ;;
  *) die "no verb '$verb'; --help shows them" ;;
esac
while [ "$#" -gt 0 ]; do
  case $1 in
    --name) name=$(value "$@"); shift 2 ;;
    --image) image=$(value "$@"); shift 2 ;;
    --claim) claim=$(value "$@"); shift 2 ;;
    --hosts) hosts=$(value "$@"); is_number "$1" "$hosts"; shift 2 ;;
    --tpu) tpu=$(value "$@"); shift 2 ;;
    --topology) topology=$(value "$@"); shift 2 ;;
    --gpu) gpu=$(value "$@"); shift 2 ;;
    --chips) chips=$(value "$@"); is_number "$1" "$chips"; shift 2 ;;
    --restarts) restarts=$(value "$@"); is_number "$1" "$restarts"; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) usage "$0" ;;
    --) shift; command=("$@"); break ;;
    *) die "no option $1; the command to run stands after --" ;;
  esac
done
needed --name "$name"

# A word as a JSON string, which YAML reads as well.
json() {
  local text=$1
  # shellcheck disable=SC1003 # two backslashes
  local backslashes='\\' quote='\"'
  text=${text//\\/"$backslashes"}
  text=${text//\"/"$quote"}
  printf '"%s"' "$text"
}

render() {
  local selector resource words='' word
  needed --image "$image"
  needed --claim "$claim"
  needed --hosts "$hosts"
  [ "${#command[@]}" -gt 0 ] || die "give the command to run after --"
  if [ -n "$tpu" ] && [ -z "$gpu" ]; then
    needed --topology "$topology"
    selector="{cloud.google.com/gke-tpu-accelerator: $tpu, cloud.google.com/gke-tpu-topology: \"$topology\"}"
    resource="google.com/tpu: ${chips:-4}"
  elif [ -n "$gpu" ] && [ -z "$tpu" ]; then
    selector="{cloud.google.com/gke-accelerator: $gpu}"
    resource="nvidia.com/gpu: ${chips:-8}"
  else
    die "give --tpu and --topology, or --gpu"
  fi
  [ "${command[1]-}" != train ] || command+=(--distributed on --auto-resume --stop-exit-code 75)
  for word in "${command[@]}"; do words="$words, $(json "$word")"; done
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line//@NAME@/"$name"} line=${line//@IMAGE@/"$image"} line=${line//@CLAIM@/"$claim"}
    line=${line//@HOSTS@/"$hosts"} line=${line//@RESTARTS@/"$restarts"} line=${line//@SELECTOR@/"$selector"}
    line=${line//@RESOURCE@/"$resource"} line=${line//@COMMAND@/"[${words#, }]"}
    printf '%s\n' "$line"
  done <"$root/launch/gke_jobset.yaml"
}

case $verb in
  apply)
    yaml=$(render)
    if [ "$dry_run" = 1 ]; then
      printf '%s\n' "$yaml"
      say "the above goes to:"
      run kubectl apply -f -
    else
      printf '%s\n' "$yaml" | kubectl apply -f -
    fi
    ;;
  logs) run kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
  status) run kubectl get "jobset/$name" && run kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" ;;
  delete) run kubectl delete "jobset/$name" ;;
esac
