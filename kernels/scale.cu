// scale: y = factor · x, rounded once; forward and backward alike.
//
// Launch: 256 threads, 16 bytes a thread: grid ceil(count / (256 · 16 / size)).
// Registers ≤ 32: 8 blocks an SM, on sm_80 and sm_90.
// Bytes, in elements: 2 count. FLOPs: count.

#include "common.cuh"

template <typename T> DEVICE void scale(T* y, const T* x, float factor, long long count) {
  const long long i = global_thread() * WIDTH<T>;
  if (i >= count) return;
  float v[WIDTH<T>];
  load_some(x + i, v, count - i);
#pragma unroll
  for (int k = 0; k < WIDTH<T>; k++) v[k] *= factor;
  store_some(y + i, v, count - i);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(scale_forward_##suffix, 256)                                                                                  \
  (T* __restrict__ y, const T* __restrict__ x, float factor, long long count) { scale(y, x, factor, count); }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
