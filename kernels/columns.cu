// columns: sums over the rows of a matrix: the gradients of biases and of norms' weights.
//
//   columns_sum    of a part of the rows: sums = Σ dy, and with x: along = Σ dy ∘ x̂, x̂ = (x − mean) scale by the moments
//                  of each row. `sums` or `along` may be null.
//   columns_join   out = Σ of the parts, or out += that, rounded once
//
// In a part, warp w adds rows w, w + 8, w + 16, …; then warps are added in order, and so are parts: the bits depend on
// shapes alone. Everything is summed in f32.
//
// Launch: 256 threads; a lane has N columns, 16 bytes of T, or one if rows are not multiples of that.
// columns_sum: grid (⌈cols / 32 N⌉, ⌈rows / span⌉), part i has rows i · span … and writes row i of its results.
// columns_join: grid ⌈cols / 32 N⌉.
// Shared: 8 KiB in bf16, 4 KiB in f32. Registers ≤ 48: 5 blocks an SM, on sm_80 and sm_90.
// Bytes: columns_sum rows·cols elements, twice that with x, and parts·cols·4 for each result; columns_join
// parts·cols·4 and cols elements. FLOPs: rows·cols, 5 rows·cols with x; parts·cols.

#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// Mean and scale of a row: of rms_norm's the mean is 0.
struct Moments {
  float mean, scale;
};

// N floats, 16 bytes at a time where N is a multiple of 4; `p` is then 16-byte aligned.
template <int N> DEVICE void load_floats(const float* p, float (&v)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int part = 0; part < N; part += 4) {
      float words[4];
      load4(p + part, words);
#pragma unroll
      for (int k = 0; k < 4; k++) v[part + k] = words[k];
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = p[k];
  }
}
template <int N> DEVICE void store_floats(float* p, const float (&v)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int part = 0; part < N; part += 4) {
      const float words[4] = {v[part], v[part + 1], v[part + 2], v[part + 3]};
      store4(p + part, words);
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; k++) p[k] = v[k];
  }
}

// Adds what the warps have, in order; the first warp gets the result. `shared` has THREADS · N floats.
template <int N> DEVICE void join_warps(float (&sum)[N], float* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < N; k++) shared[(warp * N + k) * 32 + lane] = sum[k];
  __syncthreads();
  if (warp > 0) return;
#pragma unroll 1
  for (int other = 1; other < WARPS; other++) {
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] += shared[(other * N + k) * 32 + lane];
  }
}

template <typename T, int N>
DEVICE void sum_part(const T* __restrict__ dy, const T* __restrict__ x, const Moments* __restrict__ moments,
                     float* __restrict__ sums, float* __restrict__ along, int rows, int cols, int span, float* shared) {
  const int warp = threadIdx.x / 32, col = (blockIdx.x * 32 + threadIdx.x % 32) * N;
  const int first = blockIdx.y * span, end = min(first + span, rows);
  float total[N] = {}, inner[N] = {};
  if (col < cols) {
#pragma unroll 2
    for (int row = first + warp; row < end; row += WARPS) {
      const long long at = static_cast<long long>(row) * cols + col;
      float g[N];
      load(dy + at, g);
#pragma unroll
      for (int k = 0; k < N; k++) total[k] += g[k];
      if (x == nullptr) continue;
      const Moments of = moments[row];
      float v[N];
      load(x + at, v);
#pragma unroll
      for (int k = 0; k < N; k++) inner[k] += g[k] * ((v[k] - of.mean) * of.scale);
    }
  }
  const long long to = static_cast<long long>(blockIdx.y) * cols + col;
  const bool writes = threadIdx.x < 32 && col < cols;
  if (sums != nullptr) {
    join_warps(total, shared);
    if (writes) store_floats(sums + to, total);
  }
  if (along != nullptr) {
    join_warps(inner, shared);
    if (writes) store_floats(along + to, inner);
  }
}

template <typename T, int N>
DEVICE void join_parts(const float* __restrict__ parts, T* out, int count, int cols, bool add, float* shared) {
  const int warp = threadIdx.x / 32, col = (blockIdx.x * 32 + threadIdx.x % 32) * N;
  float total[N] = {};
  if (col < cols) {
#pragma unroll 2
    for (int part = warp; part < count; part += WARPS) {
      float v[N];
      load_floats(parts + static_cast<long long>(part) * cols + col, v);
#pragma unroll
      for (int k = 0; k < N; k++) total[k] += v[k];
    }
  }
  join_warps(total, shared);
  if (warp > 0 || col >= cols) return;
  if (add) {
    float v[N];
    load(out + col, v);
#pragma unroll
    for (int k = 0; k < N; k++) total[k] += v[k];
  }
  store(out + col, total);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(columns_sum_##suffix, THREADS)                                                                                \
  (const T* __restrict__ dy, const T* __restrict__ x, const Moments* __restrict__ moments, float* __restrict__ sums,   \
   float* __restrict__ along, int rows, int cols, int span) {                                                          \
    __shared__ float shared[THREADS * WIDTH<T>];                                                                       \
    if (rows_are_aligned<T>(cols)) {                                                                                   \
      sum_part<T, WIDTH<T>>(dy, x, moments, sums, along, rows, cols, span, shared);                                    \
    } else {                                                                                                           \
      sum_part<T, 1>(dy, x, moments, sums, along, rows, cols, span, shared);                                           \
    }                                                                                                                  \
  }                                                                                                                    \
  KERNEL(columns_join_##suffix, THREADS)                                                                               \
  (const float* __restrict__ parts, T* out, int count, int cols, int add) {                                            \
    __shared__ float shared[THREADS * WIDTH<T>];                                                                       \
    if (rows_are_aligned<T>(cols)) {                                                                                   \
      join_parts<T, WIDTH<T>>(parts, out, count, cols, add != 0, shared);                                              \
    } else {                                                                                                           \
      join_parts<T, 1>(parts, out, count, cols, add != 0, shared);                                                     \
    }                                                                                                                  \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
