// Cuts an op into blocks and deals them to threads. No cut changes a result (see
// linear_tile.h).
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace accel_cpu {
namespace {

// What tune_linear was told, one word for each size: a hash of the size in its upper 48 bits, then
// LinearTuning. Sizes of one slot displace each other, which costs time and no result.
constexpr int64_t kTunedSlots = 1024;
constexpr int64_t kMaxTunedColumns = (1 << 15) - 1;
std::atomic<uint64_t> tuned[kTunedSlots];

uint64_t mixed(uint64_t z) {  // SplitMix64
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

uint64_t hash_of(int64_t m, int64_t n, int64_t k, DType dtype) {
  return mixed(mixed(mixed(m + 1) + n) + kDTypes * k + static_cast<int>(dtype)) >> 16;
}

LinearTuning tuning_of(const LinearArgs& args) {
  const uint64_t hash = hash_of(args.m, args.n, args.k, args.dtype);
  const uint64_t word = tuned[hash % kTunedSlots].load(std::memory_order_relaxed);
  if (word >> 16 != hash) return {};
  return {(word & 1) != 0, static_cast<int64_t>(word >> 1) & kMaxTunedColumns};
}

// How to cut [m, n] into blocks of rows and columns.
struct Cut {
  int64_t rows, columns;
};

bool many_rows(const LinearArgs& args) { return args.m > kStagedRows; }

// Of many rows a thread takes parts: of w the part's columns lie as panels, 1 MiB of them, in L2
// and L3. Each part stages its rows of x and reads its columns of w anew, 4 % of the work where it
// is as large as this, so parts are near square, and smaller only to give every thread one. Where
// they are not, two a thread even out cores of uneven speed.
constexpr int64_t kPartRows = 768, kPartColumns = 512;

// Where lanes are along k a part is narrower: beside a few rows of x all of its columns pass by,
// from L2.
bool along_k(const LinearArgs& args) {
  return args.quantized.bits || args.k >= kLeastDotDepth;
}
int64_t part_columns(const LinearArgs& args) { return along_k(args) ? 128 : kPartColumns; }

Cut cut_many_rows(const LinearArgs& args, int threads) {
  const int64_t most = part_columns(args);
  int64_t row_parts = ceil_div(args.m, kPartRows), column_parts = ceil_div(args.n, most);
  const auto rows = [&] { return ceil_div(args.m, row_parts); };
  const auto columns = [&] { return ceil_div(args.n, column_parts); };
  const int64_t large = args.m * args.n / (kPartColumns * kPartColumns);
  const int64_t wanted = threads > 1 ? std::clamp<int64_t>(large, threads, 2 * threads) : 1;
  while (row_parts * column_parts < wanted && std::max(rows(), columns()) > kTileColumns) {
    ++(rows() > columns() ? row_parts : column_parts);
  }
  return {rows(), round_up(columns(), kTileColumns)};
}

// Few rows are not cut. By rows a block streams through its rows of w one after the other; with 256
// of them, of which x is staged once, 33 to 72 rows of x take 0.96 of the time they take with 64,
// fewer the same (fp32, K=1024, N=4096, two Zen 3 cores). By columns a block takes them chunk after
// chunk, and the longer its part of each k is, the better memory is read; so far as the sums that
// wait for all of k leave room in L2.
constexpr int64_t kBlockColumns = 256, kMaxBlockSums = 16384;

// The columns that the busiest of threads of one speed takes.
int64_t longest_share(int64_t n, int64_t columns, int threads) {
  const int64_t whole = n / columns, rounds = ceil_div(whole, threads);
  return rounds * columns + (whole % threads == 0 ? n % columns : 0);
}

// Blocks of up to that many columns, down to half as many where threads then finish closer together
// by 2 %: of n=2816 two threads take 22 blocks of 128 in 0.93 of the time of 11 of 256 (one row of
// bf16, gated, K=1024, two Zen 5 cores).
int64_t even_columns(int64_t n, int64_t most, int threads) {
  int64_t best = most;
  for (int64_t columns = most - kTileColumns; columns >= most / 2 && columns > 0;
       columns -= kTileColumns) {
    const int64_t share = longest_share(n, columns, threads);
    if (share + share / 50 < longest_share(n, best, threads)) best = columns;
  }
  return best;
}

Cut cut_few_rows(const LinearArgs& args, int threads) {
  const int64_t most = args.w.by_columns ? kMaxBlockSums / args.m : kBlockColumns;
  const int64_t wanted = std::min(most, ceil_div(args.n, 4 * threads) + kTileColumns - 1);
  const int64_t tiles = std::max<int64_t>(wanted / kTileColumns, 1);
  return {args.m, even_columns(args.n, tiles * kTileColumns, threads)};
}

Cut cut_of(const LinearArgs& args, int64_t columns, int threads) {
  Cut cut = many_rows(args) ? cut_many_rows(args, threads) : cut_few_rows(args, threads);
  if (columns) cut.columns = round_up(std::min(columns, part_columns(args)), kTileColumns);
  return cut;
}

LinearScratch linear_scratch(const LinearArgs& args, const Cut& cut) {
  const int64_t stride = cut.columns + kTileColumns;
  const int64_t row = along_k(args) ? kPackedRow / sizeof(float) : kPanelSteps;
  const int64_t of_w = (many_rows(args) ? cut.columns + kTileColumns : kTileColumns) * row;
  const int64_t of_x = std::max((kStagedRows + kMaxTileRows) * kMaxSlice,
                                static_cast<int64_t>(kStagedRows * kPackedRow / sizeof(float)));
  const int64_t of_sums = (cut.rows + kMaxTileRows) * stride;
  const bool two = args.gated || args.rank;
  float* w = scratch(of_w + of_x + (two ? 2 : 1) * of_sums);
  float* sums = w + of_w + of_x;
  return {w, w + of_w, sums, two ? sums + of_sums : nullptr, stride};
}

// A product cut into blocks, numbered from `first` on.
struct Grid {
  const LinearArgs* of;
  Cut cut;
  int64_t first;

  int64_t across() const { return ceil_div(of->n, cut.columns); }
  int64_t end() const { return first + ceil_div(of->m, cut.rows) * across(); }
  Block block(int64_t i) const {
    const int64_t m = (i - first) / across() * cut.rows, n = (i - first) % across() * cut.columns;
    return {m, std::min(of->m, m + cut.rows), n, std::min(of->n, n + cut.columns)};
  }
};

int64_t work_of(const LinearArgs& args) {
  const int64_t depth = args.k * (args.gated ? 2 : 1) + args.rank;
  return args.m * args.n * std::max<int64_t>(depth, 1);
}

}  // namespace

void tune_linear(int64_t m, int64_t n, int64_t k, DType dtype, LinearTuning tuning) {
  const uint64_t hash = hash_of(m, n, k, dtype);
  const uint64_t columns = std::clamp<int64_t>(tuning.columns, 0, kMaxTunedColumns);
  tuned[hash % kTunedSlots].store(hash << 16 | columns << 1 | tuning.alone,
                                  std::memory_order_relaxed);
}

void linear(const LinearArgs& args, int threads) { linear_of_each(&args, 1, threads); }

// Each product is cut for as many threads as its share of the work is worth.
void linear_of_each(const LinearArgs* products, int64_t count, int threads) {
  int64_t work = 0;
  bool alone = true;
  for (int64_t i = 0; i < count; ++i) {
    work += work_of(products[i]);
    alone &= tuning_of(products[i]).alone;
  }
  if (work == 0) return;
  if (work < kProductGrain || alone) threads = 1;
  Grid one;  // of which most calls have one, and then allocate nothing
  std::vector<Grid> several(count > 1 ? count : 0);
  Grid* grids = count > 1 ? several.data() : &one;
  int64_t blocks = 0, used = 0;
  for (int64_t i = 0; i < count; ++i) {
    const LinearArgs& args = products[i];
    if (args.m == 0 || args.n == 0) continue;
    const int64_t own = ceil_div(threads * work_of(args), work);
    grids[used] = {&args, cut_of(args, tuning_of(args).columns, static_cast<int>(own)), blocks};
    blocks = grids[used++].end();
  }
  // Of no k there is nothing to scale.
  const bool quantized = products[0].quantized.bits && products[0].k;
  const auto& of_dtypes = quantized ? kernels().quantized_linear : kernels().linear;
  const auto run = of_dtypes[static_cast<int>(products[0].dtype)];
  deal(blocks, threads, [=](int64_t i) {
    const Grid* grid = grids;
    while (i >= grid->end()) ++grid;
    run(*grid->of, grid->block(i), linear_scratch(*grid->of, grid->cut));
  });
}

void rotary(const RotaryArgs& args, int threads) {
  const auto rows = kernels().rotary[static_cast<int>(args.dtype)];
  for_rows(args.m, args.h * args.d, threads, [&](int64_t m0, int64_t m1) { rows(args, m0, m1); });
}

void embedding(const EmbeddingArgs& args, int threads) {
  const char* w = static_cast<const char*>(args.w.data);
  char* out = static_cast<char*>(args.out);
  const int64_t stride = args.w.stride * args.element_size, bytes = args.k * args.element_size;
  for_rows(args.m, args.k, threads, [&](int64_t m0, int64_t m1) {
    for (int64_t m = m0; m < m1; ++m) {
      std::memcpy(out + m * bytes, w + args.ids[m] * stride, bytes);
    }
  });
}

}  // namespace accel_cpu
