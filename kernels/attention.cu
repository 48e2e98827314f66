// Attention over a packed stream, after Dao et al. 2022 (FlashAttention) with the tiles of attention_tiles.cuh:
//   o_i = Σ_j p_ij v_j,  p_ij = exp(s_ij − lse_i),  s_ij = scale q_i·k_j + bias,  lse_i = log Σ_j exp(s_ij)
// over the keys j that query i sees. Backward, with δ_i = do_i·o_i and ds_ij = p_ij (do_i·v_j − δ_i):
//   dv_j = Σ_i p_ij do_i,  dk_j = scale Σ_i ds_ij q_i,  dq_i = scale Σ_j ds_ij k_j.
// q, o, d_o, dq: [queries, key_heads · group · dim]; k, v, dk, dv: [keys, key_heads · dim]; lse, δ: [queries, heads].
//
// A head size of D elements is compiled for D = 32, 64, 96, 128, 256; a smaller `dim` is padded with zeros in shared
// memory. Kernels of a tile run on a grid of (tiles, key heads); nothing is added up by two blocks, so the bits do not
// depend on their order. Where many queries share keys, a key tile's sum over queries is split into tasks that each
// write a partial sum, and attention_reduce adds those in order.
#include "attention_bf16.cuh"
#include "attention_f32.cuh"

typedef bf16 element_bf16;
typedef float element_f32;

// A kernel of which at least `blocks` fit on a multiprocessor, by registers.
#define TILED(name, blocks) extern "C" __global__ void __launch_bounds__(THREADS, blocks) name

#define FORWARD(TYPE, D, BLOCKS, ...)                                                                                 \
  TILED(attention_forward_d##D##_##TYPE, BLOCKS)                                                                      \
  (const element_##TYPE* __restrict__ q, const element_##TYPE* __restrict__ k, const element_##TYPE* __restrict__ v,  \
   element_##TYPE* __restrict__ o, float* __restrict__ lse, const QueryTile* __restrict__ tiles,                      \
   const Span* __restrict__ spans, const int* __restrict__ limits, const float* __restrict__ bias,                    \
   const int* __restrict__ query_positions, const int* __restrict__ key_positions, int bias_width, int bias_offset,   \
   int key_heads, int group, int dim, float scale) {                                                                  \
    forward_##TYPE<D, __VA_ARGS__>(q, k, v, o, lse, tiles, spans, limits,                                             \
                                   Bias{bias, query_positions, key_positions, bias_width, bias_offset}, key_heads,    \
                                   group, dim, scale);                                                                \
  }

// Makes the first `query_rows` rows of dq.
#define BACKWARD_QUERIES(TYPE, D, BLOCKS, ...)                                                                        \
  TILED(attention_backward_queries_d##D##_##TYPE, BLOCKS)                                                             \
  (const element_##TYPE* __restrict__ q, const element_##TYPE* __restrict__ k, const element_##TYPE* __restrict__ v,  \
   const element_##TYPE* __restrict__ d_o, const float* __restrict__ lse, const float* __restrict__ delta,            \
   element_##TYPE* __restrict__ dq, const QueryTile* __restrict__ tiles, const Span* __restrict__ spans,              \
   const int* __restrict__ limits, const float* __restrict__ bias, const int* __restrict__ query_positions,           \
   const int* __restrict__ key_positions, int bias_width, int bias_offset, int query_rows, int key_heads, int group,  \
   int dim, float scale) {                                                                                            \
    backward_queries_##TYPE<D, __VA_ARGS__>(q, k, v, d_o, lse, delta, dq, tiles, spans, limits,                       \
                                            Bias{bias, query_positions, key_positions, bias_width, bias_offset},      \
                                            query_rows, key_heads, group, dim, scale);                                \
  }

// Makes the rows of dk and dv, or the partial sums [slots, tile, key_heads · dim], that the tasks name.
#define BACKWARD_KEYS(TYPE, D, BLOCKS, ...)                                                                           \
  TILED(attention_backward_keys_d##D##_##TYPE, BLOCKS)                                                                \
  (const element_##TYPE* __restrict__ q, const element_##TYPE* __restrict__ k, const element_##TYPE* __restrict__ v,  \
   const element_##TYPE* __restrict__ d_o, const float* __restrict__ lse, const float* __restrict__ delta,            \
   element_##TYPE* __restrict__ dk, element_##TYPE* __restrict__ dv, float* __restrict__ dk_partial,                  \
   float* __restrict__ dv_partial, const KeyTask* __restrict__ tasks, const Visit* __restrict__ visits,               \
   const int* __restrict__ limits, const float* __restrict__ bias, const int* __restrict__ query_positions,           \
   const int* __restrict__ key_positions, int bias_width, int bias_offset, int key_heads, int group, int dim,         \
   float scale) {                                                                                                     \
    backward_keys_##TYPE<D, __VA_ARGS__>(q, k, v, d_o, lse, delta, dk, dv, dk_partial, dv_partial, tasks, visits,     \
                                         limits, Bias{bias, query_positions, key_positions, bias_width, bias_offset}, \
                                         key_heads, group, dim, scale);                                               \
  }

// Head size, blocks on a multiprocessor, keys of a buffer.
FORWARD(bf16, 32, 4, 64)
FORWARD(bf16, 64, 3, 64)
FORWARD(bf16, 96, 3, 32)
FORWARD(bf16, 128, 3, 32)
FORWARD(bf16, 256, 2, 32)
FORWARD(f32, 32, 4, 32)
FORWARD(f32, 64, 4, 32)
FORWARD(f32, 96, 4, 32)
FORWARD(f32, 128, 4, 32)
FORWARD(f32, 256, 3, 16)

// Head size, blocks on a multiprocessor, keys of a buffer, keys that a warp works on at once.
BACKWARD_QUERIES(bf16, 32, 4, 32, 32)
BACKWARD_QUERIES(bf16, 64, 3, 32, 32)
BACKWARD_QUERIES(bf16, 96, 4, 32, 32)
BACKWARD_QUERIES(bf16, 128, 3, 32, 32)
BACKWARD_QUERIES(bf16, 256, 2, 16, 16)
BACKWARD_QUERIES(f32, 32, 4, 32)
BACKWARD_QUERIES(f32, 64, 4, 32)
BACKWARD_QUERIES(f32, 96, 4, 32)
BACKWARD_QUERIES(f32, 128, 4, 32)
BACKWARD_QUERIES(f32, 256, 3, 16)

// Head size, blocks on a multiprocessor, queries of a buffer, queries that a warp works on at once, whether dk and dv
// are made by different blocks.
BACKWARD_KEYS(bf16, 32, 4, 32, 16, false)
BACKWARD_KEYS(bf16, 64, 3, 32, 16, false)
BACKWARD_KEYS(bf16, 96, 2, 32, 16, false)
BACKWARD_KEYS(bf16, 128, 2, 32, 16, false)
BACKWARD_KEYS(bf16, 256, 2, 16, 16, true)
BACKWARD_KEYS(f32, 32, 4, 32)
BACKWARD_KEYS(f32, 64, 4, 32)
BACKWARD_KEYS(f32, 96, 3, 32)
BACKWARD_KEYS(f32, 128, 3, 32)
BACKWARD_KEYS(f32, 256, 2, 16)

// delta[i] = Σ_d o[i, d] · d_o[i, d] for `count` heads of rows; 8 lanes a head.
template <typename T>
DEVICE void delta_of(const T* __restrict__ o, const T* __restrict__ d_o, float* __restrict__ delta, int count,
                     int dim) {
  const long long i = global_thread() / 8;
  const int lane = threadIdx.x % 8;
  float sum = 0;
  if (i < count) {
    o += i * dim, d_o += i * dim;
    if (rows_are_aligned<T>(dim)) {
      for (int d = lane * WIDTH<T>; d < dim; d += 8 * WIDTH<T>) {
        float a[WIDTH<T>], b[WIDTH<T>];
        load4(o + d, a);
        load4(d_o + d, b);
#pragma unroll
        for (int j = 0; j < WIDTH<T>; j++) sum = fmaf(a[j], b[j], sum);
      }
    } else {
      for (int d = lane; d < dim; d += 8) sum = fmaf(to_float(o[d]), to_float(d_o[d]), sum);
    }
  }
  sum = row_sum(sum);
  if (i < count && lane == 0) delta[i] = sum;
}

KERNEL(attention_delta_bf16, 256)
(const bf16* __restrict__ o, const bf16* __restrict__ d_o, float* __restrict__ delta, int count, int dim) {
  delta_of(o, d_o, delta, count, dim);
}
KERNEL(attention_delta_f32, 256)
(const float* __restrict__ o, const float* __restrict__ d_o, float* __restrict__ delta, int count, int dim) {
  delta_of(o, d_o, delta, count, dim);
}

// Adds the partial sums of a tile of keys in the order of their slots. Grid: (sums, blocks of 4 · 256 elements of a
// tile, 2): z = 0 makes dk, z = 1 dv.
template <typename T>
DEVICE void reduce(const float* __restrict__ dk_partial, const float* __restrict__ dv_partial, T* __restrict__ dk,
                   T* __restrict__ dv, const KeySum* __restrict__ sums, int tile, int width) {
  const KeySum sum = sums[blockIdx.x];
  const float* partial = blockIdx.z == 0 ? dk_partial : dv_partial;
  T* out = (blockIdx.z == 0 ? dk : dv) + static_cast<long long>(sum.key_row) * width;
  const long long slot = static_cast<long long>(tile) * width;
  partial += sum.slot * slot;
  const int element = (blockIdx.y * blockDim.x + threadIdx.x) * 4, count = sum.keys * width;
  if (element + 3 < count && width % 4 == 0) {
    float total[4] = {};
    for (int s = 0; s < sum.slots; s++) {
      const float4 x = read4(partial + s * slot + element);
      total[0] += x.x, total[1] += x.y, total[2] += x.z, total[3] += x.w;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) out[element + i] = from_float<T>(total[i]);
  } else {
    for (int i = element; i < min(element + 4, count); i++) {
      float total = 0;
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
