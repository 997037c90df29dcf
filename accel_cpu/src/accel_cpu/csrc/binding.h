// What the torch bindings share: they check metadata, turn tensors into plain arguments (kernels.h)
// and register the ops. Schemas carry no fake kernel and no gradient: those come from the
// contracts, in Python.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <ATen/Parallel.h>
#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "kernels.h"

namespace accel_cpu {

using OptionalTensor = std::optional<at::Tensor>;

// A function as torch's dispatcher calls it, its arguments on a stack. TORCH_FN also infers a
// schema and makes an unboxed entry, which nothing here uses and the compiler takes seconds for.
template <auto f>
struct Boxed;

template <class Result, class... Args, Result (*f)(Args...)>
struct Boxed<f> {
  static void call(const c10::OperatorHandle&, torch::jit::Stack* stack) {
    call(stack, std::index_sequence_for<Args...>());
  }

 private:
  template <size_t... I>
  static void call(torch::jit::Stack* stack, std::index_sequence<I...>) {
    const auto of = [&](size_t i) -> c10::IValue& {
      return torch::jit::peek(*stack, i, sizeof...(Args));
    };
    if constexpr (std::is_void_v<Result>) {
      f(of(I).template to<std::decay_t<Args>>()...);
      torch::jit::drop(*stack, sizeof...(Args));
    } else {
      Result result = f(of(I).template to<std::decay_t<Args>>()...);
      torch::jit::drop(*stack, sizeof...(Args));
      push(*stack, std::move(result));
    }
  }
  template <class T>
  static void push(torch::jit::Stack& stack, T&& one) {
    stack.emplace_back(std::move(one));
  }
  template <class... T>
  static void push(torch::jit::Stack& stack, std::tuple<T...>&& all) {
    std::apply([&](auto&&... one) { (stack.emplace_back(std::move(one)), ...); }, std::move(all));
  }
};

#define BOXED(f) torch::CppFunction::makeFromBoxedFunction<&Boxed<&f>::call>()

// A new tensor. What malloc maps anew for each call, at the latest from 32 MiB on, the kernel gives
// page by page as it is first written: in huge ones, where allowed, [2048, 4096] of fp32 are filled
// in 0.2 of the time.
inline at::Tensor uninitialized(at::IntArrayRef shape, const at::TensorOptions& options) {
  at::Tensor out = at::empty(shape, options);
#if defined(__linux__)
  constexpr uintptr_t kMapped = 4 << 20, kHuge = 2 << 20;
  if (out.nbytes() >= kMapped) {
    const auto data = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
    const uintptr_t first = (data + kHuge - 1) / kHuge * kHuge;
    const uintptr_t last = (data + out.nbytes()) / kHuge * kHuge;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // refused: small pages
  }
#endif
  return out;
}

inline DType dtype_of(const char* op, const char* name, at::ScalarType type) {
  switch (type) {
    case at::kFloat: return DType::f32;
    case at::kBFloat16: return DType::bf16;
    case at::kHalf: return DType::f16;
    default:
      TORCH_CHECK(false, op, ": ", name, " is ", type, "; possible are Float, BFloat16 and Half");
  }
}

inline Activation activation_of(const char* op, std::optional<std::string_view> act) {
  if (!act) return Activation::none;
  if (*act == "relu") return Activation::relu;
  if (*act == "gelu") return Activation::gelu;
  if (*act == "gelu_tanh") return Activation::gelu_tanh;
  if (*act == "silu") return Activation::silu;
  TORCH_CHECK(false, op, ": act is '", *act,
              "'; possible are 'relu', 'gelu', 'gelu_tanh' and 'silu'");
}

// Elements from one row to the next where the leading dimensions, all but the last `trailing`,
// collapse into rows.
inline std::optional<int64_t> collapsed_stride(const at::Tensor& x, int64_t trailing) {
  if (x.numel() == 0) return 0;
  int64_t stride = 0;
  int64_t rows = 1;
  for (int64_t d = x.dim() - 1 - trailing; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (rows == 1) stride = x.stride(d);
    if (x.stride(d) != stride * rows) return std::nullopt;
    rows *= x.size(d);
  }
  return stride;
}

inline bool has_unit_stride(const at::Tensor& x) { return x.size(-1) <= 1 || x.stride(-1) == 1; }

// Elements from one row to the next where the leading dimensions collapse into rows of unit stride.
inline std::optional<int64_t> row_stride(const at::Tensor& x) {
  if (x.numel() == 0) return 0;
  if (!has_unit_stride(x)) return std::nullopt;
  return collapsed_stride(x, 1);
}

// Reads x as it lies where it can be read as rows, else copies it; `x` keeps the copy alive.
inline Matrix matrix_of(at::Tensor& x) {
  if (!row_stride(x)) x = x.contiguous();
  return {x.const_data_ptr(), *row_stride(x)};
}

inline const void* vector_of(OptionalTensor& b) {
  if (!b) return nullptr;
  b = b->contiguous();
  return b->const_data_ptr();
}

inline void check_x(const char* op, const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 1, op, ": x must be [..., K], but is a scalar");
}

inline void check_operand(const char* op, const char* name, const at::Tensor& t,
                          const at::Tensor& x, at::IntArrayRef shape) {
  TORCH_CHECK(t.sizes() == shape, op, ": ", name, " has shape ", t.sizes(), "; beside x of shape ",
              x.sizes(), " it must be ", shape);
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " is ", t.scalar_type(),
              "; it must have the dtype of x, ", x.scalar_type());
}

}  // namespace accel_cpu
