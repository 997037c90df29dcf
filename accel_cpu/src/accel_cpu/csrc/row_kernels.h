// The ops that go through rows one by one: norms, elementwise steps, softmax and log-probabilities,
// and their gradients. As in kernels.h, which includes this.
#pragma once

#include <cstdint>

namespace accel_cpu {

enum class DType { f32, bf16, f16 };
constexpr int kDTypes = 3;

enum class Activation { none, relu, gelu, gelu_tanh, silu };

// Rows of [rows, k] with unit stride inside a row; strides count elements.
struct Matrix {
  const void* data = nullptr;
  int64_t stride = 0;
  bool by_columns = false;  // lies as [k, rows]: unit stride between rows, `stride` between k
};

struct NormArgs {
  Matrix x;                 // [m, k]
  Matrix residual;          // [m, k], with any: the norm is of x + residual, which goes to total
  const void* w = nullptr;  // [k]
  const void* b = nullptr;  // [k], of layer_norm
  void* total = nullptr;    // [m, k], contiguous
  void* out = nullptr;      // [m, k], contiguous
  int64_t m = 0, k = 0;
  float eps = 0;
  DType dtype = DType::f32;
};

struct NormBackwardArgs {
  Matrix grad, x;           // [m, k]
  Matrix residual;          // as of NormArgs
  Matrix total_grad;        // [m, k], with any: added to dx
  const void* w = nullptr;  // [k]
  void* dx = nullptr;       // [m, k], contiguous; none, if there is no residual
  void* dw = nullptr;       // [k], or none
  void* db = nullptr;       // [k], or none
  int64_t m = 0, k = 0;
  float eps = 0;
  DType dtype = DType::f32;
};

struct BiasActArgs {
  Matrix x;                 // [m, k]
  const void* b = nullptr;  // [k]
  void* out = nullptr;      // [m, k], contiguous
  int64_t m = 0, k = 0;
  Activation act = Activation::none;
  DType dtype = DType::f32;
};

struct BiasActBackwardArgs {
  Matrix grad, x;           // [m, k]
  const void* b = nullptr;  // [k]
  void* dx = nullptr;       // [m, k], contiguous, or none
  void* db = nullptr;       // [k], or none
  int64_t m = 0, k = 0;
  Activation act = Activation::none;
  DType dtype = DType::f32;
};

// From grad of act(gate) * up to those of gate and up.
struct GateBackwardArgs {
  Matrix grad;                  // [m, k], of dtype
  const float* gate = nullptr;  // [m, k], contiguous, as up is
  const float* up = nullptr;
  void* d_gate = nullptr;       // [m, k] of out_dtype, contiguous, as d_up is
  void* d_up = nullptr;
  int64_t m = 0, k = 0;
  Activation act = Activation::none;
  DType dtype = DType::f32, out_dtype = DType::f32;
};

// Which elements dropout leaves, by bits of a seed, of the number of a row and of a column.
struct Dropout {
  bool drops = false;
  int64_t seed = 0;
  uint32_t least = 0;  // the 32 bits of a survivor, as a whole number
  float scale = 1;     // of survivors
};

struct DropoutAddArgs {
  Matrix x;                       // [m, k]
  Matrix residual;                // [m, k], with any: added
  const void* b = nullptr;        // [k]
  const int64_t* rows = nullptr;  // [m], the numbers of the rows; their places, if there are none
  void* out = nullptr;            // [m, k], contiguous; none, if sums is all that is asked for
  void* sums = nullptr;           // [k], with any: what survives of all rows, added
  int64_t m = 0, k = 0;
  Dropout dropout;
  DType dtype = DType::f32;
};

struct SoftmaxArgs {
  Matrix x;                          // [m, k]
  const void* mask = nullptr;        // added, with any
  const int64_t* mask_at = nullptr;  // [m], where its row begins, of unit stride
  void* out = nullptr;               // [m, k], contiguous
  int64_t m = 0, k = 0;
  float scale = 1;
  DType dtype = DType::f32;
};

struct SoftmaxBackwardArgs {
  Matrix grad, p;      // [m, k]
  void* dx = nullptr;  // [m, k], contiguous
  int64_t m = 0, k = 0;
  float scale = 1;
  DType dtype = DType::f32;
};

struct LogprobArgs {
  Matrix z;                      // [m, v], the logits
  const int64_t* ids = nullptr;  // [m], each in [0, v)
  float* logprob = nullptr;      // [m]
  float* entropy = nullptr;      // [m]
  int64_t m = 0, v = 0;
  float scale = 1;
  float softcap = 0;  // none
  float temperature = 1;
  DType dtype = DType::f32;  // of z
};

struct LogprobBackwardArgs {
  LogprobArgs of;                     // without its results
  const float* logprob = nullptr;     // [m], which they are
  const float* entropy = nullptr;     // [m]
  const float* anchors = nullptr;     // [m], what ids have as adjusted logits, where z is a tile of
                                      // the vocabulary: ids in [0, v) or outside then
  const float* of_logprob = nullptr;  // [m], gradients, or none
  const float* of_entropy = nullptr;  // [m], or none
  void* out = nullptr;                // [m, v], contiguous
  float* sums = nullptr;              // [v], with any: of all rows
  DType out_dtype = DType::f32;
};

// Sums over rows, fp32 [k] each: of dw and db, of db alone, or none.
struct ColumnSums {
  float* w = nullptr;
  float* b = nullptr;
};

// What one instruction set implements, indexed by DType: rows [m0, m1), on the calling thread.
struct RowKernels {
  void (*rms_norm[kDTypes])(const NormArgs&, int64_t m0, int64_t m1);
  void (*layer_norm[kDTypes])(const NormArgs&, int64_t m0, int64_t m1);
  void (*rms_norm_backward[kDTypes])(const NormBackwardArgs&, int64_t m0, int64_t m1, ColumnSums);
  void (*layer_norm_backward[kDTypes])(const NormBackwardArgs&, int64_t m0, int64_t m1, ColumnSums);
  void (*bias_act[kDTypes])(const BiasActArgs&, int64_t m0, int64_t m1);
  void (*bias_act_backward[kDTypes])(const BiasActBackwardArgs&, int64_t m0, int64_t m1,
                                     ColumnSums);
  void (*gate_backward[kDTypes])(const GateBackwardArgs&, int64_t m0, int64_t m1);
  void (*dropout_add[kDTypes])(const DropoutAddArgs&, int64_t m0, int64_t m1, ColumnSums);
  void (*softmax[kDTypes])(const SoftmaxArgs&, int64_t m0, int64_t m1, float* scratch);  // [k]
  void (*softmax_backward[kDTypes])(const SoftmaxBackwardArgs&, int64_t m0, int64_t m1);
  void (*logprob[kDTypes])(const LogprobArgs&, int64_t m0, int64_t m1);
  void (*logprob_backward[kDTypes])(const LogprobBackwardArgs&, int64_t m0, int64_t m1, ColumnSums);
  // out = the sum of `count` rows of `parts`, [count, k], one after the other, rounded.
  void (*sum_of_rows[kDTypes])(const float* parts, int64_t count, int64_t k, void* out);
};

void rms_norm(const NormArgs& args, int threads);
void layer_norm(const NormArgs& args, int threads);
void rms_norm_backward(const NormBackwardArgs& args, int threads);
void layer_norm_backward(const NormBackwardArgs& args, int threads);
void bias_act(const BiasActArgs& args, int threads);
void bias_act_backward(const BiasActBackwardArgs& args, int threads);
void gate_backward(const GateBackwardArgs& args, int threads);
void dropout_add(const DropoutAddArgs& args, int threads);
void softmax(const SoftmaxArgs& args, int threads);
void softmax_backward(const SoftmaxBackwardArgs& args, int threads);
void logprob(const LogprobArgs& args, int threads);
void logprob_backward(const LogprobBackwardArgs& args, int threads);

}  // namespace accel_cpu
