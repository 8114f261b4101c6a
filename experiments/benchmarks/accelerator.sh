#!/usr/bin/env bash
# What wants an accelerator, one after the other; most of the time is compiling, which JAX_COMPILATION_CACHE_DIR keeps:
#
#   bash experiments/benchmarks/accelerator.sh [FOLDER]
#
# The fused kernel of this machine against the reference, the quick cases of the law "implementations agree" in double
# precision, then what things cost. What each command prints is also in a file of FOLDER (runs/accelerator).
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-runs/accelerator}"
mkdir -p "$out"

run() {
  local name="$1" began=$SECONDS status=0
  shift
  echo "+ $*" | tee "$out/$name.txt"
  "$@" 2>&1 | tee -a "$out/$name.txt" || status=$?
  echo "$name: exit $status after $((SECONDS - began)) s" | tee -a "$out/$name.txt"
}

backend="$(python3 -c 'import jax; print(jax.default_backend())')"
case "$backend" in
  gpu) platforms=cuda,cpu kernel=mosaic_gpu ;;
  tpu) platforms=tpu,cpu kernel=pallas_tpu ;;
  *) echo "JAX sees no accelerator here, its backend is $backend" >&2; exit 1 ;;
esac
tests=(env "JAX_PLATFORMS=$platforms" XLA_PYTHON_CLIENT_PREALLOCATE=false python3 -m pytest)
run kernels "${tests[@]}" tests/kernels -k "TestKernels and $kernel"
run laws "${tests[@]}" tests/laws/test_implementations_agree.py
run scan python3 -m nested_jax bench scan
run rules python3 -m nested_jax bench rules
run newton_schulz python3 -m nested_jax bench newton_schulz
run throughput python3 -m nested_jax bench throughput
