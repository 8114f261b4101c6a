#!/bin/bash
# One run on a TPU slice of any size: asks for it in the queue, installs this commit on all workers, runs.
#
#   launch/tpu_vm.sh create  NAME TYPE           e.g. create mine v6e-16; SPOT=1 for spot capacity
#   launch/tpu_vm.sh status  NAME                until it says ACTIVE
#   launch/tpu_vm.sh install NAME                this commit, Python 3.12 and JAX for TPUs, on all workers
#   launch/tpu_vm.sh train   NAME EXPERIMENT WORKDIR [OPTION ...]
#   launch/tpu_vm.sh stop    NAME                asks the run to save and stop
#   launch/tpu_vm.sh delete  NAME                gives the slice back
#
# ZONE says where (or gcloud's own setting), RUNTIME which VM image. WORKDIR lies on a filesystem that all workers mount.
set -euo pipefail

usage() {
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

[ "$#" -ge 2 ] || usage
action=$1 name=$2
shift 2
zone=()
[ -z "${ZONE:-}" ] || zone=("--zone=$ZONE")

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" ${zone[@]+"${zone[@]}"} --worker=all --command="$1"
}

case $action in
create)
  [ "$#" -eq 1 ] || usage
  case $1 in
  v4-*) image=tpu-ubuntu2204-base ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) image=${RUNTIME:?"set RUNTIME, the VM image of $1"} ;;
  esac
  spot=()
  [ -z "${SPOT:-}" ] || spot=(--spot)
  gcloud compute tpus queued-resources create "$name" ${zone[@]+"${zone[@]}"} --node-id="$name" \
    --accelerator-type="$1" --runtime-version="${RUNTIME:-$image}" ${spot[@]+"${spot[@]}"}
  ;;
status)
  gcloud compute tpus queued-resources describe "$name" ${zone[@]+"${zone[@]}"} --format="value(state.state)"
  ;;
install)
  folder=$(mktemp -d)
  archive=$folder/nested_jax.tar.gz
  trap 'rm -rf "$folder"' EXIT
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:nested_jax.tar.gz" ${zone[@]+"${zone[@]}"} --worker=all
  on_all "mkdir -p nested_jax && tar -xzf nested_jax.tar.gz -C nested_jax && \
    sudo apt-get -q -y install python3-venv && \
    python3 -m venv tools && tools/bin/pip install -q uv && tools/bin/uv venv -q --seed --python 3.12 venv && \
    venv/bin/pip install -q -e nested_jax 'jax[tpu]'"
  ;;
train)
  [ "$#" -ge 2 ] || usage
  line=$(printf ' %q' "$1" "--workdir=$2" "${@:3}")
  on_all "cd nested_jax && exec ../venv/bin/python -u -m nested_jax train$line"
  ;;
stop)
  on_all "pkill -TERM -f '[n]ested_jax train' || true"
  ;;
delete)
  gcloud compute tpus queued-resources delete "$name" ${zone[@]+"${zone[@]}"} --force
  ;;
*)
  usage
  ;;
esac
