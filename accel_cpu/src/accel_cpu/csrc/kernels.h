// The plain C++ interface between the torch bindings and the kernels. Only binding.cpp, and what is
// named after it, includes torch headers.
//
// One shared library serves every CPU: the files below are compiled with their own flags and
// dispatch.cpp chooses between them at run time. All files take: -O3 -ffp-contract=off -fopenmp,
// never -ffast-math. (-O2 saves a fifth of the compiler's time and leaves loops over a few vectors
// rolled up: layer_norm then takes 1.5 times as long.)
//
//   file              instruction set   flags of its own (files of another architecture are empty)
//   binding.cpp       any               torch's include paths, -std and ABI; -O1
//   dispatch.cpp      any
//   parallel*.cpp     any
//   scalar.cpp        any               -O1: it is for CPUs that no other file is for
//   neon.cpp          neon              -fno-schedule-insns
//   avx2.cpp          avx2              -mavx2 -mfma -mf16c
//   avx512.cpp        avx512            -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
//   avx512_bf16.cpp   avx512_bf16       those of avx512.cpp and -mavx512bf16
//   amx_bf16.cpp      amx_bf16          those of avx512_bf16.cpp, -mamx-tile -mamx-bf16 (GCC 11)
//
// What avx2.cpp, the avx512 files and amx_bf16.cpp include lives in anonymous namespaces and calls
// no inline function of the standard library: the linker keeps one copy of such a function, and one
// compiled for AVX-512 would crash the other CPUs.
#pragma once

#include <cstdint>

#include "row_kernels.h"

namespace accel_cpu {

// Whole numbers, [n, k] by rows, and the scales that they are multiplied by. Of 4 bits two lie in a
// byte, the first in its low half, each plus 8.
struct QuantizedMatrix {
  static constexpr bool by_columns = false;
  Matrix bytes;        // by rows
  int bits = 0;        // 8 or 4
  Matrix scales;       // [n, groups], fp32
  int64_t groups = 0;
  int64_t group = 0;   // k of each
};

struct LinearArgs {
  Matrix x;                       // [m, k], also by columns
  Matrix w;                       // [n, k], also by columns
  QuantizedMatrix quantized;      // [n, k], in place of w where it has bits
  const void* bias = nullptr;     // [n]
  bool gated = false;             // out = act(x w^T + bias) * (x w_up^T + bias_up)
  Matrix w_up;                    // [n, k], also by columns
  const void* bias_up = nullptr;  // [n]
  float* before_act = nullptr;    // [m, n], contiguous: x w^T + bias, where the gradient wants it
  float* up = nullptr;            // [m, n], likewise: x w_up^T + bias_up
  int64_t rank = 0;               // with any: out = x w^T + bias + scale * (u lora_b^T)
  Matrix u;                       // [m, rank], fp32
  Matrix lora_b;                  // [n, rank], also by columns
  float scale = 1;
  Matrix partial;                 // [m, n], of dtype or fp32; what sums start from, if there is one
  DType partial_dtype = DType::f32;
  void* out = nullptr;            // [m, n] with unit stride inside a row; partial's place, or apart
  int64_t out_stride = 0;         // from one row to the next
  int64_t m = 0, n = 0, k = 0;
  DType dtype = DType::f32;       // of x, w and the biases
  bool wide_x = false;            // x is fp32 whatever dtype; not where gated
  DType out_dtype = DType::f32;
  Activation act = Activation::none;
};

// [rows, heads, width] with unit stride inside a head; strides count elements.
struct Heads {
  const void* data = nullptr;
  int64_t row = 0, head = 0;
};

struct RotaryArgs {
  Heads x;              // [m, h, d]
  Matrix cos, sin;      // [m, r], fp32
  void* out = nullptr;  // [m, h, d], contiguous
  int64_t m = 0, h = 0, d = 0, r = 0;
  bool interleaved = false;
  DType dtype = DType::f32;  // of x
};

struct EmbeddingArgs {
  const int64_t* ids = nullptr;  // [m], each in [0, v)
  Matrix w;                      // [v, k], of any dtype
  void* out = nullptr;           // [m, k], contiguous
  int64_t m = 0, k = 0;
  int64_t element_size = 0;  // bytes
};

// The queries of one sequence and the keys they see.
struct Span {
  int64_t q_start, q_len, k_start, k_len;
};

// What is added to scores: for a span, a head and a query a row of its keys, of unit stride. A
// stride is 0 where one serves all.
struct ScoreMask {
  const void* data = nullptr;
  int64_t span = 0, head = 0, query = 0;
};

constexpr int64_t kNoWindow = INT64_MAX / 2;  // added to any key's number it does not overflow

struct AttentionArgs {
  Heads q;                        // [m, h, d]
  Heads k;                        // [n, g, d]
  Heads v;                        // [n, g, e]
  const Span* spans = nullptr;    // [span_count], of disjoint queries
  void* out = nullptr;            // [m, h, e], contiguous; only the queries of spans are written
  float* log_sums = nullptr;      // [m, h], with any: log of the sum of exp(score); +inf of none
  int64_t span_count = 0;
  int64_t h = 0, g = 0, d = 0, e = 0;
  float scale = 1;
  float softcap = 0;              // none
  ScoreMask mask;                 // of dtype, with any
  const float* slopes = nullptr;  // [h], with any: of the distance between query and key
  bool causal = true;
  int64_t window = kNoWindow;     // keys this far away are not seen, nor farther ones
  Dropout dropout;                // of weights: row (span * h + head) * 2^32 + query, column key
  DType dtype = DType::f32;
};

// Gradients are added to zeros: of the keys of several spans there are several.
struct AttentionBackwardArgs {
  AttentionArgs of;                 // without its results
  Heads grad, out;                  // [m, h, e]
  const float* log_sums = nullptr;  // [m, h]
  float* dq = nullptr;              // [m, h, d], contiguous, or none
  float* dk = nullptr;              // [n, g, d], contiguous, or none
  float* dv = nullptr;              // [n, g, e], contiguous, or none
};

// Rows [r0, r1) of a span beside each of the kv heads [g0, g1): with h / g heads to a kv head, row
// r is query r / (h / g) of the span in the head r % (h / g) of them.
struct AttentionBlock {
  int64_t span, g0, g1, r0, r1;
};

// Of the gradients: such rows beside one kv head, and the keys [k0, k1) of the span. r0 is a
// multiple of kAttentionPart, k0 of kAttentionKeys.
struct AttentionBackwardBlock {
  int64_t span, kv_head, r0, r1, k0, k1;
};

// The most rows of a block in all its heads, a multiple of the tallest tile; the most of one head
// beside others, which may take a place more; and the keys they take at a time.
constexpr int64_t kAttentionRows = 48;
constexpr int64_t kAttentionFew = 8;
constexpr int64_t kAttentionKeys = 64;

// What a thread works in.
struct AttentionScratch {
  float* q;    // [kAttentionRows, d], d rounded up to kChunk
  float* out;  // [kAttentionRows, e]
  float* k;    // [kAttentionKeys, d], d likewise; aligned to 64 bytes, as q is
  float* v;    // [kAttentionKeys, e]
  float* weights;  // [kAttentionRows, kAttentionKeys]
  float* sums;     // [kAttentionRows, e]
};

// What threads that share a block's keys leave for each other, in a round of `count` blocks of
// kAttentionKeys keys from the `first` of those that any row sees, each with a place for every row;
// and the steps of a round, by blocks of the round or by kv heads of the block.
struct AttentionParts {
  int64_t first, count;
  float* weights;  // [count, places, kAttentionKeys]
  float* sums;     // [count, places, e]
  float* factors;  // [count, places]
  float* tops;     // [places, kMostLanes + 1], of all rounds so far, as is
  float* out;      // [places, e]
};
constexpr int64_t kMostLanes = 16;
enum class AttentionStep { score, weigh, sum, gather };

// The gradients' blocks are square, of kAttentionKeys rows and columns; a tile may write more rows.
constexpr int64_t kAttentionSquare = (kAttentionKeys + 8) * kAttentionKeys;
// The rows that wait in fp32 for the keys to pass by: with heads of 64, 288 KiB of an L2.
constexpr int64_t kAttentionPart = 512;

// What a thread works in: squares, of which a head takes as many as it needs.
struct AttentionBackwardScratch {
  float *q, *dy;                                 // [kAttentionPart rows]
  float *k, *k_turned, *v_turned, *dk, *dv;      // [kAttentionKeys rows]
  float *p, *p_turned, *ds, *ds_turned, *found;  // one square
  float* means;                                  // [kAttentionPart]
};

// A block of the output: rows [m0, m1), columns [n0, n1).
struct Block {
  int64_t m0, m1, n0, n1;
};

// Consecutive k that a product sums before it adds them to the others.
constexpr int64_t kChunk = 64;
// The most k it takes at a time, and the rows of x that are staged for them. With 256 and 144 a
// product with K=512, whose sums then wait once, takes a tenth longer (fp32, Zen 3).
constexpr int64_t kMaxSlice = 512, kStagedRows = 72;
// What a panel holds of a column: the k of a slice, and of a quantised weight its chunks' scales.
constexpr int64_t kPanelSteps = kMaxSlice + kMaxSlice / kChunk;
// The tallest, the widest and the largest tile of any instruction set. The widest is whole ones of
// all others.
constexpr int64_t kMaxTileRows = 32, kTileColumns = 64, kMaxTileSums = 1152;

// Where lanes are consecutive k (linear_dots.h): of a row what is summed before the lanes are
// added, columns that are finished together, and that are packed together for few rows.
constexpr int64_t kDotChunkBytes = 4096, kDotTile = 16, kPackedColumns = 64;
constexpr int64_t kPackedRow = kDotChunkBytes + 64;  // bytes
// k below which sums of lanes cost more than panels do.
constexpr int64_t kLeastDotDepth = 128;

// What a thread multiplies in, aligned to 64 bytes. The stride is no power of two, or rows would
// meet in a few sets of the cache.
struct LinearScratch {
  void* w;              // panels: [columns, kPanelSteps] of 4 bytes; one up to kStagedRows rows
  void* x;              // [kStagedRows, kMaxSlice] of 4 bytes
  float* sums;          // [rows and a tile more, sums_stride]
  float* other;         // likewise, where gated or of a rank
  int64_t sums_stride;
};

// What one instruction set implements, indexed by DType. These run on the calling thread.
struct Kernels {
  const char* isa;
  void (*linear[kDTypes])(const LinearArgs&, const Block&, const LinearScratch&);
  void (*quantized_linear[kDTypes])(const LinearArgs&, const Block&, const LinearScratch&);
  void (*rotary[kDTypes])(const RotaryArgs&, int64_t m0, int64_t m1);
  void (*attention[kDTypes])(const AttentionArgs&, const AttentionBlock&, const AttentionScratch&);
  void (*attention_step[kDTypes])(const AttentionArgs&, const AttentionBlock&,
                                  const AttentionScratch&, const AttentionParts&, AttentionStep,
                                  int64_t from, int64_t to);
  void (*attention_backward)(const AttentionBackwardArgs&, const AttentionBackwardBlock&,
                             const AttentionBackwardScratch&);
  RowKernels rows;
};

extern const Kernels kScalarKernels;
#if defined(__ARM_ARCH_ISA_A64)  // AArch64
extern const Kernels kNeonKernels;
#endif
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
// Take the place of the linear kernels for bf16 in kAvx512Kernels where the CPU has AVX512_BF16.
void linear_part_bf16_pairs(const LinearArgs&, const Block&, const LinearScratch&);
void quantized_part_bf16_pairs(const LinearArgs&, const Block&, const LinearScratch&);
// Likewise where it has AMX_BF16 too.
void linear_part_bf16_tiles(const LinearArgs&, const Block&, const LinearScratch&);
#endif

// The kernels in use: the best this CPU has, or the ones ACCEL_CPU_ISA names. Decided once, on the
// first call. Throws std::runtime_error where ACCEL_CPU_ISA names something unknown or unsupported.
const Kernels& kernels();

// How linear cuts products of one size, in place of what it would choose. Changes no result.
struct LinearTuning {
  bool alone = false;      // on the calling thread, whatever the work
  int64_t columns = 0;     // of the result in a block; 0: the default
};

// From now on products of [m, k] and [n, k] of this dtype are cut so.
void tune_linear(int64_t m, int64_t n, int64_t k, DType dtype, LinearTuning tuning);

// Run an op on so many threads (see deal_blocks in parallel.h), or on this thread alone where the
// work is small.
void linear(const LinearArgs& args, int threads);
void linear_of_each(const LinearArgs* products, int64_t count, int threads);  // of one dtype
void rotary(const RotaryArgs& args, int threads);
void embedding(const EmbeddingArgs& args, int threads);
void attention(const AttentionArgs& args, int threads);
void attention_backward(const AttentionBackwardArgs& args, int threads);

}  // namespace accel_cpu
