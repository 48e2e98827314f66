// Attention in f32, in plain arithmetic: for exact checks. The structure is that of the bf16 kernels. 8 lanes share a
// row of the tile and a thread works on two rows, `pair` and `pair` + 16; a lane owns every eighth score of a row and
// every eighth group of four output elements.
#pragma once

#include "attention_tiles.cuh"

constexpr int TILE_F32 = 32;

DEVICE float4 read4(const float* p) { return *reinterpret_cast<const float4*>(p); }
DEVICE float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// s[r][j] = left row r · rows[8 j + lane of the row].
template <int D, int N> DEVICE void scores_f32(float (&s)[2][N / 8], const float* left, const float* rows) {
  const int pair = threadIdx.x / 8, lane = threadIdx.x % 8;
#pragma unroll
  for (int j = 0; j < N / 8; j++) s[0][j] = s[1][j] = 0;
#pragma unroll 4
  for (int d = 0; d < D; d += 4) {
    const float4 a0 = read4(left + pair * STRIDE<float, D> + d);
    const float4 a1 = read4(left + (pair + 16) * STRIDE<float, D> + d);
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
      const float4 b = read4(rows + (8 * j + lane) * STRIDE<float, D> + d);
      s[0][j] = dot4(a0, b, s[0][j]);
      s[1][j] = dot4(a1, b, s[1][j]);
    }
  }
}

// sum[r] += Σⱼ weights[r][j] rows[j]
template <int D, int N>
DEVICE void add_weighted_f32(float (&sum)[2][D / 32][4], const float (&weights)[2][N / 8], const float* rows) {
  const int lane = threadIdx.x % 8, first_lane = threadIdx.x % 32 - lane;
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
#pragma unroll 2
    for (int i = 0; i < 8; i++) {
      const float w0 = __shfl_sync(0xffffffffu, weights[0][j], first_lane + i);
      const float w1 = __shfl_sync(0xffffffffu, weights[1][j], first_lane + i);
#pragma unroll
      for (int d = 0; d < D / 32; d++) {
        const float4 b = read4(rows + (8 * j + i) * STRIDE<float, D> + (8 * d + lane) * 4);
        sum[0][d][0] = fmaf(w0, b.x, sum[0][d][0]), sum[1][d][0] = fmaf(w1, b.x, sum[1][d][0]);
        sum[0][d][1] = fmaf(w0, b.y, sum[0][d][1]), sum[1][d][1] = fmaf(w1, b.y, sum[1][d][1]);
        sum[0][d][2] = fmaf(w0, b.z, sum[0][d][2]), sum[1][d][2] = fmaf(w1, b.z, sum[1][d][2]);
        sum[0][d][3] = fmaf(w0, b.w, sum[0][d][3]), sum[1][d][3] = fmaf(w1, b.w, sum[1][d][3]);
      }
    }
  }
}

// Writes one row, times `factor`, to `out`; all 8 lanes of the row take part.
template <int D> DEVICE void store_row_f32(float* out, const float (&row)[D / 32][4], float factor, int dim) {
  const int lane = threadIdx.x % 8;
#pragma unroll
  for (int d = 0; d < D / 32; d++) {
    const int column = (8 * d + lane) * 4;
    if (rows_are_aligned<float>(dim)) {
      if (column < dim) {
        *reinterpret_cast<float4*>(out + column) =
            make_float4(row[d][0] * factor, row[d][1] * factor, row[d][2] * factor, row[d][3] * factor);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (column + i < dim) out[column + i] = row[d][i] * factor;
      }
    }
  }
}

template <int D, int KEYS>
DEVICE void forward_f32(const float* q, const float* k, const float* v, float* o, signed char* /* o_low */, float* lse,
                        const QueryTile* tiles, const Span* spans, const int* limits, const Bias& bias, int key_heads,
                        int group, int dim, float scale) {
  extern __shared__ __align__(16) unsigned char shared[];
  float* q_shared = reinterpret_cast<float*>(shared);
  float* k_shared = q_shared + TILE_F32 * STRIDE<float, D>;
  float* v_shared = k_shared + KEYS * STRIDE<float, D>;

  const QueryTile tile = tiles[blockIdx.x];
  const int key_head = blockIdx.y, pair = threadIdx.x / 8, lane = threadIdx.x % 8;
  const Stack stack(tile.query_row, key_head, group, key_heads);
  KeyCursor cursor(spans + tile.spans, spans + tile.spans_end);
  load_rows<float, D, TILE_F32>(q_shared, q, nullptr, nullptr, dim, [&](int row) {
    const int i = tile.begin + row;
    return i < tile.end ? stack.place(i, dim) : -1ll;
  });
  int index[2], limit[2], head[2] = {}, position[2] = {};
#pragma unroll
  for (int r = 0; r < 2; r++) {
    index[r] = tile.begin + pair + 16 * r;
    const bool real = index[r] < tile.end;
    limit[r] = real ? limits[stack.row(index[r])] : 0;
    if (bias.table != nullptr && real) {
      head[r] = stack.head(index[r]);
      position[r] = bias.query_positions[stack.row(index[r])];
    }
  }
  float sum[2][D / 32][4] = {}, total[2] = {}, top[2] = {-FLT_MAX, -FLT_MAX};
  for (int first = 0; first < tile.keys; first += KEYS) {
    __syncthreads();  // no warp reads the last keys any more
    load_keys<float, D, KEYS>(k_shared, k, v_shared, v, cursor, first, tile.keys, key_head, key_heads, dim, bias);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float s[2][KEYS / 8];
    scores_f32<D, KEYS>(s, q_shared, k_shared);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float next_top = top[r];
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
        const int key = 8 * j + lane;
        s[r][j] *= scale;
        if (bias.table != nullptr) {
          s[r][j] += bias.at(head[r], position[r], key_position<float, D>(k_shared + key * STRIDE<float, D>));
        }
        if (first + key >= limit[r]) s[r][j] = -INFINITY;
        next_top = fmaxf(next_top, s[r][j]);
      }
      next_top = max_of_8(next_top);
      const float shrink = expf(top[r] - next_top);
      top[r] = next_top;
      total[r] *= shrink;
#pragma unroll
      for (int d = 0; d < D / 32; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum[r][d][i] *= shrink;
      }
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
        s[r][j] = expf(s[r][j] - next_top);
        total[r] += s[r][j];
      }
    }
    add_weighted_f32<D, KEYS>(sum, s, v_shared);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    total[r] = sum_of_8(total[r]);
    if (index[r] >= tile.end) continue;
    if (lane == 0) lse[stack.place(index[r])] = top[r] + logf(total[r]);
    store_row_f32<D>(o + stack.place(index[r], dim), sum[r], 1 / total[r], dim);
  }
}

template <int D, int KEYS>
DEVICE void backward_queries_f32(const float* q, const float* k, const float* v, const float* d_o, const float* lse,
                                 const float* delta, float* dq, const QueryTile* tiles, const Span* spans,
                                 const int* limits, const Bias& bias, int query_rows, int key_heads, int group,
                                 int dim, float scale) {
  extern __shared__ __align__(16) unsigned char shared[];
  float* q_shared = reinterpret_cast<float*>(shared);
  float* d_o_shared = q_shared + TILE_F32 * STRIDE<float, D>;
  float* k_shared = d_o_shared + TILE_F32 * STRIDE<float, D>;
  float* v_shared = k_shared + KEYS * STRIDE<float, D>;

  const QueryTile tile = tiles[blockIdx.x];
  const int key_head = blockIdx.y, pair = threadIdx.x / 8, lane = threadIdx.x % 8;
  const int end = min(tile.end, (query_rows - tile.query_row) * group);
  const Stack stack(tile.query_row, key_head, group, key_heads);
  KeyCursor cursor(spans + tile.spans, spans + tile.spans_end);
  load_query_infos<float, D, TILE_F32>(q_shared, lse, delta, limits, stack, tile.begin, end, bias);
  load_rows<float, D, TILE_F32>(q_shared, q, d_o_shared, d_o, dim, [&](int row) {
    const int i = tile.begin + row;
    return i < end ? stack.place(i, dim) : -1ll;
  });
  float sum[2][D / 32][4] = {};
  for (int first = 0; first < tile.keys; first += KEYS) {
    __syncthreads();  // no warp reads the last keys any more
    load_keys<float, D, KEYS>(k_shared, k, v_shared, v, cursor, first, tile.keys, key_head, key_heads, dim, bias);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float s[2][KEYS / 8], ds[2][KEYS / 8];
    scores_f32<D, KEYS>(s, q_shared, k_shared);
    scores_f32<D, KEYS>(ds, d_o_shared, v_shared);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = pair + 16 * r, i = tile.begin + row;
      const QueryInfo info = query_info<float, D>(q_shared + row * STRIDE<float, D>);
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
        const int key = 8 * j + lane;
        float x = s[r][j] * scale;
        if (bias.table != nullptr && i < end) {
          x += bias.at(stack.head(i), info.position, key_position<float, D>(k_shared + key * STRIDE<float, D>));
        }
        ds[r][j] = first + key < info.limit ? expf(x - info.lse) * (ds[r][j] - info.delta) : 0;
      }
    }
    add_weighted_f32<D, KEYS>(sum, ds, k_shared);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = tile.begin + pair + 16 * r;
    if (i < end) store_row_f32<D>(dq + stack.place(i, dim), sum[r], scale, dim);
  }
}

template <int D, int QUERIES>
DEVICE void backward_keys_f32(const float* q, const float* k, const float* v, const float* d_o, const float* lse,
                              const float* delta, float* dk, float* dv, float* dk_partial, float* dv_partial,
                              const KeyTask* tasks, const Visit* visits, const int* limits, const Bias& bias,
                              int key_heads, int group, int dim, float scale) {
  extern __shared__ __align__(16) unsigned char shared[];
  float* k_shared = reinterpret_cast<float*>(shared);
  float* v_shared = k_shared + TILE_F32 * STRIDE<float, D>;
  float* q_shared = v_shared + TILE_F32 * STRIDE<float, D>;
  float* d_o_shared = q_shared + QUERIES * STRIDE<float, D>;

  const KeyTask task = tasks[blockIdx.x];
  const int key_head = blockIdx.y, pair = threadIdx.x / 8, lane = threadIdx.x % 8;
  load_rows<float, D, TILE_F32>(k_shared, k, v_shared, v, dim, [&](int row) {
    return row < task.keys ? (static_cast<long long>(task.key_row + row) * key_heads + key_head) * dim : -1ll;
  });
  Stack stack(0, key_head, group, key_heads);
  float dk_sum[2][D / 32][4] = {}, dv_sum[2][D / 32][4] = {};
  for (VisitCursor cursor(visits, task); !cursor.done(); cursor.advance(QUERIES)) {
    const Visit visit = cursor.now;
    stack.enter(visit);
    __syncthreads();  // no warp reads the last queries any more
    load_query_infos<float, D, QUERIES>(q_shared, lse, delta, limits, stack, visit.begin, visit.end, bias);
    load_rows<float, D, QUERIES>(q_shared, q, d_o_shared, d_o, dim, [&](int row) {
      const int i = visit.begin + row;
      return i < visit.end ? stack.place(i, dim) : -1ll;
    });
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    // Transposed: rows are keys, columns are queries.
    float p[2][QUERIES / 8], ds[2][QUERIES / 8];
    scores_f32<D, QUERIES>(p, k_shared, q_shared);
    scores_f32<D, QUERIES>(ds, v_shared, d_o_shared);
#pragma unroll
    for (int j = 0; j < QUERIES / 8; j++) {
      const int query = 8 * j + lane, i = visit.begin + query;
      const QueryInfo info = query_info<float, D>(q_shared + query * STRIDE<float, D>);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int row = pair + 16 * r;
        float x = p[r][j] * scale;
        if (bias.table != nullptr && i < visit.end && row < task.keys) {
          x += bias.at(stack.head(i), info.position, bias.key_positions[task.key_row + row]);
        }
        p[r][j] = visit.first + row < info.limit ? expf(x - info.lse) : 0;
        ds[r][j] = p[r][j] * (ds[r][j] - info.delta);
      }
    }
    add_weighted_f32<D, QUERIES>(dv_sum, p, d_o_shared);
    add_weighted_f32<D, QUERIES>(dk_sum, ds, q_shared);
  }
  cp_async_wait<0>();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = pair + 16 * r;
    if (row >= task.keys) continue;
    const long long to = task.slot < 0 ? task.key_row + row : static_cast<long long>(task.slot) * TILE_F32 + row;
    const long long at = (to * key_heads + key_head) * dim;
    store_row_f32<D>((task.slot < 0 ? dk : dk_partial) + at, dk_sum[r], scale, dim);
    store_row_f32<D>((task.slot < 0 ? dv : dv_partial) + at, dv_sum[r], 1, dim);
  }
}
