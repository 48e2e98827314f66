// Attention over a packed stream, after Dao et al. 2022 (FlashAttention) with the tiles of attention_tiles.cuh:
//   o_i = Σ_j p_ij v_j,  p_ij = exp(s_ij − lse_i),  s_ij = scale q_i·k_j + bias,  lse_i = log Σ_j exp(s_ij)
// over the keys j that query i sees. Backward, with δ_i = do_i·o_i and ds_ij = p_ij (do_i·v_j − δ_i):
//   dv_j = Σ_i p_ij do_i,  dk_j = scale Σ_i ds_ij q_i,  dq_i = scale Σ_j ds_ij k_j,
//   d_bias = Σ ds_ij over the i and j of a head and distance (attention_bias.cuh), where the bias is trained.
// q, o, d_o, dq: [queries, key_heads · group · dim]; k, v, dk, dv: [keys, key_heads · dim]; lse, δ: [queries, heads].
//
// A head size of D elements is compiled for D = 32, 64, 96, 128, 256; a smaller `dim` is padded with zeros in shared
// memory. Kernels of a tile run on a grid of (tiles, key heads); nothing is added up by two blocks, so the bits do not
// depend on their order. Where many queries share keys, a key tile's sum over queries is split into tasks that each
// write a partial sum, and attention_reduce adds those in order.
#include "attention_tiles.cuh"

// delta[i] = Σ_d o[i, d] · d_o[i, d] for `count` heads of rows; 8 lanes a head. `o_low` are the bits of o that bf16
// leaves out; f32 has none.
template <typename T>
DEVICE void delta_of(const T* __restrict__ o, const signed char* __restrict__ o_low, const T* __restrict__ d_o,
                     float* __restrict__ delta, int count, int dim) {
  constexpr bool HAS_LOW = sizeof(T) == 2;
  const long long i = global_thread() / 8;
  const int lane = threadIdx.x % 8;
  float sum = 0;
  if (i < count) {
    o += i * dim, d_o += i * dim;
    if (HAS_LOW) o_low += i * dim;
    if (rows_are_aligned<T>(dim)) {
      for (int d = lane * WIDTH<T>; d < dim; d += 8 * WIDTH<T>) {
        float a[WIDTH<T>], b[WIDTH<T>];
        load4(o + d, a);
        load4(d_o + d, b);
        if constexpr (HAS_LOW) {
          const uint2 low = *reinterpret_cast<const uint2*>(o_low + d);
#pragma unroll
          for (int j = 0; j < 8; j++) {
            a[j] = with_low_bits(a[j], static_cast<signed char>((j < 4 ? low.x : low.y) >> (j % 4 * 8)));
          }
        }
#pragma unroll
        for (int j = 0; j < WIDTH<T>; j++) sum = fmaf(a[j], b[j], sum);
      }
    } else {
      for (int d = lane; d < dim; d += 8) {
        const float a = HAS_LOW ? with_low_bits(to_float(o[d]), o_low[d]) : to_float(o[d]);
        sum = fmaf(a, to_float(d_o[d]), sum);
      }
    }
  }
  sum = sum_of_8(sum);
  if (i < count && lane == 0) delta[i] = sum;
}

KERNEL(attention_delta_bf16, 256)
(const bf16* __restrict__ o, const signed char* __restrict__ o_low, const bf16* __restrict__ d_o,
 float* __restrict__ delta, int count, int dim) {
  delta_of(o, o_low, d_o, delta, count, dim);
}
KERNEL(attention_delta_f32, 256)
(const float* __restrict__ o, const signed char* __restrict__ o_low, const float* __restrict__ d_o,
 float* __restrict__ delta, int count, int dim) {
  delta_of(o, o_low, d_o, delta, count, dim);
}

// Adds the partial sums of a tile of keys in the order of their slots. Grid: (sums, enough blocks for a tile with 16
// bytes of the gradient a thread, 2): z = 0 makes dk, z = 1 dv.
template <typename T>
DEVICE void reduce(const float* __restrict__ dk_partial, const float* __restrict__ dv_partial, T* __restrict__ dk,
                   T* __restrict__ dv, const KeySum* __restrict__ sums, int tile, int width) {
  const KeySum sum = sums[blockIdx.x];
  T* out = (blockIdx.z == 0 ? dk : dv) + static_cast<long long>(sum.key_row) * width;
  const long long slot = static_cast<long long>(tile) * width;
  const float* partial = (blockIdx.z == 0 ? dk_partial : dv_partial) + sum.slot * slot;
  const int first = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH<T>, count = sum.keys * width;
  if (rows_are_aligned<T>(width)) {
    if (first >= count) return;
    float total[WIDTH<T>] = {};
    partial += first;
#pragma unroll 1
    for (int s = 0; s < sum.slots; s++, partial += slot) {
#pragma unroll
      for (int i = 0; i < WIDTH<T>; i += 4) {
        float x[4];
        load4(partial + i, x);
#pragma unroll
        for (int j = 0; j < 4; j++) total[i + j] += x[j];
      }
    }
    store4(out + first, total);
  } else {
#pragma unroll 1
    for (int i = first; i < min(first + WIDTH<T>, count); i++) {
      float total = 0;
#pragma unroll 1
      for (int s = 0; s < sum.slots; s++) total += partial[s * slot + i];
      out[i] = from_float<T>(total);
    }
  }
}

KERNEL(attention_reduce_bf16, 256)
(const float* __restrict__ dk_partial, const float* __restrict__ dv_partial, bf16* __restrict__ dk,
 bf16* __restrict__ dv, const KeySum* __restrict__ sums, int tile, int width) {
  reduce(dk_partial, dv_partial, dk, dv, sums, tile, width);
}
KERNEL(attention_reduce_f32, 256)
(const float* __restrict__ dk_partial, const float* __restrict__ dv_partial, float* __restrict__ dk,
 float* __restrict__ dv, const KeySum* __restrict__ sums, int tile, int width) {
  reduce(dk_partial, dv_partial, dk, dv, sums, tile, width);
}

// Launch facts. Kernels of a tile: 128 threads, 4 warps; dynamic shared memory of
//   forward   (tile + 2 · buffers · rows of a buffer) rows, backward   2 · (tile + buffers · rows of a buffer) rows,
//   d_bias    2 · (tile + keys) rows and tile · (keys + 1) floats,
// a row being D elements and 16 bytes; tile 64 and 2 buffers in bf16, 32 and 1 in f32. At most 99 KiB, which every GPU
// from sm_80 on gives a block. delta and reduce: 256 threads, no shared memory, registers ≤ 40: 6 blocks an SM.
//
// In bf16, shared memory in KiB, registers on sm_80 and sm_90, and blocks that fit on a multiprocessor of an A100
// (164 KiB) and an H100 (228 KiB), by registers and shared memory:
//     D    forward                     dq                          dk, dv                      d_bias
//    32    25     128  128   4  4      20     126  125   4  4      20     115  120   4  4      23      86   88   5  5
//    64    45     163  166   3  3      36     156  158   3  3      36     168  168   3  3      35     112  114   4  4
//    96    39     153  156   3  3      52     128  128   3  4      52     197  203   2  2      47     110  108   3  4
//   128    51     166  168   3  3      68     166  164   2  3      68     227  238   2  2      59     110  108   2  3
//   256    99     239  240   1  2      99     232  235   1  2      99     226  225   1  2      86      82   76   1  2
//
// FLOPs, with n pairs of a query row and a key that it sees, H heads of queries: forward 4 n H D, dq 6 n H D, dk and dv
// 8 n H D (10 where D is over 128 in bf16, as the scores are made twice), d_bias 4 n H D; pairs are rounded up to whole
// tiles.
// Bytes, with e of an element: forward reads q and writes o once, 2 e rows H D (and rows H D of low bits, 4 rows H of
// lse), and reads k and v once for each tile of stacked queries, 2 e D for each key it sees and key head: the tiles of
// a prompt's examples find the prompt's keys in L2. dq and d_bias the same, with d_o beside q; dk and dv read q and d_o
// once for each tile of keys. delta reads 2 e + 1 bytes an element of o. Partial sums are 8 tile key_heads D bytes a slot,
// written and read once; there are at most 2 · 256 / key_heads slots (see src/ops/attention/plan.rs). Those of d_bias are
// 4 H bytes a distance and part, of at most 64 parts.
