// layer_norm: y = w ∘ (x − mean(x)) / √(var(x) + ε) + b, row by row.
//
//   forward       m = mean(x), r = 1/√(mean((x − m)²) + ε),  y = w ∘ (x − m) r + b
//   add_forward   s = x + a, rounded as stored; y is the norm of s. `s` may be `a`.
//   backward      g = w ∘ dy, x̂ = (x − m) r:  dx = r (g − mean(g) − x̂ mean(g ∘ x̂)), or dx += that.
//                 m and r are computed again.
//   moments       (m, r) of each row, for columns_sum, which makes dw = Σ x̂ ∘ dy and db = Σ dy of them
//
// Launch: as rms_norm: 256 threads, grid ceil(rows / 8) up to SHORT_ROW columns, else rows. A row is read once from
// memory; later passes find it in the L1 cache.
// Registers ≤ 48: 5 blocks an SM, on sm_80 and sm_90.
// Bytes, in elements: forward 2 rows·cols, add_forward 4 rows·cols, backward 3 (4 if added), moments rows·cols.
// FLOPs: 8, 9, 14, 5 rows·cols.

#include "norm.cuh"

struct Moments {
  float mean, scale;
};

// Mean and scale of the row whose elements `value(column, v)` gives, the variance from centred elements.
template <int N, typename Value>
DEVICE Moments moments_of(const RowPlace& at, int cols, float epsilon, Value value) {
  const float count = static_cast<float>(cols);
  float sum = 0.0f, squares = 0.0f;
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N];
    value(i, v);
#pragma unroll
    for (int k = 0; k < N; k++) sum += v[k];
  }
  const float mean = at.sum(sum) / count;
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N];
    value(i, v);
#pragma unroll
    for (int k = 0; k < N; k++) squares += (v[k] - mean) * (v[k] - mean);
  }
  return {mean, 1.0f / sqrtf(at.sum(squares) / count + epsilon)};
}

// `a` and `s` are null in the plain form.
template <typename T, int N>
DEVICE void forward(const T* __restrict__ x, const T* a, const T* __restrict__ weight, const T* __restrict__ bias,
                    T* s, T* __restrict__ y, const RowPlace& at, int cols, float epsilon) {
  const long long start = static_cast<long long>(at.row) * cols;
  const auto value = [=](int i, float(&v)[N]) {
    load(x + start + i, v);
    if (a == nullptr) return;
    float added[N];
    load(a + start + i, added);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = rounded<T>(v[k] + added[k]);
  };
  const Moments m = moments_of<N>(at, cols, epsilon, value);
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N], w[N], shift[N];
    value(i, v);
    load(weight + i, w);
    load(bias + i, shift);
    if (s != nullptr) store(s + start + i, v);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = (v[k] - m.mean) * m.scale * w[k] + shift[k];
    store(y + start + i, v);
  }
}

template <typename T, int N>
DEVICE void backward(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight, T* dx,
                     const RowPlace& at, int cols, float epsilon, bool add) {
  const long long start = static_cast<long long>(at.row) * cols;
  const Moments m = moments_of<N>(at, cols, epsilon, [=](int i, float(&v)[N]) { load(x + start + i, v); });
  float sum = 0.0f, along = 0.0f;
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N], g[N], w[N];
    load(x + start + i, v);
    load(dy + start + i, g);
    load(weight + i, w);
#pragma unroll
    for (int k = 0; k < N; k++) {
      sum += w[k] * g[k];
      along += w[k] * g[k] * ((v[k] - m.mean) * m.scale);
    }
  }
  const float count = static_cast<float>(cols);
  const float mean = at.sum(sum) / count, common = at.sum(along) / count;
#pragma unroll UNROLL<N>
  for (int i = at.first(N); i < cols; i += at.step(N)) {
    float v[N], g[N], w[N], d[N] = {};
    load(x + start + i, v);
    load(dy + start + i, g);
    load(weight + i, w);
    if (add) load(dx + start + i, d);
#pragma unroll
    for (int k = 0; k < N; k++) d[k] += m.scale * (w[k] * g[k] - mean - (v[k] - m.mean) * m.scale * common);
    store(dx + start + i, d);
  }
}

template <typename T, int N>
DEVICE void find_moments(const T* __restrict__ x, float2* __restrict__ moments, const RowPlace& at, int cols,
                         float epsilon) {
  const long long start = static_cast<long long>(at.row) * cols;
  const Moments m = moments_of<N>(at, cols, epsilon, [=](int i, float(&v)[N]) { load(x + start + i, v); });
  if (at.first(1) == 0) moments[at.row] = make_float2(m.mean, m.scale);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(layer_norm_forward_##suffix, 256)                                                                             \
  (const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int rows,     \
   int cols, float epsilon) {                                                                                          \
    FOR_ROW(T, rows, cols, (forward<T, N>(x, nullptr, weight, bias, nullptr, y, at, cols, epsilon)));                  \
  }                                                                                                                    \
  KERNEL(layer_norm_add_forward_##suffix, 256)                                                                         \
  (const T* __restrict__ x, const T* a, const T* __restrict__ weight, const T* __restrict__ bias, T* s,                \
   T* __restrict__ y, int rows, int cols, float epsilon) {                                                             \
    FOR_ROW(T, rows, cols, (forward<T, N>(x, a, weight, bias, s, y, at, cols, epsilon)));                              \
  }                                                                                                                    \
  KERNEL(layer_norm_backward_##suffix, 256)                                                                            \
  (const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight, T* dx, int rows, int cols,         \
   float epsilon, int add) {                                                                                           \
    FOR_ROW(T, rows, cols, (backward<T, N>(dy, x, weight, dx, at, cols, epsilon, add != 0)));                          \
  }                                                                                                                    \
  KERNEL(layer_norm_moments_##suffix, 256)                                                                             \
  (const T* __restrict__ x, float2* __restrict__ moments, int rows, int cols, float epsilon) {                         \
    FOR_ROW(T, rows, cols, (find_moments<T, N>(x, moments, at, cols, epsilon)));                                       \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
