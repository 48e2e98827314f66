// c = a b for a [16, k], b [8, k] by columns, c [16, 8] in f32: one warp of mma.m16n8k16, tiles in shared memory.
//
// BUG 1: two registers of the first operand are swapped
// BUG 2: no barrier between the stores and the matrix load
// BUG 3: the product in a branch that half of the warp takes
// BUG 4: a matrix row past the end of shared memory
// BUG 5: no barrier before the tile is overwritten
// BUG 6: part of the tile is never written
#ifndef BUG
#define BUG 0
#endif
#include <cuda_bf16.h>

extern "C" __global__ void gemm(const __nv_bfloat16* __restrict__ a, const __nv_bfloat16* __restrict__ b, float* __restrict__ c, int k) {
  __shared__ __align__(16) __nv_bfloat16 tile_a[16 * 24], tile_b[8 * 24];
  const int lane = threadIdx.x;
  float acc[4] = {0.f, 0.f, 0.f, 0.f};
  for (int k0 = 0; k0 < k; k0 += 16) {
    for (int i = lane; i < 256 - (BUG == 6 ? 8 : 0); i += 32) tile_a[i / 16 * 24 + i % 16] = a[(size_t)(i / 16) * k + k0 + i % 16];
    for (int i = lane; i < 128; i += 32) tile_b[i / 16 * 24 + i % 16] = b[(size_t)(i / 16) * k + k0 + i % 16];
#if BUG != 2
    __syncwarp();
#endif
    unsigned fa[4], fb[2];
    const unsigned pa = (unsigned)__cvta_generic_to_shared(tile_a + (lane % 16 + (BUG == 4 ? 16 : 0)) * 24 + lane / 16 * 8);
    const unsigned pb = (unsigned)__cvta_generic_to_shared(tile_b + lane % 8 * 24 + lane / 8 % 2 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3]) : "r"(pa) : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(fb[0]), "=r"(fb[1]) : "r"(pb) : "memory");
    if (BUG != 3 || lane < 16)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                   : "r"(fa[0]), "r"(fa[BUG == 1 ? 2 : 1]), "r"(fa[BUG == 1 ? 1 : 2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
#if BUG != 5
    __syncwarp();
#endif
  }
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i];
}
