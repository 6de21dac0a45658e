#!/usr/bin/env bash
# Every kernel of one training update under Nsight Compute, one line each.
#
#     dev/gpu/profile.sh [--by-kernel] [BENCH OPTIONS]      e.g. --model gpt2 --shape 8,1024 --residual hc
#
# BUILD names the build (build/cuda-bf16), OUT the folder for profile.csv and profile.txt (build/gpu). ncu needs leave to read
# the card's counters: root, or the driver's option NVreg_RestrictProfilingToAdminUsers=0.
#
# Kernels are launched one by one, outside graphs (inside one neither ranges nor single kernels are seen), each run several
# times with the caches flushed in front: its bytes compare with those that `bench --kernel step` declares, its time does not
# add up to an update's.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${BUILD:-build/cuda-bf16} out=${OUT:-build/gpu}
format=()
[ "${1:-}" != --by-kernel ] || { format=(--by-kernel); shift; }
fail() { echo "profile.sh: $*" >&2; exit 1; }
command -v ncu > /dev/null || fail "no ncu: put the CUDA toolkit's bin on PATH, or install Nsight Compute"
[ -x "$build/bench" ] || fail "$build/bench is not there: make BACKEND=cuda programs"
mkdir -p "$out"
metrics=$(printf "%s," gpu__time_duration.sum \
    dram__bytes_read.sum \
    dram__bytes_write.sum \
    dram__throughput.avg.pct_of_peak_sustained_elapsed \
    sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active \
    sm__warps_active.avg.pct_of_peak_sustained_active \
    launch__registers_per_thread)
metrics=${metrics%,}
# The range "profiled update" is the one update that bench counts: what comes before and behind it is left out.
ncu --nvtx --nvtx-include "profiled update/" --clock-control none --csv --page raw --print-units base \
    --log-file "$out/profile.csv" --metrics "$metrics" \
    "$build/bench" --kernel step "$@" > "$out/profile.log" || {
    tail -n 5 "$out/profile.log" "$out/profile.csv" >&2
    fail "ncu failed"
}
python3 dev/gpu/profile_lines.py "${format[@]}" < "$out/profile.csv" | tee "$out/profile.txt"
