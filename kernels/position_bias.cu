// position_bias: the table of attention's biases by distance, from a weight for each bucket of distances and head.
//
//   position_bias_forward   table[h, j] = w[buckets[j], h]
//   position_bias_backward  dw[b, h] = Σ d_table[h, j] over the j with buckets[j] = b; or dw[b, h] += that. Rounded once.
//
// The table and its gradient are f32 whatever the weight is: [heads, columns]; w and dw: [count, heads].
//
// Launch: 256 threads. forward: a thread has an element: grid ⌈heads · columns / 256⌉. backward: a warp has a bucket and a
// head, of which lane l adds columns l, l + 32, …, and then lanes are added as reduce.cuh says: grid ⌈count · heads / 8⌉.
// Registers ≤ 32: 8 blocks an SM, on sm_80 and sm_90.
// Bytes: forward heads · columns · (4 + size) and 4 columns; backward 4 heads · columns, from a cache for each bucket but
// one, and count · heads elements. FLOPs: heads · columns in the backward pass.

#include "reduce.cuh"

template <typename T>
DEVICE void forward(const T* __restrict__ w, const int* __restrict__ buckets, float* __restrict__ table, int heads,
                    int columns) {
  const long long i = global_thread();
  const int head = static_cast<int>(i / columns), column = static_cast<int>(i % columns);
  if (head < heads) table[i] = to_float(w[buckets[column] * heads + head]);
}

template <typename T>
DEVICE void backward(const float* __restrict__ d_table, const int* __restrict__ buckets, T* dw, int count, int heads,
                     int columns, bool add) {
  const int i = static_cast<int>(global_thread() / 32), lane = threadIdx.x % 32;
  if (i >= count * heads) return;
  const int bucket = i / heads, head = i % heads;
  const float* row = d_table + static_cast<long long>(head) * columns;
  float sum = 0;
  for (int column = lane; column < columns; column += 32) {
    if (buckets[column] == bucket) sum += row[column];
  }
  sum = warp_sum(sum);
  if (lane == 0) dw[i] = from_float<T>(add ? to_float(dw[i]) + sum : sum);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(position_bias_forward_##suffix, 256)                                                                          \
  (const T* __restrict__ w, const int* __restrict__ buckets, float* __restrict__ table, int heads, int columns) {      \
    forward(w, buckets, table, heads, columns);                                                                        \
  }                                                                                                                    \
  KERNEL(position_bias_backward_##suffix, 256)                                                                         \
  (const float* __restrict__ d_table, const int* __restrict__ buckets, T* dw, int count, int heads, int columns,       \
   int add) {                                                                                                          \
    backward(d_table, buckets, dw, count, heads, columns, add != 0);                                                   \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
