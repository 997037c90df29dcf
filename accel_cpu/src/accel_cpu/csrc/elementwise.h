// Elementwise steps on fp32, written over the vectors of the vec_*.h included before it. Each gives
// an element the same bits wherever it stands in a row.
#pragma once

#include <cstdint>

#include "activation.h"
#include "kernels.h"

namespace accel_cpu {
namespace {

// Calls f(i) for each whole vector of [0, size) and f(i, n) for the n elements left over. f takes
// (int64_t i, auto... n) and hands n... on to load and store.
template <class F>
void for_each_vector(int64_t size, F f) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) f(i);
  if (i < size) f(i, static_cast<int>(size - i));
}

template <class T>
void add_in_place(float* a, const T* b, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(a + i, add(load(a + i, n...), load(b + i, n...)), n...);
  });
}

void multiply_in_place(float* a, const float* b, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(a + i, mul(load(a + i, n...), load(b + i, n...)), n...);
  });
}

template <class T>
void round_to(T* out, const float* a, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) { store(out + i, load(a + i, n...), n...); });
}

template <class T>
void widen_to(float* out, const T* a, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) { store(out + i, load(a + i, n...), n...); });
}

// Calls f with an element of this dtype.
template <class F>
void of_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
  }
}

void add_in_place(float* a, DType dtype, const void* b, int64_t offset, int64_t size) {
  of_dtype(dtype, [=](auto element) {
    add_in_place(a, static_cast<const decltype(element)*>(b) + offset, size);
  });
}

void round_to(DType dtype, void* out, int64_t offset, const float* a, int64_t size) {
  of_dtype(dtype, [=](auto element) {
    round_to(static_cast<decltype(element)*>(out) + offset, a, size);
  });
}

template <class F>
void activate_in_place(float* a, int64_t size) {
  for_each_vector(size,
                  [=](int64_t i, auto... n) { store(a + i, F::of(load(a + i, n...)), n...); });
}

void activate_in_place(Activation act, float* a, int64_t size) {
  switch (act) {
    case Activation::none: return;
    case Activation::relu: return activate_in_place<Relu>(a, size);
    case Activation::gelu: return activate_in_place<Gelu>(a, size);
    case Activation::gelu_tanh: return activate_in_place<GeluTanh>(a, size);
    case Activation::silu: return activate_in_place<Silu>(a, size);
  }
}

}  // namespace
}  // namespace accel_cpu
