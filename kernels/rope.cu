// rope: rotary position embedding, (a, b) ← (a cos θ − b sin θ, a sin θ + b cos θ) for each pair of a head's elements.
//
//   rope_rotate  every head of x [rows, heads · dim] in place, by direction · θ: 1 forward, −1 backward
//
// `cos` and `sin` are f32 [positions, half], half = dim / 2; row r has position positions[r]. Pairs are i and i + half,
// or 2i and 2i + 1 where `neighbours` is 1.
//
// Launch: 256 threads; a thread has a unit of 2N elements, N pairs, where N elements are 16 bytes, or N = 1 if half is
// not a multiple of that. Grid ceil(rows · heads · (half / N) / 256) with all heads of a row counted; the number of
// units is below 2³¹.
// Registers ≤ 48: 5 blocks an SM, on sm_80 and sm_90.
// Bytes, in elements: 2 rows·cols, and the tables once. FLOPs: 3 rows·cols.

#include "common.cuh"

struct Rotation {
  const float* __restrict__ cos;
  const float* __restrict__ sin;
  int half;
  bool neighbours;
  float direction;
};

// The unit of N pairs from pair `pair` on: two runs of N elements, where they start within a head.
template <int N> struct Unit {
  float first[N], second[N];

  DEVICE static int second_at(int pair, const Rotation& by) { return by.neighbours ? 2 * pair + N : pair + by.half; }
  DEVICE static int first_at(int pair, const Rotation& by) { return by.neighbours ? 2 * pair : pair; }

  template <typename T> DEVICE void read(const T* head, int pair, const Rotation& by) {
    load(head + first_at(pair, by), first);
    load(head + second_at(pair, by), second);
  }
  template <typename T> DEVICE void write(T* head, int pair, const Rotation& by) const {
    store(head + first_at(pair, by), first);
    store(head + second_at(pair, by), second);
  }

  DEVICE void rotate(int position, int pair, const Rotation& by) {
    const long long angle = static_cast<long long>(position) * by.half + pair;
    float cos[N], sin[N];
    read_angles(by.cos + angle, cos);
    read_angles(by.sin + angle, sin);
#pragma unroll
    for (int k = 0; k < N; k++) sin[k] *= by.direction;
    if (by.neighbours) {
      // Pair k stands at 2k and 2k + 1 of the 2N elements.
#pragma unroll
      for (int k = 0; k < N; k++) turn(element(2 * k), element(2 * k + 1), cos[k], sin[k]);
    } else {
#pragma unroll
      for (int k = 0; k < N; k++) turn(first[k], second[k], cos[k], sin[k]);
    }
  }

private:
  DEVICE float& element(int i) { return i < N ? first[i] : second[i - N]; }

  DEVICE static void turn(float& a, float& b, float cos, float sin) {
    const float old = a;
    a = old * cos - b * sin;
    b = old * sin + b * cos;
  }

  DEVICE static void read_angles(const float* p, float (&v)[N]) {
    if constexpr (N % 4 == 0) {
#pragma unroll
      for (int part = 0; part < N; part += 4) {
        float words[4];
        load(p + part, words);
#pragma unroll
        for (int k = 0; k < 4; k++) v[part + k] = words[k];
      }
    } else {
      load(p, v);
    }
  }
};

template <typename T, int N>
DEVICE void rotate(T* x, const Rotation& by, const int* __restrict__ positions, int rows, int heads) {
  const int unit = static_cast<int>(global_thread()), units_per_head = by.half / N;
  const int head = unit / units_per_head, pair = unit % units_per_head * N;
  const int row = head / heads;
  if (row >= rows) return;
  T* start = x + static_cast<long long>(head) * (2 * by.half);
  Unit<N> pairs;
  pairs.read(start, pair, by);
  pairs.rotate(positions[row], pair, by);
  pairs.write(start, pair, by);
}

#define INSTANCES(T, suffix)                                                                                           \
  KERNEL(rope_rotate_##suffix, 256)                                                                                    \
  (T* x, const float* __restrict__ cos, const float* __restrict__ sin, const int* __restrict__ positions, int rows,    \
   int heads, int half, int neighbours, float direction) {                                                             \
    const Rotation by = {cos, sin, half, neighbours != 0, direction};                                                  \
    if (half % WIDTH<T> == 0) {                                                                                        \
      rotate<T, WIDTH<T>>(x, by, positions, rows, heads);                                                              \
    } else {                                                                                                           \
      rotate<T, 1>(x, by, positions, rows, heads);                                                                     \
    }                                                                                                                  \
  }

INSTANCES(float, f32)
INSTANCES(bf16, bf16)
