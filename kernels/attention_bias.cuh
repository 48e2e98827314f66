// The gradient of a table of attention's biases:
//   d_table[h, c] = Σ ds_ij over the queries i and keys j with column c = clamp(position_j − position_i + offset,
//   0, width − 1), head by head.
//
// A block makes a partial sum of one key head's rows of the table, over every so many tiles of queries. ds of a tile and of
// KEYS keys goes to shared memory, and from there each column is added up by the one thread that owns it, row by row: column
// c belongs to thread c mod 128. Where positions of keys follow one another, a row has at most one key of a column, or a
// run of keys of a column at the table's ends; so keys are taken run by run. Partial sums are added in order by
// columns_join (columns.cu).
#pragma once

#include "attention_bf16.cuh"
#include "attention_f32.cuh"

// ds[row · (KEYS + 1) + key] of the tile's queries from `begin` on and the keys from number `first` on; 0 if not seen.
template <int D, int KEYS>
DEVICE void score_gradients(float* ds_shared, const float* q, const float* d_o, const float* k, const float* v,
                            const Stack& stack, int begin, int end, int first, const Bias& bias, float scale) {
  const int pair = threadIdx.x / 8, lane = threadIdx.x % 8;
  float s[2][KEYS / 8], ds[2][KEYS / 8];
  scores_f32<D, KEYS>(s, q, k);
  scores_f32<D, KEYS>(ds, d_o, v);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = pair + 16 * r;
    const QueryInfo info = query_info<float, D>(q + row * STRIDE<float, D>);
    const int head = stack.head(min(begin + row, end - 1));
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
      const int key = 8 * j + lane;
      const int position = key_position<float, D>(k + key * STRIDE<float, D>);
      const float x = s[r][j] * scale + bias.at(head, info.position, position);
      ds_shared[row * (KEYS + 1) + key] =
          first + key < info.limit ? expf(x - info.lse) * (ds[r][j] - info.delta) : 0;
    }
  }
}

template <int D, int KEYS>
DEVICE void score_gradients(float* ds_shared, const bf16* q, const bf16* d_o, const bf16* k, const bf16* v,
                            const Stack& stack, int begin, int end, int first, const Bias& bias, float scale) {
  const int first_row = threadIdx.x / 32 * 16;
  if (begin + first_row >= end) return;
  LeftRows<D, false> q_rows, d_o_rows;
  q_rows.set(q + first_row * STRIDE<bf16, D>);
  d_o_rows.set(d_o + first_row * STRIDE<bf16, D>);
  float s[KEYS / 8][4], ds[KEYS / 8][4];
  scores<D, KEYS>(s, q_rows, k);
  scores<D, KEYS>(ds, d_o_rows, v);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = first_row + fragment_row(2 * h);
    const QueryInfo info = query_info<bf16, D>(q + row * STRIDE<bf16, D>);
    const int head = stack.head(min(begin + row, end - 1));
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; e++) {
        const int key = fragment_column(n, e);
        const int position = key_position<bf16, D>(k + key * STRIDE<bf16, D>);
        const float x = s[n][e] * scale + bias.at(head, info.position, position);
        const float p = exp2_approximate(LOG2_E * (x - info.lse));
        ds_shared[row * (KEYS + 1) + key] = first + key < info.limit ? p * (ds[n][e] - info.delta) : 0;
      }
    }
  }
}

// partial: [gridDim.x, key_heads · group, width]
template <typename T, int D, int KEYS>
DEVICE void backward_bias(const T* q, const T* k, const T* v, const T* d_o, const float* lse, const float* delta,
                          float* partial, const QueryTile* tiles, const Span* spans, const int* limits,
                          const Bias& bias, int tile_count, int query_rows, int key_heads, int group, int dim,
                          float scale) {
  constexpr int ROWS = sizeof(T) == 2 ? TILE : TILE_F32;
  static_assert(KEYS <= 32, "a lane for each key");
  extern __shared__ __align__(16) unsigned char shared[];
  T* q_shared = reinterpret_cast<T*>(shared);
  T* d_o_shared = q_shared + ROWS * STRIDE<T, D>;
  T* k_shared = d_o_shared + ROWS * STRIDE<T, D>;
  T* v_shared = k_shared + KEYS * STRIDE<T, D>;
  float* ds_shared = reinterpret_cast<float*>(v_shared + KEYS * STRIDE<T, D>);
  const auto query_position = [&](int row) { return query_info<T, D>(q_shared + row * STRIDE<T, D>).position; };
  const auto position = [&](int key) { return key_position<T, D>(k_shared + key * STRIDE<T, D>); };

  const int key_head = blockIdx.y, lane = threadIdx.x % 32, last = bias.width - 1;
  partial += (static_cast<long long>(blockIdx.x) * key_heads + key_head) * group * bias.width;
  for (int h = 0; h < group; h++) {
    for (int c = threadIdx.x; c <= last; c += THREADS) partial[static_cast<long long>(h) * bias.width + c] = 0;
  }
#pragma unroll 1
  for (int t = blockIdx.x; t < tile_count; t += gridDim.x) {
    const QueryTile tile = tiles[t];
    const int end = min(tile.end, (query_rows - tile.query_row) * group), rows = end - tile.begin;
    const Stack stack(tile.query_row, key_head, group, key_heads);
    KeyCursor cursor(spans + tile.spans, spans + tile.spans_end);
    __syncthreads();  // no warp reads the last queries any more
    load_query_infos<T, D, ROWS>(q_shared, lse, delta, limits, stack, tile.begin, end, bias);
    load_rows<T, D, ROWS>(q_shared, q, d_o_shared, d_o, dim, [&](int row) {
      const int i = tile.begin + row;
      return i < end ? stack.place(i, dim) : -1ll;
    });
    int nearest = 0, furthest = 0;
#pragma unroll 1
    for (int first = 0; first < tile.keys; first += KEYS) {
      __syncthreads();  // no warp reads the last keys any more, nor what came of them
      load_keys<T, D, KEYS>(k_shared, k, v_shared, v, cursor, first, tile.keys, key_head, key_heads, dim, bias);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
      score_gradients<D, KEYS>(ds_shared, q_shared, d_o_shared, k_shared, v_shared, stack, tile.begin, end, first, bias,
                               scale);
      if (first == 0) {
        nearest = furthest = query_position(0);
        for (int row = 1; row < rows; row++) {
          nearest = min(nearest, query_position(row));
          furthest = max(furthest, query_position(row));
        }
      }
      __syncthreads();
      const int keys = min(KEYS, tile.keys - first);
      unsigned starts = __ballot_sync(
          0xffffffffu, lane < keys && (lane == 0 || position(lane) != position(lane - 1) + 1));
      while (starts != 0) {
        const int from = __ffs(starts) - 1;
        starts &= starts - 1;
        const int to = starts != 0 ? __ffs(starts) - 1 : keys;
        // Key j has column j + shift − position_i.
        const int shift = position(from) - from + bias.offset;
        const int low = min(max(from + shift - furthest, 0), last), high = min(max(to - 1 + shift - nearest, 0), last);
        for (int c = low + (threadIdx.x - low) % THREADS; c <= high; c += THREADS) {
          for (int h = 0; h < group; h++) {
            float sum = 0;
            for (int row = (h + group - tile.begin % group) % group; row < rows; row += group) {
              const int at = c - shift + query_position(row);
              const int begin = c == 0 ? from : max(at, from), stop = c == last ? to : min(at + 1, to);
              for (int key = begin; key < stop; key++) sum += ds_shared[row * (KEYS + 1) + key];
            }
            partial[static_cast<long long>(h) * bias.width + c] += sum;
          }
        }
      }
    }
  }
}
