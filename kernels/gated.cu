// gated: y = f(gate) ∘ up, the middle of a gated MLP, for f of relu, gelu, gelu_tanh, silu.
//
//   gated_<f>_forward   y = f(gate) ∘ up
//   gated_<f>_backward  du = dy ∘ f(gate);  dy becomes d gate = dy ∘ up ∘ f'(gate)
//
// Launch: 256 threads, 16 bytes a thread: grid ceil(count / (256 · 16 / size)).
// Registers ≤ 48: 5 blocks an SM, on sm_80 and sm_90.
// Bytes, in elements: forward 3 count, backward 5 count. FLOPs: about 20 count.

#include "activation.cuh"

template <typename F, typename T>
DEVICE void forward(const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count) {
  const long long i = global_thread() * WIDTH<T>;
  if (i >= count) return;
  float g[WIDTH<T>], u[WIDTH<T>];
  load_some(gate + i, g, count - i);
  load_some(up + i, u, count - i);
#pragma unroll
  for (int k = 0; k < WIDTH<T>; k++) g[k] = F::value(g[k]) * u[k];
  store_some(y + i, g, count - i);
}

template <typename F, typename T>
DEVICE void backward(T* dy, T* __restrict__ du, const T* __restrict__ gate, const T* __restrict__ up, long long count) {
  const long long i = global_thread() * WIDTH<T>;
  if (i >= count) return;
  float g[WIDTH<T>], u[WIDTH<T>], d[WIDTH<T>];
  load_some(gate + i, g, count - i);
  load_some(up + i, u, count - i);
  load_some(dy + i, d, count - i);
#pragma unroll
  for (int k = 0; k < WIDTH<T>; k++) {
    const ValueAndSlope f = F::both(g[k]);
    g[k] = d[k] * f.value;
    d[k] = d[k] * u[k] * f.slope;
  }
  store_some(du + i, g, count - i);
  store_some(dy + i, d, count - i);
}

#define INSTANCES(F, name, T, suffix)                                                                                  \
  KERNEL(gated_##name##_forward_##suffix, 256)                                                                         \
  (const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count) {                         \
    forward<F>(gate, up, y, count);                                                                                    \
  }                                                                                                                    \
  KERNEL(gated_##name##_backward_##suffix, 256)                                                                        \
  (T* dy, T* __restrict__ du, const T* __restrict__ gate, const T* __restrict__ up, long long count) {                 \
    backward<F>(dy, du, gate, up, count);                                                                              \
  }

INSTANCES(Relu, relu, float, f32)
INSTANCES(Relu, relu, bf16, bf16)
INSTANCES(Gelu, gelu, float, f32)
INSTANCES(Gelu, gelu, bf16, bf16)
INSTANCES(GeluTanh, gelu_tanh, float, f32)
INSTANCES(GeluTanh, gelu_tanh, bf16, bf16)
INSTANCES(Silu, silu, float, f32)
INSTANCES(Silu, silu, bf16, bf16)
