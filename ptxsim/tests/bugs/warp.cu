// Transposes 32 x 32 tiles, a warp each, through shared memory of its own: y[c, r] = x[r, c], then the same again.
//
// BUG 1: no __syncwarp before another lane's values are read
// BUG 2: no __syncwarp before the values that another lane reads are overwritten
// BUG 3: __syncwarp of half a warp, where values cross between the halves
// BUG 4: lanes of a warp write the same address
#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void transpose(const float* __restrict__ x, float* __restrict__ y) {
  __shared__ float tiles[2][32][33];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const size_t offset = ((size_t)blockIdx.x * 2 + warp) * 1024;
  float(*tile)[33] = tiles[warp];
  for (int pass = 0; pass < 2; pass++) {
    for (int r = 0; r < 32; r++) tile[BUG == 4 ? 0 : r][BUG == 4 ? 0 : lane] = pass == 0 ? x[offset + r * 32 + lane] : y[offset + r * 32 + lane];
#if BUG == 3
    __syncwarp(lane < 16 ? 0x0000ffff : 0xffff0000);
#elif BUG != 1
    __syncwarp();
#endif
    for (int r = 0; r < 32; r++) y[offset + r * 32 + lane] = tile[lane][r];
#if BUG != 2
    __syncwarp();
#endif
  }
}
