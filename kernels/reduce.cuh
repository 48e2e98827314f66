// Sums and maxima over a warp and over a block, always in the same order: the bits depend on shapes alone.
#pragma once

#include "common.cuh"

constexpr unsigned WARP = 0xffffffffu;

// Over the 32 lanes, all of which take part; every lane gets the result. Lanes are paired at distance 16, 8, 4, 2, 1;
// a + b and b + a have the same bits, so all lanes agree.
DEVICE float warp_sum(float v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(WARP, v, distance);
  return v;
}

DEVICE float warp_max(float v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v = fmaxf(v, __shfl_xor_sync(WARP, v, distance));
  return v;
}

// Over a block of THREADS threads, a multiple of 32, all of which take part; every thread gets the result. Warps are
// added in order. `shared` holds THREADS / 32 floats and may be used again at once: the first barrier protects it.
template <int THREADS> DEVICE float block_sum(float v, float* shared) {
  v = warp_sum(v);
  if (THREADS == 32) return v;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = shared[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; warp++) sum += shared[warp];
  return sum;
}

template <int THREADS> DEVICE float block_max(float v, float* shared) {
  v = warp_max(v);
  if (THREADS == 32) return v;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  float most = shared[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; warp++) most = fmaxf(most, shared[warp]);
  return most;
}
