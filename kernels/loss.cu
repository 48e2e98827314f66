// Softmax cross-entropy over a vocabulary that is walked in chunks, and log-probabilities on the same walk.
//
//   nllᵢ = ln Σⱼ exp(lᵢⱼ) − lᵢ,label        lᵢⱼ = hᵢ · Wⱼ
//   dhᵢ  = scaleᵢ (Σⱼ exp(lᵢⱼ) Wⱼ / Σⱼ exp(lᵢⱼ) − W_label)
//
// For each chunk of tokens: a matrix product writes the logits [rows, tokens], loss_chunk turns them into
// exp(l − max) under the running maximum of the row, another product adds exp(l − max) W to the gradient's sums
// [rows, width]. Where a chunk raises the maximum, loss_chunk also scales what was summed under the old one. At the end
// loss_finish makes the gradient of the sums, and loss_nll the negative log-likelihoods and the loss. No logit is computed
// twice, and one chunk of them is held.
//
// Where the head is trained, rows see the whole vocabulary at once: loss_softmax turns their logits into what the gradient
// of the logits is, scaleᵢ (softmaxᵢⱼ − [j = label]), and two products make dh and the head's gradient of that.
//
// The exponentials, or gradients, take the logits' place: in f32 as they lie, in bf16 in the first half of the row, so that the
// leading dimension doubles. Sums over the vocabulary are f64, each in one order.
//
// Bytes of loss_chunk, a row: tokens · (4 + 4 + size of T), of which the second reading comes from cache, and
// width · 8 where the maximum rises; about 20 instructions a logit. loss_softmax: tokens · (4 + size of T), the second and
// third reading from cache; about 40 instructions a logit. loss_finish: width · (4 + 2 · size of T) a row.
//
//   kernel              grid               threads  shared    registers  blocks an SM, sm_80 and sm_90
//   loss_chunk_*        rows               256      96 bytes  ≤ 40       6
//   loss_softmax_*      rows               256      104 bytes ≤ 40       6
//   loss_pick           ⌈count / 256⌉      256      0         ≤ 32       8
//   loss_label_rows_*   rows               256      0         ≤ 32       8
//   loss_finish_*       rows               256      0         ≤ 32       8
//   loss_nll            1                  256      64 bytes  ≤ 32       8
//   loss_scale_*        16 bytes a thread  256      0         ≤ 32       8

#include "reduce.cuh"

constexpr int THREADS = 256;

// The running softmax of one row: Σ exp(logit − max).
struct Running {
  double total;
  float max;
  float unused;
};

// Over the block; thread 0 gets the result.
DEVICE double block_sum(double v, double* shared) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(WARP, v, distance);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < THREADS / 32; warp++) sum += shared[warp];
  }
  return sum;
}

DEVICE void scale_row(float* row, int width, float factor) {
  if (rows_are_aligned<float>(width)) {
    for (int i = threadIdx.x * 4; i < width; i += THREADS * 4) {
      float values[4];
      load4(row + i, values);
#pragma unroll
      for (int j = 0; j < 4; j++) values[j] *= factor;
      store4(row + i, values);
    }
  } else {
    for (int i = threadIdx.x; i < width; i += THREADS) row[i] *= factor;
  }
}

// Four logits from `first`, minus infinity beyond the last.
DEVICE void load_logits(const float* row, int first, int tokens, float (&v)[4]) {
  if (first + 4 <= tokens) {
    load4(row + first, v);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = first + j < tokens ? row[first + j] : -INFINITY;
  }
}

DEVICE void store_exponentials(float* row, int first, int tokens, const float (&v)[4]) {
  if (first + 4 <= tokens) {
    store4(row + first, v);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (first + j < tokens) row[first + j] = v[j];
    }
  }
}
DEVICE void store_exponentials(bf16* row, int first, int tokens, const float (&v)[4]) {
  if (first + 4 <= tokens) {
    *reinterpret_cast<uint2*>(row + first) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (first + j < tokens) row[first + j] = from_float<bf16>(v[j]);
    }
  }
}

// One row a block. The chunk has `tokens` tokens from `start`, its logits rows of `ld` floats, a multiple of 4. With
// `sums` null no gradient is wanted, and the logits stay as they are. With `labels`, `picked` gets the row's label's logit.
template <typename T>
DEVICE void chunk(float* logits, Running* running, float* sums, const int* labels, float* picked, int start, int tokens,
                  int ld, int width) {
  __shared__ float for_max[THREADS / 32];
  __shared__ double for_sum[THREADS / 32];
  const int row = blockIdx.x;
  logits += static_cast<long long>(row) * ld;

  if (labels != nullptr && threadIdx.x == 0) {
    const int token = labels[row] - start;
    if (token >= 0 && token < tokens) picked[row] = logits[token];
  }
  float above = -INFINITY;
  for (int i = threadIdx.x * 4; i < tokens; i += THREADS * 4) {
    float v[4];
    load_logits(logits, i, tokens, v);
    above = fmaxf(above, fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])));
  }
  above = block_max<THREADS>(above, for_max);
  const Running before = start == 0 ? Running{0.0, -INFINITY, 0.0f} : running[row];
  const float most = fmaxf(before.max, above);
  const float shrink = expf(before.max - most);
  if (sums != nullptr && start > 0 && most > before.max) {
    scale_row(sums + static_cast<long long>(row) * width, width, shrink);
  }

  double total = 0.0;
  for (int first = 0; first < tokens; first += THREADS * 4) {
    const int i = first + threadIdx.x * 4;
    float v[4];
    load_logits(logits, i, tokens, v);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = expf(v[j] - most);
    total += static_cast<double>((v[0] + v[1]) + (v[2] + v[3]));
    if (sums != nullptr) {
      // In bf16 thread t writes where thread t / 2 has its logits.
      if (sizeof(T) < sizeof(float)) __syncthreads();
      store_exponentials(reinterpret_cast<T*>(logits), i, tokens, v);
    }
  }
  total = block_sum(total, for_sum);
  if (threadIdx.x == 0) running[row] = Running{before.total * static_cast<double>(shrink) + total, most, 0.0f};
}

KERNEL(loss_chunk_f32, THREADS)(float* logits, Running* running, float* sums, const int* __restrict__ labels,
                                float* picked, int start, int tokens, int ld, int width) {
  chunk<float>(logits, running, sums, labels, picked, start, tokens, ld, width);
}
KERNEL(loss_chunk_bf16, THREADS)(float* logits, Running* running, float* sums, const int* __restrict__ labels,
                                 float* picked, int start, int tokens, int ld, int width) {
  chunk<bf16>(logits, running, sums, labels, picked, start, tokens, ld, width);
}

// One row a block, from row `first` of all: labels, scales, running and picked are those of all rows, the logits rows of
// `ld` floats, a multiple of 4, of these alone. The exponentials are computed twice rather than rounded twice.
template <typename T>
DEVICE void softmax(float* logits, Running* __restrict__ running, float* __restrict__ picked,
                    const int* __restrict__ labels, const float* __restrict__ scales, int first_row, int tokens,
                    int ld) {
  __shared__ float for_max[THREADS / 32];
  __shared__ double for_sum[THREADS / 32], for_total;
  const int row = first_row + blockIdx.x, label = labels[row];
  const float scale = scales[row];
  logits += static_cast<long long>(blockIdx.x) * ld;

  if (threadIdx.x == 0) picked[row] = logits[label];
  float most = -INFINITY;
  for (int i = threadIdx.x * 4; i < tokens; i += THREADS * 4) {
    float v[4];
    load_logits(logits, i, tokens, v);
    most = fmaxf(most, fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])));
  }
  most = block_max<THREADS>(most, for_max);

  double total = 0.0;
  for (int i = threadIdx.x * 4; i < tokens; i += THREADS * 4) {
    float v[4];
    load_logits(logits, i, tokens, v);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = expf(v[j] - most);
    total += static_cast<double>((v[0] + v[1]) + (v[2] + v[3]));
  }
  total = block_sum(total, for_sum);
  if (threadIdx.x == 0) {
    running[row] = Running{total, most, 0.0f};
    for_total = total;
  }
  __syncthreads();

  const float by_total = static_cast<float>(static_cast<double>(scale) / for_total);
  constexpr int N = WIDTH<T>;
  for (int first = 0; first < tokens; first += THREADS * N) {
    const int i = first + threadIdx.x * N;
    float v[N];
#pragma unroll
    for (int part = 0; part < N; part += 4) {
      float four[4];
      load_logits(logits, i + part, tokens, four);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        v[part + j] = expf(four[j] - most) * by_total - (i + part + j == label ? scale : 0.0f);
      }
    }
    // In bf16 thread t writes where thread t / 2 has its logits.
    if (sizeof(T) < sizeof(float)) __syncthreads();
    store_some(reinterpret_cast<T*>(logits) + i, v, tokens - i);
  }
}

KERNEL(loss_softmax_f32, THREADS)(float* logits, Running* __restrict__ running, float* __restrict__ picked,
                                  const int* __restrict__ labels, const float* __restrict__ scales, int first_row,
                                  int tokens, int ld) {
  softmax<float>(logits, running, picked, labels, scales, first_row, tokens, ld);
}
KERNEL(loss_softmax_bf16, THREADS)(float* logits, Running* __restrict__ running, float* __restrict__ picked,
                                   const int* __restrict__ labels, const float* __restrict__ scales, int first_row,
                                   int tokens, int ld) {
  softmax<bf16>(logits, running, picked, labels, scales, first_row, tokens, ld);
}

// picked[i] = the logit of (rows[i], tokens[i]), of the pairs whose token is in the chunk. A thread has a pair.
KERNEL(loss_pick, THREADS)(float* picked, const float* __restrict__ logits, const int* __restrict__ rows,
                           const int* __restrict__ wanted, int count, int start, int tokens, int ld) {
  const long long i = global_thread();
  if (i >= count) return;
  const int token = wanted[i] - start;
  if (token >= 0 && token < tokens) picked[i] = logits[static_cast<long long>(rows[i]) * ld + token];
}

// target[i] = the row of `panel`, which holds the head's rows from `start`, of row i's label, if it is one of them. For
// heads that are widened chunk by chunk. One row a block.
template <typename T>
DEVICE void label_rows(T* target, const T* panel, const int* labels, int start, int tokens, int width) {
  const int row = blockIdx.x, token = labels[row] - start;
  if (token < 0 || token >= tokens) return;
  target += static_cast<long long>(row) * width;
  panel += static_cast<long long>(token) * width;
  if (rows_are_aligned<T>(width)) {
    for (int i = threadIdx.x * WIDTH<T>; i < width; i += THREADS * WIDTH<T>) {
      *reinterpret_cast<uint4*>(target + i) = *reinterpret_cast<const uint4*>(panel + i);
    }
  } else {
    for (int i = threadIdx.x; i < width; i += THREADS) target[i] = panel[i];
  }
}

KERNEL(loss_label_rows_f32, THREADS)(float* __restrict__ target, const float* __restrict__ panel,
                                     const int* __restrict__ labels, int start, int tokens, int width) {
  label_rows(target, panel, labels, start, tokens, width);
}
KERNEL(loss_label_rows_bf16, THREADS)(bf16* __restrict__ target, const bf16* __restrict__ panel,
                                      const int* __restrict__ labels, int start, int tokens, int width) {
  label_rows(target, panel, labels, start, tokens, width);
}

// gradient = scale · (sums / total − W_label), one row a block. Row i's label is row rows[i] of `head`, whose rows are
// `ld` apart; with `rows` null it is row i. `gradient` may be `sums`.
template <typename T>
DEVICE void finish(T* gradient, const float* sums, const Running* running, const T* head, const int* rows,
                   const float* scales, int width, int ld) {
  const int row = blockIdx.x;
  const float scale = scales[row];
  const float by_total = static_cast<float>(static_cast<double>(scale) / running[row].total);
  head += static_cast<long long>(rows == nullptr ? row : rows[row]) * ld;
  sums += static_cast<long long>(row) * width;
  gradient += static_cast<long long>(row) * width;
  constexpr int COUNT = WIDTH<T>;
  if (width % COUNT == 0 && ld % COUNT == 0) {
    for (int i = threadIdx.x * COUNT; i < width; i += THREADS * COUNT) {
      float values[COUNT], label[COUNT];
      load4(head + i, label);
#pragma unroll
      for (int part = 0; part < COUNT; part += 4) {
        float four[4];
        load4(sums + i + part, four);
#pragma unroll
        for (int j = 0; j < 4; j++) values[part + j] = four[j] * by_total - label[part + j] * scale;
      }
      store4(gradient + i, values);
    }
  } else {
    for (int i = threadIdx.x; i < width; i += THREADS) {
      gradient[i] = from_float<T>(sums[i] * by_total - to_float(head[i]) * scale);
    }
  }
}

KERNEL(loss_finish_f32, THREADS)(float* gradient, const float* sums, const Running* __restrict__ running,
                                 const float* __restrict__ head, const int* __restrict__ rows,
                                 const float* __restrict__ scales, int width, int ld) {
  finish<float>(gradient, sums, running, head, rows, scales, width, ld);
}
KERNEL(loss_finish_bf16, THREADS)(bf16* gradient, const float* sums, const Running* __restrict__ running,
                                  const bf16* __restrict__ head, const int* __restrict__ rows,
                                  const float* __restrict__ scales, int width, int ld) {
  finish<bf16>(gradient, sums, running, head, rows, scales, width, ld);
}

// nll[i] = ln total + max − picked[i], of row rows[i], or of row i where `rows` is null, and loss = Σ scales[i] nll[i]
// unless `loss` is null. In f64: a confident row's total is 1 + a little, which f32 would lose. One block, for its sum.
KERNEL(loss_nll, THREADS)(float* nll, float* loss, const Running* __restrict__ running,
                          const float* __restrict__ picked, const int* __restrict__ rows,
                          const float* __restrict__ scales, int count) {
  __shared__ double for_sum[THREADS / 32];
  double sum = 0.0;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const Running of = running[rows == nullptr ? i : rows[i]];
    const double value = log(of.total) + (static_cast<double>(of.max) - static_cast<double>(picked[i]));
    nll[i] = static_cast<float>(value);
    if (loss != nullptr) sum += static_cast<double>(scales[i]) * value;
  }
  if (loss == nullptr) return;
  sum = block_sum(sum, for_sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

// gradient *= factor[0], the gradient of the loss, which the host need not know. A thread has 16 bytes.
template <typename T> DEVICE void scale(T* gradient, const float* __restrict__ factor, long long elements) {
  const long long i = global_thread() * WIDTH<T>;
  if (i >= elements) return;
  float v[WIDTH<T>];
  load_some(gradient + i, v, elements - i);
#pragma unroll
  for (int k = 0; k < WIDTH<T>; k++) v[k] *= *factor;
  store_some(gradient + i, v, elements - i);
}

KERNEL(loss_scale_f32, THREADS)(float* gradient, const float* __restrict__ factor, long long elements) {
  scale(gradient, factor, elements);
}
KERNEL(loss_scale_bf16, THREADS)(bf16* gradient, const float* __restrict__ factor, long long elements) {
  scale(gradient, factor, elements);
}
