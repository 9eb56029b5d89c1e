// The parts of a transformer block between its matrix products, for CPUs: rotary attention over
// short sequences, SwiGLU's gate, and residual addition with RMS normalisation.
//
// Written with the vector types of GCC and Clang, so that one source serves every instruction set.
// T is the type in memory, float or bfloat16 (as its 16 bits); arithmetic is in float. Where the
// processor multiplies pairs of bfloat16 (AVX512-BF16), attention's products use that.
//
// OpenMP is used by its functions, not by pragmas: so every compiler can share the runtime, and with
// it the threads, that torch has loaded. Two sets of threads would keep each other from the cores.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_get_num_threads();
extern "C" int omp_get_thread_num();

namespace {

// Splits 0 … count - 1 among threads, each of which calls work(first, end) once.
template <typename Work> void parallel(int64_t count, int threads, const Work& work) {
  struct Task {
    const Work& work;
    int64_t count;
  } task{work, count};
  const auto share = [](void* data) {
    const Task& whole = *static_cast<const Task*>(data);
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    whole.work(whole.count * thread / threads, whole.count * (thread + 1) / threads);
  };
  GOMP_parallel(share, &task, unsigned(threads), 0);
}

// W: numbers in a vector, as many as a register holds: wider ones compile to very slow code.
// KEYS, ROWS: vectors of scores, and queries, that are summed at once, as registers suffice.
#if defined(__AVX512F__)
constexpr int W = 16, KEYS = 7, ROWS = 8;
#elif defined(__AVX__)
constexpr int W = 8, KEYS = 2, ROWS = 4;
#else
constexpr int W = 4, KEYS = 4, ROWS = 4;
#endif
constexpr int QUERIES = 8;  // that are attended for at once

using Vector = float __attribute__((vector_size(4 * W), aligned(4), may_alias));
using Bits = uint32_t __attribute__((vector_size(4 * W), aligned(4), may_alias));
using HalfBits = uint16_t __attribute__((vector_size(2 * W), aligned(2), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

inline Bits load_bits(const uint16_t* from) {
  return __builtin_convertvector(*reinterpret_cast<const HalfBits*>(from), Bits);
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

// x within the range where exp(x) is a normal number; a NaN passes.
inline Vector within_range(Vector x) {
#ifdef __AVX512F__
  return (Vector)_mm512_min_ps(_mm512_set1_ps(88.0f),  // of a NaN, the second
                               _mm512_max_ps(_mm512_set1_ps(-87.0f), (__m512)x));
#else
  x = x < -87.0f ? Vector{} - 87.0f : x;
  return x > 88.0f ? Vector{} + 88.0f : x;
#endif
}

// exp(x) as precisely as T holds it: 2^n times a polynomial for what is left, which is between
// -1/2 and 1/2 in powers of 2.
template <typename T> inline Vector exponential(Vector x) {
  constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  x = within_range(x);
  const Vector shifted = x * 1.44269504f + ROUNDING;
  const Vector n = shifted - ROUNDING;
  Vector p;
  if constexpr (sizeof(T) == 2) {
    const Vector f = x * 1.44269504f - n;
    p = f * 9.6181291e-3f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
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

// What a 32-bit lane of attention's operands holds: a float, or a pair of bfloat16 that are
// neighbours along the dimension that is summed over.
struct Single {
  using Lane = float;
  static constexpr int WIDTH = 1;
  static Vector multiply_add(Vector sum, float left, Vector right) { return sum + left * right; }
};
template <typename T> struct LaneOf { using Type = Single; };

inline const float* as_floats(const float* lanes) { return lanes; }
inline void to_lanes(const Vector* from, int vectors, float* to) {
  for (int j = 0; j < vectors; j++) store(to + j * W, from[j]);
}
template <typename T>
inline void values_to_lanes(const T* value, const T*, float* to) { store(to, load(value)); }

#ifdef __AVX512BF16__
struct Pair {
  using Lane = uint32_t;
  static constexpr int WIDTH = 2;
  static Vector multiply_add(Vector sum, uint32_t left, Vector right) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(left)),
                                    (__m512bh)right);
  }
};
template <> struct LaneOf<uint16_t> { using Type = Pair; };

inline const float* as_floats(const uint32_t* lanes) {
  return reinterpret_cast<const float*>(lanes);
}
inline void to_lanes(const Vector* from, int vectors, uint32_t* to) {
  for (int j = 0; j < vectors; j++) store(reinterpret_cast<uint16_t*>(to) + j * W, from[j]);
}
inline void values_to_lanes(const uint16_t* value, const uint16_t* next, uint32_t* to) {
  *reinterpret_cast<Bits*>(to) = load_bits(value) | (next ? load_bits(next) << 16 : Bits{});
}
#endif

// Rows of scores: `depth` lanes of 4 queries against N vectors of keys, whose lanes lie in columns.
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

// One head's vector at one position, rotated: V vectors.
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

struct Scratch {  // aligned to cache lines
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }
  void reserve(size_t bytes) {
    if (bytes <= size) return;
    std::free(memory);
    size = (bytes + 63) / 64 * 64;
    memory = std::aligned_alloc(64, size);
  }
};

// Shares of ROWS queries times C vectors of the values' columns.
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

// Attention of one head of one example; DIM: numbers in a head.
template <typename T, int DIM>
void attend(const T* qkv, const float* cosines, const float* sines, T* out, int length, int heads,
            int head, Scratch& scratch) {
  using L = typename LaneOf<T>::Type;
  using Lane = typename L::Lane;
  constexpr int V = DIM / W, C = std::min(V, 2), DEPTH = DIM / L::WIDTH, HALF = (KEYS + 1) / 2;
  const int width = (length + W - 1) / W * W;  // keys, filled up
  const int sums = (length + L::WIDTH - 1) / L::WIDTH;  // lanes along the keys
  const int64_t stride = int64_t(3) * heads * DIM;
  scratch.reserve(4 * (size_t(DEPTH) * width + size_t(sums) * DIM + QUERIES * DEPTH +
                       2 * size_t(QUERIES) * width));
  Lane* keys = static_cast<Lane*>(scratch.memory);  // (DEPTH, width)
  Lane* values = keys + DEPTH * width;  // (sums, DIM)
  Lane* queries = values + sums * DIM;  // (QUERIES, DEPTH)
  float* scores = reinterpret_cast<float*>(queries + QUERIES * DEPTH);  // (QUERIES, width)
  Lane* shares = reinterpret_cast<Lane*>(scores + QUERIES * width);  // (QUERIES, width)
  const T* query = qkv + head * DIM;
  const T *key = query + heads * DIM, *value = key + heads * DIM;

  for (int t = 0; t < width; t++) {
    const int from = std::min(t, length - 1);  // columns that fill up repeat the last key
    Vector vectors[V];
    alignas(64) Lane lanes[DEPTH];
    rotated<T, V>(key + from * stride, cosines + from * DIM, sines + from * DIM, 1.0f, vectors);
    to_lanes(vectors, V, lanes);
    for (int c = 0; c < DEPTH; c++) keys[c * width + t] = lanes[c];
  }
  for (int s = 0; s < sums; s++) {
    const int t = s * L::WIDTH;
    const T* next = t + 1 < length ? value + (t + 1) * stride : nullptr;
    for (int j = 0; j < DIM; j += W)
      values_to_lanes(value + t * stride + j, next ? next + j : nullptr, values + s * DIM + j);
  }
  Vector real = {};  // which of the last vector's keys are not filling: 1 or 0
  for (int i = 0; i < W; i++) real[i] = width - W + i < length;
  const float scale = 1.0f / std::sqrt(float(DIM));

  for (int start = 0; start < length; start += QUERIES) {
    for (int i = 0; i < QUERIES; i++) {
      const int t = std::min(start + i, length - 1);
      Vector vectors[V];
      rotated<T, V>(query + t * stride, cosines + t * DIM, sines + t * DIM, scale, vectors);
      to_lanes(vectors, V, queries + i * DEPTH);
    }
    for (int i = 0; i < QUERIES; i += 4) {
      const Lane* four = queries + i * DEPTH;
      float* rows = scores + i * width;
      int j = 0;
      for (; j + KEYS * W <= width; j += KEYS * W)
        score<L, KEYS>(four, keys + j, DEPTH, width, rows + j);
      for (; j + HALF * W <= width; j += HALF * W)
        score<L, HALF>(four, keys + j, DEPTH, width, rows + j);
      for (; j < width; j += W) score<L, 1>(four, keys + j, DEPTH, width, rows + j);
    }
    float inverse[QUERIES];
    for (int i = 0; i < QUERIES; i++) {
      const float* row = scores + i * width;
      Vector top = load(row);
      for (int j = W; j < width; j += W) {
        const Vector x = load(row + j);
        top = x > top ? x : top;
      }
      const float highest = greatest(top);
      Vector sum = {};
      for (int j = 0; j < width; j += W) {
        Vector share = exponential<T>(load(row + j) - highest);
        if (j + W == width) share *= real;
        sum += share;
        to_lanes(&share, 1, shares + i * width + j / L::WIDTH);
      }
      inverse[i] = 1.0f / total(sum);
    }
    const int real_queries = std::min(QUERIES, length - start);
    for (int first = 0; first < real_queries; first += ROWS)
      for (int j = 0; j < DIM; j += C * W) {
        Vector mixed[ROWS][C];
        mix<L, C>(shares + first * width, width, values + j, DIM, sums, mixed);
        for (int i = first; i < std::min(first + ROWS, real_queries); i++) {
          T* to = out + int64_t(start + i) * heads * DIM + head * DIM + j;
          for (int c = 0; c < C; c++) store(to + c * W, mixed[i - first][c] * inverse[i]);
        }
      }
  }
}

// qkv: (batch, length, 3, heads, dim); rotary: cosines and sines, (2, length, dim);
// out: (batch, length, heads, dim). dim: 16, 32, 64 or 128.
template <typename T>
void attention(const T* qkv, const float* rotary, T* out, int64_t batch, int length, int heads,
               int dim, int threads) {
  const auto one = dim == 16   ? attend<T, 16>
                   : dim == 32 ? attend<T, 32>
                   : dim == 64 ? attend<T, 64>
                               : attend<T, 128>;
  parallel(batch * heads, threads, [=](int64_t first, int64_t end) {
    Scratch scratch;
    for (int64_t unit = first; unit < end; unit++) {
      const int64_t example = unit / heads * length * heads * dim;
      one(qkv + 3 * example, rotary, rotary + length * dim, out + example, length, heads,
          int(unit % heads), scratch);
    }
  });
}

// out = normalised(x + y): (rows, size), size a multiple of 16. out may be x or y.
template <typename T>
void add_norm(const T* x, const T* y, T* out, int64_t rows, int size, float eps, int threads) {
  parallel(rows, threads, [=](int64_t first, int64_t end) {
    std::vector<float> sums(size);
    for (int64_t start = first * size; start < end * size; start += size) {
      Vector squares = {};
      for (int i = 0; i < size; i += W) {
        const Vector sum = load(x + start + i) + load(y + start + i);
        store(&sums[i], sum);
        squares += sum * sum;
      }
      const float factor = 1.0f / std::sqrt(total(squares) / float(size) + eps);
      for (int i = 0; i < size; i += W) store(out + start + i, load(&sums[i]) * factor);
    }
  });
}

// out = silu(gate) * up. gate_up: (rows, 2, size), out: (rows, size), size a multiple of 16.
template <typename T>
void swiglu(const T* gate_up, T* out, int64_t rows, int size, int threads) {
  parallel(rows, threads, [=](int64_t first, int64_t end) {
    for (int64_t start = first * size; start < end * size; start += size) {
      for (int i = 0; i < size; i += W) {
        const Vector gate = load(gate_up + 2 * start + i), up = load(gate_up + 2 * start + size + i);
        store(out + start + i, gate / (1.0f + exponential<T>(-gate)) * up);
      }
    }
  });
}

}  // namespace

#define EXPORT(T, NAME)                                                                         \
  extern "C" void attention_##NAME(const T* qkv, const float* rotary, T* out, int64_t batch,    \
                                   int length, int heads, int dim, int threads) {               \
    attention(qkv, rotary, out, batch, length, heads, dim, threads);                            \
  }                                                                                             \
  extern "C" void add_norm_##NAME(const T* x, const T* y, T* out, int64_t rows, int size,       \
                                  float eps, int threads) {                                     \
    add_norm(x, y, out, rows, size, eps, threads);                                              \
  }                                                                                             \
  extern "C" void swiglu_##NAME(const T* gate_up, T* out, int64_t rows, int size,               \
                                int threads) {                                                  \
    swiglu(gate_up, out, rows, size, threads);                                                  \
  }

EXPORT(float, float32)
EXPORT(uint16_t, bfloat16)
