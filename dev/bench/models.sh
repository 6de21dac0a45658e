#!/usr/bin/env bash
# Whole models: tokens per second of a few training updates on synthetic tokens.   dev/bench/models.sh BUILD
# The comparison with PyTorch is dev/bench/step_124m.py on a CPU and dev/gpu/check.sh on a GPU.
set -euo pipefail
build=${1:?usage: dev/bench/models.sh build/BACKEND-PRECISION}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Every preset's vocabulary holds the bytes.
head -c 4000000 /dev/urandom > "$folder/noise"
"$build/tokenize" "$folder/noise" --out "$folder/noise" --val-fraction 0 > /dev/null
sizes=("gpt2-nano 16 128" "gpt2 4 64")
[[ $build == *cuda* ]] && sizes=("gpt2 32 1024" "gpt2-medium 32 1024")
for size in "${sizes[@]}"; do
    read -r model batch seq <<< "$size"
    OMP_WAIT_POLICY=passive "$build/train_gpt2" --model "$model" --batch "$batch" --seq "$seq" --steps 12 --save-every 0 \
        --train "$folder/noise_train_*.bin" --out "$folder/$model" > "$folder/log"
    python3 - "$folder/$model/log.jsonl" "$model B=$batch T=$seq" << 'PY'
import json, statistics, sys
steps = [e for e in map(json.loads, open(sys.argv[1])) if e["event"] == "step"][2:]
ms = statistics.median(e["ms"] for e in steps)
mfu = steps[-1].get("mfu")
print(f"{sys.argv[2]:28} {ms:10.1f} ms an update  {statistics.median(e['tokens_per_s'] for e in steps):12.0f} tokens/s"
      + (f"  MFU {100 * mfu:.1f} %" if mfu else ""))
PY
    rm -rf "${folder:?}/$model"
done
