#!/usr/bin/env bash
# Builds and runs every test this machine can run, and closes with one line: N passed, N failed, N skipped.
#   tests/run.sh                everything         TEST_BUILDS="fp32 bf16-check" tests/run.sh     some builds only
set -uo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)
backend=cpu
nvidia-smi -L > /dev/null 2>&1 && { command -v nvcc > /dev/null || [ -x /usr/local/cuda/bin/nvcc ]; } && backend=${BACKEND:-cuda}
builds=${TEST_BUILDS:-"fp32 bf16"}
[ "$backend" = cpu ] && builds=${TEST_BUILDS:-"fp32 bf16 fp32-check bf16-check fp32-asan"}

passed=0 failed=0 skipped=0
for build in $builds; do
    precision=${build%%-*}
    variant=${build#"$precision"}
    variant=${variant#-}
    name=build/$backend-$build
    goals=tests
    [ -z "$variant" ] && goals="programs tests"
    echo "== $name"
    if ! make -j"$jobs" --no-print-directory $goals BACKEND=$backend PRECISION="$precision" VARIANT="$variant" > "/tmp/residual_build.$$" 2>&1; then
        tail -n 30 "/tmp/residual_build.$$"
        echo "$name does not build"
        failed=$((failed + 1))
        continue
    fi
    start=$(date +%s)
    log=$name/tests.log
    RESIDUAL_BUILD=$name GOMP_SPINCOUNT=1000 ASAN_OPTIONS=detect_leaks=0 "$name/tests" > "$log" 2>&1
    status=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    if [ -z "$line" ] || { [ $status -ne 0 ] && [[ $line == *" 0 failed"* ]]; }; then
        tail -n 40 "$log"
        echo "$name/tests ended with status $status before its closing line; whole output in $log"
        failed=$((failed + 1))
    fi
    if [ -n "$line" ]; then
        read -r p _ f _ s _ <<< "${line//,/}"
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
        [ "$f" -ne 0 ] && cat "$log"
        grep -E '^skipped:' "$log" | sort | uniq -c
        echo "   $line ($(($(date +%s) - start)) s)"
    fi
done
rm -f "/tmp/residual_build.$$"
for script in dev/data/test_data.py dev/gpu/test_profile_lines.py; do
    echo "== $script"
    line=$(python3 "$script" | tail -n 1)
    if read -r p _ f _ s _ <<< "${line//,/}" && [[ $line == *passed* ]]; then
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
        echo "   $line"
    else
        echo "$script ended without its closing line"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
