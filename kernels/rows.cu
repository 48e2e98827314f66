// rows: y[i] = x[index[i]], the rows that are scored; an index may repeat.
//
//   rows_forward   y[i] = x[index[i]]
//   rows_backward  dx[r] = Σ dy[i] over the i with index[i] = r, in the order of i; or dx[r] += that.
//                  The host lists these i: those of row r are order[starts[r]] … order[starts[r + 1] − 1], so that a
//                  row of dx gathers what belongs to it and nothing is added atomically. Rounded once.
//
// Launch: 256 threads; a thread has N elements of a row of the output, 16 bytes, or one if rows are not multiples of
// that. Grid ceil(output rows · (cols / N) / 256).
// Registers ≤ 40: 6 blocks an SM, on sm_80 and sm_90.
// Bytes, in elements: forward 2 rows·cols; backward (limit + rows)·cols.

#include "common.cuh"

template <typename T, int N>
DEVICE void forward(const T* __restrict__ x, const int* __restrict__ index, T* __restrict__ y, int rows, int cols) {
  const long long unit = global_thread();
  const int units = cols / N, i = static_cast<int>(unit / units), col = static_cast<int>(unit % units) * N;
  if (i >= rows) return;
  float v[N];
  load(x + static_cast<long long>(index[i]) * cols + col, v);
  store(y + static_cast<long long>(i) * cols + col, v);
}

template <typename T, int N>
DEVICE void backward(const T* __restrict__ dy, const int* __restrict__ starts, const int* __restrict__ order, T* dx,
                     int limit, int cols, bool add) {
  const long long unit = global_thread();
  const int units = cols / N, row = static_cast<int>(unit / units), col = static_cast<int>(unit % units) * N;
  if (row >= limit) return;
  T* target = dx + static_cast<long long>(row) * cols + col;
  float sum[N] = {};
  if (add) load(target, sum);
  const int end = starts[row + 1];
#pragma unroll 1
  for (int k = starts[row]; k < end; k++) {
    float v[N];
    load(dy + static_cast<long long>(order[k]) * cols + col, v);
#pragma unroll
    for (int j = 0; j < N; j++) sum[j] += v[j];
  }
  store(target, sum);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(rows_forward_##suffix, 256)                                                                                   \
  (const T* __restrict__ x, const int* __restrict__ index, T* __restrict__ y, int rows, int cols) {                    \
    if (rows_are_aligned<T>(cols)) {                                                                                   \
      forward<T, WIDTH<T>>(x, index, y, rows, cols);                                                                   \
    } else {                                                                                                           \
      forward<T, 1>(x, index, y, rows, cols);                                                                          \
    }                                                                                                                  \
  }                                                                                                                    \
  KERNEL(rows_backward_##suffix, 256)                                                                                  \
  (const T* __restrict__ dy, const int* __restrict__ starts, const int* __restrict__ order, T* dx, int limit,          \
   int cols, int add) {                                                                                                \
    if (rows_are_aligned<T>(cols)) {                                                                                   \
      backward<T, WIDTH<T>>(dy, starts, order, dx, limit, cols, add != 0);                                             \
    } else {                                                                                                           \
      backward<T, 1>(dy, starts, order, dx, limit, cols, add != 0);                                                    \
    }                                                                                                                  \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
