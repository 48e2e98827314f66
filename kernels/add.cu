// add: sums of arrays, and scaling, element by element. In bf16 a sum is rounded once.
//
//   add_forward       y = a + b; `y` may be `a` or `b`
//   add_assign        y += x
//   add_scale         y *= factor
//   add_scale_device  y *= *factor, a number that was computed on the device
//
// Launch: 256 threads, 16 bytes a thread: grid ceil(count / (256 · 16 / size)).
// Bytes, in elements: 3 count for sums, 2 count for scaling. FLOPs: count.

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

template <typename T> DEVICE void scale(T* y, float factor, long long count) {
  const long long i = global_thread() * WIDTH<T>;
  if (i >= count) return;
  float v[WIDTH<T>];
  load_some(y + i, v, count - i);
#pragma unroll
  for (int k = 0; k < WIDTH<T>; k++) v[k] *= factor;
  store_some(y + i, v, count - i);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(add_forward_##suffix, 256)(T* y, const T* a, const T* b, long long count) { sum(y, a, b, count); }            \
  KERNEL(add_assign_##suffix, 256)(T* y, const T* __restrict__ x, long long count) { sum(y, y, x, count); }            \
  KERNEL(add_scale_##suffix, 256)(T* y, float factor, long long count) { scale(y, factor, count); }                    \
  KERNEL(add_scale_device_##suffix, 256)(T* y, const float* __restrict__ factor, long long count) {                    \
    scale(y, *factor, count);                                                                                          \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
