// Sums of rows, twice: y[r] = sum of x[r, :], z[r] = sum of x[r, :]^2. One block a row.
//
// BUG 1: no barrier before the partial sums are read
// BUG 2: no barrier before the second sum overwrites the partial sums of the first
// BUG 3: reads one element past the row
// BUG 4: writes one element past the sums
// BUG 5: writes past the partial sums in shared memory
// BUG 6: 16-byte loads from an address that is a multiple of 4
// BUG 7: a barrier that only part of the threads reaches
// BUG 8: reads partial sums of warps that do not exist
// BUG 9: a loop that never ends
// BUG 10: a shuffle of all lanes in a branch that half of them takes
// BUG 11: a shuffle whose mask does not name all lanes that run it
// BUG 12: a barrier at different places for different warps
// BUG 13: a thread's own array accessed past its end
// BUG 14: an assertion that fails
// BUG 15: a barrier that names fewer threads than must be there
#ifndef BUG
#define BUG 0
#endif
#include <assert.h>

__device__ float warp_sum(float v) {
#if BUG == 10
  if ((threadIdx.x & 31) < 16)
#endif
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(BUG == 11 ? 0x0000ffff : 0xffffffff, v, o);
  return v;
}

__device__ float block_sum(float v, float* part) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  if (lane == 0) part[BUG == 5 ? warp + 32 : warp] = v;
#if BUG == 12
  if (warp == 0) {
    if (lane == 0) part[31] = 0.f;
    __syncthreads();
  } else {
    __syncthreads();
  }
#elif BUG == 15
  asm volatile("bar.sync 1, 32;" ::: "memory");
#elif BUG != 1
  __syncthreads();
#endif
  float sum = 0.f;
  for (int w = 0; w < (BUG == 8 ? 32 : warps); w++) sum += part[w];
  return sum;
}

extern "C" __global__ void reduce(const float* __restrict__ x, float* __restrict__ y, float* __restrict__ z, int cols) {
  __shared__ float part[32];
  const float* row = x + (size_t)blockIdx.x * cols;
  float sum = 0.f, squares = 0.f;
#if BUG == 6
  for (int i = threadIdx.x * 4; i + 4 < cols; i += blockDim.x * 4) {
    const float4 v = *reinterpret_cast<const float4*>(row + 1 + i);
    sum += v.x + v.y + v.z + v.w;
  }
#elif BUG == 9
  for (int i = threadIdx.x; i < cols; i += blockDim.x & 31) sum += row[i];
#else
  for (int i = threadIdx.x; i < cols + (BUG == 3); i += blockDim.x) {
    sum += row[i];
    squares += row[i] * row[i];
  }
#endif
#if BUG == 13
  float last[8];
#pragma unroll
  for (int i = 0; i < 8; i++) last[i] = sum + i;
  squares += last[cols];
#endif
#if BUG == 14
  assert(sum < -1e30f);
#endif
  sum = block_sum(sum, part);
#if BUG != 2
  __syncthreads();
#endif
  squares = block_sum(squares, part);
#if BUG == 7
  if (threadIdx.x < 40) __syncthreads();
#endif
  if (threadIdx.x == 0) {
    y[blockIdx.x + (BUG == 4)] = sum;
    z[blockIdx.x] = squares;
  }
}
