// Cuts attention and its gradients into blocks and deals them to threads. No cut changes a result
// (see attention_rows.h, attention_parts.h and attention_backward.h).
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "parallel.h"

namespace accel_cpu {
namespace {

int64_t rows_of(const AttentionArgs& args, int64_t span) {  // beside one kv head
  return args.spans[span].q_len * (args.h / args.g);
}

// Multiply-adds of one of the two products.
int64_t work_of(const AttentionArgs& args) {
  int64_t work = 0;
  for (int64_t s = 0; s < args.span_count; ++s) {
    work += rows_of(args, s) * args.g * args.spans[s].k_len * (args.d + args.e);
  }
  return work;
}

AttentionScratch attention_scratch(int64_t d, int64_t e) {
  const int64_t whole = round_up(d, kChunk);
  float* next = scratch(kAttentionRows * (whole + kAttentionKeys + 2 * e) +
                        kAttentionKeys * (whole + e));
  const auto rows = [&](int64_t count, int64_t width) {
    return std::exchange(next, next + count * width);
  };
  AttentionScratch of;
  of.q = rows(kAttentionRows, whole);
  of.k = rows(kAttentionKeys, whole);
  of.weights = rows(kAttentionRows, kAttentionKeys);
  of.out = rows(kAttentionRows, e);
  of.sums = rows(kAttentionRows, e);
  of.v = rows(kAttentionKeys, e);
  return of;
}

AttentionBackwardScratch attention_backward_scratch(int64_t d, int64_t e) {
  const auto count = [](int64_t width) {
    return std::max<int64_t>(ceil_div(width, kAttentionKeys), 1);
  };
  constexpr int64_t kBlocks = kAttentionPart / kAttentionKeys;
  const int64_t of_d = count(d), of_e = count(e), all = (kBlocks + 3) * of_d + (kBlocks + 2) * of_e;
  float* next = scratch((all + 5) * kAttentionSquare + kAttentionPart);
  const auto squares = [&](int64_t some) {
    return std::exchange(next, next + some * kAttentionSquare);
  };
  AttentionBackwardScratch of;
  of.q = squares(kBlocks * of_d);
  of.dy = squares(kBlocks * of_e);
  for (float** one : {&of.k, &of.k_turned, &of.dk}) *one = squares(of_d);
  for (float** one : {&of.v_turned, &of.dv}) *one = squares(of_e);
  for (float** one : {&of.p, &of.p_turned, &of.ds, &of.ds_turned, &of.found}) *one = squares(1);
  of.means = next;
  return of;
}

// The spans by number, those whose keys overlap together: their gradients are one thread's to add.
std::vector<std::vector<int64_t>> sharing_keys(const AttentionArgs& args) {
  std::vector<int64_t> order(args.span_count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return args.spans[a].k_start < args.spans[b].k_start;
  });
  std::vector<std::vector<int64_t>> found;
  int64_t end = 0;  // of the keys of the last of them
  for (const int64_t number : order) {
    const Span& span = args.spans[number];
    if (found.empty() || span.k_start >= end) found.emplace_back();
    found.back().push_back(number);
    end = std::max(end, span.k_start + span.k_len);
  }
  return found;
}

// Of some spans beside one kv head a part of the rows and of the keys, of each span as far as it
// goes.
struct GradientItem {
  std::vector<int64_t> spans;
  int64_t kv_head, r0, r1, k0, k1;
};

// For each kv head cuts [0, whole) into parts of `size`.
template <class F>
void for_parts(const AttentionArgs& args, int64_t whole, int64_t size, F f) {
  for (int64_t head = 0; head < args.g; ++head) {
    for (int64_t i = 0; i < whole; i += size) f(head, i, std::min(whole, i + size));
  }
}

std::vector<GradientItem> whole_spans(const AttentionArgs& args) {
  std::vector<GradientItem> items;
  for (const auto& spans : sharing_keys(args)) {
    for_parts(args, 1, 1, [&](int64_t head, int64_t, int64_t) {
      items.push_back({spans, head, 0, INT64_MAX, 0, INT64_MAX});
    });
  }
  return items;
}

std::vector<GradientItem> cut_by_rows(const AttentionArgs& args) {
  std::vector<GradientItem> items;
  for (int64_t s = 0; s < args.span_count; ++s) {
    for_parts(args, rows_of(args, s), kAttentionPart, [&](int64_t head, int64_t r0, int64_t r1) {
      items.push_back({{s}, head, r0, r1, 0, INT64_MAX});
    });
  }
  return items;
}

std::vector<GradientItem> cut_by_keys(const AttentionArgs& args, int threads) {
  std::vector<GradientItem> items;
  for (const auto& spans : sharing_keys(args)) {
    const int64_t keys = spans.size() > 1 ? INT64_MAX : args.spans[spans[0]].k_len;
    const int64_t size =
        spans.size() > 1 ? keys : round_up(ceil_div(keys, 4 * threads), kAttentionKeys);
    for_parts(args, keys, size, [&](int64_t head, int64_t k0, int64_t k1) {
      items.push_back({spans, head, 0, INT64_MAX, k0, k1});
    });
  }
  return items;
}

void run(const AttentionBackwardArgs& args, const std::vector<GradientItem>& items, int threads) {
  const auto block = kernels().attention_backward;
  const AttentionArgs& of = args.of;
  deal(static_cast<int64_t>(items.size()), threads, [&](int64_t i) {
    const GradientItem& item = items[i];
    for (const int64_t s : item.spans) {
      const int64_t r1 = std::min(item.r1, rows_of(of, s));
      const int64_t k1 = std::min(item.k1, of.spans[s].k_len);
      block(args, {s, item.kv_head, item.r0, r1, item.k0, k1},
            attention_backward_scratch(of.d, of.e));
    }
  });
}

// Blocks of keys from which on threads share those of a span, and how many have room at once: with
// 48 rows and heads of 128, 5 MB.
constexpr int64_t kLeastShared = 8, kRoundBlocks = 128;

// Blocks of keys that rows of a block see, from the first that any sees on.
int64_t blocks_of(const AttentionArgs& args, const AttentionBlock& block) {
  const Span& span = args.spans[block.span];
  const int64_t first_at = span.k_len - span.q_len, last_at = span.k_len - 1;
  const int64_t from = std::max<int64_t>(first_at - args.window + 1, 0);
  const int64_t to = args.causal ? last_at + 1 : std::min(last_at + args.window, span.k_len);
  return ceil_div(to, kAttentionKeys) - from / kAttentionKeys;
}

// All threads at one block. Heads lie side by side in memory, and threads that take some each read
// past those of others: beside them 16 heads of one row and keys of 4 heads take 1.2 of the time
// with 256 keys, 0.78 with 512, 0.7 with 2048 and more (bf16, heads of 64, two Zen 5 cores). And
// there may be fewer heads than threads.
void share(const AttentionArgs& args, const AttentionBlock& block, int64_t places, int threads) {
  const auto step = kernels().attention_step[static_cast<int>(args.dtype)];
  const int64_t heads = block.g1 - block.g0;
  const int64_t all = blocks_of(args, block), round = std::min(all, kRoundBlocks);
  thread_local std::vector<float> memory;
  memory.resize(places * (round * (kAttentionKeys + args.e + 1) + kMostLanes + 1 + args.e));
  float* next = memory.data();
  const auto rows = [&](int64_t count, int64_t width) {
    return std::exchange(next, next + count * width);
  };
  AttentionParts parts;
  parts.weights = rows(round * places, kAttentionKeys);
  parts.sums = rows(round * places, args.e);
  parts.factors = rows(round * places, 1);
  parts.tops = rows(places, kMostLanes + 1);
  parts.out = rows(places, args.e);
  const auto deal_step = [&](AttentionStep which, int64_t count, int64_t most) {
    const int64_t size = ceil_div(count, most);
    deal(ceil_div(count, size), threads, [&](int64_t i) {
      step(args, block, attention_scratch(args.d, args.e), parts, which, i * size,
           std::min(count, (i + 1) * size));
    });
  };
  for (parts.first = 0; parts.first < all; parts.first += round) {
    parts.count = std::min(round, all - parts.first);
    deal_step(AttentionStep::score, parts.count, 4 * threads);
    deal_step(AttentionStep::weigh, heads, threads);
    deal_step(AttentionStep::sum, parts.count, 4 * threads);
    deal_step(AttentionStep::gather, heads, threads);
  }
}

}  // namespace

// A block takes rows beside one kv head, or where they are few beside several, whose keys lie side
// by side in memory; not so many that a thread stands idle, unless threads share its keys.
void attention(const AttentionArgs& args, int threads) {
  const auto run = kernels().attention[static_cast<int>(args.dtype)];
  if (work_of(args) < kProductGrain) threads = 1;
  const int64_t part = ceil_div(args.g * args.span_count, threads);
  std::vector<AttentionBlock> blocks;
  for (int64_t s = 0; s < args.span_count; ++s) {
    const int64_t rows = rows_of(args, s), places = rows == 1 ? 1 : round_up(rows, 2);
    const bool few = 0 < rows && rows <= kAttentionFew;
    const int64_t most = few ? kAttentionRows / places : 1;
    const bool shared = few && args.span_count < threads &&
                        blocks_of(args, {s, 0, args.g, 0, rows}) >= kLeastShared;
    const int64_t heads = shared ? most : std::clamp<int64_t>(part, 1, most);
    for (int64_t g = 0; g < args.g; g += heads) {
      const int64_t g1 = std::min(args.g, g + heads);
      if (shared) {
        share(args, {s, g, g1, 0, rows}, (g1 - g) * places, threads);
        continue;
      }
      for (int64_t r = 0; r < rows; r += kAttentionRows) {
        blocks.push_back({s, g, g1, r, std::min(rows, r + kAttentionRows)});
      }
    }
  }
  deal(static_cast<int64_t>(blocks.size()), threads,
       [&](int64_t i) { run(args, blocks[i], attention_scratch(args.d, args.e)); });
}

// Where there are too few heads and spans for the threads, dq is cut by rows, dk and dv by keys:
// seven products in place of five.
void attention_backward(const AttentionBackwardArgs& args, int threads) {
  if (work_of(args.of) < kProductGrain) threads = 1;
  const std::vector<GradientItem> whole = whole_spans(args.of);
  if (whole.size() >= static_cast<size_t>(threads)) return run(args, whole, threads);
  AttentionBackwardArgs by_rows = args, by_keys = args;
  by_rows.dk = by_rows.dv = by_keys.dq = nullptr;
  if (args.dq) run(by_rows, cut_by_rows(args.of), threads);
  if (args.dk || args.dv) run(by_keys, cut_by_keys(args.of, threads), threads);
}

}  // namespace accel_cpu
