// Attention for head sizes from 65 to 96.
#include "attention_kernels.cuh"

// Head size, blocks on a multiprocessor, keys of a buffer.
FORWARD(bf16, 96, 3, 32)
FORWARD(f32, 96, 4, 32)

// The same, and keys that a warp works on at once.
BACKWARD_QUERIES(bf16, 96, 4, 32, 32)
BACKWARD_QUERIES(f32, 96, 4, 32)

// Head size, blocks on a multiprocessor, queries of a buffer, queries that a warp works on at once, whether dk and dv
// are made by different blocks.
BACKWARD_KEYS(bf16, 96, 2, 32, 16, false)
BACKWARD_KEYS(f32, 96, 3, 32)

BACKWARD_BIAS(bf16, 96, 3, 32)
BACKWARD_BIAS(f32, 96, 4, 32)
