// embedding: the stream's first rows are the prompt, the others rows of the embedding table in whatever format it is
// stored; plus learned position embeddings where the model has them. The sum of the two is rounded once.
//
//   embedding_forward   y[r] = prompt[r] for r < prompt_rows, else table[ids[r − prompt_rows]];  + places[positions[r]]
//   embedding_scatter   sums[t] += Σ dy[order[i]] over the i with targets[i] = t, in their order, rounded once: the
//                       gradient of a table. The host sorts: `targets` rises, and one of `limit` or more is left out. The
//                       block of a run's first place adds the run, the others do nothing, so that the launch is the same
//                       whatever the tokens.
//
// Formats are codes of formats.cuh; place_format 0 means no positions. A table's row has so many bytes.
//
// Launch: 128 threads. forward: grid rows, a thread has 8 elements at a time. scatter: grid rows of dy, a thread has 16 bytes
// at a time, or an element if rows are not multiples of that.
// Registers ≤ 64: 8 blocks an SM, on sm_80 and sm_90.
// Bytes: forward rows · (the row as stored + cols elements); scatter (rows + 2 · distinct targets) · cols elements.

#include "formats.cuh"

struct Table {
  const uint8_t* __restrict__ rows;
  int format;
  long long row_bytes;

  DEVICE void read(int row, int i, float (&v)[EIGHT], int count) const {
    decode_eight(format, rows + row * row_bytes, i, v, count);
  }
};

template <typename T>
DEVICE void forward(const T* __restrict__ prompt, int prompt_rows, const Table& table, const int* __restrict__ ids,
                    const Table& places, const int* __restrict__ positions, T* __restrict__ y, int cols) {
  const int row = blockIdx.x;
  const uint8_t* prompt_row = reinterpret_cast<const uint8_t*>(prompt + static_cast<long long>(row) * cols);
  T* target = y + static_cast<long long>(row) * cols;
  // Rows of a multiple of 8 elements start at a multiple of 16 bytes.
  const bool aligned = cols % EIGHT == 0;
  for (int i = threadIdx.x * EIGHT; i < cols; i += blockDim.x * EIGHT) {
    const int count = cols - i;
    float v[EIGHT];
    if (row < prompt_rows) {
      decode_eight<Plain<T>>(prompt_row, i, v, count);
    } else {
      table.read(ids[row - prompt_rows], i, v, count);
    }
    if (places.format != 0) {
      float place[EIGHT];
      places.read(positions[row], i, place, count);
#pragma unroll
      for (int k = 0; k < EIGHT; k++) v[k] += place[k];
    }
    store_eight(target + i, v, aligned, count);
  }
}

template <typename T, int N>
DEVICE void scatter(const T* __restrict__ dy, const int* __restrict__ targets, const int* __restrict__ order, T* sums,
                    int rows, int limit, int cols) {
  const int first = blockIdx.x, target = targets[first];
  if (target >= limit || (first > 0 && targets[first - 1] == target)) return;
  int end = first + 1;
  while (end < rows && targets[end] == target) end++;
  T* row = sums + static_cast<long long>(target) * cols;
  for (int i = threadIdx.x * N; i < cols; i += blockDim.x * N) {
    float sum[N];
    load(row + i, sum);
#pragma unroll 4
    for (int k = first; k < end; k++) {
      float v[N];
      load(dy + static_cast<long long>(order[k]) * cols + i, v);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += v[j];
    }
    store(row + i, sum);
  }
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(embedding_forward_##suffix, 128)                                                                              \
  (const T* __restrict__ prompt, int prompt_rows, const uint8_t* __restrict__ table, int table_format,                 \
   long long table_row_bytes, const int* __restrict__ ids, const uint8_t* __restrict__ places, int place_format,       \
   long long place_row_bytes, const int* __restrict__ positions, T* __restrict__ y, int cols) {                        \
    forward<T>(prompt, prompt_rows, {table, table_format, table_row_bytes}, ids,                                       \
               {places, place_format, place_row_bytes}, positions, y, cols);                                           \
  }                                                                                                                    \
  KERNEL(embedding_scatter_##suffix, 128)                                                                              \
  (const T* __restrict__ dy, const int* __restrict__ targets, const int* __restrict__ order, T* sums, int rows,        \
   int limit, int cols) {                                                                                              \
    if (rows_are_aligned<T>(cols)) {                                                                                   \
      scatter<T, WIDTH<T>>(dy, targets, order, sums, rows, limit, cols);                                               \
    } else {                                                                                                           \
      scatter<T, 1>(dy, targets, order, sums, rows, limit, cols);                                                      \
    }                                                                                                                  \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
