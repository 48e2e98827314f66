// How attention's kernels see a layout, and how they bring rows of q, k, v and d_o into shared memory.
//
// A segment is some query rows that see the same spans of keys. Its queries are stacked: for one key head, the `group`
// query heads that share it stand together, row by row, so stacked query i is row i / group, head i % group. A tile is
// up to TILE stacked queries, so keys are read once for all heads of a group.
//
// The keys that a segment's queries see are numbered through, context first, the own span last; query i then sees just
// the first `limits[i]` of them, whatever the mask.
#pragma once

#include "mma.cuh"

#include <cfloat>
#include <climits>

constexpr int THREADS = 128;

// Over 8 neighbouring lanes; each of them gets the result.
DEVICE float sum_of_8(float x) {
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}
DEVICE float max_of_8(float x) {
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

// bf16 holds 8 bits of a number, too few of o for δ where do·v − δ cancels. The next 8 are kept beside o for the
// backward pass, as a signed count of 1/256 of bf16's last place.
DEVICE signed char low_bits(float x) {
  const int rounded = static_cast<int>(__bfloat16_as_ushort(__float2bfloat16_rn(x))) << 16;
  return static_cast<signed char>(min((__float_as_int(x) - rounded + 128) >> 8, 127));
}
DEVICE float with_low_bits(float rounded, signed char low) {
  return __int_as_float(__float_as_int(rounded) + low * 256);
}

// Queries of one forward block, and of one block of dq.
struct alignas(16) QueryTile {
  int query_row;         // first row of the segment
  int begin, end;        // stacked queries of the segment, at most a tile of them
  int keys;              // how many keys at least one of them sees
  int spans, spans_end;  // where the segment's spans stand in the list of spans
  int unused[2];
};

// A run of key rows, and the number of its first key among all that the segment sees.
struct alignas(8) Span {
  int key_row, first;
};

// Keys of one block of dk and dv, with the queries that it sums over.
struct alignas(16) KeyTask {
  int key_row, keys;     // at most a tile of key rows
  int visits, visits_end;
  int slot;              // which partial sum it writes; -1: the only one of these keys, so the gradient itself
  int unused[3];
};

// Stacked queries of a segment that see the keys of a task, the first of which is number `first` to them.
struct alignas(16) Visit {
  int query_row, begin, end, first;
};

// Keys whose partial sums stand in `slots` slots from `slot` on.
struct alignas(16) KeySum {
  int key_row, keys, slot, slots;
};

// The stacked queries of a segment for one key head.
struct Stack {
  int query_row, group, heads, first_head;
  unsigned inverse;  // 2³² / group, rounded up: i / group = (i · inverse) >> 32 while i · group < 2³²

  DEVICE Stack(int query_row, int key_head, int group, int key_heads)
      : query_row(query_row), group(group), heads(key_heads * group), first_head(key_head * group),
        inverse(0xffffffffu / group + 1) {}
  DEVICE void enter(const Visit& visit) { query_row = visit.query_row; }
  DEVICE int row(int i) const { return query_row + (group == 1 ? i : __umulhi(i, inverse)); }
  DEVICE int head(int i) const { return first_head + i - (row(i) - query_row) * group; }
  // Where the query's number stands in [queries, heads], and its elements in [queries, heads · dim].
  DEVICE int place(int i) const { return row(i) * heads + head(i); }
  DEVICE long long place(int i, int dim) const { return static_cast<long long>(place(i)) * dim; }
};

// Key rows by number, asked for in rising order.
struct KeyCursor {
  const Span* span;
  int left, shift, next;

  DEVICE KeyCursor(const Span* first, const Span* end) : span(first), left(end - first) { enter(); }
  DEVICE void enter() {
    shift = span->key_row - span->first;
    next = left > 1 ? span[1].first : INT_MAX;
  }
  DEVICE int row(int number) {
    while (number >= next) {
      span++, left--;
      enter();
    }
    return number + shift;
  }
};

// The queries that a task of dk and dv works on next.
struct VisitCursor {
  const Visit* visits;
  int next, end;
  Visit now;

  DEVICE VisitCursor(const Visit* visits, const KeyTask& task)
      : visits(visits), next(task.visits), end(task.visits_end) {
    if (!done()) now = visits[next];
  }
  DEVICE bool done() const { return next == end; }
  DEVICE void advance(int queries) {
    now.begin += queries;
    if (now.begin >= now.end && ++next != end) now = visits[next];
  }
};

// Additive bias by relative position: table[head][clamp(key position − query position + offset, 0, width − 1)].
struct Bias {
  const float* table;  // null: none
  const int *query_positions, *key_positions;
  int width, offset;

  DEVICE float at(int head, int query_position, int key_position) const {
    const int distance = key_position - query_position + offset;
    return table[static_cast<long long>(head) * width + min(max(distance, 0), width - 1)];
  }
};

// A row in shared memory is D elements and 16 bytes of padding: 8 rows then start in 8 different groups of banks. The
// padding carries what goes with the row: a key's position, or a query's numbers.
template <typename T, int D> constexpr int STRIDE = D + WIDTH<T>;

struct alignas(16) QueryInfo {
  float lse, delta;
  int limit, position;
};

template <typename T, int D> DEVICE const int& key_position(const T* row) {
  return *reinterpret_cast<const int*>(row + D);
}
template <typename T, int D> DEVICE const QueryInfo& query_info(const T* row) {
  return *reinterpret_cast<const QueryInfo*>(row + D);
}

// Brings ROWS rows of `a`, and of `b` unless it is null, into shared memory. `offset(r)` is the element at which row r
// starts, in both; a negative one gives a row of zeros. Elements from `dim` to D are zeros.
template <typename T, int D, int ROWS, typename Offset>
DEVICE void load_rows(T* a_shared, const T* a, T* b_shared, const T* b, int dim, Offset offset) {
  constexpr int CHUNKS = D / WIDTH<T>;
  static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as much");
  if (rows_are_aligned<T>(dim)) {
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
      const int row = i / CHUNKS, column = i % CHUNKS * WIDTH<T>;
      const long long start = offset(row);
      const bool real = start >= 0 && column < dim;
      const long long from = real ? start + column : 0;
      cp_async_16(a_shared + row * STRIDE<T, D> + column, a + from, real);
      if (b != nullptr) cp_async_16(b_shared + row * STRIDE<T, D> + column, b + from, real);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
      const int row = i / D, column = i % D;
      const long long start = offset(row);
      const bool real = start >= 0 && column < dim;
      a_shared[row * STRIDE<T, D> + column] = real ? a[start + column] : from_float<T>(0);
      if (b != nullptr) b_shared[row * STRIDE<T, D> + column] = real ? b[start + column] : from_float<T>(0);
    }
  }
}

// Brings ROWS keys and values into shared memory, from number `first` on; zeros from number `keys` on.
template <typename T, int D, int ROWS>
DEVICE void load_keys(T* k_shared, const T* k, T* v_shared, const T* v, KeyCursor& cursor, int first, int keys,
                      int key_head, int key_heads, int dim, const Bias& bias) {
  if (bias.table != nullptr && threadIdx.x < ROWS) {
    KeyCursor own = cursor;
    const int number = first + threadIdx.x;
    const bool real = number < keys;
    cp_async_4(k_shared + threadIdx.x * STRIDE<T, D> + D, bias.key_positions + (real ? own.row(number) : 0), real);
  }
  load_rows<T, D, ROWS>(k_shared, k, v_shared, v, dim, [&](int row) {
    const int number = first + row;
    if (number >= keys) return -1ll;
    return (static_cast<long long>(cursor.row(number)) * key_heads + key_head) * dim;
  });
}

// Brings the numbers that go with ROWS stacked queries into the padding of their rows; none sees a key from `end` on.
template <typename T, int D, int ROWS>
DEVICE void load_query_infos(T* shared, const float* lse, const float* delta, const int* limits, const Stack& stack,
                             int begin, int end, const Bias& bias) {
  if (threadIdx.x >= ROWS) return;
  const int i = begin + threadIdx.x;
  const bool real = i < end;
  const int row = real ? stack.row(i) : 0;
  const int place = real ? stack.place(i) : 0;
  T* info = shared + threadIdx.x * STRIDE<T, D> + D;
  cp_async_4(info, lse + place, real);
  cp_async_4(info + sizeof(int) / sizeof(T), delta + place, real);
  cp_async_4(info + 2 * sizeof(int) / sizeof(T), limits + row, real);
  // Zero without a bias, for all four are read at once.
  const bool placed = bias.table != nullptr;
  cp_async_4(info + 3 * sizeof(int) / sizeof(T), placed ? bias.query_positions + row : limits, real && placed);
}
