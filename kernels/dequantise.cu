// dequantise: a block of rows × cols elements of a stored matrix, as numbers that a product can read.
//
//   dequantise_<format>  y[r, c] = the element first + r · stride + c of what is stored
//
// `first`, `stride` and `cols` count elements and are multiples of the format's block length (1 for plain numbers).
// Where whole rows are wanted they lie one behind another, so pass them as one: rows = 1, cols = all of them.
// `stored` holds `bytes` bytes; cols is below 2³².
//
// Launch: 256 threads; a block has CHUNK elements of a row. Grid rows · ceil(cols / CHUNK).
// Shared memory: the chunk as stored, up to 8 KiB and 32 bytes. It is read in 16-byte accesses, which blocks of 34 or
// 210 bytes would not allow, and decoded from there.
// Registers ≤ 32: 8 blocks an SM, on sm_80 and sm_90.
// Bytes: rows·cols · (bytes of a block / its length + size). FLOPs: 2 rows·cols.

#include "formats.cuh"

constexpr int THREADS = 256;
constexpr int CHUNK = THREADS * EIGHT;

// Copies bytes [begin, begin + length) of `stored` to shared memory and returns where the first of them lies there.
// Whole 16-byte words are read, also those only partly wanted, but nothing past `total`.
DEVICE const uint8_t* stage(const uint8_t* __restrict__ stored, long long begin, int length, long long total,
                            uint8_t* shared) {
  const long long aligned = begin / 16 * 16;
  const int skipped = static_cast<int>(begin - aligned), needed = skipped + length;
  for (int at = threadIdx.x * 16; at < needed; at += THREADS * 16) {
    if (aligned + at + 16 <= total) {
      *reinterpret_cast<uint4*>(shared + at) = *reinterpret_cast<const uint4*>(stored + aligned + at);
    } else {
      for (int k = at; k < needed; k++) shared[k] = stored[aligned + k];
    }
  }
  __syncthreads();
  return shared + skipped;
}

template <typename F, typename T>
DEVICE void dequantise(const uint8_t* __restrict__ stored, T* __restrict__ y, long long first, long long stride,
                       long long cols, long long bytes) {
  __shared__ __align__(16) uint8_t shared[CHUNK / F::LENGTH * F::BYTES + 32];
  const unsigned chunks = static_cast<unsigned>((cols + CHUNK - 1) / CHUNK);
  const unsigned row = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const long long col = static_cast<long long>(chunk) * CHUNK;
  const int count = static_cast<int>(min(static_cast<long long>(CHUNK), cols - col));
  const long long begin = (first + row * stride + col) / F::LENGTH * F::BYTES;
  const uint8_t* run = stage(stored, begin, count / F::LENGTH * F::BYTES, bytes, shared);

  const int i = threadIdx.x * EIGHT;
  if (i >= count) return;
  float v[EIGHT];
  decode_eight<F>(run, i, v, count - i);
  // The sum in brackets is of 32 bits: with one of 64, nvcc splits the 16-byte stores of bf16.
  T* target = y + row * cols + (chunk * CHUNK + i);
  store_eight(target, v, cols % WIDTH<T> == 0 && count - i >= EIGHT, count - i);
}

#define INSTANCES(F, name)                                                                                             \
  KERNEL(dequantise_##name##_f32, THREADS)                                                                             \
  (const uint8_t* __restrict__ stored, float* __restrict__ y, long long first, long long stride, long long cols,       \
   long long bytes) {                                                                                                  \
    dequantise<F>(stored, y, first, stride, cols, bytes);                                                              \
  }                                                                                                                    \
  KERNEL(dequantise_##name##_bf16, THREADS)                                                                            \
  (const uint8_t* __restrict__ stored, bf16* __restrict__ y, long long first, long long stride, long long cols,        \
   long long bytes) {                                                                                                  \
    dequantise<F>(stored, y, first, stride, cols, bytes);                                                              \
  }

INSTANCES(Plain<float>, f32)
INSTANCES(Plain<f16>, f16)
INSTANCES(Plain<bf16>, bf16)
INSTANCES(Blocks<BlockQ8_0>, q8_0)
INSTANCES(Blocks<BlockQ4_0>, q4_0)
INSTANCES(Blocks<BlockQ4_1>, q4_1)
INSTANCES(Blocks<BlockQ5_0>, q5_0)
INSTANCES(Blocks<BlockQ5_1>, q5_1)
INSTANCES(Blocks<BlockQ4_K>, q4_k)
INSTANCES(Blocks<BlockQ6_K>, q6_k)
