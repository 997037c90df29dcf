// Memory asked for before it is read.
#pragma once

#include <cstdint>

namespace accel_cpu {
namespace {

// Calls f(i) for the cache lines of `bytes` bytes, each by the i of its first.
template <class F>
void for_each_line(int64_t bytes, F f) {
  for (int64_t i = 0; i < bytes; i += 64) f(i);
}

// Rows that come later. While some are read side by side, block after block, as many lines of these
// are asked for as a block has, into L2, in the order in which they lie: asked for side by side
// too, memory gives two Zen 5 cores 22 GB/s of the 45 that they can read, like this 35 (bf16 linear
// of four rows, K=1024, N=4096). An address past the end is harmless.
class Ahead {
 public:
  Ahead() = default;  // asks for nothing

  // `k` elements of each row.
  template <class T>
  Ahead(const T* first, int64_t stride, int64_t k, int64_t rows)
      : line_(reinterpret_cast<const char*>(first)),
        row_(k * static_cast<int64_t>(sizeof(T))),
        between_(stride * static_cast<int64_t>(sizeof(T)) - row_),
        left_(row_),
        rows_(k > 0 ? rows : 0) {}

  void ask(int64_t bytes) {
    if (rows_ <= 0) return;
    for_each_line(bytes, [this](int64_t i) { __builtin_prefetch(line_ + i, 0, 2); });
    line_ += bytes;
    left_ -= bytes;
    while (left_ <= 0) {
      line_ += between_;
      left_ += row_;
      --rows_;
    }
  }

 private:
  const char* line_ = nullptr;
  int64_t row_ = 0, between_ = 0, left_ = 0, rows_ = 0;
};

}  // namespace
}  // namespace accel_cpu
