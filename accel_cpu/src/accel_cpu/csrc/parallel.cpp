// Cuts an op into blocks and deals them to the OpenMP threads. No cut changes a result (see
// linear_block.h).
#include <algorithm>

#include "kernels.h"

namespace accel_cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

constexpr int64_t kTileColumns = 8;  // the widest tile; the other width, 4, divides it
constexpr int64_t kTileRows = 6;     // the tallest tile
// Of the weight in a block: what an L2 cache of 1 MiB keeps while the rows of x pass by. From 256
// to 640 KiB made no difference (K=1024 and 4096, Zen 4).
constexpr int64_t kWeightBytes = 384 << 10;

// Below these, a second thread gains less than waking it may cost. With the threads awake two break
// even at 30k multiply-adds, 1.6 us (Zen 4); asleep they take several times that.
constexpr int64_t kLinearGrain = 100'000;  // multiply-adds
constexpr int64_t kRmsNormGrain = 32'768;  // elements

}  // namespace

void linear(const LinearArgs& args, int threads) {
  if (args.m == 0 || args.n == 0) return;
  const auto block = kernels().linear[static_cast<int>(args.dtype)];
  const int64_t matrices = args.gated ? 2 : 1;
  if (args.m * args.n * std::max<int64_t>(args.k, 1) * matrices < kLinearGrain) threads = 1;

  const int64_t row_bytes = std::max<int64_t>(args.k * size_of(args.dtype) * matrices, 1);
  const int64_t wanted =
      std::min({kWeightBytes / row_bytes, ceil_div(args.n, threads), kMaxBlockColumns});
  const int64_t columns = round_up(std::max<int64_t>(wanted, 1), kTileColumns);
  const int64_t column_blocks = ceil_div(args.n, columns);
  // Four blocks a thread even out cores of uneven speed.
  const int64_t rows = round_up(ceil_div(args.m, ceil_div(4 * threads, column_blocks)), kTileRows);
  const int64_t row_blocks = ceil_div(args.m, rows);

  // Not num_threads(): libgomp rebuilds its pool whenever that changes, and PyTorch shares it.
#pragma omp parallel for collapse(2) schedule(dynamic) if (threads > 1)
  for (int64_t i = 0; i < row_blocks; ++i) {
    for (int64_t j = 0; j < column_blocks; ++j) {
      block(args, {i * rows, std::min(args.m, (i + 1) * rows), j * columns,
                   std::min(args.n, (j + 1) * columns)});
    }
  }
}

void rms_norm(const RmsNormArgs& args, int threads) {
  if (args.m == 0 || args.k == 0) return;
  const auto rows = kernels().rms_norm[static_cast<int>(args.dtype)];
  if (args.m * args.k < kRmsNormGrain) threads = 1;
  const int64_t chunk = ceil_div(args.m, 4 * threads);
#pragma omp parallel for schedule(dynamic) if (threads > 1)
  for (int64_t m = 0; m < args.m; m += chunk) rows(args, m, std::min(args.m, m + chunk));
}

}  // namespace accel_cpu
