#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds, tests, checks and measures, and writes one result file.
#
#   dev/gpu/check.sh [--backend cuda|cpu] [--fresh] [--force] [STAGE...]
#
#   stages     build       programs and tests, bf16 and fp32
#              tests       every test, bf16 and fp32
#              sanitizer   compute-sanitizer (memcheck, racecheck) over the kernel tests
#              ceilings    what this machine can do: a large matrix product, a large copy
#              kernels     every kernel by itself
#              attention   attention beside PyTorch's best backend over a grid of shapes
#              models      training speed of gpt2 and gpt2-medium, PyTorch beside it
#              fp8         the same models on a text, with and without --fp8: speed and loss
#              rules       what every residual rule adds to a training update of gpt2-medium
#              report      dev/gpu/results/DATE-GPU-COMMIT.json from what the stages measured
#
# Without stages: all that are not done yet for this commit. A stage that is named runs if it is not done yet, with --force
# in any case; --fresh forgets everything. Each stage keeps within ten minutes and can be run by itself, so a short lease
# of a machine is enough; a machine that was replaced builds again by itself.
#
# --backend cpu takes the same path on the CPU machine with tiny models: a rehearsal, whose numbers are no results.
#
# Environment: OUT (if set, result files are copied there at the end), ARCHS (default: the card present), DEPS (default
# .carry where it exists), COMMIT (where git does not answer), PYTHON (default python3; it needs torch), KERNEL_TAGS.
#
# shellcheck disable=SC2317  # the stages are called by name
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

usage() { awk 'NR > 2 && !/^#$|^# /  { exit } /shellcheck/ { exit } NR > 1 { sub(/^# ?/, ""); print }' dev/gpu/check.sh; }
fail() { echo "check.sh: $*" >&2; exit 1; }

stages=(build tests sanitizer ceilings kernels attention models fp8 rules report)
backend=cuda fresh=no force=no wanted=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --backend) [ $# -gt 1 ] || fail "--backend takes cuda or cpu"; backend=$2; shift ;;
        --backend=*) backend=${1#*=} ;;
        --fresh) fresh=yes ;;
        --force) force=yes ;;
        -*) fail "unknown option $1 (see --help)" ;;
        *) [[ " ${stages[*]} " == *" $1 "* ]] || fail "unknown stage $1: there are ${stages[*]}"; wanted+=("$1") ;;
    esac
    shift
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${stages[@]}")

python=${PYTHON:-python3}
jobs=$(nproc)
commit=${COMMIT:-$(git describe --always --dirty --abbrev=7 2> /dev/null || echo unknown)}
deps=${DEPS:-$([ -d .carry ] && echo .carry)}
tags=${KERNEL_TAGS:-"[attention],[seam],[embedding],[bias],[classifier],[adamw],[gradient_norm],[activation],[matmul],[fp8],[ptx]"}
export OMP_WAIT_POLICY=passive
case $backend in
    cuda)
        nvidia-smi -L > /dev/null 2>&1 || fail "no GPU answers here (nvidia-smi -L); --backend cpu rehearses without one"
        precisions="bf16 fp32" main=bf16 state=build/gpu
        export PATH="$PATH:${CUDA:-/usr/local/cuda}/bin"
        ;;
    cpu) precisions="fp32" main=fp32 state=build/gpu-rehearsal ;;
    *) fail "--backend $backend: say cuda or cpu" ;;
esac

# What was measured of another version is worth nothing for this one.
[ $fresh = no ] || rm -rf "$state"
if [ -f "$state/done" ] && [ "$(head -n 1 "$state/done")" != "commit $commit" ]; then
    echo "results of $(head -n 1 "$state/done") are dropped: this is commit $commit"
    rm -rf "$state"
fi
mkdir -p "$state" || fail "cannot write $state"
[ -f "$state/done" ] || echo "commit $commit" > "$state/done"

# Each stage_NAME writes $state/NAME.json where it has numbers, and fails if what it checks fails. Time limits add up to
# less than ten minutes a stage, so that a stage that hangs still leaves its log.

compile() {
    local p
    for p in $precisions; do
        make -j"$jobs" --no-print-directory BACKEND="$backend" PRECISION="$p" ${ARCHS:+ARCHS="$ARCHS"} ${deps:+DEPS="$deps"} \
            programs tests || return 1
    done
}
stage_build() {
    local start=$SECONDS
    compile || return 1
    echo "built $precisions in $((SECONDS - start)) s"
    nvcc --version 2> /dev/null | tail -n 2
    return 0
}
# Other stages need the programs. make finds in a moment that all is there, and builds where a machine is new.
programs() { compile > "$state/make.log" 2>&1 || { tail -n 40 "$state/make.log"; return 1; }; }

stage_tests() {
    programs || return 1
    local p log status=0 rows=""
    for p in $precisions; do
        log=$state/tests-$p.log
        echo "== build/$backend-$p/tests"
        RESIDUAL_BUILD=build/$backend-$p timeout 280 "build/$backend-$p/tests" > "$log" 2>&1
        local code=$? line
        line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
        [ "$code" -eq 0 ] || { status=1; tail -n 60 "$log"; }
        [ "$code" -ne 124 ] || echo "stopped after 280 s"
        grep -E '^skipped:' "$log" | sort | uniq -c
        # A binary that died before its closing line counts as one failure, so that it is never taken for a pass.
        echo "${line:-no closing line, exit code $code}"
        rows+="$p $code ${line:-0 passed, 1 failed, 0 skipped}"$'\n'
    done
    printf '%s' "$rows" | "$python" -c '
import json, sys
total, builds = {"passed": 0, "failed": 0, "skipped": 0}, {}
for line in sys.stdin:
    build, code, *words = line.replace(",", "").split()
    counts = dict(zip(words[1::2], map(int, words[0::2])))
    if int(code) and not counts["failed"]:
        counts["failed"] = 1
    builds[build] = counts
    for key in total:
        total[key] += counts[key]
json.dump({**total, "builds": builds}, open(sys.argv[1], "w"), indent=1)' "$state/tests.json"
    return "$status"
}

stage_sanitizer() {
    programs || return 1
    local tool status=0 results="" code
    for tool in memcheck racecheck; do
        local log=$state/sanitizer-$tool.log
        local run=(compute-sanitizer --tool "$tool" --error-exitcode 99)
        [ "$backend" = cuda ] || run=()  # the rehearsal runs the same tests bare
        echo "== $tool $tags"
        timeout 270 "${run[@]}" "build/$backend-$main/tests" "$tags" > "$log" 2>&1
        code=$?
        local word
        case $code in
            0) word=passed ;;
            124) word="stopped after 270 s"; status=1 ;;
            *) word="failed with exit code $code"; status=1; grep -m 40 -E '=========|FAILED' "$log" ;;
        esac
        grep -qE '^[1-9][0-9]* passed' "$log" || { [ "$code" -ne 0 ] || { word="ran no test"; status=1; }; }
        tail -n 1 "$log"
        echo "$tool: $word"
        results+="${results:+, }\"$tool\": \"$word\""
    done
    echo "{$results}" > "$state/sanitizer.json"
    return "$status"
}

stage_ceilings() { timeout 300 "$python" dev/gpu/ceilings.py --backend "$backend" --json "$state/ceilings.json"; }

stage_kernels() {
    programs || return 1
    timeout 540 "build/$backend-$main/bench" --kernel rows,matmul,attention,attention_decode,fp8,step \
        --json "$state/kernels.json"
}

stage_attention() {
    programs || return 1
    timeout 300 "$python" dev/gpu/attention.py --backend "$backend" --build "build/$backend-$main" --json "$state/attention.json"
}

stage_models() {
    programs || return 1
    timeout 580 "$python" dev/gpu/models.py --backend "$backend" --precision "$main" --json "$state/models.json"
}

# The text is what every checkout has: its own sources, as bytes. Both sides make the same updates with the same data.
stage_fp8() {
    local size=(--model gpt2-medium --model gpt2 --batch 32 --seq 1024 --steps 200 --lr 3e-4)
    if [ "$backend" = cpu ]; then
        size=(--model gpt2-nano --batch 2 --seq 64 --steps 20)
    elif ! nvidia-smi --query-gpu=compute_cap --format=csv,noheader --id=0 | awk '{ exit !($1 >= 8.9) }'; then
        echo "this card has no 8-bit products: nothing to compare"
        return 0
    fi
    programs || return 1
    cat ./*.md ./*.cu ./*/*.md ./*/*.cu ./*/*.cuh ./*/*.cpp ./*/*.h > "$state/sources.txt" || return 1
    timeout 580 "$python" dev/bench/fp8_training.py --build "build/$backend-$main" --text "$state/sources.txt" --seeds 1 \
        --json "$state/fp8.json" "${size[@]}"
}

stage_rules() {
    programs || return 1
    timeout 580 "build/$backend-$main/bench" --kernel rules --json "$state/rules.json"
}

stage_report() {
    rm -rf "$state/results"
    "$python" dev/gpu/report.py --state "$state" --backend "$backend" --commit "$commit" --out "$state/results" || return 1
    if [ "$backend" = cuda ]; then  # a rehearsal leaves no result
        mkdir -p dev/gpu/results && cp -v "$state"/results/*.json dev/gpu/results/
    fi
}

summary=() status=0
for stage in "${wanted[@]}"; do
    if [ $force = no ] && [ "$stage" != report ] && grep -qx "$stage" "$state/done"; then
        summary+=("$stage: done before")
        continue
    fi
    echo "=== $stage"
    start=$SECONDS
    rm -f "$state/$stage.json" && sed -i "/^$stage\$/d" "$state/done"
    if "stage_$stage" 2>&1 | tee "$state/$stage.stage.log"; then
        grep -qx "$stage" "$state/done" || echo "$stage" >> "$state/done"
        summary+=("$stage: ok, $((SECONDS - start)) s")
    else
        status=1
        summary+=("$stage: FAILED after $((SECONDS - start)) s")
    fi
done

# A lent machine gives back a handful of files: the result, the state of the check (to go on from in another loan: unpack
# it in $state), and one file with all logs.
if [ -n "${OUT:-}" ]; then
    mkdir -p "$OUT"
    cp "$state"/results/*.json "$OUT"/ 2> /dev/null
    (cd "$state" && tar cf - "done" ./*.json 2> /dev/null) > "$OUT/state.tar"
    for log in "$state"/*.log; do
        [ -f "$log" ] && printf '##### %s\n' "$log" && tail -c 400000 "$log"
    done > "$OUT/logs.txt"
fi
echo "=== $commit on $backend"
printf '%s\n' "${summary[@]}"
exit $status
