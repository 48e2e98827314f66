// The kernels that work on tiles, for attention_d*.cu to compile for one head size each. What they compute stands in
// attention.cu.
#pragma once

#include "attention_bias.cuh"

typedef bf16 element_bf16;
typedef float element_f32;

// A kernel of which at least `blocks` fit on a multiprocessor, by registers.
#define TILED(name, blocks) extern "C" __global__ void __launch_bounds__(THREADS, blocks) name

// `o_low` takes what bf16 leaves out of o, for the backward pass; null where there is none to follow, and for f32.
#define FORWARD(TYPE, D, BLOCKS, ...)                                                                                 \
  TILED(attention_forward_d##D##_##TYPE, BLOCKS)                                                                      \
  (const element_##TYPE* __restrict__ q, const element_##TYPE* __restrict__ k, const element_##TYPE* __restrict__ v,  \
   element_##TYPE* __restrict__ o, signed char* __restrict__ o_low, float* __restrict__ lse,                          \
   const QueryTile* __restrict__ tiles, const Span* __restrict__ spans, const int* __restrict__ limits,               \
   const float* __restrict__ bias, const int* __restrict__ query_positions, const int* __restrict__ key_positions,    \
   int bias_width, int bias_offset, int key_heads, int group, int dim, float scale) {                                 \
    forward_##TYPE<D, __VA_ARGS__>(q, k, v, o, o_low, lse, tiles, spans, limits,                                      \
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

// Makes the partial sums [gridDim.x, heads, bias_width] of the gradient of the table of biases, over the first `tile_count`
// tiles.
#define BACKWARD_BIAS(TYPE, D, BLOCKS, KEYS)                                                                          \
  TILED(attention_backward_bias_d##D##_##TYPE, BLOCKS)                                                                \
  (const element_##TYPE* __restrict__ q, const element_##TYPE* __restrict__ k, const element_##TYPE* __restrict__ v,  \
   const element_##TYPE* __restrict__ d_o, const float* __restrict__ lse, const float* __restrict__ delta,            \
   float* __restrict__ partial, const QueryTile* __restrict__ tiles, const Span* __restrict__ spans,                  \
   const int* __restrict__ limits, const float* __restrict__ bias, const int* __restrict__ query_positions,           \
   const int* __restrict__ key_positions, int bias_width, int bias_offset, int tile_count, int query_rows,            \
   int key_heads, int group, int dim, float scale) {                                                                  \
    backward_bias<element_##TYPE, D, KEYS>(q, k, v, d_o, lse, delta, partial, tiles, spans, limits,                   \
                                           Bias{bias, query_positions, key_positions, bias_width, bias_offset},       \
                                           tile_count, query_rows, key_heads, group, dim, scale);                     \
  }
