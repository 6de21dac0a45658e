#!/usr/bin/env bash
# The first README command: a GPT-2 trained on Jane Austen's novels, on whatever machine this is.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)
data=data/austen
out=runs/demo
steps=${DEMO_STEPS:-600}

echo "== building"
log=$(mktemp)
make -j"$jobs" --no-print-directory programs > "$log" 2>&1 || { tail -n 30 "$log"; rm -f "$log"; exit 1; }
rm -f "$log"
echo "== corpus"
mkdir -p "$data"
[ -s "$data/austen.txt" ] || python3 dev/data/austen.py --out "$data/austen.txt"
[ -s "${data}/austen_tokenizer.json" ] || build/tokenize "$data/austen.txt" --out "$data/austen" --val-fraction 0.05
echo "== training gpt2-nano on bytes, $steps updates"
rm -rf "$out"
OMP_WAIT_POLICY=passive build/train_gpt2 --model gpt2-nano --train "$data/austen_train_*.bin" --val "$data/austen_val_*.bin" \
    --batch 16 --steps "$steps" --lr 2e-3 --warmup 20 --val-every 100 --val-batches 20 --out "$out"
echo "== evaluation"
python3 dev/data/val_text.py "$data" > "$data/austen_val.txt"
OMP_WAIT_POLICY=passive build/eval_gpt2 --model "$out" --task ppl="$data/austen_val.txt" --json "$out/eval.json"
echo "== a sample"
OMP_WAIT_POLICY=passive build/sample_gpt2 --model "$out" --prompt "It was a truth" --tokens 300 --temperature 0.8 | tee "$out/sample.txt"
echo
python3 dev/report/curve.py "$out" -o "$out/loss.html" --sample "$out/sample.txt"
