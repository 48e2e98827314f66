#!/usr/bin/env bash
# Rebuilds prebuilt/<kernel>.<bug>.ptx: each kernel without a bug (0) and with each of the bugs its comment lists.
# Needs nvcc: from the environment variable NVCC, or on the PATH.
set -euo pipefail
cd "$(dirname "$0")"
nvcc=${NVCC:-nvcc}
mkdir -p prebuilt
rm -f prebuilt/*.ptx
for source in *.cu; do
  name=${source%.cu}
  for bug in 0 $(sed -n 's|^// BUG \([0-9]*\):.*|\1|p' "$source"); do
    out=prebuilt/$name.$bug.ptx
    "$nvcc" -std=c++17 -O3 -lineinfo -ptx -arch=compute_80 -DBUG="$bug" "$source" -o "$out"
    # no paths of the machine that built it, no debug strings, no comments
    sed -i -E 's|^([[:space:]]*\.file[[:space:]]+[0-9]+ )".*/([^/"]+)"|\1"\2"|; /\.section/,/^[[:space:]]*\}/d; /^[[:space:]]*\/\//d; /^$/d' "$out"
  done
done
