#!/usr/bin/env bash
# Tunes a 10-row prompt for SmolLM2-135M on the CPU, and scores it on rows that nothing was chosen by.
# Usage: demo/run.sh [train flags, e.g. --seed 1]
set -euo pipefail
cd "$(dirname "$0")/.."

need() {
  command -v "$1" >/dev/null || {
    echo "demo/run.sh: $1 was not found" >&2
    echo "  hint: $2" >&2
    exit 2
  }
}
need cargo "install the Rust toolchain named in Cargo.toml, e.g. with rustup"
need python3 "install Python 3.9 or newer, with pip"

python3 demo/fetch.py
cargo build --release --locked

softprompt=${CARGO_TARGET_DIR:-target}/release/softprompt
model=demo/cache/SmolLM2-135M-Instruct.Q4_1.gguf
data=demo/cache/wordnet
rows=(--template "{text} Topic:" --target "{label}")

rm -rf demo/run
"$softprompt" train --model "$model" "${rows[@]}" \
  --train-file "$data/train.jsonl" --eval-file "$data/dev.jsonl" \
  --num-virtual-tokens 10 --prompt-tuning-init sample_vocab \
  --learning-rate 0.02 --per-device-train-batch-size 16 --max-steps 100 --eval-steps 50 --seed 0 \
  --metric-for-best-model accuracy --weights widened \
  --output-dir demo/run "$@"

accuracy() { # the test rows' accuracy, with the eval flags given
  "$softprompt" eval --model "$model" --weights widened "${rows[@]}" --data "$data/test.jsonl" --json "$@" |
    python3 -c 'import json, sys; print("%.3f" % json.load(sys.stdin)["accuracy"])'
}
zero_shot=$(accuracy)
initial=$(accuracy --prompt demo/run/initial)
tuned=$(accuracy --prompt demo/run/best)

echo
printf 'accuracy on %s held-out rows, 8 classes\n' "$(wc -l <"$data/test.jsonl" | tr -d ' ')"
printf '  %-16s %s\n' "zero-shot" "$zero_shot" "initial prompt" "$initial" "tuned prompt" "$tuned"
