// Deals numbered blocks of an op to threads: those of OpenMP, woken for it, or a team's, which wait
// for it awake.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#include "parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace accel_cpu {
namespace {

constexpr int64_t kLine = 64;
// Bytes read ahead between two looks at whether there is work ...
constexpr int64_t kReadAtOnce = 8 * kLine;
// ... and until there is: more would displace in L2 what comes first.
constexpr int64_t kReadAhead = 1 << 20;
// Looks at a flag, some 50 us of them, after which others may have the processor; and after how
// many more of them a helper sleeps.
constexpr int kPatience = 2000, kYields = 100;

// Of a thread that waits for a flag.
class Waiting {
 public:
  bool is_long() const { return looks_ > kPatience + kYields; }
  void look() {
    if (++looks_ > kPatience) return std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

 private:
  int looks_ = 0;
};

class OpenTeam final : public Team {
 public:
  explicit OpenTeam(int helpers) : helpers_(helpers) {}

  void read_next(const Lying* first, int64_t count) override { next_ = {first, count}; }

  // Whoever has not come when the last block is taken is not waited for.
  void deal(int64_t count, BlockWork work, void* context) {
    count_ = count;
    work_ = work;
    context_ = context;
    next_block_.store(0, std::memory_order_relaxed);
    state_.fetch_add(kRound | kOpen, std::memory_order_release);
    state_.notify_all();
    take_blocks();
    state_.fetch_and(~kOpen, std::memory_order_relaxed);
    Waiting waiting;
    while (state_.load(std::memory_order_acquire) & kInside) waiting.look();
  }

  void part() {
    state_.fetch_or(kParted, std::memory_order_release);
    state_.notify_all();
  }

  // Until the team parts; `number` counts helpers.
  void help(int number) {
    uint64_t seen = 0;
    Weights ahead{};
    int64_t read = 0;
    Waiting waiting;
    for (uint64_t state; !((state = state_.load(std::memory_order_acquire)) & kParted);) {
      if (state & kOpen && state / kRound != seen) {
        const uint64_t found = state_.fetch_add(1, std::memory_order_acquire);
        seen = found / kRound;
        if (found & kOpen) {
          take_blocks();
          if (next_.first != ahead.first) read = number * kReadAtOnce;
          ahead = next_;
        }
        state_.fetch_sub(1, std::memory_order_release);
        waiting = {};
      } else if (read < kReadAhead && ahead.count) {
        read_some(ahead, read);
        read += helpers_ * kReadAtOnce;
      } else if (waiting.is_long()) {
        state_.wait(state, std::memory_order_acquire);
      } else {
        waiting.look();
      }
    }
  }

 private:
  struct Weights {
    const Lying* first;
    int64_t count;
  };

  // Of the state: helpers that are inside, whether blocks may be taken, whether there will be no
  // more, and how often they were dealt.
  static constexpr uint64_t kInside = 0xFFFF, kOpen = 1 << 16, kParted = 1 << 17, kRound = 1 << 18;

  void take_blocks() {
    for (int64_t i; (i = next_block_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      work_(context_, i);
    }
  }

  // A number of each line, into the caches. (A processor drops what it is merely asked for by
  // prefetches while others are under way: by them a step gained nothing.)
  static void read_some(const Weights& weights, int64_t from) {
    for (int64_t i = 0; i < weights.count; ++i) {  // which are used side by side
      const Lying& one = weights.first[i];
      const int64_t first = from / weights.count / kLine * kLine;
      const int64_t last = std::min(first + kReadAtOnce / weights.count, one.bytes);
      for (int64_t at = first; at < last; at += kLine) {
        (void)*(static_cast<const volatile char*>(one.data) + at);
      }
    }
  }

  const int helpers_;
  BlockWork work_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  Weights next_{};
  alignas(kLine) std::atomic<int64_t> next_block_{0};
  alignas(kLine) std::atomic<uint64_t> state_{0};
};

thread_local OpenTeam* team = nullptr;  // of the thread that calls ops

}  // namespace

void deal_blocks(int64_t count, int threads, BlockWork work, void* context) {
  if (threads > 1 && team) return team->deal(count, work, context);
  // Not num_threads(): libgomp rebuilds its pool whenever that changes, and PyTorch shares it.
#pragma omp parallel for schedule(dynamic) if (threads > 1)
  for (int64_t i = 0; i < count; ++i) work(context, i);
}

void in_team(TeamWork work, void* context) {
  std::exception_ptr failed;
  OpenTeam one(std::max(omp_get_max_threads() - 1, 1));
#pragma omp parallel
  if (omp_get_thread_num() == 0) {
    team = &one;
    try {
      work(one, context);
    } catch (...) {
      failed = std::current_exception();
    }
    team = nullptr;
    one.part();
  } else {
    one.help(omp_get_thread_num() - 1);
  }
  if (failed) std::rethrow_exception(failed);
}

}  // namespace accel_cpu
