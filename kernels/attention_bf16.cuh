// Attention in bf16 on tensor cores. A block is 4 warps; a warp owns 16 rows of the block's tile: stacked queries in
// the forward pass and for dq, keys for dk and dv. What streams past (keys, or queries) lies in two buffers: while one
// is worked on, the other is filled.
#pragma once

#include "attention_tiles.cuh"

constexpr int TILE = 64;
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

// 2^x by the special function unit, 2 ulp.
DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 rows of D elements in shared memory as the left operand of a product, loaded once (HOLD) or at each use.
template <int D, bool HOLD> struct LeftRows {
  const bf16* row;
  uint32_t held[HOLD ? D / 16 : 1][4];

  DEVICE void set(const bf16* rows) {
    const int lane = threadIdx.x % 32;
    row = rows + lane % 16 * STRIDE<bf16, D> + lane / 16 * 8;
    if (HOLD) {
#pragma unroll
      for (int k = 0; k < D / 16; k++) ldmatrix_x4(held[HOLD ? k : 0], row + k * 16);
    }
  }
  DEVICE void get(int k, uint32_t (&a)[4]) const {
    if (HOLD) {
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = held[HOLD ? k : 0][i];
    } else {
      ldmatrix_x4(a, row + k * 16);
    }
  }
};

// s = left · rowsᵀ: 16 rows against N rows of shared memory.
template <int D, int N, bool HOLD>
DEVICE void scores(float (&s)[N / 8][4], const LeftRows<D, HOLD>& left, const bf16* rows) {
  const int lane = threadIdx.x % 32;
  const bf16* row = rows + (lane / 16 * 8 + lane % 8) * STRIDE<bf16, D> + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < N / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t a[4];
    left.get(k, a);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      uint32_t b[4];
      ldmatrix_x4(b, row + n * 16 * STRIDE<bf16, D> + k * 16);
      mma_m16n8k16(s[2 * n], a, b[0], b[1]);
      mma_m16n8k16(s[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// sum += weights · rows: 16 rows of N weights in registers, as `scores` left them, with N rows of shared memory.
template <int D, int N>
DEVICE void add_weighted(float (&sum)[D / 8][4], const float (&weights)[N / 8][4], const bf16* rows) {
  const int lane = threadIdx.x % 32;
  const bf16* row = rows + lane % 16 * STRIDE<bf16, D> + lane / 16 * 8;
#pragma unroll
  for (int n = 0; n < N / 16; n++) {
    const float(&low)[4] = weights[2 * n], (&high)[4] = weights[2 * n + 1];
    const uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                           pack_bf16(high[2], high[3])};
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, row + n * 16 * STRIDE<bf16, D> + d * 16);
      mma_m16n8k16(sum[2 * d], a, b[0], b[1]);
      mma_m16n8k16(sum[2 * d + 1], a, b[2], b[3]);
    }
  }
}

// Element e of part n of 16 rows that a warp holds is row lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4) + e % 2.
DEVICE int fragment_row(int e) { return threadIdx.x % 32 / 4 + e / 2 * 8; }
DEVICE int fragment_column(int n, int e) { return n * 8 + threadIdx.x % 4 * 2 + e % 2; }

// Copies 16 rows of `dim` elements from shared memory, `stride` elements apart, after the whole warp has written them.
// `offset(r)` is the element of `out` at which row r starts; a negative one leaves the row out.
template <int D, typename T, typename Offset>
DEVICE void copy_rows(T* out, const T* shared, int stride, int dim, Offset offset) {
  struct alignas(8 * sizeof(T)) Eight {
    T elements[8];
  };
  const int lane = threadIdx.x % 32;
  __syncwarp();
  if (dim % 8 == 0) {
#pragma unroll 2
    for (int i = lane; i < 16 * (D / 8); i += 32) {
      const int row = i / (D / 8), column = i % (D / 8) * 8;
      const long long start = offset(row);
      if (start >= 0 && column < dim) {
        const T* from = shared + row * stride + column;
        *reinterpret_cast<Eight*>(out + start + column) = *reinterpret_cast<const Eight*>(from);
      }
    }
  } else {
#pragma unroll 1
    for (int i = lane; i < 16 * D; i += 32) {
      const int row = i / D, column = i % D;
      const long long start = offset(row);
      if (start >= 0 && column < dim) out[start + column] = shared[row * stride + column];
    }
  }
  __syncwarp();
}

// Writes 16 rows, times the factor of each row, by way of shared memory that only this warp uses.
template <int D, typename Offset>
DEVICE void store_rows(bf16* out, const float (&rows)[D / 8][4], float factor0, float factor8, bf16* shared, int dim,
                       Offset offset) {
  __syncwarp();
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const float factor = e == 0 ? factor0 : factor8;
      *reinterpret_cast<uint32_t*>(shared + fragment_row(e) * STRIDE<bf16, D> + fragment_column(n, e)) =
          pack_bf16(rows[n][e] * factor, rows[n][e + 1] * factor);
    }
  }
  copy_rows<D>(out, shared, STRIDE<bf16, D>, dim, offset);
}

// The same of the bits that bf16 leaves out.
template <int D, typename Offset>
DEVICE void store_low_bits(signed char* out, const float (&rows)[D / 8][4], float factor0, float factor8, bf16* shared,
                           int dim, Offset offset) {
  constexpr int ROW = 2 * STRIDE<bf16, D>;
  signed char* bytes = reinterpret_cast<signed char*>(shared);
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const float factor = e == 0 ? factor0 : factor8;
      *reinterpret_cast<char2*>(bytes + fragment_row(e) * ROW + fragment_column(n, e)) =
          make_char2(low_bits(rows[n][e] * factor), low_bits(rows[n][e + 1] * factor));
    }
  }
  copy_rows<D>(out, bytes, ROW, dim, offset);
}

// Writes the first `count` of 16 rows in f32, times `factor`.
template <int D>
DEVICE void store_partial(float* out, const float (&rows)[D / 8][4], float factor, int count, int key_heads, int dim) {
#pragma unroll
  for (int e = 0; e < 4; e++) {
    float* to = out + static_cast<long long>(fragment_row(e)) * key_heads * dim;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const int column = fragment_column(n, e);
      if (fragment_row(e) < count && column < dim) to[column] = rows[n][e] * factor;
    }
  }
}

// The two rows that a lane holds of its warp's 16 stacked queries.
struct LaneQueries {
  int index[2], limit[2], head[2], position[2];

  DEVICE void set(const Stack& stack, int first, int end, const int* limits, const Bias& bias) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      index[h] = first + fragment_row(2 * h);
      const bool real = index[h] < end;
      limit[h] = real ? limits[stack.row(index[h])] : 0;
      if (bias.table != nullptr) {
        head[h] = real ? stack.head(index[h]) : 0;
        position[h] = real ? bias.query_positions[stack.row(index[h])] : 0;
      }
    }
  }
};

// s = log2(e) · (scale · s + bias), for scores of 16 queries against N keys.
template <int D, int N>
DEVICE void add_bias(float (&s)[N / 8][4], float scale, const LaneQueries& queries, const bf16* keys,
                     const Bias& bias) {
#pragma unroll
  for (int n = 0; n < N / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int position = key_position<bf16, D>(keys + fragment_column(n, e) * STRIDE<bf16, D>);
      const float added = bias.at(queries.head[e / 2], queries.position[e / 2], position);
      s[n][e] = LOG2_E * (s[n][e] * scale + added);
    }
  }
}

template <int D, int KEYS>
DEVICE void forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, signed char* o_low, float* lse,
                         const QueryTile* tiles, const Span* spans, const int* limits, const Bias& bias,
                         int key_heads, int group, int dim, float scale) {
  extern __shared__ __align__(16) unsigned char shared[];
  bf16* q_shared = reinterpret_cast<bf16*>(shared);
  bf16* k_shared = q_shared + TILE * STRIDE<bf16, D>;
  bf16* v_shared = k_shared + 2 * KEYS * STRIDE<bf16, D>;
  constexpr int BUFFER = KEYS * STRIDE<bf16, D>;

  const QueryTile tile = tiles[blockIdx.x];
  const int key_head = blockIdx.y, lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;
  const Stack stack(tile.query_row, key_head, group, key_heads);
  KeyCursor cursor(spans + tile.spans, spans + tile.spans_end);
  const auto load = [&](int first, int buffer) {
    load_keys<bf16, D, KEYS>(k_shared + buffer * BUFFER, k, v_shared + buffer * BUFFER, v, cursor, first, tile.keys,
                             key_head, key_heads, dim, bias);
  };
  const auto place = [&](int row) {
    const int i = tile.begin + row;
    return i < tile.end ? stack.place(i, dim) : -1ll;
  };
  load_rows<bf16, D, TILE>(q_shared, q, nullptr, nullptr, dim, place);
  load(0, 0);
  cp_async_commit();

  LaneQueries queries;
  queries.set(stack, tile.begin + first_row, tile.end, limits, bias);
  const bool active = tile.begin + first_row < tile.end;
  // Below, scores are in units of `unit`: raw products, or bits if a bias made that necessary.
  const float unit = bias.table != nullptr ? 1 : scale * LOG2_E;
  LeftRows<D, D <= 128> q_rows;
  float sum[D / 8][4] = {}, total[2] = {}, top[2] = {-FLT_MAX, -FLT_MAX};
  for (int first = 0, buffer = 0; first < tile.keys; first += KEYS, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this buffer is filled, and no warp reads the other any more
    if (first + KEYS < tile.keys) load(first + KEYS, buffer ^ 1);
    cp_async_commit();
    if (!active) continue;

    if (first == 0) q_rows.set(q_shared + first_row * STRIDE<bf16, D>);
    float s[KEYS / 8][4];
    scores<D, KEYS>(s, q_rows, k_shared + buffer * BUFFER);
    if (bias.table != nullptr) add_bias<D, KEYS>(s, scale, queries, k_shared + buffer * BUFFER, bias);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // Keys that the query does not see come last.
      const int seen = queries.limit[h] - first;
      float next_top = top[h];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          if (fragment_column(n, e) >= seen) s[n][e] = -INFINITY;
          next_top = fmaxf(next_top, s[n][e]);
        }
      }
      next_top = fmaxf(next_top, __shfl_xor_sync(0xffffffffu, next_top, 1));
      next_top = fmaxf(next_top, __shfl_xor_sync(0xffffffffu, next_top, 2));
      const float shrink = exp2_approximate((top[h] - next_top) * unit);
      top[h] = next_top;
      total[h] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; n++) sum[n][2 * h] *= shrink, sum[n][2 * h + 1] *= shrink;
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          s[n][e] = exp2_approximate((s[n][e] - next_top) * unit);
          total[h] += s[n][e];
        }
      }
    }
    add_weighted<D, KEYS>(sum, s, v_shared + buffer * BUFFER);
  }
  if (!active) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
    if (lane % 4 == 0 && queries.index[h] < tile.end) {
      lse[stack.place(queries.index[h])] = top[h] * unit * LN_2 + logf(total[h]);
    }
  }
  const auto my_place = [&](int row) { return place(first_row + row); };
  bf16* staging = q_shared + first_row * STRIDE<bf16, D>;
  const float factor0 = 1 / total[0], factor8 = 1 / total[1];
  store_rows<D>(o, sum, factor0, factor8, staging, dim, my_place);
  if (o_low != nullptr) store_low_bits<D>(o_low, sum, factor0, factor8, staging, dim, my_place);
}

template <int D, int KEYS, int STEP>
DEVICE void backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                  const float* delta, bf16* dq, const QueryTile* tiles, const Span* spans,
                                  const int* limits, const Bias& bias, int query_rows, int key_heads, int group,
                                  int dim, float scale) {
  extern __shared__ __align__(16) unsigned char shared[];
  bf16* q_shared = reinterpret_cast<bf16*>(shared);
  bf16* d_o_shared = q_shared + TILE * STRIDE<bf16, D>;
  bf16* k_shared = d_o_shared + TILE * STRIDE<bf16, D>;
  bf16* v_shared = k_shared + 2 * KEYS * STRIDE<bf16, D>;
  constexpr int BUFFER = KEYS * STRIDE<bf16, D>;

  const QueryTile tile = tiles[blockIdx.x];
  const int key_head = blockIdx.y, first_row = threadIdx.x / 32 * 16;
  const int end = min(tile.end, (query_rows - tile.query_row) * group);
  const Stack stack(tile.query_row, key_head, group, key_heads);
  KeyCursor cursor(spans + tile.spans, spans + tile.spans_end);
  const auto load = [&](int first, int buffer) {
    load_keys<bf16, D, KEYS>(k_shared + buffer * BUFFER, k, v_shared + buffer * BUFFER, v, cursor, first, tile.keys,
                             key_head, key_heads, dim, bias);
  };
  const auto place = [&](int row) {
    const int i = tile.begin + row;
    return i < end ? stack.place(i, dim) : -1ll;
  };
  load_rows<bf16, D, TILE>(q_shared, q, d_o_shared, d_o, dim, place);
  load(0, 0);
  cp_async_commit();

  LaneQueries queries;
  queries.set(stack, tile.begin + first_row, end, limits, bias);
  const bool active = tile.begin + first_row < end;
  const float unit = bias.table != nullptr ? 1 : scale * LOG2_E;
  float my_lse[2], my_delta[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const bool real = queries.index[h] < end;
    my_lse[h] = real ? LOG2_E * lse[stack.place(queries.index[h])] : 0;
    my_delta[h] = real ? delta[stack.place(queries.index[h])] : 0;
  }
  LeftRows<D, D <= 64> q_rows, d_o_rows;
  float sum[D / 8][4] = {};
  for (int first = 0, buffer = 0; first < tile.keys; first += KEYS, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this buffer is filled, and no warp reads the other any more
    if (first + KEYS < tile.keys) load(first + KEYS, buffer ^ 1);
    cp_async_commit();
    if (!active) continue;

    if (first == 0) {
      q_rows.set(q_shared + first_row * STRIDE<bf16, D>);
      d_o_rows.set(d_o_shared + first_row * STRIDE<bf16, D>);
    }
#pragma unroll
    for (int step = 0; step < KEYS; step += STEP) {
      const bf16* k_rows = k_shared + buffer * BUFFER + step * STRIDE<bf16, D>;
      const bf16* v_rows = v_shared + buffer * BUFFER + step * STRIDE<bf16, D>;
      float s[STEP / 8][4], ds[STEP / 8][4];
      scores<D, STEP>(s, q_rows, k_rows);
      scores<D, STEP>(ds, d_o_rows, v_rows);
      if (bias.table != nullptr) add_bias<D, STEP>(s, scale, queries, k_rows, bias);
#pragma unroll
      for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float p = exp2_approximate(s[n][e] * unit - my_lse[e / 2]);
          const bool seen = fragment_column(n, e) < queries.limit[e / 2] - first - step;
          ds[n][e] = seen ? p * (ds[n][e] - my_delta[e / 2]) : 0;
        }
      }
      add_weighted<D, STEP>(sum, ds, k_rows);
    }
  }
  if (!active) return;
  store_rows<D>(dq, sum, scale, scale, q_shared + first_row * STRIDE<bf16, D>, dim,
                [&](int row) { return place(first_row + row); });
}

// WANT_DK and WANT_DV say which of the two this block makes.
template <int D, int QUERIES, int STEP, bool WANT_DK, bool WANT_DV>
DEVICE void key_gradients_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                               const float* delta, bf16* dk, bf16* dv, float* dk_partial, float* dv_partial,
                               const KeyTask* tasks, const Visit* visits, const int* limits, const Bias& bias,
                               int key_heads, int group, int dim, float scale) {
  extern __shared__ __align__(16) unsigned char shared[];
  bf16* k_shared = reinterpret_cast<bf16*>(shared);
  bf16* v_shared = k_shared + TILE * STRIDE<bf16, D>;
  bf16* q_shared = v_shared + TILE * STRIDE<bf16, D>;
  bf16* d_o_shared = q_shared + 2 * QUERIES * STRIDE<bf16, D>;
  constexpr int BUFFER = QUERIES * STRIDE<bf16, D>;

  const KeyTask task = tasks[blockIdx.x];
  const int key_head = blockIdx.y, first_row = threadIdx.x / 32 * 16;
  const auto place = [&](int row) {
    return row < task.keys ? (static_cast<long long>(task.key_row + row) * key_heads + key_head) * dim : -1ll;
  };
  Stack stack(0, key_head, group, key_heads);
  const auto load = [&](const Visit& visit, int buffer) {
    stack.enter(visit);
    load_query_infos<bf16, D, QUERIES>(q_shared + buffer * BUFFER, lse, delta, limits, stack, visit.begin, visit.end,
                                       bias);
    load_rows<bf16, D, QUERIES>(q_shared + buffer * BUFFER, q, d_o_shared + buffer * BUFFER, d_o, dim, [&](int row) {
      const int i = visit.begin + row;
      return i < visit.end ? stack.place(i, dim) : -1ll;
    });
  };
  load_rows<bf16, D, TILE>(k_shared, k, WANT_DK ? v_shared : nullptr, WANT_DK ? v : nullptr, dim, place);
  VisitCursor cursor(visits, task);
  if (!cursor.done()) load(cursor.now, 0);
  cp_async_commit();

  const bool active = first_row < task.keys;
  const float unit = bias.table != nullptr ? 1 : scale * LOG2_E;
  int my_position[2] = {};
  if (bias.table != nullptr) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = first_row + fragment_row(2 * h);
      my_position[h] = row < task.keys ? bias.key_positions[task.key_row + row] : 0;
    }
  }
  LeftRows<D, D <= 64> k_rows, v_rows;
  float dk_sum[WANT_DK ? D / 8 : 1][4] = {}, dv_sum[WANT_DV ? D / 8 : 1][4] = {};
  bool first_time = true;
  for (int buffer = 0; !cursor.done(); buffer ^= 1) {
    const Visit visit = cursor.now;
    cursor.advance(QUERIES);
    cp_async_wait<0>();
    __syncthreads();  // this buffer is filled, and no warp reads the other any more
    if (!cursor.done()) load(cursor.now, buffer ^ 1);
    cp_async_commit();
    if (!active) continue;

    if (first_time) {
      k_rows.set(k_shared + first_row * STRIDE<bf16, D>);
      if (WANT_DK) v_rows.set(v_shared + first_row * STRIDE<bf16, D>);
      first_time = false;
    }
    const int number = visit.first + first_row + fragment_row(0);
#pragma unroll 1
    for (int step = 0; step < QUERIES; step += STEP) {
      const bf16* q_rows = q_shared + buffer * BUFFER + step * STRIDE<bf16, D>;
      const bf16* d_o_rows = d_o_shared + buffer * BUFFER + step * STRIDE<bf16, D>;
      // Transposed: rows are keys, columns are queries.
      float p[STEP / 8][4], ds[STEP / 8][4];
      scores<D, STEP>(p, k_rows, q_rows);
      if (WANT_DK) scores<D, STEP>(ds, v_rows, d_o_rows);
#pragma unroll
      for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int column = 0; column < 2; column++) {
          const int query = fragment_column(n, column);
          const QueryInfo info = query_info<bf16, D>(q_rows + query * STRIDE<bf16, D>);
          int head = 0;
          if (bias.table != nullptr) {
            // Queries past the last have no head; nothing is seen by them.
            stack.enter(visit);
            head = stack.head(min(visit.begin + step + query, visit.end - 1));
          }
#pragma unroll
          for (int e = column; e < 4; e += 2) {
            float s = p[n][e];
            if (bias.table != nullptr) s = LOG2_E * (s * scale + bias.at(head, info.position, my_position[e / 2]));
            const bool seen = number + e / 2 * 8 < info.limit;
            p[n][e] = seen ? exp2_approximate(s * unit - LOG2_E * info.lse) : 0;
            if (WANT_DK) ds[n][e] = seen ? p[n][e] * (ds[n][e] - info.delta) : 0;
          }
        }
      }
      if constexpr (WANT_DV) add_weighted<D, STEP>(dv_sum, p, d_o_rows);
      if constexpr (WANT_DK) add_weighted<D, STEP>(dk_sum, ds, q_rows);
    }
  }
  if (task.visits == task.visits_end) {
    // Nothing has waited for the copies of the keys.
    cp_async_wait<0>();
    __syncthreads();
  }
  if (!active) return;
  bf16* k_own = k_shared + first_row * STRIDE<bf16, D>;
  bf16* v_own = v_shared + first_row * STRIDE<bf16, D>;
  if (task.slot < 0) {
    const auto out = [&](int row) { return place(first_row + row); };
    if constexpr (WANT_DK) store_rows<D>(dk, dk_sum, scale, scale, k_own, dim, out);
    if constexpr (WANT_DV) store_rows<D>(dv, dv_sum, 1, 1, v_own, dim, out);
    return;
  }
  const long long corner =
      (static_cast<long long>(task.slot) * TILE + first_row) * key_heads * dim + static_cast<long long>(key_head) * dim;
  if constexpr (WANT_DK) store_partial<D>(dk_partial + corner, dk_sum, scale, task.keys - first_row, key_heads, dim);
  if constexpr (WANT_DV) store_partial<D>(dv_partial + corner, dv_sum, 1, task.keys - first_row, key_heads, dim);
}

// Both gradients in one block, or (SPLIT, where their sums do not fit the registers together) dv in the blocks with
// z = 0 and dk in those with z = 1.
template <int D, int QUERIES, int STEP, bool SPLIT>
DEVICE void backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                               const float* delta, bf16* dk, bf16* dv, float* dk_partial, float* dv_partial,
                               const KeyTask* tasks, const Visit* visits, const int* limits, const Bias& bias,
                               int key_heads, int group, int dim, float scale) {
  if (!SPLIT || blockIdx.z == 0) {
    key_gradients_bf16<D, QUERIES, STEP, !SPLIT, true>(q, k, v, d_o, lse, delta, dk, dv, dk_partial, dv_partial, tasks,
                                                       visits, limits, bias, key_heads, group, dim, scale);
  } else {
    key_gradients_bf16<D, QUERIES, STEP, true, false>(q, k, v, d_o, lse, delta, dk, dv, dk_partial, dv_partial, tasks,
                                                      visits, limits, bias, key_heads, group, dim, scale);
  }
}
