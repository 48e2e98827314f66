#!/usr/bin/env bash
# A small T5 1.1 from nothing: pretrained by span corruption, then adapted by prefix language modelling as Lester et al. 2021
# adapt T5, and both tuned on WordNet's noun glosses (8 classes) by prompts and by full fine-tuning.
# About an hour on two busy cores.
#
# Usage: demo/t5.sh [STAGE...]     STAGE: pretrain adapt prompt sentinel decoder full table; all of them without one
#   STEPS=2800 MORE=3000 TUNING=1500 FULL=300 SEEDS=0,1,2 RATES=2 THREADS=2
#                     steps of the first pass of pretraining, of the second, of a prompt's tuning, of all weights'; seeds of the
#                     tunings; prompts' learning rates; CPU threads
#   PYTHON=python3    one that has the package `tokenizers` (demo/fetch_t5.py says how to make it)
# What has been finished is not run again. Models, prompts and logs go to demo/t5/.
set -euo pipefail
cd "$(dirname "$0")/.."

need() {
  command -v "$1" >/dev/null || {
    echo "demo/t5.sh: $1 was not found" >&2
    echo "  hint: $2" >&2
    exit 2
  }
}
steps=${STEPS:-2800} more=${MORE:-3000} tuning=${TUNING:-1500} full=${FULL:-300} seeds=${SEEDS:-0,1,2} rates=${RATES:-2} python=${PYTHON:-python3}
need cargo "install the Rust toolchain named in Cargo.toml, e.g. with rustup"
need "$python" "install Python 3.9 or newer, with pip"
stages=("$@")
[[ ${#stages[@]} -gt 0 ]] || stages=(pretrain adapt prompt sentinel decoder full table)

softprompt=${SOFTPROMPT:-${CARGO_TARGET_DIR:-target}/release/softprompt}
[[ -n ${SOFTPROMPT:-} ]] || cargo build --release --locked
"$python" demo/fetch_t5.py

cache=demo/cache/t5 out=demo/t5
mkdir -p "$out"
threads=()
[[ -z ${THREADS:-} ]] || threads=(--threads "$THREADS")
texts=(--train-file "$cache/train.jsonl" --eval-file "$cache/held-out.jsonl" --template "{text}"
  --max-grad-norm 1 --lr-scheduler-type linear --save-steps 1000000 --max-length 48 --per-device-train-batch-size 40)
# Steps in proportion to each weight's size, as T5 has them.
scaled=(--optim adafactor --learning-rate 0.02)
sets=(--train-file demo/cache/wordnet/train.jsonl --eval-file demo/cache/wordnet/dev.jsonl --template "{text} Topic:"
  --metric-for-best-model accuracy --per-device-train-batch-size 16 --save-steps 1000000)
of_prompts=(--max-steps "$tuning" --eval-steps $(((tuning + 4) / 5)))
of_weights=(--max-steps "$full" --eval-steps $(((full + 2) / 3)))

# Runs a training with its output in OUT, unless it has been; half a run is begun again.
once() { # OUT COMMAND FLAGS...
  local dir=$out/$1
  shift
  if [[ -f $dir.log && -f $dir.done ]]; then
    echo "$dir: done before"
  else
    rm -rf "$dir"
    echo "$dir: $(date +%T)"
    "$softprompt" "$@" "${threads[@]}" --output-dir "$dir" 2>&1 | tee "$dir.log"
    touch "$dir.done"
  fi
}

score() { # NAME BASE TARGET [flags]: the test rows' accuracy, into NAME.test.json
  local file=$out/$1.test.json base=$2 target=$3
  shift 3
  [[ -s $file ]] || "$softprompt" eval --model "$base" --data demo/cache/wordnet/test.jsonl --template "{text} Topic:" \
    --target "$target" --json --quiet "${threads[@]}" "$@" >"$file.part"
  [[ -s $file ]] || mv "$file.part" "$file"
}

# Over pieces as short as the rows that come later; the second time with other cuts.
pretrain() {
  local how=(train --method pretrain --objective span_corruption --corruptions 8 "${texts[@]}" "${scaled[@]}" --warmup-steps 50)
  once span-1 "${how[@]}" --init-weights 0 --model "$cache/model" --max-steps "$steps" --eval-steps $(((steps + 6) / 7))
  once span "${how[@]}" --seed 1 --model "$out/span-1/best" --max-steps "$more" --eval-steps $(((more + 5) / 6))
}

adapt() {
  once adapted train --method pretrain --objective prefix_lm --model "$out/span/best" "${texts[@]}" "${scaled[@]}" \
    --warmup-steps 10 --max-steps $(((steps + more) / 10)) --eval-steps $(((steps + more) / 20))
  # Each model's loss by each objective: a step that is too small to change a weight, and the evaluation after it.
  for base in span adapted; do
    for objective in span_corruption prefix_lm; do
      once "loss-$base-$objective" train --method pretrain --objective "$objective" --model "$out/$base/best" \
        "${texts[@]}" --learning-rate 1e-30 --max-steps 1 --eval-steps 1
    done
  done
}

prompts() { # NAME BASE TARGET SIDE: prompts of 20 rows, of all learning rates and seeds, in one pass
  local name=$1 base=$out/$2/best target=$3 on=(--prompt-on "$4")
  once "prompt-$name" sweep --model "$base" "${sets[@]}" "${of_prompts[@]}" --target "$target" "${on[@]}" --num-virtual-tokens 20 \
    --prompt-tuning-init class_labels --sweep "learning_rate=$rates" --sweep "seed=$seeds"
  local paths=()
  for path in "$out/prompt-$name"/*/best; do paths+=(--prompt "$path"); done
  score "prompt-$name" "$base" "$target" "${on[@]}" "${paths[@]}"
  score "zero-shot-$name" "$base" "$target"
}

prompt() {
  prompts span span "{label}" encoder
  prompts adapted adapted "{label}" encoder
}

# Span corruption's targets all begin with a sentinel, so that the label may too.
sentinel() {
  prompts sentinel span "<extra_id_0> {label}" encoder
}

# Prompts that need no attention from the decoder to the encoder.
decoder() {
  prompts decoder-span span "{label}" decoder
  prompts decoder-adapted adapted "{label}" decoder
}

full() {
  for seed in ${seeds//,/ }; do
    for base in span adapted; do
      once "full-$base-$seed" train --method full --model "$out/$base/best" "${sets[@]}" "${of_weights[@]}" --target "{label}" \
        "${scaled[@]}" --warmup-steps 20 --max-grad-norm 1 --seed "$seed"
      score "full-$base-$seed" "$out/full-$base-$seed/best" "{label}"
    done
    # What the pretraining itself is worth.
    once "full-fresh-$seed" train --method full --init-weights 0 --model "$cache/model" "${sets[@]}" "${of_weights[@]}" \
      --target "{label}" "${scaled[@]}" --warmup-steps 20 --max-grad-norm 1 --seed "$seed"
    score "full-fresh-$seed" "$out/full-fresh-$seed/best" "{label}"
  done
}

table() {
  python3 demo/t5_table.py "$out"
}

for stage in "${stages[@]}"; do
  case $stage in
    pretrain | adapt | prompt | sentinel | decoder | full | table) "$stage" ;;
    *)
      echo "demo/t5.sh: $stage: expected pretrain, adapt, prompt, sentinel, decoder, full or table" >&2
      exit 2
      ;;
  esac
done
