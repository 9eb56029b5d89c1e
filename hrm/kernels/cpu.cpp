// A complete level of transformer blocks for CPUs. For processors on which another library computes
// matrix products faster, also the parts of a block between its products: rotary attention over
// short sequences, SwiGLU's gate, and residual addition with RMS normalisation.

#include "cpu_vectors.h"

namespace {

// The keys and values of one head of one example, as lanes; DIM: numbers in a head.
template <typename T, int DIM> struct Head {
  using L = typename LaneOf<T>::Type;
  using Lane = typename L::Lane;
  static constexpr int DEPTH = DIM / L::WIDTH;
  const int length;
  const int width = (length + W - 1) / W * W;  // number of keys, padded
  const int sums = (length + L::WIDTH - 1) / L::WIDTH;  // lanes along the keys
  Lane* keys;  // (DEPTH, width)
  Lane* values;  // (sums, DIM)

  Head(int length, void* memory)
      : length(length), keys(static_cast<Lane*>(memory)), values(keys + DEPTH * width) {}

  size_t bytes() const { return sizeof(Lane) * (size_t(DEPTH) * width + size_t(sums) * DIM); }

  size_t scratch_bytes() const { return 4 * (QUERIES * DEPTH + 2 * size_t(QUERIES) * width); }

  // Stores the keys and values of all positions. Rows of qkv are `stride` apart.
  void take(const T* key, const T* value, int64_t stride, const float* cosines,
            const float* sines) {
    for (int t = 0; t < width; t++) {
      const int from = std::min(t, length - 1);  // padding repeats the last key
      Vector vectors[DIM / W];
      alignas(64) Lane lanes[DEPTH];
      rotated<T, DIM / W>(key + from * stride, cosines + from * DIM, sines + from * DIM, 1.0f,
                          vectors);
      to_lanes(vectors, DIM / W, lanes);
      for (int c = 0; c < DEPTH; c++) keys[c * width + t] = lanes[c];
    }
    for (int t = 0; t < length; t += L::WIDTH) {
      const T* next = t + 1 < length ? value + (t + 1) * stride : nullptr;
      for (int j = 0; j < DIM; j += W)
        values_to_lanes(value + t * stride + j, next ? next + j : nullptr,
                        values + t / L::WIDTH * DIM + j);
    }
  }

  // Attends for queries first to end - 1. Rows of out, which may be query, are out_stride apart.
  void attend(const T* query, int64_t stride, const float* cosines, const float* sines, T* out,
              int64_t out_stride, int first, int end, void* scratch) const {
    constexpr int V = DIM / W, C = std::min(V, 2), HALF = (KEYS + 1) / 2;
    Lane* queries = static_cast<Lane*>(scratch);  // (QUERIES, DEPTH)
    float* scores = reinterpret_cast<float*>(queries + QUERIES * DEPTH);  // (QUERIES, width)
    Lane* shares = reinterpret_cast<Lane*>(scores + QUERIES * width);  // (QUERIES, width)
    Vector real = {};  // for the last vector of keys: 1 for a key, 0 for padding
    for (int i = 0; i < W; i++) real[i] = width - W + i < length;
    const float scale = 1.0f / std::sqrt(float(DIM));

    for (int start = first; start < end; start += QUERIES) {
      const int real_queries = std::min(QUERIES, end - start);
      for (int i = 0; i < QUERIES; i++) {
        const int t = start + std::min(i, real_queries - 1);
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
      for (int part = 0; part < real_queries; part += ROWS)
        for (int j = 0; j < DIM; j += C * W) {
          Vector mixed[ROWS][C];
          mix<L, C>(shares + part * width, width, values + j, DIM, sums, mixed);
          for (int i = part; i < std::min(part + ROWS, real_queries); i++) {
            T* to = out + (start + i) * out_stride + j;
            for (int c = 0; c < C; c++) store(to + c * W, mixed[i - part][c] * inverse[i]);
          }
        }
    }
  }
};

// Functions and memory sizes for one head of `dim` numbers, where dim is 16, 32, 64 or 128.
template <typename T> struct HeadWork {
  size_t bytes, scratch_bytes;  // memory for keys and values, and for `attend`
  void (*take)(int length, void* memory, const T* key, const T* value, int64_t stride,
               const float* cosines, const float* sines);
  void (*attend)(int length, void* memory, const T* query, int64_t stride, const float* cosines,
                 const float* sines, T* out, int64_t out_stride, int first, int end, void* scratch);

  HeadWork(int dim, int length)
      : HeadWork(dim == 16   ? of<16>(length)
                 : dim == 32 ? of<32>(length)
                 : dim == 64 ? of<64>(length)
                             : of<128>(length)) {}

 private:
  HeadWork() = default;
  template <int DIM> static HeadWork of(int length) {
    using One = Head<T, DIM>;
    HeadWork work;
    work.bytes = aligned(One(length, nullptr).bytes());
    work.scratch_bytes = aligned(One(length, nullptr).scratch_bytes());
    work.take = [](int length, void* memory, auto... rest) { One(length, memory).take(rest...); };
    work.attend = [](int length, void* memory, auto... rest) {
      One(length, memory).attend(rest...);
    };
    return work;
  }
};

// qkv: (batch, length, 3, heads, dim); rotary: cosines and sines, (2, length, dim);
// out: (batch, length, heads, dim).
template <typename T>
void attention(const T* qkv, const float* rotary, T* out, int64_t batch, int length, int heads,
               int dim, int threads) {
  const HeadWork<T> work(dim, length);
  const int64_t size = int64_t(heads) * dim;
  const float *cosines = rotary, *sines = rotary + length * dim;
  parallel(batch * heads, threads, [=](int64_t first, int64_t end) {
    const Memory memory(work.bytes + work.scratch_bytes);
    for (int64_t unit = first; unit < end; unit++) {
      const int64_t example = unit / heads * length * size, column = unit % heads * dim;
      const T* query = qkv + 3 * example + column;
      work.take(length, memory.start, query + size, query + 2 * size, 3 * size, cosines, sines);
      work.attend(length, memory.start, query, 3 * size, cosines, sines, out + example + column,
                  size, 0, length, memory.start + work.bytes);
    }
  });
}

// out = x / rms(x), for `size` numbers, a multiple of 16.
template <typename T> inline void normalised(const float* x, T* out, int size, float eps) {
  Vector squares = {};
  for (int i = 0; i < size; i += W) squares += load(x + i) * load(x + i);
  const float factor = 1.0f / std::sqrt(total(squares) / float(size) + eps);
  for (int i = 0; i < size; i += W) store(out + i, load(x + i) * factor);
}

// out = normalised(x + y), each (rows, size). out may be x or y.
template <typename T>
void add_norm(const T* x, const T* y, T* out, int64_t rows, int size, float eps, int threads) {
  parallel(rows, threads, [=](int64_t first, int64_t end) {
    std::vector<float> sums(size);
    for (int64_t start = first * size; start < end * size; start += size) {
      for (int i = 0; i < size; i += W)
        store(&sums[i], load(x + start + i) + load(y + start + i));
      normalised(sums.data(), out + start, size, eps);
    }
  });
}

template <typename T> inline Vector gated(Vector gate, Vector up) {
  return gate * reciprocal<T>(1.0f + exponential<T>(-gate)) * up;
}

// out = silu(gate) * up. gate_up: (rows, 2, size), out: (rows, size), size a multiple of 16.
template <typename T>
void swiglu(const T* gate_up, T* out, int64_t rows, int size, int threads) {
  parallel(rows, threads, [=](int64_t first, int64_t end) {
    for (int64_t start = first * size; start < end * size; start += size)
      for (int i = 0; i < size; i += W)
        store(out + start + i, gated<T>(load(gate_up + 2 * start + i),
                                        load(gate_up + 2 * start + size + i)));
  });
}

// A lane of four bytes, those of rows from 0 to 255, those of weights from -127 to 127. Before its
// weights, a panel has an integer for each output, with which its sum starts, and a row of scales.
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
#define HAS_INT8
struct Quad {
  using Lane = uint32_t;
  using Sum = Integers;
  static constexpr int WIDTH = 4, GROUP = 4 * W, HEADER = 2;
  static Integers start(const Lane* panel) { return *reinterpret_cast<const Integers*>(panel); }
  static Integers multiply_add(Integers sum, uint32_t left, Vector right) {
#ifdef __AVX512VNNI__
    return (Integers)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(int(left)),
                                         (__m512i)right);
#else
    return (Integers)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(int(left)),
                                             (__m256i)right);
#endif
  }
};
#endif

inline Vector as_numbers(Vector sums) { return sums; }
inline Vector as_numbers(Integers sums) { return __builtin_convertvector(sums, Vector); }

// Multiplies M rows of x by a panel of weights, whose lanes lie in rows of PANEL, and calls
// done(row, sums) for each row.
template <typename L, int M, typename Done>
inline void tile(const typename L::Lane* x, int64_t stride, const typename L::Lane* panel,
                 int depth, int row, const Done& done) {
  typename L::Sum sums[M][COLUMNS];
  for (int j = 0; j < COLUMNS; j++)
    for (int i = 0; i < M; i++) sums[i][j] = L::start(panel + j * W);
  panel += L::HEADER * PANEL;
  x += row * stride;
  for (int c = 0; c < depth; c++) {
    Vector weights[COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j++) weights[j] = load(as_floats(panel + c * PANEL + j * W));
#pragma GCC unroll 6
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++)
        sums[i][j] = L::multiply_add(sums[i][j], x[i * stride + c], weights[j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < M; i++) done(row + i, sums[i]);
}

// Multiplies rows of x, `stride` lanes apart, by panels of weights, and calls
// done(row, panel, sums) for each pair.
template <typename L, typename Done>
void product(const typename L::Lane* x, int64_t stride, int first, int end,
             const typename L::Lane* weights, int depth, int panels, const Done& done) {
  for (int panel = 0; panel < panels; panel++, weights += int64_t(L::HEADER + depth) * PANEL) {
    const auto rows = [&](int row, const typename L::Sum* sums) { done(row, panel, sums); };
    int row = first;
    for (; row + TILE <= end; row += TILE) tile<L, TILE>(x, stride, weights, depth, row, rows);
    switch (end - row) {
      case 5: tile<L, 5>(x, stride, weights, depth, row, rows); break;
      case 4: tile<L, 4>(x, stride, weights, depth, row, rows); break;
      case 3: tile<L, 3>(x, stride, weights, depth, row, rows); break;
      case 2: tile<L, 2>(x, stride, weights, depth, row, rows); break;
      case 1: tile<L, 1>(x, stride, weights, depth, row, rows); break;
    }
  }
}

// Lets threads wait for each other. They spin, since all have about the same amount of work.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const int round = rounds.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      arrived.store(0, std::memory_order_relaxed);
      rounds.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; rounds.load(std::memory_order_acquire) == round; spins++) {
      if (spins > SPINS) std::this_thread::yield();  // the others may need this core
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

 private:
  static constexpr int SPINS = 2000;
  std::atomic<int> arrived{0}, rounds{0};
};

// How a level multiplies: rows of T as they are.
template <typename T> struct Exact {
  using State = T;  // of the level's state, and of what is added to a block's products
  using Inner = T;  // of what a block keeps between its products
  using L = typename LaneOf<T>::Type;

  Exact(char*, int, int) {}

  static size_t bytes(int, int) { return 0; }

  // Takes `count` numbers as row `row` of the next product, if it does not read them itself.
  void take(int, const T*, int) {}

  static int64_t panel_lanes(int inputs) { return int64_t(inputs / L::WIDTH) * PANEL; }

  template <typename Done>
  void multiply(const T* rows, int stride, int first, int end, const typename L::Lane* weights,
                int inputs, int panels, const Done& done) const {
    product<L>(reinterpret_cast<const typename L::Lane*>(rows), stride / L::WIDTH, first, end,
               weights, inputs / L::WIDTH, panels, done);
  }
};

#ifdef HAS_INT8
// The greatest magnitudes of `count` numbers, as bits, in which order a NaN is the greatest.
inline Integers magnitudes(const float* from, int count) {
  Integers top = {};
  for (int i = 0; i < count; i += W) {
    const Integers bits = (Integers)load(from + i) & 0x7fffffff;
    top = bits > top ? bits : top;
  }
  return top;
}

inline Integers magnitudes(const uint16_t* from, int count) {
  Halves top = {};
  int i = 0;
  for (; i + 2 * W <= count; i += 2 * W) {
    const Halves bits = *reinterpret_cast<const Halves*>(from + i) & 0x7fff;
    top = bits > top ? bits : top;
  }
  const Integers odd = (Integers)top & 0x7fff0000, even = (Integers)top << 16;
  const Integers rest = i < count ? (Integers)load(from + i) & 0x7fffffff : Integers{};
  const Integers both = odd > even ? odd : even;
  return both > rest ? both : rest;
}

// Rounds numbers times `factor` to the lanes of Quad, 128 for 0. Reads up to the end of a group.
template <typename T> inline void to_quads(const T* from, uint8_t* to, int count, float factor) {
  constexpr float ROUNDING = 12582912.0f + 128.0f;  // leaves the byte in the lowest bits
  for (int i = 0; i < count; i += Quad::GROUP) {
    Bits bytes[4];
    for (int j = 0; j < 4; j++) bytes[j] = (Bits)(load(from + i + j * W) * factor + ROUNDING);
    *reinterpret_cast<Bits*>(to + i) = (bytes[0] & 0xff) | (bytes[1] << 8 & 0xff00) |
                                       bytes[2] << 16 | bytes[3] << 24;
  }
}

// Rounds `count` numbers to bytes and returns their scale: `quantised` of int8.py.
template <typename T> inline float rounded(const T* from, uint8_t* to, int count) {
  const float found = greatest(magnitudes(from, count)), largest = found < 1e-30f ? 1e-30f : found;
  to_quads(from, to, count, 127.0f / largest);
  return largest / 127.0f;
}

// Rows rounded to int8, each with a scale of its own.
template <typename T> struct Rounded {
  using State = float;
  using Inner = T;
  using L = Quad;

  const int row_bytes;
  float* const scales;
  uint8_t* const rows;

  Rounded(char* memory, int length, int longest)
      : row_bytes(int(aligned(longest))),
        scales(reinterpret_cast<float*>(memory)),
        rows(reinterpret_cast<uint8_t*>(memory) + aligned(sizeof(float) * length)) {}

  static size_t bytes(int length, int longest) {
    return aligned(sizeof(float) * length) + length * aligned(longest);
  }

  template <typename From> void take(int row, const From* numbers, int count) {
    scales[row] = rounded(numbers, rows + int64_t(row) * row_bytes, count);
  }

  static int depth_of(int inputs) { return (inputs + L::GROUP - 1) / L::GROUP * W; }

  static int64_t panel_lanes(int inputs) { return int64_t(L::HEADER + depth_of(inputs)) * PANEL; }

  // Multiplies the rows that were taken.
  template <typename Done>
  void multiply(const void*, int, int first, int end, const uint32_t* weights, int inputs,
                int panels, const Done& done) const {
    const int depth = depth_of(inputs);
    product<L>(reinterpret_cast<const uint32_t*>(rows), row_bytes / 4, first, end, weights, depth,
               panels, [&](int row, int panel, const Integers* sums) {
                 const uint32_t* header = weights + panel_lanes(inputs) * panel;
                 Vector numbers[COLUMNS];
                 for (int j = 0; j < COLUMNS; j++)
                   numbers[j] = as_numbers(sums[j]) * load(as_floats(header + PANEL + j * W)) *
                                scales[row];
                 done(row, panel, numbers);
               });
  }
};
#endif

// The weights of a block as panels, made by `Packing` in cpu.py.
template <typename Lane> struct Weights {
  const Lane *qkv, *o, *gate_up, *down;
};

// The weights of a level's blocks.
template <typename Lane> struct Blocks {
  const Weights<Lane>* const weights;  // one for each block
  const int count;
};

// Rows or other units of one thread.
struct Part {
  int first, end;
  static Part of(int count, int thread, int threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
  }
};

// Memory for one example in a level's blocks. Rows are padded to whole panels; no result depends on
// the padding. Operands: how it multiplies, `Exact` or `Rounded`.
//
// Threads share the heads of attention, and the rows of everything else. They pass on to each other
// what enters and leaves attention: with shared rows alone it would be all keys and values, which
// are more, and take longest between cores without a common cache.
template <typename Operands> struct Level {
  using T = typename Operands::Inner;
  using State = typename Operands::State;
  using Lane = typename Operands::L::Lane;

  struct Own {  // memory of one thread
    T* qkv;  // (length, 3, group), of one group of heads
    char *keys_and_values, *scratch;  // for one head
  };

  const float *const cosines, *const sines;
  const int length, heads, dim, inner;
  const float eps;
  const HeadWork<T> head{dim, length};
  const int size = heads * dim, stride = filled_up(size);
  const int group = std::max(PANEL, dim);  // outputs of the heads that fill whole panels
  const int groups = (size + group - 1) / group;
  const int wide_stride = filled_up(2 * inner) / 2;
  const size_t qkv_bytes = aligned(sizeof(T) * length * 3 * group);
  const Memory memory;
  Barrier barrier;
  Operands operands;
  State* x;  // (length, stride)
  T* mixed;  // (length, stride), what attention returns
  T* wide;  // (length, wide_stride), gated values
  float* sums;  // (length, stride); x itself if that is float
  char* own;  // of all threads

  Level(const float* rotary, int length, int heads, int dim, int inner, float eps, int threads)
      : cosines(rotary), sines(rotary + length * dim), length(length), heads(heads), dim(dim),
        inner(inner), eps(eps),
        memory(Operands::bytes(length, std::max(size, inner)) +
               aligned(sizeof(State) * length * stride) + aligned(sizeof(T) * length * stride) +
               aligned(sizeof(T) * length * wide_stride) +
               aligned(sizeof(float) * length * stride) + threads * own_bytes()),
        operands(memory.start, length, std::max(size, inner)) {
    char* next = memory.start + Operands::bytes(length, std::max(size, inner));
    const auto take = [&](size_t bytes) {
      char* const taken = next;
      next += aligned(bytes);
      return taken;
    };
    x = reinterpret_cast<State*>(take(sizeof(State) * length * stride));
    mixed = reinterpret_cast<T*>(take(sizeof(T) * length * stride));
    wide = reinterpret_cast<T*>(take(sizeof(T) * length * wide_stride));
    if constexpr (std::is_same_v<State, float>)
      sums = x;
    else
      sums = reinterpret_cast<float*>(take(sizeof(float) * length * stride));
    own = next;
  }

  static int filled_up(int outputs) { return (outputs + PANEL - 1) / PANEL * PANEL; }

  size_t own_bytes() const { return qkv_bytes + head.bytes + head.scratch_bytes; }

  Own own_of(int thread) const {
    char* const start = own + thread * own_bytes();
    return {reinterpret_cast<T*>(start), start + qkv_bytes, start + qkv_bytes + head.bytes};
  }

  // Computes the blocks of one example, whose input at offset i is input(i), into out. All threads
  // call this for the same examples in the same order. The last block computes no more of rows that
  // are not wanted than their keys and values.
  template <typename Input>
  void run(const Blocks<Lane>& blocks, const Input& input, State* out, int wanted, int thread,
           int threads) {
    const Part part = Part::of(length, thread, threads);
    for (int row = part.first; row < part.end; row++) {
      const int64_t from = int64_t(row) * size, to = int64_t(row) * stride;
      for (int i = 0; i < size; i += W) store(x + to + i, input(from + i));
      operands.take(row, x + to, size);
    }
    for (int block = 0; block < blocks.count; block++) {
      const Weights<Lane>& weights = blocks.weights[block];
      const bool is_last = block == blocks.count - 1;
      const int limit = is_last ? wanted : length;
      const Part rows{std::min(part.first, limit), std::min(part.end, limit)};
      barrier.wait(threads);
      attend(weights, limit, thread, threads);
      barrier.wait(threads);
      add_product(rows, mixed, stride, weights.o, size);
      pass_on(rows);
      transform(weights, rows);
      if (is_last)
        normalise(rows, out, size);
      else
        pass_on(rows);
    }
  }

  // Attention of x: this thread's share, for queries 0 to limit - 1.
  void attend(const Weights<Lane>& weights, int limit, int thread, int threads) const {
    if (threads <= groups) {
      const Part part = Part::of(groups, thread, threads);
      for (int i = part.first; i < part.end; i++) attend(weights, i, {0, limit}, own_of(thread));
      return;
    }
    const int i = thread * groups / threads;  // of this group's threads, each has its own queries
    const auto first_of = [=](int i) { return (i * threads + groups - 1) / groups; };
    const Part queries = Part::of(limit, thread - first_of(i), first_of(i + 1) - first_of(i));
    attend(weights, i, queries, own_of(thread));
  }

  void attend(const Weights<Lane>& weights, int number, Part queries, const Own& own) const {
    const int panels = group / PANEL, row_size = 3 * group, first = number * group;
    const Lane* const start = weights.qkv + 3 * panels * number * Operands::panel_lanes(size);
    const auto multiply = [&](Part rows, int first, int count) {
      const Lane* const from = start + first * Operands::panel_lanes(size);
      operands.multiply(x, stride, rows.first, rows.end, from, size, count,
                        [&](int row, int panel, const Vector* sum) {
                          T* to = own.qkv + int64_t(row) * row_size + (first + panel) * PANEL;
                          for (int j = 0; j < COLUMNS; j++) store(to + j * W, sum[j]);
                        });
    };
    multiply(queries, 0, panels);
    multiply({0, length}, panels, 2 * panels);
    for (int i = 0; i < group && first + i < size; i += dim) {
      const T *query = own.qkv + i, *key = query + group;
      head.take(length, own.keys_and_values, key, key + group, row_size, cosines, sines);
      head.attend(length, own.keys_and_values, query, row_size, cosines, sines, mixed + first + i,
                  stride, queries.first, queries.end, own.scratch);
    }
  }

  // sums = x + SwiGLU of x
  void transform(const Weights<Lane>& weights, const Part& part) {
    operands.multiply(x, stride, part.first, part.end, weights.gate_up, size,
                      filled_up(2 * inner) / PANEL,
                      [&](int row, int panel, const Vector* sum) {  // half a panel is gates
                        T* to = wide + int64_t(row) * wide_stride + panel * (PANEL / 2);
                        for (int j = 0; j < COLUMNS / 2; j++)
                          store(to + j * W, gated<T>(sum[j], sum[j + COLUMNS / 2]));
                      });
    add_product(part, wide, wide_stride, weights.down, inner);
  }

  // sums = x + weights times the first `inputs` of each of `rows`
  void add_product(const Part& part, const T* rows, int row_size, const Lane* weights,
                   int inputs) {
    for (int row = part.first; row < part.end; row++)
      operands.take(row, rows + int64_t(row) * row_size, inputs);
    operands.multiply(rows, row_size, part.first, part.end, weights, inputs, stride / PANEL,
                      [&](int row, int panel, const Vector* sum) {
                        const int64_t at = int64_t(row) * stride + panel * PANEL;
                        for (int j = 0; j < COLUMNS; j++)
                          store(sums + at + j * W, sum[j] + load(x + at + j * W));
                      });
  }

  void normalise(const Part& part, State* out, int out_stride) {
    for (int row = part.first; row < part.end; row++)
      normalised(sums + int64_t(row) * stride, out + int64_t(row) * out_stride, size, eps);
  }

  void pass_on(const Part& part) {
    for (int row = part.first; row < part.end; row++) {
      State* to = x + int64_t(row) * stride;
      normalised(sums + int64_t(row) * stride, to, size, eps);
      operands.take(row, to, size);
    }
  }
};

// out = z + injection after all blocks; z and injection are (batch, length, heads * dim), and out
// has the first `wanted` rows of each example. weights: four for each block.
template <typename Operands>
void level(const void* z, const void* injection, void* out, const void* weights,
           const float* rotary, int64_t batch, int blocks, int length, int wanted, int heads,
           int dim, int inner, float eps, int threads) {
  using State = typename Operands::State;
  using Lane = typename Operands::L::Lane;
  Level<Operands> one(rotary, length, heads, dim, inner, eps, threads);
  const Blocks<Lane> own{static_cast<const Weights<Lane>*>(weights), blocks};
  const int64_t row = int64_t(heads) * dim, size = length * row;
  on_threads(threads, [&](int thread, int threads) {
    for (int64_t i = 0; i < batch; i++) {
      const State* own_z = static_cast<const State*>(z) + i * size;
      const State* own_injection = static_cast<const State*>(injection) + i * size;
      one.run(own, [=](int64_t at) { return load(own_z + at) + load(own_injection + at); },
              static_cast<State*>(out) + i * wanted * row, wanted, thread, threads);
    }
  });
}

// An ACT step in place: in each of the H cycles, L cycles of z_L = L(z_L, z_H + x), then
// z_H = H(z_H, z_L). x and both states are (batch, length, heads * dim). A thread computes the same
// rows of both states in all levels, so that they stay in its core's cache.
template <typename Operands>
void step(const void* x, void* z_H, void* z_L, const void* weights_H, const void* weights_L,
          const float* rotary, int64_t batch, int blocks_H, int blocks_L, int cycles_H,
          int cycles_L, int length, int heads, int dim, int inner, float eps, int threads) {
  using State = typename Operands::State;
  using Lane = typename Operands::L::Lane;
  Level<Operands> one(rotary, length, heads, dim, inner, eps, threads);
  const Blocks<Lane> H{static_cast<const Weights<Lane>*>(weights_H), blocks_H};
  const Blocks<Lane> L{static_cast<const Weights<Lane>*>(weights_L), blocks_L};
  const int64_t size = int64_t(length) * heads * dim;
  on_threads(threads, [&](int thread, int threads) {
    for (int64_t start = 0; start < batch * size; start += size) {
      const State* const input = static_cast<const State*>(x) + start;
      State* const high = static_cast<State*>(z_H) + start;
      State* const low = static_cast<State*>(z_L) + start;
      const auto for_L = [=](int64_t at) {
        return load(low + at) + as_stored<State>(load(high + at) + load(input + at));
      };
      const auto for_H = [=](int64_t at) { return load(high + at) + load(low + at); };
      for (int i = 0; i < cycles_H; i++) {
        for (int j = 0; j < cycles_L; j++) one.run(L, for_L, low, length, thread, threads);
        one.run(H, for_H, high, length, thread, threads);
      }
    }
  });
}

// A matrix product alone, for measurements; a level computes its own. x: (rows, inputs), of the
// numbers in L's lanes; out: (rows, outputs), float, padded to whole panels.
template <typename L>
void product_alone(const void* x, const void* weights, float* out, int64_t rows, int inputs,
                   int outputs, int threads) {
  using Lane = typename L::Lane;
  const int panels = (outputs + PANEL - 1) / PANEL;
  parallel(rows, threads, [=](int64_t first, int64_t end) {
    product<L>(static_cast<const Lane*>(x), inputs / L::WIDTH, int(first), int(end),
               static_cast<const Lane*>(weights), inputs / L::WIDTH, panels,
               [=](int row, int panel, const typename L::Sum* sums) {
                 float* to = out + (int64_t(row) * panels + panel) * PANEL;
                 for (int j = 0; j < COLUMNS; j++) store(to + j * W, as_numbers(sums[j]));
               });
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

// Left out for dtypes in which another library's products may be faster: see cpu.py.
#define EXPORT_LEVEL(NAME, OPERANDS)                                                            \
  extern "C" void level_##NAME(const void* z, const void* injection, void* out,                 \
                               const void* weights, const float* rotary, int64_t batch,         \
                               int blocks, int length, int wanted, int heads, int dim,          \
                               int inner, float eps, int threads) {                             \
    level<OPERANDS>(z, injection, out, weights, rotary, batch, blocks, length, wanted, heads,   \
                       dim, inner, eps, threads);                                               \
  }                                                                                             \
  extern "C" void step_##NAME(const void* x, void* z_H, void* z_L, const void* weights_H,       \
                              const void* weights_L, const float* rotary, int64_t batch,        \
                              int blocks_H, int blocks_L, int cycles_H, int cycles_L,           \
                              int length, int heads, int dim, int inner, float eps,             \
                              int threads) {                                                    \
    step<OPERANDS>(x, z_H, z_L, weights_H, weights_L, rotary, batch, blocks_H, blocks_L,        \
                   cycles_H, cycles_L, length, heads, dim, inner, eps, threads);                \
  }                                                                                             \
  extern "C" void product_##NAME(const void* x, const void* weights, float* out, int64_t rows,  \
                                 int inputs, int outputs, int threads) {                        \
    product_alone<OPERANDS::L>(x, weights, out, rows, inputs, outputs, threads);                \
  }                                                                                             \
  extern "C" const int panel_##NAME = PANEL, lane_##NAME = OPERANDS::L::WIDTH,                  \
                       group_##NAME = OPERANDS::L::GROUP;

#if defined(__AVX__) && defined(__FMA__)
EXPORT_LEVEL(float32, Exact<float>)
#endif
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
EXPORT_LEVEL(bfloat16, Exact<uint16_t>)
#endif
#ifdef HAS_INT8  // with the fastest attention
#ifdef __AVX512BF16__
EXPORT_LEVEL(int8, Rounded<uint16_t>)
#else
EXPORT_LEVEL(int8, Rounded<float>)
#endif
#endif
