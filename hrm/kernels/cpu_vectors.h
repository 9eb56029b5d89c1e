// What the C++ for CPUs shares: threads, vectors, and the products of attention's small matrices.
//
// Written with the vector types of GCC and Clang, so that one source serves every instruction set.
// T is the type in memory, float or bfloat16 (as its 16 bits); arithmetic is in float. If the
// processor multiplies pairs of bfloat16 (AVX512-BF16), attention's products use that.
//
// OpenMP is called through its functions, not through pragmas, so that every compiler can share the
// runtime that torch has loaded, and with it the threads. Two sets of threads would compete for the
// cores.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__) || defined(__AVXVNNI__)
#include <immintrin.h>
#endif

extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_get_num_threads();
extern "C" int omp_get_thread_num();

namespace {

// Calls work(thread, threads) once on each of up to `threads` threads.
template <typename Work> void on_threads(int threads, const Work& work) {
  const auto one = [](void* data) {
    (*static_cast<const Work*>(data))(omp_get_thread_num(), omp_get_num_threads());
  };
  GOMP_parallel(one, const_cast<Work*>(&work), unsigned(threads), 0);
}

// Splits 0 … count - 1 among threads; each thread calls work(first, end) once.
template <typename Work> void parallel(int64_t count, int threads, const Work& work) {
  on_threads(threads, [&](int64_t thread, int64_t threads) {
    work(count * thread / threads, count * (thread + 1) / threads);
  });
}

// W: numbers in a vector. A vector fills a register: wider ones compile to very slow code.
// KEYS, ROWS: vectors of scores, and queries, summed at once: as many as the registers can hold.
// COLUMNS: vectors of a product's outputs that are summed at once, for each of TILE rows.
#if defined(__AVX512F__)
constexpr int W = 16, KEYS = 7, ROWS = 8, COLUMNS = 4;
#elif defined(__AVX__)
constexpr int W = 8, KEYS = 2, ROWS = 4, COLUMNS = 2;
#else
constexpr int W = 4, KEYS = 4, ROWS = 4, COLUMNS = 2;
#endif
constexpr int QUERIES = 8;  // queries processed at once
constexpr int TILE = 6, PANEL = COLUMNS * W;

using Vector = float __attribute__((vector_size(4 * W), aligned(4), may_alias));
using Bits = uint32_t __attribute__((vector_size(4 * W), aligned(4), may_alias));
using Integers = int32_t __attribute__((vector_size(4 * W), aligned(4), may_alias));
using HalfBits = uint16_t __attribute__((vector_size(2 * W), aligned(2), may_alias));
using Halves = int16_t __attribute__((vector_size(4 * W), aligned(2), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

inline Bits load_bits(const uint16_t* from) {
#ifdef __AVX512F__  // one instruction, of which GCC makes five
  return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  return __builtin_convertvector(*reinterpret_cast<const HalfBits*>(from), Bits);
#endif
}

inline Vector load(const uint16_t* from) { return (Vector)(load_bits(from) << 16); }

inline void store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }

inline void store(uint16_t* to, Vector x) {  // rounds to the nearest, ties to even
#ifdef __AVX512BF16__
  *reinterpret_cast<HalfBits*>(to) = (HalfBits)_mm512_cvtneps_pbh((__m512)x);
#else
  const Bits bits = (Bits)x, is_nan = (Bits)(x != x);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<HalfBits*>(to) =
      __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), HalfBits);
#endif
}

// Rounds x to the precision of T.
template <typename T> inline Vector as_stored(Vector x) {
  if constexpr (std::is_same_v<T, float>) return x;
  T stored[W];
  store(stored, x);
  return load(stored);
}

inline float total(Vector x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  return x[0];
#endif
}

inline float greatest(Vector x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)x);
#else
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] = x[i + width] > x[i] ? x[i + width] : x[i];
  return x[0];
#endif
}

// The greatest of numbers from 0 that are given as their bits; a NaN is greater than all.
inline float greatest(Integers x) {
#ifdef __AVX512F__
  const int bits = _mm512_reduce_max_epi32((__m512i)x);
#else
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] = std::max(x[i], x[i + width]);
  const int bits = x[0];
#endif
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// 1 / x to the precision of T.
template <typename T> inline Vector reciprocal(Vector x) {
#ifdef __AVX512F__
  const Vector near = (Vector)_mm512_rcp14_ps((__m512)x);
  return sizeof(T) == 2 ? near : near * (2.0f - x * near);
#else
  return 1.0f / x;
#endif
}

// Clamps x to the range in which exp(x) is a normal number; a NaN passes.
inline Vector within_range(Vector x) {
#ifdef __AVX512F__
  return (Vector)_mm512_min_ps(_mm512_set1_ps(88.0f),  // with a NaN, returns the second operand
                               _mm512_max_ps(_mm512_set1_ps(-87.0f), (__m512)x));
#else
  x = x < -87.0f ? Vector{} - 87.0f : x;
  return x > 88.0f ? Vector{} + 88.0f : x;
#endif
}

// exp(x) to the precision of T: 2^n times a polynomial for the rest, whose exponent to base 2 is
// between -1/2 and 1/2.
template <typename T> inline Vector exponential(Vector x) {
  constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  x = within_range(x);
  const Vector shifted = x * 1.44269504f + ROUNDING;
  const Vector n = shifted - ROUNDING;
  Vector p;
  if constexpr (sizeof(T) == 2) {
    const Vector f = x * 1.44269504f - n;
    p = f * 5.5171661e-2f + 2.4261112e-1f;
    p = p * f + 6.9326099e-1f;
    p = p * f + 9.9992807e-1f;
  } else {
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
  }
  return p * (Vector)(((Bits)shifted << 23) + 0x3f800000);
}

// Content of a 32-bit lane of a product's operands: a float, or two bfloat16 that are neighbours
// along the summed dimension. Part i of lane j of a GROUP is its number j + GROUP / WIDTH * i.
// HEADER: rows of a panel of weights that come before the weights, and say how sums start.
struct Single {
  using Lane = float;
  using Sum = Vector;
  static constexpr int WIDTH = 1, GROUP = 1, HEADER = 0;
  static Vector start(const float*) { return Vector{}; }
  static Vector multiply_add(Vector sum, float left, Vector right) { return sum + left * right; }
};
template <typename T> struct LaneOf { using Type = Single; };

inline const float* as_floats(const float* lanes) { return lanes; }
inline const float* as_floats(const uint32_t* lanes) {
  return reinterpret_cast<const float*>(lanes);
}
inline void to_lanes(const Vector* from, int vectors, float* to) {
  for (int j = 0; j < vectors; j++) store(to + j * W, from[j]);
}
template <typename T>
inline void values_to_lanes(const T* value, const T*, float* to) { store(to, load(value)); }

#ifdef __AVX512BF16__
struct Pair {
  using Lane = uint32_t;
  using Sum = Vector;
  static constexpr int WIDTH = 2, GROUP = 2, HEADER = 0;
  static Vector start(const uint32_t*) { return Vector{}; }
  static Vector multiply_add(Vector sum, uint32_t left, Vector right) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(left)),
                                    (__m512bh)right);
  }
};
template <> struct LaneOf<uint16_t> { using Type = Pair; };

inline void to_lanes(const Vector* from, int vectors, uint32_t* to) {
  for (int j = 0; j < vectors; j++) store(reinterpret_cast<uint16_t*>(to) + j * W, from[j]);
}
inline void values_to_lanes(const uint16_t* value, const uint16_t* next, uint32_t* to) {
  *reinterpret_cast<Bits*>(to) = load_bits(value) | (next ? load_bits(next) << 16 : Bits{});
}
#endif

// Scores of 4 queries for N vectors of keys, over `depth` lanes. The keys' lanes lie in columns.
template <typename L, int N>
inline void score(const typename L::Lane* queries, const typename L::Lane* keys, int depth,
                  int width, float* scores) {
  Vector sums[4][N] = {};
  for (int c = 0; c < depth; c++) {
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) {
      const Vector key = load(as_floats(keys + c * width + j * W));
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        sums[i][j] = L::multiply_add(sums[i][j], queries[i * depth + c], key);
    }
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < N; j++) store(scores + i * width + j * W, sums[i][j]);
}

// Rotates one head's numbers at one position, V vectors.
template <typename T, int V>
inline void rotated(const T* from, const float* cosines, const float* sines, float scale,
                    Vector* to) {
  if constexpr (V == 1) {  // both halves lie in one vector
    const Vector x = load(from);
    float twice[2 * W];
    store(twice, x);
    store(twice + W, x);
    Vector signs = Vector{} + 1.0f;
    for (int i = 0; i < W / 2; i++) signs[i] = -1.0f;
    to[0] = (x * load(cosines) + load(twice + W / 2) * signs * load(sines)) * scale;
  } else {
    for (int j = 0; j < V / 2; j++) {
      const int low = j * W, high = low + V / 2 * W;
      const Vector first = load(from + low), second = load(from + high);
      to[j] = (first * load(cosines + low) - second * load(sines + low)) * scale;
      to[j + V / 2] = (second * load(cosines + high) + first * load(sines + high)) * scale;
    }
  }
}

constexpr size_t LINE = 64;  // bytes in a cache line

inline size_t aligned(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

struct Memory {
  char* const start;
  explicit Memory(size_t bytes)
      : start(static_cast<char*>(std::aligned_alloc(LINE, aligned(bytes) + LINE))) {
    if (!start) std::abort();
  }
  ~Memory() { std::free(start); }
  Memory(const Memory&) = delete;
};

// Multiplies the shares of ROWS queries by C vectors of the values' columns.
template <typename L, int C>
inline void mix(const typename L::Lane* shares, int width, const typename L::Lane* values, int dim,
                int sums, Vector (*mixed)[C]) {
  Vector sum[ROWS][C] = {};
  for (int s = 0; s < sums; s++) {
    Vector columns[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; j++) columns[j] = load(as_floats(values + s * dim + j * W));
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int j = 0; j < C; j++)
        sum[i][j] = L::multiply_add(sum[i][j], shares[i * width + s], columns[j]);
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < C; j++) mixed[i][j] = sum[i][j];
}

}  // namespace
