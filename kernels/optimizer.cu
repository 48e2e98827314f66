// optimizer: one step of AdamW or Adafactor on the prompt, or of AdamW on a weight, and the norm gradients are clipped to.
// All of it is f32 [rows, cols], and every name below ends in _f32; weights and their gradients may be bf16, so that
// gradient_norm and adamw also are there with _bf16.
//
//   gradient_norm          partial sums of g²
//   gradient_norm_finish   norm = √Σ g², factor = min(1, most / (norm + 10⁻⁶)), or 1 where the norm is not finite: one
//                          that is no number tells that an element is none, as squares of f32 do not overflow f64.
//   gradient_norm_clip     g *= factor; a factor of 1 changes nothing
//
//   adamw                  g ← factor g,  p ← p keep,  m ← m + towards (g − m),  v ← decay v + share g²,
//                          p ← p + size m / (√v / correction + ε);  the same operations in the same order as the CPU's,
//                          each rounded by itself, so the same bits. In bf16 that is g, and of p, which is a copy in
//                          f32, the weight is what it rounds to.
//
//   adafactor_moment       v ← keep v + share (g² + ε), and partial sums of y², y = g / √v
//   adafactor_apply        p ← (1 − wd) p − lr y / max(1, RMS(y) / clip)
//   Factored, where v is kept as row means r and column means k:
//   adafactor_rows         r ← keep r + share mean over the row of (g² + ε)
//   adafactor_cols         k ← keep k + share mean over the column of (g² + ε)
//   adafactor_factors      row factor 1/√(r / mean(r)), column factor 1/√k
//   adafactor_factored     partial sums of y², y = g · row factor · column factor
//   adafactor_factored_apply   as adafactor_apply, with that y
//
// Sums are of f64 numbers, in a fixed order: a thread's elements, a warp's lanes, the block's warps, then blocks.
//
// Launch: 256 threads. adamw, gradient_norm_clip: grid ceil(count / 1024). Kernels with `partial`: any grid up to 1024 blocks, the same for
// the kernels of a step; `partial` has a number for each. gradient_norm_finish, adafactor_factors: one block.
// adafactor_rows: grid rows. adafactor_cols: grid ceil(cols / 256).
// Registers: adamw ≤ 40, 6 blocks an SM; the others ≤ 32, 8 blocks; on sm_80 and sm_90.
// Bytes: adamw 28 count; adafactor_moment 12, adafactor_apply 16 count; the factored form 20 count in all.

#include "reduce.cuh"

constexpr int THREADS = 256;

DEVICE double warp_sum(double v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(WARP, v, distance);
  return v;
}

// Over the block, for every thread; warps in order.
DEVICE double block_sum(double v) {
  __shared__ double shared[THREADS / 32];
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  double sum = shared[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; warp++) sum += shared[warp];
  return sum;
}

// The block's share of Σ y(i)² over the grid, into its place of `partial`.
template <typename Y> DEVICE void sum_squares(long long count, double* partial, Y y) {
  double sum = 0.0;
  for (long long i = global_thread(); i < count; i += static_cast<long long>(gridDim.x) * THREADS) {
    const double v = y(i);
    sum += v * v;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// The sum of the partial sums, in every block alike.
DEVICE double total(const double* __restrict__ partial, int partials) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < partials; i += THREADS) sum += partial[i];
  return block_sum(sum);
}

// 16 bytes a thread at a time.
template <typename T> DEVICE void gradient_norm(const T* __restrict__ g, double* __restrict__ partial, long long count) {
  double sum = 0.0;
  const long long stride = static_cast<long long>(gridDim.x) * THREADS * WIDTH<T>;
  for (long long i = global_thread() * WIDTH<T>; i < count; i += stride) {
    float v[WIDTH<T>];
    load_some(g + i, v, count - i);
#pragma unroll
    for (int k = 0; k < WIDTH<T>; k++) sum += static_cast<double>(v[k]) * static_cast<double>(v[k]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

KERNEL(gradient_norm_f32, 256)(const float* __restrict__ g, double* __restrict__ partial, long long count) {
  gradient_norm(g, partial, count);
}
KERNEL(gradient_norm_bf16, 256)(const bf16* __restrict__ g, double* __restrict__ partial, long long count) {
  gradient_norm(g, partial, count);
}

KERNEL(gradient_norm_finish_f32, 256)(const double* __restrict__ partial, double* __restrict__ norm,
                                      float* __restrict__ factor, int partials, double most) {
  const double root = sqrt(total(partial, partials)), share = most / (root + 1e-6);
  if (threadIdx.x != 0) return;
  *norm = root;
  *factor = isfinite(root) && share < 1.0 ? static_cast<float>(share) : 1.0f;
}

KERNEL(gradient_norm_clip_f32, 256)(float* __restrict__ g, const float* __restrict__ factor, long long count) {
  const long long i = global_thread() * 4;
  if (i >= count) return;
  float v[4];
  load_some(g + i, v, count - i);
#pragma unroll
  for (int k = 0; k < 4; k++) v[k] *= *factor;
  store_some(g + i, v, count - i);
}

struct AdamW {
  float factor, keep, towards, decay, share, size, correction, epsilon;

  // a + towards (b − a), from the nearer end.
  DEVICE float lerp(float a, float b) const {
    const float way = __fsub_rn(b, a);
    return towards < 0.5f ? __fadd_rn(a, __fmul_rn(towards, way))
                          : __fsub_rn(b, __fmul_rn(way, __fsub_rn(1.0f, towards)));
  }
  DEVICE void step(float& p, float& m, float& v, float g) const {
    g = __fmul_rn(factor, g);
    p = __fmul_rn(p, keep);
    m = lerp(m, g);
    v = __fadd_rn(__fmul_rn(v, decay), __fmul_rn(__fmul_rn(share, g), g));
    const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), correction), epsilon);
    p = __fadd_rn(p, __fdiv_rn(__fmul_rn(size, m), root));
  }
};

// Four bf16, 8 bytes at a time.
DEVICE void load_four(const bf16* p, float (&v)[4], long long count) {
  if (count < 4) return load_some(p, v, count);
  const uint2 words = *reinterpret_cast<const uint2*>(p);
  const float2 a = unpack_bf16(words.x), b = unpack_bf16(words.y);
  v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
}
DEVICE void load_four(const float* p, float (&v)[4], long long count) { load_some(p, v, count); }
DEVICE void store_four(bf16* p, const float (&v)[4], long long count) {
  if (count < 4) return store_some(p, v, count);
  *reinterpret_cast<uint2*>(p) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

// `value` is null where p is the weight itself.
template <typename T>
DEVICE void adamw(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v, const T* __restrict__ g,
                  bf16* __restrict__ value, long long count, const AdamW& by) {
  const long long i = global_thread() * 4;
  if (i >= count) return;
  float ps[4], ms[4], vs[4], gs[4];
  load_some(p + i, ps, count - i);
  load_some(m + i, ms, count - i);
  load_some(v + i, vs, count - i);
  load_four(g + i, gs, count - i);
#pragma unroll
  for (int k = 0; k < 4; k++) by.step(ps[k], ms[k], vs[k], gs[k]);
  store_some(p + i, ps, count - i);
  store_some(m + i, ms, count - i);
  store_some(v + i, vs, count - i);
  if (value != nullptr) store_four(value + i, ps, count - i);
}

KERNEL(adamw_f32, 256)(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v, const float* __restrict__ g,
                       long long count, float factor, float keep, float towards, float decay, float share, float size,
                       float correction, float epsilon) {
  adamw(p, m, v, g, nullptr, count, {factor, keep, towards, decay, share, size, correction, epsilon});
}
KERNEL(adamw_bf16, 256)(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v, const bf16* __restrict__ g,
                        bf16* __restrict__ value, long long count, float factor, float keep, float towards, float decay,
                        float share, float size, float correction, float epsilon) {
  adamw(p, m, v, g, value, count, {factor, keep, towards, decay, share, size, correction, epsilon});
}

// lr · s / max(1, RMS(y) / clip), from the partial sums of y²; s is max(RMS(p), least), from those of p², or 1 without them.
DEVICE float update_scale(const double* __restrict__ partial, const double* __restrict__ squares, int partials,
                          long long count, double lr, double least, double clip) {
  const double n = static_cast<double>(count), rms = sqrt(total(partial, partials) / n);
  const double scale = squares == nullptr ? lr : lr * fmax(sqrt(total(squares, partials) / n), least);
  return static_cast<float>(scale / fmax(rms / clip, 1.0));
}

template <typename Y>
DEVICE void take(float* __restrict__ p, long long count, float keep, float scale, Y y) {
  for (long long i = global_thread(); i < count; i += static_cast<long long>(gridDim.x) * THREADS) {
    p[i] = __fsub_rn(__fmul_rn(keep, p[i]), __fmul_rn(scale, y(i)));
  }
}

KERNEL(adafactor_moment_f32, 256)(float* __restrict__ v, const float* __restrict__ g, double* __restrict__ partial,
                              long long count, float keep, float share, float epsilon) {
  sum_squares(count, partial, [=](long long i) {
    const float gradient = g[i];
    const float square = __fadd_rn(__fmul_rn(gradient, gradient), epsilon);
    const float moment = __fadd_rn(__fmul_rn(keep, v[i]), __fmul_rn(share, square));
    v[i] = moment;
    return static_cast<double>(gradient / sqrtf(moment));
  });
}

KERNEL(adafactor_apply_f32, 256)(float* __restrict__ p, const float* __restrict__ g, const float* __restrict__ v,
                             const double* __restrict__ partial, const double* __restrict__ squares, int partials,
                             long long count, double lr, double least, double clip, float keep) {
  const float scale = update_scale(partial, squares, partials, count, lr, least, clip);
  take(p, count, keep, scale, [=](long long i) { return g[i] / sqrtf(v[i]); });
}

DEVICE double square(float g, double epsilon) { return static_cast<double>(g) * g + epsilon; }

DEVICE float blend(float old, double mean, double share) {
  return static_cast<float>((1.0 - share) * old + share * mean);
}

KERNEL(adafactor_rows_f32, 256)(float* __restrict__ r, const float* __restrict__ g, int cols, double share,
                            double epsilon) {
  const float* row = g + static_cast<long long>(blockIdx.x) * cols;
  double sum = 0.0;
  for (int i = threadIdx.x; i < cols; i += THREADS) sum += square(row[i], epsilon);
  sum = block_sum(sum);
  if (threadIdx.x == 0) r[blockIdx.x] = blend(r[blockIdx.x], sum / cols, share);
}

KERNEL(adafactor_cols_f32, 256)(float* __restrict__ k, const float* __restrict__ g, int rows, int cols, double share,
                            double epsilon) {
  const int col = static_cast<int>(global_thread());
  if (col >= cols) return;
  double sum = 0.0;
  for (int row = 0; row < rows; row++) sum += square(g[static_cast<long long>(row) * cols + col], epsilon);
  k[col] = blend(k[col], sum / rows, share);
}

KERNEL(adafactor_factors_f32, 256)(const float* __restrict__ r, const float* __restrict__ k, float* __restrict__ row_factor,
                               float* __restrict__ col_factor, int rows, int cols) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < rows; i += THREADS) sum += r[i];
  const double mean = block_sum(sum) / rows;
  for (int i = threadIdx.x; i < rows; i += THREADS) row_factor[i] = static_cast<float>(1.0 / sqrt(r[i] / mean));
  for (int j = threadIdx.x; j < cols; j += THREADS) {
    col_factor[j] = static_cast<float>(1.0 / sqrt(static_cast<double>(k[j])));
  }
}

// The update of an element before it is scaled.
struct Factored {
  const float* __restrict__ g;
  const float* __restrict__ row_factor;
  const float* __restrict__ col_factor;
  int cols;
  DEVICE float operator()(long long i) const {
    const unsigned row = static_cast<unsigned>(i / cols), col = static_cast<unsigned>(i % cols);
    return __fmul_rn(__fmul_rn(g[i], row_factor[row]), col_factor[col]);
  }
};

KERNEL(adafactor_factored_f32, 256)(const float* __restrict__ g, const float* __restrict__ row_factor,
                                const float* __restrict__ col_factor, double* __restrict__ partial, int rows,
                                int cols) {
  const Factored y = {g, row_factor, col_factor, cols};
  sum_squares(static_cast<long long>(rows) * cols, partial, [=](long long i) { return static_cast<double>(y(i)); });
}

KERNEL(adafactor_factored_apply_f32, 256)(float* __restrict__ p, const float* __restrict__ g,
                                      const float* __restrict__ row_factor, const float* __restrict__ col_factor,
                                      const double* __restrict__ partial, const double* __restrict__ squares,
                                      int partials, int rows, int cols, double lr, double least, double clip,
                                      float keep) {
  const long long count = static_cast<long long>(rows) * cols;
  const float scale = update_scale(partial, squares, partials, count, lr, least, clip);
  take(p, count, keep, scale, Factored{g, row_factor, col_factor, cols});
}
