// Attention for head sizes from 33 to 64.
#include "attention_kernels.cuh"

// Head size, blocks on a multiprocessor, keys of a buffer.
FORWARD(bf16, 64, 3, 64)
FORWARD(f32, 64, 4, 32)

// The same, and keys that a warp works on at once.
BACKWARD_QUERIES(bf16, 64, 3, 32, 32)
BACKWARD_QUERIES(f32, 64, 4, 32)

// Head size, blocks on a multiprocessor, queries of a buffer, queries that a warp works on at once, whether dk and dv
// are made by different blocks.
BACKWARD_KEYS(bf16, 64, 3, 32, 16, false)
BACKWARD_KEYS(f32, 64, 4, 32)

// Head size, blocks on a multiprocessor, keys of a buffer.
BACKWARD_BIAS(bf16, 64, 4, 32)
BACKWARD_BIAS(f32, 64, 4, 32)
