// The stored formats of weights: GGUF's blocks of small integers with a scale, and plain numbers.
//
// A format decodes EIGHT elements of a row at a time: eight<F>(row, i, v) writes elements i … i + 7 to v, where i is a
// multiple of 8 and `row` the first byte of a block, in global or in shared memory. Blocks hold 32 or 256 elements, so
// eight never straddle two. Scales are f16, bytes little-endian. Every product is exact in f32 and a sum rounded once,
// so the bits are those of the CPU.
#pragma once

#include "common.cuh"

constexpr int EIGHT = 8;

// The codes by which a kernel is told a format; the same order as `Format` in weights/format.rs.
enum FormatCode { F32 = 1, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q6_K };

// Blocks have an even number of bytes and start at even addresses.
DEVICE float half_at(const uint8_t* p) { return __half2float(*reinterpret_cast<const f16*>(p)); }
DEVICE uint32_t word_at(const uint8_t* p) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(p);
  return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
}
// Byte k of the eight bytes at p, and its lower or upper four bits.
struct EightBytes {
  uint32_t words[2];
  DEVICE explicit EightBytes(const uint8_t* p) : words{word_at(p), word_at(p + 4)} {}
  DEVICE uint32_t operator[](int k) const { return words[k / 4] >> (8 * (k % 4)) & 255; }
};

template <typename T> struct Plain {
  static constexpr int LENGTH = 1, BYTES = sizeof(T);
  DEVICE static void eight(const uint8_t* row, long long i, float (&v)[EIGHT]) {
    const T* p = reinterpret_cast<const T*>(row) + i;
    if (reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
      for (int part = 0; part < EIGHT; part += WIDTH<T>) {
        float words[WIDTH<T>];
        load4(p + part, words);
#pragma unroll
        for (int k = 0; k < WIDTH<T>; k++) v[part + k] = words[k];
      }
    } else {
#pragma unroll
      for (int k = 0; k < EIGHT; k++) v[k] = to_float(p[k]);
    }
  }
};

// [d: f16][q: 32 × i8];  x[i] = d q[i]
struct BlockQ8_0 {
  static constexpr int LENGTH = 32, BYTES = 34;
  DEVICE static void decode(const uint8_t* block, int i, float (&v)[EIGHT]) {
    const float d = half_at(block);
    const EightBytes q(block + 2 + i);
#pragma unroll
    for (int k = 0; k < EIGHT; k++) v[k] = d * static_cast<float>(static_cast<int8_t>(q[k]));
  }
};

// Elements i … i + 7 of 32 four-bit integers in 16 bytes: byte j holds q[j] in its low and q[j + 16] in its high half.
DEVICE void four_bits(const uint8_t* bytes, int i, uint32_t (&q)[EIGHT]) {
  const EightBytes packed(bytes + i % 16);
  const int shift = i < 16 ? 0 : 4;
#pragma unroll
  for (int k = 0; k < EIGHT; k++) q[k] = packed[k] >> shift & 15;
}

// The same of five-bit integers: bit i of the word before the 16 bytes is the fifth bit of q[i].
DEVICE void five_bits(const uint8_t* bytes, int i, uint32_t (&q)[EIGHT]) {
  const uint32_t high = word_at(bytes) >> i;
  four_bits(bytes + 4, i, q);
#pragma unroll
  for (int k = 0; k < EIGHT; k++) q[k] |= (high >> k & 1) << 4;
}

DEVICE void scale_eight(const uint32_t (&q)[EIGHT], int zero, float d, float m, float (&v)[EIGHT]) {
#pragma unroll
  for (int k = 0; k < EIGHT; k++) v[k] = d * static_cast<float>(static_cast<int>(q[k]) - zero) + m;
}

// [d: f16][16 bytes];  x[i] = d (q[i] − 8)
struct BlockQ4_0 {
  static constexpr int LENGTH = 32, BYTES = 18;
  DEVICE static void decode(const uint8_t* block, int i, float (&v)[EIGHT]) {
    uint32_t q[EIGHT];
    four_bits(block + 2, i, q);
    scale_eight(q, 8, half_at(block), 0.0f, v);
  }
};

// [d: f16][m: f16][16 bytes];  x[i] = d q[i] + m
struct BlockQ4_1 {
  static constexpr int LENGTH = 32, BYTES = 20;
  DEVICE static void decode(const uint8_t* block, int i, float (&v)[EIGHT]) {
    uint32_t q[EIGHT];
    four_bits(block + 4, i, q);
    scale_eight(q, 0, half_at(block), half_at(block + 2), v);
  }
};

// [d: f16][h: u32][16 bytes];  x[i] = d (q[i] − 16)
struct BlockQ5_0 {
  static constexpr int LENGTH = 32, BYTES = 22;
  DEVICE static void decode(const uint8_t* block, int i, float (&v)[EIGHT]) {
    uint32_t q[EIGHT];
    five_bits(block + 2, i, q);
    scale_eight(q, 16, half_at(block), 0.0f, v);
  }
};

// [d: f16][m: f16][h: u32][16 bytes];  x[i] = d q[i] + m
struct BlockQ5_1 {
  static constexpr int LENGTH = 32, BYTES = 24;
  DEVICE static void decode(const uint8_t* block, int i, float (&v)[EIGHT]) {
    uint32_t q[EIGHT];
    five_bits(block + 4, i, q);
    scale_eight(q, 0, half_at(block), half_at(block + 2), v);
  }
};

// [d: f16][e: f16][12 bytes: 8 six-bit s, 8 six-bit m][128 bytes]; of each 32 bytes the low halves are one group of 32
// elements, the high halves the next;  x[i] = (d s[g]) q[i] − (e m[g]) for i in group g.
struct BlockQ4_K {
  static constexpr int LENGTH = 256, BYTES = 144;
  DEVICE static void decode(const uint8_t* block, int i, float (&v)[EIGHT]) {
    const int group = i / 32, shift = group % 2 * 4;
    // Of groups 0–3, s and m are the low six bits of bytes g and g + 4; of groups 4–7 the low four bits are the halves
    // of byte g + 4, the upper two those left over in bytes g − 4 and g.
    const uint8_t* packed = block + 4;
    uint32_t s, m;
    if (group < 4) {
      s = packed[group] & 63;
      m = packed[group + 4] & 63;
    } else {
      s = (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
      m = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    }
    const float scale = half_at(block) * static_cast<float>(s), least = half_at(block + 2) * static_cast<float>(m);
    const EightBytes bytes(block + 16 + 32 * (group / 2) + i % 32);
#pragma unroll
    for (int k = 0; k < EIGHT; k++) v[k] = scale * static_cast<float>(bytes[k] >> shift & 15) - least;
  }
};

// [128 bytes: low 4 bits][64 bytes: upper 2 bits][s: 16 × i8][d: f16]; element 128h + 32p + l has its low bits in byte
// 64h + 32(p mod 2) + l, half p div 2, its upper bits in byte 32h + l, pair p;  x[i] = (d s[i div 16]) (q[i] − 32).
struct BlockQ6_K {
  static constexpr int LENGTH = 256, BYTES = 210;
  DEVICE static void decode(const uint8_t* block, int i, float (&v)[EIGHT]) {
    const int h = i / 128, p = i / 32 % 4, l = i % 32;
    const EightBytes low(block + 64 * h + 32 * (p % 2) + l), upper(block + 128 + 32 * h + l);
    const int low_shift = 4 * (p / 2), upper_shift = 2 * p;
    const float scale = half_at(block + 208) * static_cast<float>(static_cast<int8_t>(block[192 + i / 16]));
#pragma unroll
    for (int k = 0; k < EIGHT; k++) {
      const uint32_t q = (low[k] >> low_shift & 15) | (upper[k] >> upper_shift & 3) << 4;
      v[k] = scale * static_cast<float>(static_cast<int>(q) - 32);
    }
  }
};

template <typename Block> struct Blocks : Block {
  DEVICE static void eight(const uint8_t* row, long long i, float (&v)[EIGHT]) {
    Block::decode(row + i / Block::LENGTH * Block::BYTES, static_cast<int>(i % Block::LENGTH), v);
  }
};

// The first `count` < 8 of eight elements: rows of plain numbers may end so; rows of blocks never do.
template <typename T> DEVICE void some(const Plain<T>*, const uint8_t* row, long long i, float (&v)[EIGHT], int count) {
  const T* p = reinterpret_cast<const T*>(row) + i;
#pragma unroll
  for (int k = 0; k < EIGHT; k++) v[k] = k < count ? to_float(p[k]) : 0.0f;
}
template <typename Block> DEVICE void some(const Blocks<Block>*, const uint8_t*, long long, float (&)[EIGHT], int) {}

// Elements i … i + 7 of a row of format F, of which `count` exist.
template <typename F> DEVICE void decode_eight(const uint8_t* row, long long i, float (&v)[EIGHT], long long count) {
  if (count >= EIGHT) {
    F::eight(row, i, v);
  } else {
    some(static_cast<const F*>(nullptr), row, i, v, static_cast<int>(count));
  }
}

// The same with the format known at run time only.
DEVICE void decode_eight(int format, const uint8_t* row, long long i, float (&v)[EIGHT], long long count) {
  switch (format) {
    case F32: return decode_eight<Plain<float>>(row, i, v, count);
    case F16: return decode_eight<Plain<f16>>(row, i, v, count);
    case BF16: return decode_eight<Plain<bf16>>(row, i, v, count);
    case Q8_0: return decode_eight<Blocks<BlockQ8_0>>(row, i, v, count);
    case Q4_0: return decode_eight<Blocks<BlockQ4_0>>(row, i, v, count);
    case Q4_1: return decode_eight<Blocks<BlockQ4_1>>(row, i, v, count);
    case Q5_0: return decode_eight<Blocks<BlockQ5_0>>(row, i, v, count);
    case Q5_1: return decode_eight<Blocks<BlockQ5_1>>(row, i, v, count);
    case Q4_K: return decode_eight<Blocks<BlockQ4_K>>(row, i, v, count);
    case Q6_K: return decode_eight<Blocks<BlockQ6_K>>(row, i, v, count);
  }
}

// Writes v to a row of T; all of it in 16-byte accesses where p is a multiple of 16, else the first `count` elements.
template <typename T> DEVICE void store_eight(T* p, const float (&v)[EIGHT], bool aligned, int count) {
  if (aligned) {
#pragma unroll
    for (int part = 0; part < EIGHT; part += WIDTH<T>) {
      float words[WIDTH<T>];
#pragma unroll
      for (int k = 0; k < WIDTH<T>; k++) words[k] = v[part + k];
      store4(p + part, words);
    }
  } else {
#pragma unroll
    for (int k = 0; k < EIGHT; k++) {
      if (k < count) p[k] = from_float<T>(v[k]);
    }
  }
}
