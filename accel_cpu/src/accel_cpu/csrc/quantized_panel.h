// How a product reads a quantised weight, written over the vectors of the vec_*.h included before
// it: bytes are transposed in registers four to a lane, and their numbers then widened in place.
#pragma once

#include "linear_tile.h"

namespace accel_cpu {
namespace {

// The bytes of a weight, a step of four of them in each lane.
struct PackedBytes {
  using Element = uint8_t;
  using Operand = Vec;
  static constexpr int kDepth = 4;

  // Wherever they lie: a load of floats may count on their alignment.
  static Operand load_row(const uint8_t* w) { return load_row(w, sizeof(Operand)); }
  static Operand load_row(const uint8_t* w, int n) {
    Operand lanes = zero();
    __builtin_memcpy(&lanes, w, n);
    return lanes;
  }
  static void transpose(Operand (&rows)[kLanes]) { accel_cpu::transpose(rows); }
};

template <int kBits>
constexpr int kNumbers = 32 / kBits;  // in a lane

// What makes a number itself, which unpack gives 2^24 or 2^28 times as large: to leave it there
// takes 0.84 of the time of int8 in the cache, 0.91 of int4 (M=1, one Zen 3 core). Sums are brought
// down and not numbers, so that they overflow where x is beyond some 1e27.
inline float unit_of(int bits) { return bits == 8 ? 0x1p-24f : 0x1p-28f; }

// Whether a scale multiplies the sum of a chunk, all of whose k have the same, and not each number.
inline bool scales_chunks(const QuantizedMatrix& w) {
  return w.groups == 1 || w.group % kChunk == 0;
}

// The scales of kLanes columns, of which the first is part.n; past the last, those of the last.
struct Scales {
  const PanelOf<QuantizedMatrix>& part;
  int64_t end = 0;  // of the group whose they are
  Vec now = zero();

  // At a k no less than the one before.
  Vec at(int64_t k) {
    if (k >= end) find(k / part.w.group);
    return now;
  }
  // Those of the next columns are prefetched.
  void find(int64_t group) {
    const int64_t stride = part.w.scales.stride;
    const float* scales = static_cast<const float*>(part.w.scales.data) + group;
    float found[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const int64_t n = smaller(part.n + j, part.n1 - 1);
      found[j] = scales[n * stride];
      __builtin_prefetch(scales + (n + kLanes) * stride);
    }
    now = load(found);
    end = (group + 1) * part.w.group;
  }
};

template <int kBits>
constexpr int64_t bytes_of(int64_t k) {
  return k * kBits / 8;
}

// The numbers of a panel of one vector as they lie, kNumbers steps to a vector. What will be read
// next lies `ahead` bytes further: to prefetch it takes 0.75 of the time at K=1024, 0.9 at 4096
// (int4, M=1, N=4096 and 11008, one Zen 3 core). An address past the end of w is harmless.
template <int kBits>
void read_packed(const PanelOf<QuantizedMatrix>& part, int64_t ahead, Vec* out) {
  const int64_t stride = part.w.bytes.stride, bytes = bytes_of<kBits>(part.k);
  const auto* w = static_cast<const uint8_t*>(part.w.bytes.data);
  const auto* rows = w + part.n * stride + bytes_of<kBits>(part.k0);
  for (int64_t i = 0; i < bytes; i += kBlock<PackedBytes>, out += kLanes) {
    for (int j = 0; j < kLanes; ++j) __builtin_prefetch(rows + j * stride + i + ahead);
    Vec block[kLanes];
    load_block<PackedBytes>(rows + i, stride, part.n1 - part.n, bytes - i, block);
    for (int j = 0; j < kLanes; ++j) out[j] = block[j];
  }
}

template <int kBits>
void widen_numbers(const PanelOf<QuantizedMatrix>& part, int vectors, Vec* out) {
  Vec packed[kMaxSlice / kNumbers<kBits>];
  read_packed<kBits>(part, kLanes * part.w.bytes.stride, packed);
  for (int64_t i = 0; i < part.k; i += kNumbers<kBits>) {
#pragma GCC unroll 8
    for (int j = 0; j < kNumbers<kBits>; ++j) {
      out[(i + j) * vectors] = unpack<kBits>(packed[i / kNumbers<kBits>], j);
    }
  }
}

inline void scale_numbers(const PanelOf<QuantizedMatrix>& part, int vectors, Vec* out) {
  const Vec unit = broadcast(unit_of(part.w.bits));
  Scales scales = {part};
  for (int64_t i = 0; i < part.k; ++i) {
    out[i * vectors] = mul(scales.at(part.k0 + i), mul(unit, out[i * vectors]));
  }
}

// Where a panel's scales lie, those of a chunk after those of another.
inline const Vec* scales_of(const Vec* panel, int vectors) { return panel + vectors * kMaxSlice; }
inline Vec* scales_of(Vec* panel, int vectors) { return panel + vectors * kMaxSlice; }

inline void read_scales(const PanelOf<QuantizedMatrix>& part, int vectors, Vec* out) {
  Scales scales = {part};
  for (int64_t i = 0; i < part.k; i += kChunk, out += vectors) *out = scales.at(part.k0 + i);
}

void read_quantized_panel(const PanelOf<QuantizedMatrix>& part, int vectors, Vec* out) {
  for (int c = 0; c < vectors; ++c) {
    const int64_t n = smaller(part.n + c * kLanes, part.n1 - 1);
    const PanelOf<QuantizedMatrix> column = {part.w, n, part.n1, part.k0, part.k};
    if (part.w.bits == 8) widen_numbers<8>(column, vectors, out + c);
    if (part.w.bits == 4) widen_numbers<4>(column, vectors, out + c);
    if (scales_chunks(part.w)) {
      read_scales(column, vectors, scales_of(out, vectors) + c);
    } else {
      scale_numbers(column, vectors, out + c);
    }
  }
}

template <class Dot>
InPanel<Dot> in_panel(const PanelOf<QuantizedMatrix>& part, int vectors, const Vec* panel) {
  const Vec* scales = scales_chunks(part.w) ? scales_of(panel, vectors) : nullptr;
  return {panel, scales, unit_of(part.w.bits)};
}

}  // namespace
}  // namespace accel_cpu
