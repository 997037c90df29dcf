// The 16-bit element types as memory holds them. Arithmetic is done on fp32 vectors (vec_*.h).
#pragma once

#include <cstdint>

namespace accel_cpu {
namespace {

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

}  // namespace
}  // namespace accel_cpu
