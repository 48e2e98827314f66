// Attention for head sizes from 129 to 256.
#include "attention_kernels.cuh"

// Head size, blocks on a multiprocessor, keys of a buffer.
FORWARD(bf16, 256, 2, 32)
FORWARD(f32, 256, 3, 16)

// The same, and keys that a warp works on at once.
BACKWARD_QUERIES(bf16, 256, 2, 16, 16)
BACKWARD_QUERIES(f32, 256, 3, 16)

// Head size, blocks on a multiprocessor, queries of a buffer, queries that a warp works on at once, whether dk and dv
// are made by different blocks.
BACKWARD_KEYS(bf16, 256, 2, 16, 16, true)
BACKWARD_KEYS(f32, 256, 2, 16)

BACKWARD_BIAS(bf16, 256, 2, 16)
BACKWARD_BIAS(f32, 256, 2, 8)
