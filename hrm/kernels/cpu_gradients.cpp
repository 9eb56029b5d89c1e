// Gradients of the parts of a block between its matrix products, for training on CPUs: of rotary
// attention over short sequences, of SwiGLU's gate, and of residual addition with RMS
// normalisation. Each computes its part's intermediate results again from what the block keeps.

#include "cpu_vectors.h"

namespace {

// Multiplies ROWS rows of `left` by `right`, (terms, dim), of which C vectors of columns are used:
// the sum over `terms`. Numbers of `left` are `row` apart along its rows and `term` along the sum.
template <int C>
inline void combine(const float* left, int row, int term, const float* right, int dim, int terms,
                    Vector (*out)[C]) {
  Vector sums[ROWS][C] = {};
  for (int s = 0; s < terms; s++) {
    Vector columns[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; j++) columns[j] = load(right + s * dim + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int j = 0; j < C; j++) sums[i][j] += left[i * row + s * term] * columns[j];
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < C; j++) out[i][j] = sums[i][j];
}

// One head of one example; DIM: numbers in a head.
template <typename T, int DIM> struct HeadGradient {
  using L = typename LaneOf<T>::Type;
  using Lane = typename L::Lane;
  static constexpr int DEPTH = DIM / L::WIDTH;
  static constexpr int V = DIM / W, C = std::min(V, 2), HALF = (KEYS + 1) / 2;
  const int length;
  const int rows = (length + QUERIES - 1) / QUERIES * QUERIES;  // number of queries, padded
  const int width = (std::max(length, rows) + W - 1) / W * W;  // number of keys, padded
  float *queries, *keys, *given;  // (width, DIM): rotated queries and keys, and the gradient
  Lane *query_lanes, *given_lanes;  // (width, DEPTH)
  Lane *key_columns, *value_columns;  // (DEPTH, width)
  float *shares, *changes;  // (rows, width): attention's weights, and the scores' gradient

  HeadGradient(int length, float* memory) : length(length) {
    float* next = memory;
    for (float** rows_of : {&queries, &keys, &given}) {
      *rows_of = next;
      next += size_t(width) * DIM;
    }
    for (Lane** lanes_of : {&query_lanes, &given_lanes, &key_columns, &value_columns}) {
      *lanes_of = reinterpret_cast<Lane*>(next);
      next += size_t(width) * DEPTH;
    }
    shares = next;
    changes = shares + size_t(rows) * width;
  }

  static size_t bytes(int length) {
    const HeadGradient one(length, nullptr);
    return sizeof(float) * size_t(one.width) * (3 * DIM + 4 * DEPTH + 2 * one.rows);
  }

  // Computes the gradients of queries, keys and values from that of the head's output. Rows of
  // query and dquery are `stride` apart, rows of gradient `out_stride`; keys follow `size` numbers
  // after queries, and values after keys. `backward` are sines with the sign reversed.
  void run(const T* query, int64_t stride, int64_t size, const float* cosines, const float* sines,
           const float* backward, const T* gradient, int64_t out_stride, T* dquery) {
    const float scale = 1.0f / std::sqrt(float(DIM));
    for (int t = 0; t < width; t++) {
      const int from = std::min(t, length - 1);  // padding repeats the last position
      const T* row = query + from * stride;
      const float *cosine = cosines + from * DIM, *sine = sines + from * DIM;
      Vector vectors[V];
      rotated<T, V>(row, cosine, sine, scale, vectors);
      keep(vectors, queries + t * DIM, query_lanes + t * DEPTH);
      for (int j = 0; j < V; j++) vectors[j] = load(gradient + from * out_stride + j * W);
      keep(vectors, given + t * DIM, given_lanes + t * DEPTH);
      alignas(64) Lane lanes[DEPTH];
      rotated<T, V>(row + size, cosine, sine, 1.0f, vectors);
      keep(vectors, keys + t * DIM, lanes);
      for (int c = 0; c < DEPTH; c++) key_columns[c * width + t] = lanes[c];
      for (int j = 0; j < V; j++) vectors[j] = load(row + 2 * size + j * W);
      to_lanes(vectors, V, lanes);
      for (int c = 0; c < DEPTH; c++) value_columns[c * width + t] = lanes[c];
    }
    products(query_lanes, key_columns, shares);
    products(given_lanes, value_columns, changes);
    for (int t = 0; t < length; t++) through_softmax(shares + t * width, changes + t * width);

    const auto back = [&](const float* left, int row, int term, const float* right, float factor,
                          bool rotates, T* out) {
      for (int first = 0; first < length; first += ROWS) {
        float sums[ROWS * DIM];
        for (int j = 0; j < DIM; j += C * W) {
          Vector part[ROWS][C];
          combine<C>(left + first * row, row, term, right + j, DIM, length, part);
          for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < C; c++) store(sums + i * DIM + j + c * W, part[i][c] * factor);
        }
        for (int i = 0; i < std::min(ROWS, length - first); i++) {
          const int t = first + i;
          Vector vectors[V];
          if (rotates)
            rotated<float, V>(sums + i * DIM, cosines + t * DIM, backward + t * DIM, 1.0f, vectors);
          else
            for (int j = 0; j < V; j++) vectors[j] = load(sums + i * DIM + j * W);
          for (int j = 0; j < V; j++) store(out + t * stride + j * W, vectors[j]);
        }
      }
    };
    back(changes, width, 1, keys, scale, true, dquery);
    back(changes, 1, width, queries, 1.0f, true, dquery + size);
    back(shares, 1, width, given, 1.0f, false, dquery + 2 * size);
  }

  static void keep(const Vector* vectors, float* floats, Lane* lanes) {
    for (int j = 0; j < V; j++) store(floats + j * W, vectors[j]);
    to_lanes(vectors, V, lanes);
  }

  // out = left times the columns, (rows, width).
  void products(const Lane* left, const Lane* columns, float* out) const {
    for (int i = 0; i < rows; i += 4) {
      const Lane* four = left + i * DEPTH;
      float* to = out + i * width;
      int j = 0;
      for (; j + KEYS * W <= width; j += KEYS * W)
        score<L, KEYS>(four, columns + j, DEPTH, width, to + j);
      for (; j + HALF * W <= width; j += HALF * W)
        score<L, HALF>(four, columns + j, DEPTH, width, to + j);
      for (; j < width; j += W) score<L, 1>(four, columns + j, DEPTH, width, to + j);
    }
  }

  // Turns one query's scores into its shares, and the shares' gradient into the scores'.
  void through_softmax(float* row, float* change) const {
    Vector real = {};  // for the last vectors of keys: 1 for a key, 0 for padding
    Vector top = load(row);
    for (int j = W; j < width; j += W) {
      const Vector x = load(row + j);
      top = x > top ? x : top;
    }
    const float highest = greatest(top);
    Vector sum = {};
    for (int j = 0; j < width; j += W) {
      Vector share = exponential<T>(load(row + j) - highest);
      if (j + W > length) {
        for (int i = 0; i < W; i++) real[i] = j + i < length;
        share *= real;
      }
      sum += share;
      store(row + j, share);
    }
    const float inverse = 1.0f / total(sum);
    Vector weighted = {};
    for (int j = 0; j < width; j += W) {
      const Vector share = load(row + j) * inverse;
      store(row + j, share);
      weighted += share * load(change + j);
    }
    const float mean = total(weighted);
    for (int j = 0; j < width; j += W)
      store(change + j, load(row + j) * (load(change + j) - mean));
  }
};

// Calls work(HeadGradient) for heads of `dim` numbers, where dim is 16, 32, 64 or 128.
template <typename T, int DIM>
void attention_gradient_of(const T* qkv, const float* rotary, const T* gradient, T* out,
                           int64_t batch, int length, int heads, int threads) {
  const int64_t size = int64_t(heads) * DIM;
  const float *cosines = rotary, *sines = rotary + length * DIM;
  std::vector<float> reversed(sines, sines + length * DIM);
  for (float& sine : reversed) sine = -sine;
  const float* backward = reversed.data();
  parallel(batch * heads, threads, [=](int64_t first, int64_t end) {
    const Memory memory(HeadGradient<T, DIM>::bytes(length));
    HeadGradient<T, DIM> head(length, reinterpret_cast<float*>(memory.start));
    for (int64_t unit = first; unit < end; unit++) {
      const int64_t example = unit / heads * length * size, column = unit % heads * DIM;
      head.run(qkv + 3 * example + column, 3 * size, size, cosines, sines, backward,
               gradient + example + column, size, out + 3 * example + column);
    }
  });
}

// The gradient of attention. qkv: (batch, length, 3, heads, dim), as is out, the gradient for it;
// rotary: cosines and sines, (2, length, dim), whose halves along dim are equal;
// gradient: (batch, length, heads, dim), for attention's output.
template <typename T>
void attention_gradient(const T* qkv, const float* rotary, const T* gradient, T* out,
                        int64_t batch, int length, int heads, int dim, int threads) {
  const auto of = dim == 16   ? attention_gradient_of<T, 16>
                  : dim == 32 ? attention_gradient_of<T, 32>
                  : dim == 64 ? attention_gradient_of<T, 64>
                              : attention_gradient_of<T, 128>;
  of(qkv, rotary, gradient, out, batch, length, heads, threads);
}

// out: the gradient for x, and for y, from that for normalised(x + y); each (rows, size).
template <typename T>
void add_norm_gradient(const T* x, const T* y, const T* gradient, T* out, int64_t rows, int size,
                       float eps, int threads) {
  parallel(rows, threads, [=](int64_t first, int64_t end) {
    std::vector<float> sums(size);
    for (int64_t start = first * size; start < end * size; start += size) {
      Vector squares = {}, along = {};
      for (int i = 0; i < size; i += W) {
        const Vector sum = load(x + start + i) + load(y + start + i);
        store(&sums[i], sum);
        squares += sum * sum;
        along += sum * load(gradient + start + i);
      }
      const float factor = 1.0f / std::sqrt(total(squares) / float(size) + eps);
      const float share = total(along) / float(size) * factor * factor;
      for (int i = 0; i < size; i += W)
        store(out + start + i, (load(gradient + start + i) - load(&sums[i]) * share) * factor);
    }
  });
}

// out: the gradient for gate_up, (rows, 2, size), from that for silu(gate) * up, (rows, size).
template <typename T>
void swiglu_gradient(const T* gate_up, const T* gradient, T* out, int64_t rows, int size,
                     int threads) {
  parallel(rows, threads, [=](int64_t first, int64_t end) {
    for (int64_t start = first * size; start < end * size; start += size)
      for (int i = 0; i < size; i += W) {
        const Vector gate = load(gate_up + 2 * start + i), up = load(gate_up + 2 * start + size + i);
        const Vector given = load(gradient + start + i);
        const Vector sigmoid = 1.0f / (1.0f + exponential<T>(-gate)), silu = gate * sigmoid;
        store(out + 2 * start + i, given * up * (sigmoid + silu * (1.0f - sigmoid)));
        store(out + 2 * start + size + i, given * silu);
      }
  });
}

}  // namespace

#define EXPORT(T, NAME)                                                                         \
  extern "C" void attention_gradient_##NAME(const T* qkv, const float* rotary,                  \
                                            const T* gradient, T* out, int64_t batch,           \
                                            int length, int heads, int dim, int threads) {      \
    attention_gradient(qkv, rotary, gradient, out, batch, length, heads, dim, threads);         \
  }                                                                                             \
  extern "C" void add_norm_gradient_##NAME(const T* x, const T* y, const T* gradient, T* out,   \
                                           int64_t rows, int size, float eps, int threads) {    \
    add_norm_gradient(x, y, gradient, out, rows, size, eps, threads);                           \
  }                                                                                             \
  extern "C" void swiglu_gradient_##NAME(const T* gate_up, const T* gradient, T* out,           \
                                         int64_t rows, int size, int threads) {                 \
    swiglu_gradient(gate_up, gradient, out, rows, size, threads);                               \
  }

EXPORT(float, float32)
EXPORT(uint16_t, bfloat16)
