// The plain C++ interface between the torch binding and the kernels. Only binding.cpp includes
// torch headers: they cost 7 of the 10 seconds the library takes to build on two cores.
//
// One shared library serves every CPU: the files below are compiled with their own flags and
// dispatch.cpp chooses between them at run time. All files take: -O3 -ffp-contract=off -fopenmp,
// never -ffast-math.
//
//   file              instruction set   flags of its own (the files with any are empty off x86-64)
//   binding.cpp       any               torch's include paths, -std and ABI
//   dispatch.cpp      any
//   parallel.cpp      any
//   scalar.cpp        any
//   avx2.cpp          avx2              -mavx2 -mfma -mf16c
//   avx512.cpp        avx512            -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
//   avx512_bf16.cpp   avx512_bf16       those of avx512.cpp and -mavx512bf16
//
// What avx2.cpp and the avx512 files include lives in anonymous namespaces and calls no inline
// function of the standard library: the linker keeps one copy of such a function, and one compiled
// for AVX-512 would crash the other CPUs.
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
};

struct LinearArgs {
  Matrix x;                       // [m, k]
  Matrix w;                       // [n, k]
  const void* bias = nullptr;     // [n]
  bool gated = false;             // out = act(x w^T + bias) * (x w_up^T + bias_up)
  Matrix w_up;                    // [n, k]
  const void* bias_up = nullptr;  // [n]
  void* out = nullptr;            // [m, n], contiguous
  int64_t m = 0, n = 0, k = 0;
  DType dtype = DType::f32;       // of x, w and the biases
  DType out_dtype = DType::f32;
  Activation act = Activation::none;
};

struct RmsNormArgs {
  Matrix x;                 // [m, k]
  const void* w = nullptr;  // [k]
  void* out = nullptr;      // [m, k], contiguous
  int64_t m = 0, k = 0;
  float eps = 0;
  DType dtype = DType::f32;
};

// A block of the output: rows [m0, m1), columns [n0, n1).
struct Block {
  int64_t m0, m1, n0, n1;
};

// The widest block: its fp32 results wait on the thread's stack. A multiple of the widest tile, 8.
constexpr int64_t kMaxBlockColumns = 96;

// What one instruction set implements, indexed by DType. These run on the calling thread.
struct Kernels {
  const char* isa;
  void (*linear[kDTypes])(const LinearArgs&, const Block&);
  void (*rms_norm[kDTypes])(const RmsNormArgs&, int64_t m0, int64_t m1);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
// Takes the place of linear for bf16 in kAvx512Kernels where the CPU has AVX512_BF16.
void linear_block_bf16_pairs(const LinearArgs&, const Block&);
#endif

// The kernels in use: the best this CPU has, or the ones ACCEL_CPU_ISA names. Decided once, on the
// first call. Throws std::runtime_error where ACCEL_CPU_ISA names something unknown or unsupported.
const Kernels& kernels();

// Run an op on the `threads` threads of OpenMP's next parallel region, or on this thread alone
// where the work is small.
void linear(const LinearArgs& args, int threads);
void rms_norm(const RmsNormArgs& args, int threads);

}  // namespace accel_cpu
