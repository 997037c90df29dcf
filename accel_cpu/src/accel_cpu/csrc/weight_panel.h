// How a product reads its operands, written over the vectors of the vec_*.h included before it.
//
// Of a weight w, [n, k], a panel holds a few vectors of neighbouring columns of the result, step of
// k after step. Whichever way w lies it becomes the same panel: by columns its vectors are copied,
// by rows they are transposed in registers. Rows of x wait beside it, kChunk of k at a time.
#pragma once

#include "ahead.h"
#include "elementwise.h"
#include "kernels.h"

namespace accel_cpu {
namespace {

// kLanes elements of each of kLanes rows, `stride` apart, transposed; vec_avx2.h has a better way.
template <class T>
[[gnu::always_inline]] inline void load_square(const T* p, int64_t stride, Vec (&out)[kLanes]) {
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) out[j] = load(p + j * stride);
  transpose(out);
}

// As a type, so that a step over fewer k than usual is compiled apart.
template <int N>
struct Depth {};

template <class T>
struct Widened;

// Multiplies in fp32; a step is one k.
struct Fp32 {
  using Arithmetic = Fp32;
  using Rows = Widened<float>;  // how rows of x are read
  template <class X>
  using Of = Widened<X>;
  using Staged = float;  // what a row of x holds for one step
  using Operand = Vec;   // a step of kLanes columns
  static constexpr int kDepth = 1;  // of k in a step
  static constexpr int kSteps = 1;  // are taken at once

  template <class X>
  static void stage(const X* x, int64_t k, Staged* out) {
    widen_to(out, x, k);
  }
  static Operand spread(Staged a) { return broadcast(a); }
  static Vec madd(Operand a, Operand b, Vec acc) { return accel_cpu::madd(a, b, acc); }
  template <int kBits>
  static Operand load_numbers(const uint8_t* p) {
    return accel_cpu::load_numbers<kBits>(p);
  }
  static void transpose(Operand (&rows)[kLanes]) { accel_cpu::transpose(rows); }
};

// A weight of T, widened as it is read.
template <class T>
struct Widened : Fp32 {
  using Element = T;
  // A step of w by columns, the columns from w on.
  template <class... N>
  static Operand load_columns(Depth<1>, const T* w, int64_t /*stride*/, N... n) {
    return load(w, n...);
  }
  // kLanes steps of one row of w.
  template <class... N>
  static Operand load_row(const T* w, N... n) {
    return load(w, n...);
  }
  static void load_square(const T* w, int64_t stride, Operand (&steps)[kLanes]) {
    accel_cpu::load_square(w, stride, steps);
  }
};

template <class Dot>
constexpr int64_t kChunkSteps = kChunk / Dot::kDepth;

// Zeros fill the last.
template <class Dot>
constexpr int64_t steps_of(int64_t k) {
  constexpr int64_t kAtOnce = Dot::kDepth * Dot::kSteps;
  return (k + kAtOnce - 1) / kAtOnce * Dot::kSteps;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Dot>
constexpr int kBlock = kLanes * Dot::kDepth;  // of k in a vector of one row
template <class Dot>
constexpr int64_t kBlockBytes = kLanes * kBlock<Dot> * sizeof(typename Dot::Element);

// The rows of a weight that come next, if asking for them gains anything (vec_*.h).
template <class T>
Ahead weight_ahead(const T* first, int64_t stride, int64_t k, int64_t rows) {
  return kAsksAhead ? Ahead(first, stride, k, rows) : Ahead();
}

// As load_block at the ends of w. Out of line, or every tile would hold it.
template <class Dot>
[[gnu::noinline]] void load_end(const typename Dot::Element* w, int64_t stride, int64_t rows,
                                int64_t k, typename Dot::Operand (&steps)[kLanes]) {
  for (int j = 0; j < kLanes; ++j) {
    const auto* row = w + smaller(j, rows - 1) * stride;
    steps[j] = k < kBlock<Dot> ? Dot::load_row(row, static_cast<int>(k)) : Dot::load_row(row);
  }
  Dot::transpose(steps);
}

// kLanes steps of kLanes columns of a w by rows, the first at `w`, which has so many rows and k
// from there on. Past the last row the block repeats it, and nothing reads those sums; past the
// last k are zeros.
template <class Dot>
inline void load_block(const typename Dot::Element* w, int64_t stride, int64_t rows, int64_t k,
                       typename Dot::Operand (&steps)[kLanes]) {
  if (rows < kLanes || k < kBlock<Dot>) {
    typename Dot::Operand end[kLanes];  // apart, or GCC would keep `steps` in memory
    load_end<Dot>(w, stride, rows, k, end);
    for (int j = 0; j < kLanes; ++j) steps[j] = end[j];
    return;
  }
  if constexpr (requires { Dot::load_square(w, stride, steps); }) {
    Dot::load_square(w, stride, steps);
  } else {
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) steps[j] = Dot::load_row(w + j * stride);
    Dot::transpose(steps);
  }
}

// A part of w: columns [n, n1) of the result, of which a panel takes the first, over `k` of k from
// k0 on.
struct PanelOf {
  const Matrix& w;
  int64_t n, n1, k0, k;
};

// The next panel's columns are prefetched, as hardware seldom follows rows this far apart.
template <class Dot>
void copy_columns(const PanelOf& part, int vectors, typename Dot::Operand* out) {
  constexpr int kDepth = Dot::kDepth;
  using T = typename Dot::Element;
  const int64_t stride = part.w.stride, left = part.n1 - part.n;
  const T* from = static_cast<const T*>(part.w.data) + part.k0 * stride + part.n;
  const int64_t bytes = vectors * kLanes * sizeof(T);
  const auto copy = [&](auto depth, int64_t i, int rows) {
    const T* row = from + i * kDepth * stride;
    for (int d = 0; d < rows; ++d) {
      const char* next = reinterpret_cast<const char*>(row + d * stride) + bytes;
      for_each_line(bytes, [=](int64_t b) { __builtin_prefetch(next + b, 0, 2); });
    }
    for (int c = 0; c < vectors; ++c) {
      const int64_t rest = left - c * kLanes;
      out[i * vectors + c] =
          rest >= kLanes ? Dot::load_columns(depth, row + c * kLanes, stride)
                         : Dot::load_columns(depth, row + c * kLanes, stride,
                                             static_cast<int>(rest > 0 ? rest : 0));
    }
  };
  const int64_t whole = part.k / kDepth;
  for (int64_t i = 0; i < whole; ++i) copy(Depth<kDepth>{}, i, kDepth);
  if constexpr (kDepth > 1) {
    if (part.k % kDepth) copy(Depth<1>{}, whole, 1);
  }
  const int64_t filled = (part.k + kDepth - 1) / kDepth * vectors;
  for (int64_t i = filled; i < steps_of<Dot>(part.k) * vectors; ++i) {
    out[i] = typename Dot::Operand{};
  }
}

template <class Dot>
void transpose_rows(const PanelOf& part, int vectors, typename Dot::Operand* out) {
  const auto* w = static_cast<const typename Dot::Element*>(part.w.data) + part.k0;
  const int64_t stride = part.w.stride, after = part.n + vectors * kLanes;
  Ahead ahead = weight_ahead(w + after * stride, stride, part.k, part.n1 - after);
  for (int c = 0; c < vectors; ++c) {
    const int64_t n = smaller(part.n + c * kLanes, part.n1 - 1);
    for (int64_t i = 0; i < part.k; i += kBlock<Dot>) {
      typename Dot::Operand steps[kLanes];
      const auto* from = w + n * stride + i;
      ahead.ask(kBlockBytes<Dot>);
      load_block<Dot>(from, stride, part.n1 - n, part.k - i, steps);
      typename Dot::Operand* to = out + i / Dot::kDepth * vectors + c;
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) to[j * vectors] = steps[j];
    }
  }
}

template <class Dot>
void read_panel(const PanelOf& part, int vectors, typename Dot::Operand* out) {
  if (part.w.by_columns) return copy_columns<Dot>(part, vectors, out);
  transpose_rows<Dot>(part, vectors, out);
}

// A row of x for a tile of `rows` rows, whose chunks of k lie one behind the other.
template <class Dot, class X>
void stage_row(const X* x, int64_t k, int rows, typename Dot::Staged* out) {
  for (; k >= kChunk; x += kChunk, k -= kChunk, out += rows * kChunkSteps<Dot>) {
    Dot::stage(x, kChunk, out);
  }
  if (k > 0) Dot::stage(x, k, out);
}

// Where rows of x wait: tile after tile of `rows` rows, each as [chunk of k][row][step].
template <class Dot>
struct StagedRows {
  typename Dot::Staged* data;
  int rows;
  int64_t chunks;  // of k

  typename Dot::Staged* tile(int64_t r) const {
    return data + r / rows * chunks * rows * kChunkSteps<Dot>;
  }
  typename Dot::Staged* row(int64_t r) const { return tile(r) + r % rows * kChunkSteps<Dot>; }
};

// A step of kLanes rows of an x by columns, the first at `x`, of so many rows and k from there on;
// zeros past them.
template <class Dot, class X>
typename Dot::Operand load_step(const X* x, int64_t stride, int64_t rows, int64_t k) {
  using Reading = typename Dot::template Of<X>;
  const auto of = [&](auto depth) {
    if (rows >= kLanes) return Reading::load_columns(depth, x, stride);
    return Reading::load_columns(depth, x, stride, static_cast<int>(rows));
  };
  if (k >= Dot::kDepth) return of(Depth<Dot::kDepth>{});
  return k > 0 ? of(Depth<1>{}) : typename Dot::Operand{};
}

// By columns a line holds one k of several rows, and memory is read best from row to row.
template <class Dot, class X>
void stage_columns(const X* x, int64_t stride, int64_t rows, int64_t k,
                   const StagedRows<Dot>& out) {
  for (int64_t step = 0; step < steps_of<Dot>(k); step += kLanes) {
    const int64_t chunk = step / kChunkSteps<Dot> * out.rows, rest = step % kChunkSteps<Dot>;
    for (int64_t r = 0; r < rows; r += kLanes) {
      typename Dot::Operand block[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        const int64_t done = (step + j) * Dot::kDepth;
        block[j] = load_step<Dot>(x + done * stride + r, stride, rows - r, k - done);
      }
      Dot::transpose(block);
      const int count = static_cast<int>(smaller(rows - r, kLanes));
      for (int j = 0; j < count; ++j) {
        __builtin_memcpy(out.row(r + j) + chunk * kChunkSteps<Dot> + rest, block + j,
                         sizeof block[j]);
      }
    }
  }
}

// Stages rows [m, m1) of x over `k` of k from k0 on. Rows that the last tile lacks stay as they
// were, and nothing reads their sums.
template <class Dot, class X>
void stage_rows(const Matrix& x, int64_t m, int64_t m1, int64_t k0, int64_t k,
                const StagedRows<Dot>& out) {
  const X* data = static_cast<const X*>(x.data);
  if (x.by_columns) return stage_columns(data + k0 * x.stride + m, x.stride, m1 - m, k, out);
  for (int64_t r = m; r < m1; ++r) {
    stage_row<Dot>(data + r * x.stride + k0, k, out.rows, out.row(r - m));
  }
}

}  // namespace
}  // namespace accel_cpu
