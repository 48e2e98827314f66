// add: sums of arrays, element by element, rounded once.
//
//   add_forward  y = a + b
//   add_assign   y += x
//
// Launch: 256 threads, 16 bytes a thread: grid ceil(count / (256 · 16 / size)).
// Registers ≤ 32: 8 blocks an SM, on sm_80 and sm_90.
// Bytes, in elements: 3 count. FLOPs: count.

#include "common.cuh"

template <typename T> DEVICE void sum(T* y, const T* a, const T* b, long long count) {
  const long long i = global_thread() * WIDTH<T>;
  if (i >= count) return;
  float u[WIDTH<T>], v[WIDTH<T>];
  load_some(a + i, u, count - i);
  load_some(b + i, v, count - i);
#pragma unroll
  for (int k = 0; k < WIDTH<T>; k++) u[k] += v[k];
  store_some(y + i, u, count - i);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(add_forward_##suffix, 256)                                                                                    \
  (T* __restrict__ y, const T* __restrict__ a, const T* __restrict__ b, long long count) { sum(y, a, b, count); }      \
  KERNEL(add_assign_##suffix, 256)(T* y, const T* __restrict__ x, long long count) { sum(y, y, x, count); }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
