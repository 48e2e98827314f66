// rms_norm: y = w ∘ x / √(mean(x²) + ε), row by row.
//
//   forward       r = 1/√(mean(x²) + ε),  y = w ∘ x r
//   add_forward   s = x + b, rounded as stored; y = w ∘ s r with the scale r of s. `s` may be `b`.
//   backward      g = w ∘ dy:  dx = r g − x r³ mean(g ∘ x), or dx += that. r is computed again.
//   moments       (0, r) of each row, for columns_sum, which makes dw = Σ r x ∘ dy of them
//
// Launch: 256 threads. A row of up to SHORT_ROW elements has a warp, 8 rows a block: grid ceil(rows / 8). A longer row
// has a block: grid rows. A row is read once from memory; later passes find it in the L1 cache.
// Registers ≤ 48: 5 blocks an SM, on sm_80 and sm_90.
// Bytes, in elements: forward 2 rows·cols, add_forward 4 rows·cols, backward 3 (4 if added), moments rows·cols.
// FLOPs: 4, 5, 9, 2 rows·cols.

#include "norm.cuh"

// The scale 1/√(mean(x²) + ε) of the row whose elements `value(column, v)` gives.
template <int N, typename Value> DEVICE float scale_of(const RowPlace& at, int cols, float epsilon, Value value) {
  float sum = 0.0f;
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N];
    value(i, v);
#pragma unroll
    for (int k = 0; k < N; k++) sum += v[k] * v[k];
  }
  return 1.0f / sqrtf(at.sum(sum) / static_cast<float>(cols) + epsilon);
}

// `b` and `s` are null in the plain form.
template <typename T, int N>
DEVICE void forward(const T* __restrict__ x, const T* b, const T* __restrict__ weight, T* s, T* __restrict__ y,
                    const RowPlace& at, int cols, float epsilon) {
  const long long start = static_cast<long long>(at.row) * cols;
  const auto value = [=](int i, float(&v)[N]) {
    load(x + start + i, v);
    if (b == nullptr) return;
    float added[N];
    load(b + start + i, added);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = rounded<T>(v[k] + added[k]);
  };
  const float r = scale_of<N>(at, cols, epsilon, value);
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N], w[N];
    value(i, v);
    load(weight + i, w);
    if (s != nullptr) store(s + start + i, v);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = w[k] * (v[k] * r);
    store(y + start + i, v);
  }
}

template <typename T, int N>
DEVICE void backward(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight, T* dx,
                     const RowPlace& at, int cols, float epsilon, bool add) {
  const long long start = static_cast<long long>(at.row) * cols;
  float squares = 0.0f, along = 0.0f;
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N], g[N], w[N];
    load(x + start + i, v);
    load(dy + start + i, g);
    load(weight + i, w);
#pragma unroll
    for (int k = 0; k < N; k++) {
      squares += v[k] * v[k];
      along += w[k] * g[k] * v[k];
    }
  }
  const float count = static_cast<float>(cols);
  const float r = 1.0f / sqrtf(at.sum(squares) / count + epsilon);
  const float common = r * r * r * (at.sum(along) / count);
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N], g[N], w[N], d[N] = {};
    load(x + start + i, v);
    load(dy + start + i, g);
    load(weight + i, w);
    if (add) load(dx + start + i, d);
#pragma unroll
    for (int k = 0; k < N; k++) d[k] += r * (w[k] * g[k]) - v[k] * common;
    store(dx + start + i, d);
  }
}

template <typename T, int N>
DEVICE void find_moments(const T* __restrict__ x, float2* __restrict__ moments, const RowPlace& at, int cols,
                         float epsilon) {
  const long long start = static_cast<long long>(at.row) * cols;
  const float r = scale_of<N>(at, cols, epsilon, [=](int i, float(&v)[N]) { load(x + start + i, v); });
  if (at.first(1) == 0) moments[at.row] = make_float2(0.0f, r);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(rms_norm_forward_##suffix, 256)                                                                               \
  (const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y, int rows, int cols, float epsilon) {     \
    FOR_ROW(T, rows, cols, (forward<T, N>(x, nullptr, weight, nullptr, y, at, cols, epsilon)));                        \
  }                                                                                                                    \
  KERNEL(rms_norm_add_forward_##suffix, 256)                                                                           \
  (const T* __restrict__ x, const T* b, const T* __restrict__ weight, T* s, T* __restrict__ y, int rows, int cols,     \
   float epsilon) {                                                                                                    \
    FOR_ROW(T, rows, cols, (forward<T, N>(x, b, weight, s, y, at, cols, epsilon)));                                    \
  }                                                                                                                    \
  KERNEL(rms_norm_backward_##suffix, 256)                                                                              \
  (const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight, T* dx, int rows, int cols,         \
   float epsilon, int add) {                                                                                           \
    FOR_ROW(T, rows, cols, (backward<T, N>(dy, x, weight, dx, at, cols, epsilon, add != 0)));                          \
  }                                                                                                                    \
  KERNEL(rms_norm_moments_##suffix, 256)                                                                               \
  (const T* __restrict__ x, float2* __restrict__ moments, int rows, int cols, float epsilon) {                         \
    FOR_ROW(T, rows, cols, (find_moments<T, N>(x, moments, at, cols, epsilon)));                                       \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
