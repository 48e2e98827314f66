// A row's threads, for kernels that reduce over rows: a warp for a short row, a block for a long one.
#pragma once

#include "reduce.cuh"

constexpr int ROW_THREADS = 256;
constexpr int SHORT_ROW = 1024;

// How often a loop over a row is unrolled: 16-byte accesses twice, to have two under way; the rare scalar loop not.
template <int N> constexpr int UNROLL = N == 1 ? 1 : 2;

// Which row a thread works on, and its share of the columns.
struct RowPlace {
  int row;
  bool is_short;
  float* shared;

  // The first column of the thread and the distance to its next, where it takes `width` at a time.
  DEVICE int first(int width) const { return (is_short ? threadIdx.x % 32 : threadIdx.x) * width; }
  DEVICE int step(int width) const { return (is_short ? 32 : ROW_THREADS) * width; }
  // The sum over the row's threads, in a fixed order, for all of them.
  DEVICE float sum(float v) const { return is_short ? warp_sum(v) : block_sum<ROW_THREADS>(v, shared); }
};

DEVICE RowPlace row_place(int cols, float* shared) {
  if (cols > SHORT_ROW) return {static_cast<int>(blockIdx.x), false, shared};
  return {static_cast<int>(blockIdx.x) * (ROW_THREADS / 32) + static_cast<int>(threadIdx.x) / 32, true, shared};
}

// Runs `work` with `at` the thread's place, and N the width of an access: 16 bytes where every row starts at a
// multiple of 16, else an element.
#define FOR_ROW(T, rows, cols, work)                              \
  __shared__ float shared[ROW_THREADS / 32];                      \
  const RowPlace at = row_place(cols, shared);                    \
  if (at.row >= rows) return;                                     \
  if (rows_are_aligned<T>(cols)) {                                \
    constexpr int N = WIDTH<T>;                                   \
    work;                                                         \
  } else {                                                        \
    constexpr int N = 1;                                          \
    work;                                                         \
  }
