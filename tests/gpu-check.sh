#!/usr/bin/env bash
# Checks the CUDA device on a machine that has a GPU and NVIDIA's driver, but no compiler and no checkout.
#
#   tests/gpu-check.sh prepare DIR    here: fills DIR with the test programs, the program, the benches and golden files
#   DIR/run.sh                        there: runs every test that uses a GPU, then the benches; a table, also in results.txt
#   DIR/run.sh dry                    anywhere: the same on the stand-in driver, to see that the folder is complete
#
# The other machine needs Linux on the same architecture and a C library no older than this one's; for cuBLASLt, CUDA's
# libcublasLt where the loader finds it. GPU_CHECK_PROFILE (default: release) is the profile of the program and the
# benches.
set -euo pipefail

# Test programs that compute on a GPU.
TESTS=(parity cuda_models cuda_cli account)

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

# Programs that cargo built, by its messages on stdin.
executables() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'; }

# The name of a program without cargo's hash.
plain() { basename "$1" | sed 's/-[0-9a-f]\{16\}$//'; }

prepare() {
  local dir=$1 root
  root=$(cd "$(dirname "$0")/.." && pwd)
  mkdir -p "$dir"/{tests,benches,standin}
  dir=$(cd "$dir" && pwd)
  cd "$root"

  local selection=()
  for name in "${TESTS[@]}"; do selection+=(--test "$name"); done
  cargo test --locked --no-run --message-format=json "${selection[@]}" > "$dir/cargo.json"
  local built=()
  mapfile -t built < <(executables < "$dir/cargo.json")
  for name in "${TESTS[@]}"; do
    for program in "${built[@]}"; do
      [[ $(plain "$program") == "$name" ]] && cp "$program" "$dir/tests/$name"
    done
    [[ -x $dir/tests/$name ]] || { echo "cargo built no test program $name" >&2; exit 1; }
  done
  # The stand-in, for a dry run, under the names that NVIDIA's libraries have.
  local deps
  deps=$(dirname "${built[0]}")
  [[ -e $deps/libptxsim_cuda.so ]] || deps=$deps/deps
  for name in libcuda.so libcuda.so.1; do cp "$deps/libptxsim_cuda.so" "$dir/standin/$name"; done
  for name in libcublasLt.so libcublasLt.so.12; do cp "$deps/libptxsim_cublaslt.so" "$dir/standin/$name"; done

  cargo build --locked --profile "${GPU_CHECK_PROFILE:-release}" --bin softprompt --bench ops \
    --message-format=json > "$dir/cargo.json"
  while read -r program; do
    case $(plain "$program") in
      softprompt) cp "$program" "$dir/softprompt" ;;
      ops) cp "$program" "$dir/benches/ops" ;;
    esac
  done < <(executables < "$dir/cargo.json")
  rm "$dir/cargo.json"
  strip "$dir"/tests/* "$dir"/benches/* "$dir/softprompt" 2> /dev/null || true

  rm -rf "$dir/tests/golden"
  cp -r tests/golden "$dir/tests/golden"
  cp kernels/prebuilt/compiler.txt "$dir/compiler.txt"
  { git describe --always --dirty 2> /dev/null || echo unknown; } > "$dir/version.txt"
  cp "$root/tests/gpu-check.sh" "$dir/run.sh"
  echo "$dir is ready, $(du -sh "$dir" | cut -f1): copy it to the machine with the GPU and call run.sh there"
}

# What the program says of the machine, of one name.
said() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" <<< "$report"; }

# A row of the table, with a test's or bench's output kept where it failed.
row() { printf '%-72s %-6s %8.1f\n' "$1" "$2" "$3" | tee -a results.txt; }

# Runs `$2…`, output to logs/$1; prints the seconds it took, and fails as it does.
timed() {
  local log=logs/$1 start code=0
  shift
  start=$(date +%s.%N)
  "$@" > "$log" 2>&1 < /dev/null || code=$?
  awk -v start="$start" -v end="$(date +%s.%N)" 'BEGIN { print end - start }'
  return $code
}

check() {
  local failed=0 result seconds
  cd "$(dirname "$0")"
  rm -rf logs results.txt
  mkdir logs
  export SOFTPROMPT_TEST_ROOT=$PWD SOFTPROMPT_TEST_GPU=1
  if [[ ${1:-} == dry ]]; then
    # The stand-in as if it were NVIDIA's; its checks off, for the time they take.
    export LD_LIBRARY_PATH=$PWD/standin PTXSIM_CHECKS=0
    echo "DRY RUN on the stand-in driver: no GPU has run this" | tee results.txt
  fi
  report=$(./softprompt doctor --json) || { echo "softprompt doctor failed: $report" >&2; exit 1; }
  {
    echo "softprompt $(cat version.txt), $(uname -sr), $(date -u +%Y-%m-%d)"
    echo "device $(said cuda), compute capability $(said cuda_compute_capability), $(said cuda_multiprocessors) SMs"
    echo "driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -1 || true)," \
      "CUDA $(said cuda_driver_version); products by $(said cuda_matmul)"
    echo "kernels by $(cat compiler.txt)"
    echo
    printf '%-72s %-6s %8s\n' name result seconds
  } | tee -a results.txt

  local names=() name program log
  for program in tests/*; do
    [[ -f $program && -x $program ]] || continue
    mapfile -t names < <("$program" --list 2> /dev/null | sed -n 's/: test$//p')
    ((${#names[@]} > 0)) || { row "$program" failed 0; failed=$((failed + 1)); }
    for name in "${names[@]}"; do
      result=ok log=$(basename "$program").${name//::/.}
      seconds=$(timed "$log" "$program" --exact "$name" --nocapture) || result=FAILED
      [[ $result == ok ]] || failed=$((failed + 1))
      if [[ $result == ok ]] && grep -q SKIPPED: "logs/$log"; then result=skip; fi
      row "$(basename "$program") $name" $result "$seconds"
    done
  done

  bench() {
    local log="bench.${1// /.}" result=ok
    seconds=$(timed "$log" env SOFTPROMPT_BENCH_DEVICE=cuda SOFTPROMPT_BENCH_DTYPE="$2" "${@:3}") || result=FAILED
    [[ $result == ok ]] || failed=$((failed + 1))
    row "bench $1" $result "$seconds"
  }
  if [[ ${1:-} == dry ]]; then
    # The smallest there is: the stand-in is slow.
    bench "step smollm2-135m 1 1 2 f32" f32 ./softprompt bench --config smollm2-135m --num-virtual-tokens 1 \
      --examples 1 --tokens 2 --device cuda --warm-up 3 --steps 3
    bench "ops add f32" f32 ./benches/ops --bench add --sample-count 1 --sample-size 1
  else
    local dtype shape
    for dtype in bf16 f32; do
      while read -r shape prompt examples tokens; do
        bench "step $shape $prompt $examples $tokens $dtype" $dtype ./softprompt bench --config "$shape" \
          --num-virtual-tokens "$prompt" --examples "$examples" --tokens "$tokens" --device cuda --dtype $dtype
      done <<< "smollm2-135m 100 32 32
smollm2-135m 100 32 128
smollm2-135m 20 8 32
gpt2 100 32 32
qwen2.5-0.5b 100 32 32
llama-3.2-1b 100 32 32"
      bench "ops $dtype" $dtype ./benches/ops --bench
    done
  fi
  { echo; for log in logs/bench.*; do echo "== ${log#logs/bench.}"; cat "$log"; done; } >> results.txt
  { echo; echo "$failed failed"; } | tee -a results.txt
  echo "table in $PWD/results.txt, outputs in $PWD/logs"
  ((failed == 0))
}

if [[ $(basename "$0") == run.sh ]]; then
  [[ $# -eq 0 || "$*" == dry ]] || usage
  check "$@"
else
  [[ $# -eq 2 && $1 == prepare ]] || usage
  prepare "$2"
fi
