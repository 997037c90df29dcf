// fp32 "vectors" in portable C++, for any architecture and as the plainest statement of what the
// others do. Multiply and add round separately here, as a fused multiply-add is a slow library call
// without hardware for it.
#pragma once

#include <cstring>

#include "element.h"

namespace accel_cpu {
namespace {

constexpr int kLanes = 4;
constexpr int kAccumulators = 4;
constexpr int kTileRows = 2;  // of the tallest tile
constexpr int kDotRows = 2;  // against four of w, lanes along k
constexpr bool kAsksAhead = false;

struct Vec {
  float lane[kLanes];
};

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float a) { return a; }
inline float widen(bf16 a) { return float_of(static_cast<uint32_t>(a.bits) << 16); }
inline float widen(f16 a) {
  const uint32_t sign = static_cast<uint32_t>(a.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(a.bits & 0x7fff)
                             << 13;  // exponent and fraction in fp32's places
  if (magnitude >= 0x0f800000) return float_of(sign | magnitude | 0x7f800000);  // infinity, NaN
  // The exponent's bias is 112 less than fp32's; as a product this is right for subnormals too.
  return float_of(sign | bits_of(float_of(magnitude) * 0x1p112f));
}

inline void narrow(float a, float& out) { out = a; }
inline void narrow(float a, bf16& out) {
  const uint32_t bits = bits_of(a);
  out.bits = a != a ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void narrow(float a, f16& out) {
  const uint32_t bits = bits_of(a);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = float_of(bits & 0x7fffffff);
  uint32_t half;
  if (a != a) {
    half = 0x7e00;
  } else if (magnitude >= 65520.0f) {  // halfway between the largest finite value and the next
    half = 0x7c00;
  } else if (magnitude < 0x1p-14f) {
    // Subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded to nearest even.
    half = bits_of(magnitude + 0.5f) - bits_of(0.5f);
  } else {
    const uint32_t m = bits_of(magnitude);
    half = (m - (112u << 23) + 0xfff + ((m >> 13) & 1)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}

template <class F>
inline Vec lanes(F f) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = f(i);
  return out;
}

inline Vec zero() { return Vec{}; }
inline Vec broadcast(float a) {
  return lanes([&](int) { return a; });
}
inline Vec add(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec mul(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec div(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec sub(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec madd(Vec a, Vec b, Vec acc) { return add(mul(a, b), acc); }
// b where either is NaN.
inline Vec max(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min(Vec a, Vec b) {
  return lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// a < b ? yes : no
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return lanes([&](int i) { return a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
inline Vec lane_index() {
  return lanes([](int i) { return static_cast<float>(i); });
}

// To nearest, ties to even; |a| < 2^22.
inline Vec round_to_integer(Vec a) { return sub(add(a, broadcast(0x3p22f)), broadcast(0x3p22f)); }

// a 2^n, rounded once, for an integer n in [-252, 254] and a neither tiny nor huge. A NaN needs no
// care: any n will do where a is one too.
inline Vec scale_by_exp2(Vec a, Vec n) {
  return lanes([&](int i) {
    // 2^23 + 2^22 + n holds n in its low bits, as two's complement.
    const int32_t whole = static_cast<int32_t>(bits_of(n.lane[i] + 0x3p22f) - bits_of(0x3p22f));
    const int32_t half = whole >> 1;
    const float low = float_of(static_cast<uint32_t>(half + 127) << 23);
    return a.lane[i] * low * float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  });
}

// The whole numbers of kBits bits at p, of which each lane gets one. Of 4 bits two lie in a byte,
// the first in its low half, each plus 8.
template <int kBits>
inline Vec load_numbers(const uint8_t* p) {
  Vec numbers;
  for (int i = 0; i < kLanes; ++i) {
    numbers.lane[i] = kBits == 8 ? static_cast<int8_t>(p[i]) : (p[i / 2] >> i % 2 * 4 & 15) - 8;
  }
  return numbers;
}

template <class T>
inline Vec load(const T* p) {
  return lanes([&](int i) { return widen(p[i]); });
}
// The first n < kLanes elements, the other lanes zero. Nothing behind them is touched.
template <class T>
inline Vec load(const T* p, int n) {
  return lanes([&](int i) { return i < n ? widen(p[i]) : 0.0f; });
}
template <class T>
inline void store(T* p, Vec a, int n = kLanes) {
  for (int i = 0; i < n; ++i) narrow(a.lane[i], p[i]);
}

// v[i][j] becomes v[j][i].
inline void transpose(Vec (&v)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float a = v[i].lane[j];
      v[i].lane[j] = v[j].lane[i];
      v[j].lane[i] = a;
    }
  }
}

// out[j] = the sum of v[j], halving: lanes i and i + 2, then i + 1.
inline void reduce4(const Vec* v, float* out) {
  for (int j = 0; j < 4; ++j)
    out[j] = (v[j].lane[0] + v[j].lane[2]) + (v[j].lane[1] + v[j].lane[3]);
}
// out[j] = before[j] + the sum of v[j]
inline void reduce4(const Vec* v, const float* before, float* out) {
  float sums[4];
  reduce4(v, sums);
  for (int j = 0; j < 4; ++j) out[j] = before[j] + sums[j];
}

}  // namespace
}  // namespace accel_cpu
