// Tensor cores and asynchronous copies: the PTX instructions that CUDA C++ has no name for, one small function each.
#pragma once

#include "common.cuh"

// The address of `p`, which lies in shared memory, as instructions on shared memory want it.
DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// d += a · b, with a [16, 16] and b [16, 8] in bf16, d [16, 8] in f32, spread over the lanes of a warp. With
// g = lane / 4 and t = lane % 4, each lane holds
//   a: rows g (a[0], a[2]) and g + 8 (a[1], a[3]), columns 2t, 2t+1 (a[0], a[1]) and 2t+8, 2t+9 (a[2], a[3]);
//   b: column g, rows 2t, 2t+1 (b0) and 2t+8, 2t+9 (b1);
//   d: rows g (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2t, 2t+1.
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 rows of 16 bytes from shared memory. Lane i names row i % 8 of matrix i / 8 by its address, which
// is a multiple of 16; r[m] gets row lane / 4, columns 2 (lane % 4) and the next, of matrix m.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of the transposed matrices: r[m] gets column lane / 4, rows 2 (lane % 4) and the next.
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Copies 16 bytes from global to shared memory in the background; zeros where `real` is false, which reads nothing.
// Both addresses are multiples of 16.
DEVICE void cp_async_16(void* shared, const void* global, bool real = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(real ? 16 : 0)
               : "memory");
}

// The same of the first `bytes` of the 16, 0 to 16 of them, and zeros for the others.
DEVICE void cp_async_16_partial(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}

// The same for 4 bytes, real or not.
DEVICE void cp_async_4(void* shared, const void* global, bool real = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(real ? 4 : 0)
               : "memory");
}

// Closes the group of the copies that this thread began since the last one.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most the last N groups of this thread are under way. What other threads copied is there after a
// barrier that follows their wait.
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }
