#!/usr/bin/env bash
# clang-tidy over the CPU build (see .clang-tidy for the checks). Fails on any finding.
set -euo pipefail
command -v clang-tidy > /dev/null || { echo "lint: clang-tidy is missing: apt-get install clang-tidy libomp-dev" >&2; exit 1; }
files=$(git ls-files 'model/*.c*' 'kernels/*.c*' 'residual/*.cu' 'optimizer/*.c*' 'parallel/*.cpp' 'dataloader/*.cpp' \
    'checkpoint/*.cpp' 'driver/*.cpp' 'eval/*.cpp' '*_gpt2.cu' tokenize.cpp | grep -E '\.(cu|cpp)$')
flags="-std=c++20 -march=native -I. -Isimt -Itests -DPRECISION_FP32 -Wno-unknown-pragmas -Wno-pass-failed"
echo "$files" | xargs -P "$(nproc)" -I{} clang-tidy --quiet --warnings-as-errors='*' \
    --extra-arg-before=-xc++ {} -- $flags 2> /dev/null
echo "lint: clean"
