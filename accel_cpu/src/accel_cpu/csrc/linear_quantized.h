// A part of quantized_linear on one thread, written over the vectors of the vec_*.h included before
// it: a product as in linear_dots.h. Few rows of x take the numbers of w as they lie, for many they
// are widened once before.
//
// In fp32 each number takes its scale: the sums are those of a linear by the dequantised weight.
// What X multiplies of fewer bits holds every number, and not its product: there a sum takes the
// scale, that of a group, or of the part of it in a chunk, before it is added to others.
#pragma once

#include "linear_product.h"

namespace accel_cpu {
namespace {

template <class X>
constexpr bool kScalesNumbers = __is_same(typename X::Element, float);

// The tallest tile by numbers as they lie, and the tallest whose groups' sums have registers of
// their own.
constexpr int kNumbersRows = kDotRows < 4 ? kDotRows : 4;
constexpr int kGroupsRows = kDotRows < 3 ? kDotRows : 3;
// The most rows that take numbers as they lie, though tile after tile widens them anew.
constexpr int64_t kFewRowsOfNumbers = 16;
// How far ahead numbers are asked for: int8 takes 0.77 of the time, int4 0.7 (M=1, K=1024, N=4096,
// two Zen 5 cores).
constexpr int64_t kNumbersAhead = 8192;

inline const float* scales_of(const QuantizedMatrix& w, int64_t n) {
  return static_cast<const float*>(w.scales.data) + n * w.scales.stride;
}

template <int kBits>
constexpr int64_t bytes_of(int64_t k) {
  return (k * kBits + 7) / 8;
}

inline void scale_in_place(float* a, float scale, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(a + i, mul(broadcast(scale), load(a + i, n...)), n...);
  });
}

// A row of numbers as it lies. Rows are too short for the processor to foresee: those `ahead`
// bytes further on are asked for meanwhile. An address past the end is harmless.
template <class X, int kBits>
struct LyingNumbers {
  const uint8_t* data;
  int64_t ahead;

  void ask(int64_t i) const {
    constexpr int64_t kLine = 64 * 8 / kBits;
    if (i % kLine == 0) __builtin_prefetch(data + bytes_of<kBits>(i) + ahead);
  }
  typename X::Operand load(int64_t i) const {
    return X::template load_numbers<kBits>(data + bytes_of<kBits>(i));
  }
  // The first n; the others are finite.
  typename X::Operand load(int64_t i, int n) const {
    uint8_t bytes[bytes_of<kBits>(kBlock<X>)] = {};
    __builtin_memcpy(bytes, data + bytes_of<kBits>(i), bytes_of<kBits>(n));
    return X::template load_numbers<kBits>(bytes);
  }
};

// One that was widened.
template <class X>
struct WideNumbers {
  const typename X::Element* data;

  void ask(int64_t) const {}
  template <class... N>
  typename X::Operand load(int64_t i, N... n) const {
    return X::load_row(data + i, n...);
  }
};

// A row of numbers and its scales: the first `until` numbers have the first, each `group` behind
// them the next.
template <class Numbers, bool kGroups>
struct ScaledRow {
  Numbers numbers;
  const float* scales;
  int64_t until, group;
};

// As for rows of w that need no scale. Numbers ask for themselves.
template <class X, int R, class Numbers, bool kGroups>
[[gnu::always_inline]] inline void dot_tile(LyingRows<typename X::Element> x,
                                            const ScaledRow<Numbers, kGroups> (&w)[kDotColumns],
                                            NothingAhead, int64_t k, TileStart from,
                                            TileSums to) {
  constexpr int C = kDotColumns;
  Vec acc[R * C], sums[R * C], scales[C];
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) acc[j] = zero();
  int64_t end = smaller(w[0].until, k);
  for (int64_t i = 0, group = 0; i < k; ++group, end = smaller(end + w[0].group, k)) {
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) scales[j] = broadcast(w[j].scales[group]);
#pragma GCC unroll 24
    for (int j = 0; j < R * C; ++j) sums[j] = kGroups ? zero() : acc[j];
    const auto step = [&](int64_t at, auto... n) {
      typename X::Operand a[R];
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) a[r] = X::load_row(x.data + r * x.stride + at, n...);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) {
        typename X::Operand b = w[j].numbers.load(at, n...);
        if constexpr (kScalesNumbers<X>) b = mul(scales[j], b);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) sums[r * C + j] = X::madd(a[r], b, sums[r * C + j]);
      }
    };
#pragma GCC unroll 2
    for (; i + kBlock<X> <= end; i += kBlock<X>) {
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) w[j].numbers.ask(i);
      step(i);
    }
    if (i < end) step(i, static_cast<int>(end - i));
    i = end;
#pragma GCC unroll 24
    for (int j = 0; j < R * C; ++j) {
      acc[j] = kGroups ? madd(scales[j % C], sums[j], acc[j]) : sums[j];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    float whole[C];
    reduce4(acc + r * C, whole);
    float* out = to.data + r * to.stride;
    for (int j = 0; j < C; ++j) {
      const float sum = kGroups || kScalesNumbers<X> ? whole[j] : w[j].scales[0] * whole[j];
      out[j] = from.data ? from.data[r * from.stride + j] + sum : sum;
    }
  }
}

// Rows of w from row n and k0 on, whose numbers find.at(n, k) finds, n and k counted from there.
template <class Find, int R, bool kGroups>
struct ScaledRows {
  static constexpr int kRows = R;
  static constexpr bool kWide = false;
  const QuantizedMatrix& w;
  int64_t n, k0;
  Find find;

  template <int C>
  NothingAhead ahead(int64_t, int64_t, int64_t, int64_t) const {
    return {};
  }
  ScaledRows from(int64_t j) const { return {w, n + j, k0, find.from(j)}; }
  auto row(int64_t j, int64_t done) const {
    const int64_t first = (k0 + done) / w.group;
    return ScaledRow<decltype(find.at(j, done)), kGroups>{
        find.at(j, done), scales_of(w, n + j) + first, (first + 1) * w.group - (k0 + done),
        w.group};
  }
};

template <class X, int kBits>
struct FindLying {
  const uint8_t* data;
  int64_t stride;
  LyingNumbers<X, kBits> at(int64_t j, int64_t k) const {
    int64_t rows = kDotColumns;  // of whole tiles; the limit is for rows of no stride
    while (rows * stride < kNumbersAhead && rows < 16) rows += kDotColumns;
    return {data + j * stride + bytes_of<kBits>(k), rows * stride};
  }
};

template <class X>
struct FindWide {
  const typename X::Element* data;
  int64_t stride;
  FindWide from(int64_t j) const { return {data + j * stride, stride}; }
  WideNumbers<X> at(int64_t j, int64_t k) const { return {data + j * stride + k}; }
};

template <class X, int kBits, bool kGroups>
struct QuantizedWeight {
  const QuantizedMatrix& w;
  static constexpr int64_t kPacked = kDotTile;
  static constexpr int kLyingRows = kGroups ? kGroupsRows : kNumbersRows;

  // As it lies a group has whole vectors.
  bool lies(int64_t rows) const {
    return rows <= kFewRowsOfNumbers && (w.groups == 1 || w.group % kBlock<X> == 0);
  }
  FindLying<X, kBits> lying(int64_t n, int64_t k0) const {
    const auto* data = static_cast<const uint8_t*>(w.bytes.data);
    return {data + n * w.bytes.stride + bytes_of<kBits>(k0), w.bytes.stride};
  }
  ScaledRows<FindLying<X, kBits>, kLyingRows, kGroups> at(int64_t n, int64_t k0) const {
    return {w, n, k0, lying(n, k0)};
  }
  auto near(int64_t n, int64_t n1, int64_t k0, int64_t k, typename X::Element* out) const {
    const int64_t stride = packed_stride<X>(k);
    for (int64_t j = 0; j < n1 - n; ++j) {
      widen(lying(n, k0).at(j, 0), k, out + j * stride);
      if constexpr (kScalesNumbers<X>) scale(n + j, k0, k, out + j * stride);
    }
    if constexpr (kScalesNumbers<X>) {
      return WeightRows<X, false>{{out, stride}};
    } else {
      constexpr int R = kGroups ? kGroupsRows : kDotRows;
      return ScaledRows<FindWide<X>, R, kGroups>{w, n, k0, {out, stride}};
    }
  }

 private:
  static void widen(const LyingNumbers<X, kBits>& row, int64_t k, typename X::Element* out) {
    for (int64_t i = 0; i < k; i += kBlock<X>) {
      const int left = static_cast<int>(smaller(k - i, kBlock<X>));
      row.ask(i);
      const typename X::Operand numbers = left < kBlock<X> ? row.load(i, left) : row.load(i);
      __builtin_memcpy(out + i, &numbers, sizeof numbers);
    }
  }
  void scale(int64_t n, int64_t k0, int64_t k, float* out) const {
    const float* of_group = scales_of(w, n) + k0 / w.group;
    int64_t end = w.group - k0 % w.group;
    for (int64_t i = 0; i < k; i = end, end += w.group, ++of_group) {
      scale_in_place(out + i, *of_group, smaller(end, k) - i);
    }
  }
};

template <class X, class T>
void quantized_part_of(const LinearArgs& args, const Block& block, const LinearScratch& scratch) {
  const QuantizedMatrix& w = args.quantized;
  const Results results = {args, block, scratch};
  const auto multiply = [&](auto weight) { dot_product<X, T>(args.x, weight, args.k, results); };
  constexpr bool kGroups = !kScalesNumbers<X>;
  if (w.bits == 8 && w.groups == 1) return multiply(QuantizedWeight<X, 8, false>{w});
  if (w.bits == 8) return multiply(QuantizedWeight<X, 8, kGroups>{w});
  if (w.groups == 1) return multiply(QuantizedWeight<X, 4, false>{w});
  multiply(QuantizedWeight<X, 4, kGroups>{w});
}

// Of x widened to fp32.
template <class T>
void quantized_part(const LinearArgs& args, const Block& block, const LinearScratch& scratch) {
  quantized_part_of<Widened<float>, T>(args, block, scratch);
}

}  // namespace
}  // namespace accel_cpu
