// cast: an array in another type, rounded to nearest even: cast_<from>_<to>.
//
// Launch: 256 threads, 8 elements a thread: grid ceil(count / 2048).
// Registers ≤ 32: 8 blocks an SM, on sm_80 and sm_90.
// Bytes: count · (size of both types).

#include "common.cuh"

constexpr int GROUP = 8;

// GROUP elements from `p` on, of which `count` exist, in 16-byte accesses.
template <typename T> DEVICE void load_group(const T* p, float (&v)[GROUP], long long count) {
#pragma unroll
  for (int part = 0; part < GROUP; part += WIDTH<T>) {
    float words[WIDTH<T>];
    load_some(p + part, words, count - part);
#pragma unroll
    for (int k = 0; k < WIDTH<T>; k++) v[part + k] = words[k];
  }
}

template <typename T> DEVICE void store_group(T* p, const float (&v)[GROUP], long long count) {
#pragma unroll
  for (int part = 0; part < GROUP; part += WIDTH<T>) {
    float words[WIDTH<T>];
#pragma unroll
    for (int k = 0; k < WIDTH<T>; k++) words[k] = v[part + k];
    store_some(p + part, words, count - part);
  }
}

template <typename From, typename To> DEVICE void cast(const From* __restrict__ x, To* __restrict__ y, long long count) {
  const long long i = global_thread() * GROUP;
  if (i >= count) return;
  float v[GROUP];
  load_group(x + i, v, count - i);
  store_group(y + i, v, count - i);
}

#define CAST(From, from, To, to)                                                                                       \
  KERNEL(cast_##from##_##to, 256)(const From* __restrict__ x, To* __restrict__ y, long long count) {                   \
    cast(x, y, count);                                                                                                 \
  }
CAST(float, f32, bf16, bf16)
CAST(bf16, bf16, float, f32)
