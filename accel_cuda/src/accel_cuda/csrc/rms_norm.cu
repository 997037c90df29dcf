// rms_norm: a block a row, a row's sum in one order, so that no row depends on its neighbours.
//
// Column k goes to thread k % THREADS, the threads' sums are added in a tree. In fp32, rounded once.
// No torch header: the launcher has a C ABI, and is called through ctypes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#ifndef LAUNCH  // a test's emulation on the host has its own, and fewer threads
#define THREADS_OF_A_BLOCK 256
#define LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace {

constexpr int THREADS = THREADS_OF_A_BLOCK;
constexpr int64_t BLOCKS = (int64_t(1) << 31) - 1;

template <class T>
__global__ void rms_norm(const T* x, const T* w, T* y, int64_t rows, int64_t width, int64_t x_row,
                         int64_t x_step, int64_t w_step, float eps) {
  __shared__ float sums[THREADS];
  const int thread = threadIdx.x;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* own = x + row * x_row;
    float sum = 0;
    for (int64_t k = thread; k < width; k += THREADS) {
      const float value = static_cast<float>(own[k * x_step]);
      sum += value * value;
    }
    sums[thread] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
      if (thread < half) sums[thread] += sums[thread + half];
      __syncthreads();
    }
    const float scale = 1 / sqrtf(sums[0] / static_cast<float>(width) + eps);
    for (int64_t k = thread; k < width; k += THREADS) {
      float value = static_cast<float>(own[k * x_step]) * scale;
      if (w != nullptr) value *= static_cast<float>(w[k * w_step]);
      y[row * width + k] = static_cast<T>(value);
    }
    __syncthreads();  // before the next row's sums
  }
}

template <class T>
int launch(const void* x, const void* w, void* y, int64_t rows, int64_t width, int64_t x_row,
           int64_t x_step, int64_t w_step, float eps, cudaStream_t stream) {
  const int blocks = static_cast<int>(std::min(rows, BLOCKS));
  LAUNCH(rms_norm<T>, blocks, THREADS, stream, static_cast<const T*>(x),
         static_cast<const T*>(w), static_cast<T*>(y), rows, width, x_row, x_step, w_step, eps);
  return cudaGetLastError();
}

}  // namespace

// x [rows, width] with strides, w [width] or null, y [rows, width] contiguous; dtype 0: fp32,
// 1: bf16, 2: fp16. Returns a cudaError_t.
extern "C" int accel_rms_norm(int dtype, const void* x, const void* w, void* y, int64_t rows,
                              int64_t width, int64_t x_row, int64_t x_step, int64_t w_step,
                              float eps, void* stream) {
  const auto launcher = dtype == 0   ? launch<float>
                        : dtype == 1 ? launch<__nv_bfloat16>
                                     : launch<__half>;
  return launcher(x, w, y, rows, width, x_row, x_step, w_step, eps,
                  static_cast<cudaStream_t>(stream));
}

extern "C" const char* accel_cuda_error(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}
