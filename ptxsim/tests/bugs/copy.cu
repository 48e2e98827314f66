// y[i] = sum over tiles of x[tile, 127 - i], tiles loaded two ahead with asynchronous copies.
//
// BUG 1: no wait
// BUG 2: waits for one group too few
// BUG 3: no barrier after the wait
// BUG 4: no barrier before a tile is overwritten
// BUG 5: the copies are not committed to a group
// BUG 6: the tile is overwritten by a second copy before the first was waited for
// BUG 7: copies 16 bytes to an address that is a multiple of 4
// BUG 8: copies from past the end
#ifndef BUG
#define BUG 0
#endif

__device__ void copy16(float* to, const float* from) {
  const unsigned address = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
__device__ void commit() {
#if BUG != 5
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ void wait() {
#if BUG != 1
  asm volatile("cp.async.wait_group %0;" ::"n"(N + (BUG == 2)) : "memory");
#endif
}

extern "C" __global__ void tiles(const float* __restrict__ x, float* __restrict__ y, int n) {
  __shared__ __align__(16) float tile[3][128 + 4];
  const int tid = threadIdx.x;
  auto load = [&](int t) {
    if (tid < 32 && t < n + (BUG == 8)) copy16(tile[BUG == 6 ? 0 : t % 3] + (BUG == 7) + tid * 4, x + t * 128 + tid * 4);
    commit();
  };
  load(0);
  load(1);
  float sum = 0.f;
  for (int t = 0; t < n; t++) {
    wait<1>();
#if BUG != 3
    __syncthreads();
#endif
#if BUG == 4
    load(t + 3);
    commit();
#endif
    sum += tile[t % 3][127 - tid];
#if BUG != 4
    load(t + 2);
#endif
  }
  y[tid] = sum;
}
