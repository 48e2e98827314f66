#!/usr/bin/env bash
# The paper's experiments at a small scale: SmolLM2-135M on WordNet's noun glosses (8 classes), and from movie reviews to other
# domains (VADER's ratings). About an hour on two cores; tables, plots and a page of all runs go to demo/experiments/.
#
# Usage: demo/experiments.sh [NAME...]     NAME: methods length init ensemble transfer steps; all of them without one
#   STEPS=40 SEEDS=2 ROWS=160     steps of a run, of `steps` three times as many; runs of each kind; held-out rows of a set
# What has been finished is not run again, and what was cut off goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

need() {
  command -v "$1" >/dev/null || {
    echo "demo/experiments.sh: $1 was not found" >&2
    echo "  hint: $2" >&2
    exit 2
  }
}
need cargo "install the Rust toolchain named in Cargo.toml, e.g. with rustup"
need python3 "install Python 3.9 or newer, with pip"

steps=${STEPS:-40} seeds=${SEEDS:-2} rows=${ROWS:-160}
names=("$@")
[[ ${#names[@]} -gt 0 ]] || names=(methods length init ensemble transfer steps)

python3 demo/fetch.py
python3 demo/fetch_vader.py
cargo build --release --locked

softprompt=${CARGO_TARGET_DIR:-target}/release/softprompt
model=demo/cache/SmolLM2-135M-Instruct.Q4_1.gguf
out=demo/experiments
held=$out/rows

# The rows of a file are in the order of a hash: the first are as good as any.
first() { # FILE NAME
  mkdir -p "$held"
  head -n "$rows" "$1" >"$held/$2.jsonl"
}
first demo/cache/wordnet/dev.jsonl wordnet-dev
first demo/cache/wordnet/test.jsonl wordnet-test
first demo/cache/vader/movies/dev.jsonl movies-dev
for domain in movies amazon nyt tweets; do first "demo/cache/vader/$domain/test.jsonl" "$domain-test"; done

common=(--model "$model" --weights widened --learning-rate 0.02 --per-device-train-batch-size 8 --save-steps "$steps")
length=(--max-steps "$steps" --eval-steps $(((steps + 1) / 2)))
glosses=("${common[@]}" --template "{text} Topic:" --target "{label}" --metric-for-best-model accuracy
  --train-file demo/cache/wordnet/train.jsonl --eval-file "$held/wordnet-dev.jsonl")
wordnet=("${glosses[@]}" "${length[@]}")
vader=("${common[@]}" "${length[@]}" --template "{input} Sentiment:" --target "{target}" --metric-for-best-model balanced_accuracy
  --train-file demo/cache/vader/movies/train.jsonl --eval-file "$held/movies-dev.jsonl")
test=(--test-file "test=$held/wordnet-test.jsonl")

run() { # NAME, then the flags of `softprompt experiment NAME`
  local dir=$out/$1
  if [[ -f $dir/results.json ]]; then
    echo "$1: done before, in $dir"
  else
    echo "$1: $(date +%T)"
    # An ensemble of two cannot outvote anyone.
    local count=$seeds
    [[ $1 != ensemble ]] || count=$((seeds * 2 + 1))
    "$softprompt" experiment "$@" --seeds "$count" --resume true --output-dir "$dir"
  fi
}

for name in "${names[@]}"; do
  case $name in
    methods) run methods "${wordnet[@]}" --num-virtual-tokens 20 --few-shot 8,32 "${test[@]}" ;;
    length) run length "${wordnet[@]}" --lengths 1,5,20,100 "${test[@]}" ;;
    init) run init "${wordnet[@]}" --num-virtual-tokens 20 --init-text "Name the topic of each definition." "${test[@]}" ;;
    ensemble) run ensemble "${wordnet[@]}" --num-virtual-tokens 20 "${test[@]}" ;;
    transfer)
      run transfer "${vader[@]}" --num-virtual-tokens 20 --test-file "movies=$held/movies-test.jsonl" \
        --test-file "amazon=$held/amazon-test.jsonl" --test-file "tweets=$held/tweets-test.jsonl" \
        --test-file "nyt=$held/nyt-test.jsonl"
      ;;
    steps)
      run steps "${glosses[@]}" --num-virtual-tokens 20 --max-steps $((steps * 3)) --eval-steps $(((steps + 1) / 2))
      ;;
    *)
      echo "demo/experiments.sh: $name: expected methods, length, init, ensemble, transfer or steps" >&2
      exit 2
      ;;
  esac
done

# Tables and curves of every run, and what the learned rows are near to.
"$softprompt" report "${names[@]/#/$out/}" --out "$out/report.html" --force --quiet
