// What every kernel shares: storage types, conversion to f32 and back, 16-byte access.
//
// Tensors are row-major and contiguous, their base pointers 256-byte aligned. A kernel computes in f32 whatever it
// stores, and rounds once where it stores. Functions are the accurate ones (expf, tanhf, erff, IEEE division).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

typedef __nv_bfloat16 bf16;
typedef __half f16;

#define DEVICE __device__ __forceinline__

// Defines a kernel that Rust finds under `name`; `threads` is the largest block it may be launched with.
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(f16 x) { return __half2float(x); }

template <typename T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// The two bf16 that lie in a 32-bit word, the one at the lower address first, and back.
DEVICE float2 unpack_bf16(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
DEVICE uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
DEVICE float2 unpack_f16(uint32_t word) {
  const __half2 pair = *reinterpret_cast<const __half2*>(&word);
  return __half22float2(pair);
}

// How many elements a 16-byte access moves: 4 of f32, 8 of bf16 or f16.
template <typename T> constexpr int WIDTH = 16 / sizeof(T);

// load4, store4: four 32-bit words, 16 bytes, WIDTH<T> elements as f32. `p` is 16-byte aligned.
DEVICE void load4(const float* p, float (&v)[4]) {
  const float4 words = *reinterpret_cast<const float4*>(p);
  v[0] = words.x, v[1] = words.y, v[2] = words.z, v[3] = words.w;
}
DEVICE void load4(const bf16* p, float (&v)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(p);
  const float2 a = unpack_bf16(words.x), b = unpack_bf16(words.y), c = unpack_bf16(words.z), d = unpack_bf16(words.w);
  v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y, v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
}
DEVICE void load4(const f16* p, float (&v)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(p);
  const float2 a = unpack_f16(words.x), b = unpack_f16(words.y), c = unpack_f16(words.z), d = unpack_f16(words.w);
  v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y, v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
}
DEVICE void store4(float* p, const float (&v)[4]) {
  *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
DEVICE void store4(bf16* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) =
      make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// N elements as f32: a 16-byte access where N is WIDTH<T> (`p` is then 16-byte aligned), else one by one.
template <typename T, int N> DEVICE void load(const T* p, float (&v)[N]) {
  if constexpr (N == WIDTH<T>) {
    load4(p, v);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = to_float(p[i]);
  }
}
template <typename T, int N> DEVICE void store(T* p, const float (&v)[N]) {
  if constexpr (N == WIDTH<T>) {
    store4(p, v);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) p[i] = from_float<T>(v[i]);
  }
}

// The same for the last, partial access of an array: only the first `count` elements exist. Others are 0.
template <typename T, int N> DEVICE void load_some(const T* p, float (&v)[N], long long count) {
  if (count >= N) return load(p, v);
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = i < count ? to_float(p[i]) : 0.0f;
}
template <typename T, int N> DEVICE void store_some(T* p, const float (&v)[N], long long count) {
  if (count >= N) return store(p, v);
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (i < count) p[i] = from_float<T>(v[i]);
  }
}

// `v` as it is after being stored as T.
template <typename T> DEVICE float rounded(float v) { return to_float(from_float<T>(v)); }

// Whether rows of `cols` elements all start at a multiple of 16 bytes, so that load4 and store4 apply to them.
template <typename T> DEVICE bool rows_are_aligned(int cols) { return cols % WIDTH<T> == 0; }

// The thread's index in the whole grid, for kernels of one element, or one 16-byte access, a thread.
DEVICE long long global_thread() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }
