// Counts the bytes that torch's CPU allocator hands out and takes back.
//
// The counter wraps whatever allocator is in place and exchanges the deleter of each block for one
// that counts, so blocks handed out earlier keep theirs and are not counted. Sizes are asked of the
// C library (the size of a block is not passed to a deleter), hence include its rounding.
//
// Only atomics are used: allocation may happen on any thread, and a child that was forked while
// another thread allocated must be able to go on.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(__APPLE__)
#include <malloc/malloc.h>
#else
#include <malloc.h>
#endif

#include <c10/core/CPUAllocator.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::int64_t size_of(void* block) {
#if defined(__APPLE__)
  return static_cast<std::int64_t>(malloc_size(block));
#else
  return static_cast<std::int64_t>(malloc_usable_size(block));
#endif
}

// A quantity that rises and falls, with its peak and the sum of its rises.
class Figure {
 public:
  void add(std::int64_t amount) {
    risen_ += amount;
    raise_peak(current_ += amount);
  }

  void subtract(std::int64_t amount) {
    current_ -= amount;
  }

  void reset_peak() {
    peak_ = current_.load();
    raise_peak(current_);  // it may have risen between the read and the write above
  }

  // current, peak, risen; risen is read last so that risen - current, what fell, is never negative
  void read(std::int64_t* to) const {
    to[0] = current_;
    to[1] = std::max(peak_.load(), to[0]);
    to[2] = risen_;
  }

 private:
  void raise_peak(std::int64_t value) {
    std::int64_t seen = peak_;
    while (seen < value && !peak_.compare_exchange_weak(seen, value)) {
    }
  }

  std::atomic<std::int64_t> current_{0}, peak_{0}, risen_{0};
};

Figure bytes, blocks;
c10::Allocator* inner = nullptr;
c10::DeleterFnPtr inner_deleter = nullptr;

void count_and_free(void* block) {
  if (block) {  // torch's own deleter takes none, too
    bytes.subtract(size_of(block));
    blocks.subtract(1);
  }
  inner_deleter(block);
}

class Counter final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t n) override {
    c10::DataPtr data = inner->allocate(n);
    TORCH_CHECK(
        data.compare_exchange_deleter(inner_deleter, &count_and_free),
        "the CPU allocator broke the promise of its raw_deleter()");
    if (void* block = data.get_context()) {  // none for n = 0, and then no deleter runs
      bytes.add(size_of(block));
      blocks.add(1);
    }
    return data;
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &count_and_free;
  }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    inner->copy_data(to, from, count);
  }
};

// Never destroyed: tensors may outlive every other object of the process.
Counter* const counter = new Counter;

bool is_in_place() {
  return c10::GetCPUAllocator() == counter;
}

}  // namespace

// Start counting, once and for good. Returns 1 on success; 0 if the allocator in place gives out
// blocks whose context is not the memory itself, so that their size cannot be asked.
EXPORT int accel_cpu_memory_start() {
  static const bool started = [] {
    inner = c10::GetCPUAllocator();
    inner_deleter = inner->raw_deleter();
    if (inner_deleter == nullptr) {
      return false;
    }
    c10::SetCPUAllocator(counter, /*priority=*/255);
    return is_in_place();
  }();
  return started;
}

// Write {current, peak, risen} of bytes, then of blocks. Returns 0 if another allocator has been
// put in place of the counter, which then no longer sees everything.
EXPORT int accel_cpu_memory_read(std::int64_t figures[6]) {
  bytes.read(figures);
  blocks.read(figures + 3);
  return is_in_place();
}

EXPORT void accel_cpu_memory_reset_peak() {
  bytes.reset_peak();
  blocks.reset_peak();
}
