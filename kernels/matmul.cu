// Matrix products of row-major matrices, for machines without cuBLASLt.
//
//   y[m, n] (+)= activation(alpha · A[m, k] B[k, n] + bias[n])
//
//   matmul_nt   A = x[m, k]    B = w[n, k]ᵀ    w has a row per output: forward of nn.Linear, logits
//   matmul_nn   A = x[m, k]    B = w[k, n]     backward of nn.Linear, forward of Conv1D
//   matmul_tn   A = x[k, m]ᵀ   B = w[k, n]     gradient of a weight
//
// Any m, n, k ≥ 1 and any leading dimensions ldy, ldx, ldw ≥ the row lengths. x, w and bias are f32 or bf16; y is of the
// same type, or f32 for bf16 operands. Sums are f32, each over k in one order: the bits depend on shapes alone.
// With `gridDim.z` > 1, block z sums `span` of the k terms, y is f32 [z][m, n], and matmul_join adds the parts in order:
// that is how few rows fill a GPU.
//
// Launch: grid (⌈m / tile⌉, ⌈n / tile⌉, ⌈k / span⌉); blocks that run at the same time share columns of w, so w, the larger
// operand, is read from memory about once. `span` is k, or a multiple of 32.
//
//   kernel                tile  threads  shared  registers  blocks an SM, sm_80 and sm_90
//   matmul_*_bf16         128   256      48 KiB  ≤ 128      2
//   matmul_*_small_bf16    64   128      24 KiB  ≤ 80       6
//   matmul_*_f32          128   256      40 KiB  ≤ 128      2
//   matmul_*_small_f32     64   128      20 KiB  ≤ 96       5
//   matmul_join_*           -   256       0      ≤ 32       8
//
// FLOPs: 2 m n k. Bytes, at least: (m k + n k) · size + m n · size of y; from L2, ⌈n / tile⌉ m k + ⌈m / tile⌉ n k.

#include "common.cuh"
#include "mma.cuh"

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU };

DEVICE float activate(float x, int activation) {
  switch (activation) {
    case RELU: return fmaxf(x, 0.0f);
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case SILU: return x / (1.0f + expf(-x));
    default: return x;
  }
}

// What happens to a sum on its way to y.
template <typename T> struct Output {
  void* y;
  const T* bias;  // or null
  int m, n, ldy;
  float alpha;
  int accumulate, activation, f32;
};

template <typename T> DEVICE void store(T* y, float value, bool accumulate) {
  *y = from_float<T>(accumulate ? to_float(*y) + value : value);
}

// A warp hands its sums to y in slabs of 32 × 32, through shared memory, so that a lane has a column and a warp writes
// whole rows: 128 bytes of f32, 64 of bf16.
constexpr int SLAB = 32;
constexpr int SLAB_STRIDE = SLAB + 8;  // the fragments of mma.sync fall into different banks
constexpr int SLAB_FLOATS = SLAB * SLAB_STRIDE;

template <typename T> DEVICE void store_slab(float* slab, const Output<T>& out, int row, int col) {
  const int lane = threadIdx.x % 32;
  col += lane;
  if (col >= out.n) return;
  const int rows = min(SLAB, out.m - row);
  const float bias = out.bias == nullptr ? 0.0f : to_float(out.bias[col]);
  slab += lane;
  if (out.activation != NONE) {
#pragma unroll 1
    for (int r = 0; r < rows; r++) {
      slab[r * SLAB_STRIDE] = activate(slab[r * SLAB_STRIDE] + bias, out.activation);
    }
  }
  const float shift = out.activation == NONE ? bias : 0.0f;
  const long long at = static_cast<long long>(row) * out.ldy + col;
#pragma unroll 4
  for (int r = 0; r < rows; r++) {
    const float value = slab[r * SLAB_STRIDE] + shift;
    const long long i = at + static_cast<long long>(r) * out.ldy;
    if (out.f32) store(static_cast<float*>(out.y) + i, value, out.accumulate);
    else store(static_cast<T*>(out.y) + i, value, out.accumulate);
  }
}

// The range of k that this block sums, and where its part of y lies.
struct Span {
  int begin, end;
};
template <typename T> DEVICE Span split(Output<T>& out, int k, int span) {
  const int begin = blockIdx.z * span;
  out.y = static_cast<float*>(out.y) + static_cast<long long>(blockIdx.z) * out.m * out.ldy;
  return {begin, min(k - begin, span) + begin};
}

// ---- bf16: mma.sync m16n8k16, three stages of cp.async --------------------------------------------------------------

namespace tensor {

constexpr int BK = 32;
constexpr int STAGES = 3;

// An operand's tile in shared memory. With k along the rows of memory it is [EXTENT][BK], else [BK][EXTENT], in chunks of
// 16 bytes, permuted within a row so that the eight rows of an 8 × 8 matrix, which ldmatrix reads at once, fall into
// different banks.
template <int EXTENT, bool ALONG_K> struct Tile {
  static constexpr int ROWS = ALONG_K ? EXTENT : BK;
  static constexpr int CHUNKS = (ALONG_K ? BK : EXTENT) / 8;
  static constexpr int ELEMENTS = EXTENT * BK;

  DEVICE static int at(int row, int chunk) {
    const int permuted = ALONG_K ? chunk ^ (row / 2 % 4) : chunk ^ (row % 8);
    return (row * CHUNKS + permuted) * 8;
  }

  // Fills the tile with rows first.. of the operand (m or n) and terms k.., zeros beyond `extent` and `end`.
  template <int THREADS>
  DEVICE static void load(bf16* tile, const bf16* source, int ld, bool aligned, int first, int extent, int k, int end) {
    const int row0 = ALONG_K ? first : k, row_end = ALONG_K ? extent : end;
    const int col0 = ALONG_K ? k : first, col_end = ALONG_K ? end : extent;
    if (aligned) {
#pragma unroll
      for (int pass = 0; pass < ROWS * CHUNKS / THREADS; pass++) {
        const int i = pass * THREADS + threadIdx.x;
        const int row = row0 + i / CHUNKS, col = col0 + i % CHUNKS * 8;
        const int valid = row < row_end ? max(min(col_end - col, 8), 0) : 0;
        const bf16* from = valid > 0 ? source + static_cast<long long>(row) * ld + col : source;
        cp_async_16_partial(tile + at(i / CHUNKS, i % CHUNKS), from, valid * 2);
      }
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = row0 + i / CHUNKS, col = col0 + i % CHUNKS * 8;
        const bf16* from = source + static_cast<long long>(row) * ld + col;
        float values[8];
#pragma unroll
        for (int j = 0; j < 8; j++) values[j] = row < row_end && col + j < col_end ? to_float(from[j]) : 0.0f;
        store4(tile + at(i / CHUNKS, i % CHUNKS), values);
      }
    }
  }

  // The fragment of A for 16 rows from `first` and 16 terms from `k`.
  DEVICE static void load_a(uint32_t (&a)[4], const bf16* tile, int first, int k) {
    const int lane = threadIdx.x % 32;
    if (ALONG_K) ldmatrix_x4(a, tile + at(first + lane % 16, k / 8 + lane / 16));
    else ldmatrix_x4_trans(a, tile + at(k + lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2));
  }

  // The fragments of B for 16 columns from `first` and 16 terms from `k`: b[0], b[1] for the first eight columns.
  DEVICE static void load_b(uint32_t (&b)[4], const bf16* tile, int first, int k) {
    const int lane = threadIdx.x % 32;
    if (ALONG_K) ldmatrix_x4(b, tile + at(first + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
    else ldmatrix_x4_trans(b, tile + at(k + lane % 16, first / 8 + lane / 16));
  }
};

// Whether every row starts at a multiple of 16 bytes.
DEVICE bool is_aligned(const bf16* source, int ld) {
  return ld % 8 == 0 && reinterpret_cast<uint64_t>(source) % 16 == 0;
}

// BLOCK × BLOCK of y a block; its warps, WARPS_M × WARPS_N of them, have BLOCK / WARPS_M rows and 32 columns each.
template <int BLOCK, int WARPS_M, bool A_ALONG_K, bool B_ALONG_K>
DEVICE void matmul(Output<bf16> out, const bf16* x, const bf16* w, int k, int ldx, int ldw, int span) {
  constexpr int WARPS_N = BLOCK / SLAB;
  constexpr int THREADS = WARPS_M * WARPS_N * 32;
  constexpr int WARP_ROWS = BLOCK / WARPS_M;
  using A = Tile<BLOCK, A_ALONG_K>;
  using B = Tile<BLOCK, B_ALONG_K>;
  constexpr int STAGE = A::ELEMENTS + B::ELEMENTS;
  static_assert(STAGES * STAGE * 2 >= WARPS_M * WARPS_N * SLAB_FLOATS * 4, "the slabs take the place of the tiles");
  __shared__ __align__(128) bf16 shared[STAGES * STAGE];

  const Span range = split(out, k, span);
  const int row0 = blockIdx.x * BLOCK, col0 = blockIdx.y * BLOCK;
  const bool x_aligned = is_aligned(x, ldx), w_aligned = is_aligned(w, ldw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / WARPS_N * WARP_ROWS, warp_col = warp % WARPS_N * SLAB;
  // A warp beyond the edge of y loads with the others but has nothing to multiply.
  const bool active = row0 + warp_row < out.m && col0 + warp_col < out.n;

  float sums[WARP_ROWS / 16][4][4] = {};
  const int steps = (range.end - range.begin + BK - 1) / BK;
#pragma unroll 1
  for (int step = 1 - STAGES; step < steps; step++) {
    if (step >= 0) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
    }
    // Into the stage that was multiplied last; the barrier above says that all warps are done with it.
    const int next = step + STAGES - 1;
    if (next < steps) {
      bf16* a = shared + next % STAGES * STAGE;
      const int first = range.begin + next * BK;
      A::template load<THREADS>(a, x, ldx, x_aligned, row0, out.m, first, range.end);
      B::template load<THREADS>(a + A::ELEMENTS, w, ldw, w_aligned, col0, out.n, first, range.end);
    }
    cp_async_commit();
    if (step < 0 || !active) continue;

    const bf16* a = shared + step % STAGES * STAGE;
    const bf16* b = a + A::ELEMENTS;
#pragma unroll
    for (int inner = 0; inner < BK; inner += 16) {
      uint32_t b_fragments[2][4];
#pragma unroll
      for (int j = 0; j < 2; j++) B::load_b(b_fragments[j], b, warp_col + j * 16, inner);
#pragma unroll
      for (int i = 0; i < WARP_ROWS / 16; i++) {
        uint32_t a_fragment[4];
        A::load_a(a_fragment, a, warp_row + i * 16, inner);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          mma_m16n8k16(sums[i][j], a_fragment, b_fragments[j / 2][j % 2 * 2], b_fragments[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  if (!active) return;

  float* slab = reinterpret_cast<float*>(shared) + warp * SLAB_FLOATS;
#pragma unroll
  for (int part = 0; part < WARP_ROWS / SLAB; part++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float* sum = &sums[part * 2 + i / 2][j][i % 2 * 2];
        float* to = slab + (i * 8 + lane / 4) * SLAB_STRIDE + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = make_float2(out.alpha * sum[0], out.alpha * sum[1]);
      }
    }
    __syncwarp();
    store_slab(slab, out, row0 + warp_row + part * SLAB, col0 + warp_col);
    __syncwarp();
  }
}

}  // namespace tensor

// ---- f32: fused multiply-adds, 8 × 8 or 8 × 4 sums a thread ---------------------------------------------------------

namespace simt {

constexpr int BK = 8;
constexpr int STAGES = 3;

// [BK][EXTENT] with a little room between the rows, so that copying along k writes to different banks.
template <int EXTENT, bool ALONG_K> struct Tile {
  static constexpr int STRIDE = EXTENT + 4;
  static constexpr int ELEMENTS = BK * STRIDE;

  template <int THREADS>
  DEVICE static void load(float* tile, const float* source, int ld, int first, int extent, int k, int end) {
#pragma unroll
    for (int pass = 0; pass < BK * EXTENT / THREADS; pass++) {
      const int i = pass * THREADS + threadIdx.x;
      const int row = ALONG_K ? i / BK : i % EXTENT, term = ALONG_K ? i % BK : i / EXTENT;
      const bool valid = first + row < extent && k + term < end;
      const long long at = ALONG_K ? static_cast<long long>(first + row) * ld + k + term
                                   : static_cast<long long>(k + term) * ld + first + row;
      cp_async_4(tile + term * STRIDE + row, valid ? source + at : source, valid);
    }
  }
};

template <int BLOCK, int WARPS_M, int WARPS_N, bool A_ALONG_K, bool B_ALONG_K>
DEVICE void matmul(Output<float> out, const float* x, const float* w, int k, int ldx, int ldw, int span) {
  constexpr int THREADS = WARPS_M * WARPS_N * 32;
  constexpr int WARP_ROWS = BLOCK / WARPS_M, WARP_COLS = BLOCK / WARPS_N;
  static_assert(WARP_ROWS == SLAB && WARP_COLS % SLAB == 0, "a warp has one slab, or two side by side");
  constexpr int PARTS = WARP_COLS / SLAB;
  using A = Tile<BLOCK, A_ALONG_K>;
  using B = Tile<BLOCK, B_ALONG_K>;
  constexpr int STAGE = A::ELEMENTS + B::ELEMENTS;
  constexpr int SLABS = WARPS_M * WARPS_N * SLAB_FLOATS;
  __shared__ __align__(16) float shared[STAGES * STAGE > SLABS ? STAGES * STAGE : SLABS];

  const Span range = split(out, k, span);
  const int row0 = blockIdx.x * BLOCK, col0 = blockIdx.y * BLOCK;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / WARPS_N * WARP_ROWS, warp_col = warp % WARPS_N * WARP_COLS;
  // The lanes of a warp stand 4 × 8; each has four columns of every 32, and four rows of every 16.
  const int lane_row = lane / 8 * 4, lane_col = lane % 8 * 4;
  const bool active = row0 + warp_row < out.m && col0 + warp_col < out.n;

  float sums[PARTS][8][4] = {};
  const int steps = (range.end - range.begin + BK - 1) / BK;
#pragma unroll 1
  for (int step = 1 - STAGES; step < steps; step++) {
    if (step >= 0) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
    }
    const int next = step + STAGES - 1;
    if (next < steps) {
      float* a = shared + next % STAGES * STAGE;
      const int first = range.begin + next * BK;
      A::template load<THREADS>(a, x, ldx, row0, out.m, first, range.end);
      B::template load<THREADS>(a + A::ELEMENTS, w, ldw, col0, out.n, first, range.end);
    }
    cp_async_commit();
    if (step < 0 || !active) continue;

    const float* a = shared + step % STAGES * STAGE + warp_row + lane_row;
    const float* b = shared + step % STAGES * STAGE + A::ELEMENTS + warp_col + lane_col;
#pragma unroll 2
    for (int term = 0; term < BK; term++) {
      float column[2][4], row[PARTS][4];
#pragma unroll
      for (int i = 0; i < 2; i++) load4(a + term * A::STRIDE + i * 16, column[i]);
#pragma unroll
      for (int j = 0; j < PARTS; j++) load4(b + term * B::STRIDE + j * SLAB, row[j]);
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            sums[part][i][j] = fmaf(column[i / 4][i % 4], row[part][j], sums[part][i][j]);
          }
        }
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  if (!active) return;

  float* slab = shared + warp * SLAB_FLOATS;
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float values[4];
#pragma unroll
      for (int j = 0; j < 4; j++) values[j] = out.alpha * sums[part][i][j];
      store4(slab + (i / 4 * 16 + lane_row + i % 4) * SLAB_STRIDE + lane_col, values);
    }
    __syncwarp();
    if (col0 + warp_col + part * SLAB < out.n) store_slab(slab, out, row0 + warp_row, col0 + warp_col + part * SLAB);
    __syncwarp();
  }
}

}  // namespace simt

#define MATMUL_BF16(name, threads, ...)                                                                                \
  KERNEL(name, threads)(void* y, const bf16* __restrict__ x, const bf16* __restrict__ w,                               \
                        const bf16* __restrict__ bias, int m, int n, int k, int ldy, int ldx, int ldw, float alpha,    \
                        int accumulate, int activation, int y_is_f32, int span) {                                      \
    tensor::matmul<__VA_ARGS__>({y, bias, m, n, ldy, alpha, accumulate, activation, y_is_f32}, x, w, k, ldx, ldw,      \
                                span);                                                                                 \
  }

MATMUL_BF16(matmul_nt_bf16, 256, 128, 2, true, true)
MATMUL_BF16(matmul_nn_bf16, 256, 128, 2, true, false)
MATMUL_BF16(matmul_tn_bf16, 256, 128, 2, false, false)
MATMUL_BF16(matmul_nt_small_bf16, 128, 64, 2, true, true)
MATMUL_BF16(matmul_nn_small_bf16, 128, 64, 2, true, false)
MATMUL_BF16(matmul_tn_small_bf16, 128, 64, 2, false, false)

#define MATMUL_F32(name, threads, ...)                                                                                 \
  KERNEL(name, threads)(float* y, const float* __restrict__ x, const float* __restrict__ w,                            \
                        const float* __restrict__ bias, int m, int n, int k, int ldy, int ldx, int ldw, float alpha,   \
                        int accumulate, int activation, int span) {                                                    \
    simt::matmul<__VA_ARGS__>({y, bias, m, n, ldy, alpha, accumulate, activation, 1}, x, w, k, ldx, ldw, span);        \
  }

MATMUL_F32(matmul_nt_f32, 256, 128, 4, 2, true, true)
MATMUL_F32(matmul_nn_f32, 256, 128, 4, 2, true, false)
MATMUL_F32(matmul_tn_f32, 256, 128, 4, 2, false, false)
MATMUL_F32(matmul_nt_small_f32, 128, 64, 2, 2, true, true)
MATMUL_F32(matmul_nn_small_f32, 128, 64, 2, 2, true, false)
MATMUL_F32(matmul_tn_small_f32, 128, 64, 2, 2, false, false)

// y[m, n] (+)= activation(Σ parts[z][m, n] + bias[n]), in the order of z. A thread has an element: grid ⌈m n / 256⌉ × 256.
template <typename T>
DEVICE void join(const Output<T>& out, const float* parts, int splits) {
  const long long i = global_thread(), elements = static_cast<long long>(out.m) * out.n;
  if (i >= elements) return;
  const int row = static_cast<int>(i / out.n), col = static_cast<int>(i % out.n);
  float sum = parts[i];
  for (int z = 1; z < splits; z++) sum += parts[z * elements + i];
  const float value = activate(sum + (out.bias == nullptr ? 0.0f : to_float(out.bias[col])), out.activation);
  const long long at = static_cast<long long>(row) * out.ldy + col;
  if (out.f32) store(static_cast<float*>(out.y) + at, value, out.accumulate);
  else store(static_cast<T*>(out.y) + at, value, out.accumulate);
}

KERNEL(matmul_join_bf16, 256)(void* y, const float* __restrict__ parts, const bf16* __restrict__ bias, int m, int n,
                              int ldy, int accumulate, int activation, int y_is_f32, int splits) {
  join<bf16>({y, bias, m, n, ldy, 1.0f, accumulate, activation, y_is_f32}, parts, splits);
}

KERNEL(matmul_join_f32, 256)(float* y, const float* __restrict__ parts, const float* __restrict__ bias, int m, int n,
                             int ldy, int accumulate, int activation, int splits) {
  join<float>({y, bias, m, n, ldy, 1.0f, accumulate, activation, 1}, parts, splits);
}
