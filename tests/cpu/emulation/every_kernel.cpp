// Runs the kernels of one instruction set (ACCEL_CPU_ISA) over awkward sizes and writes what comes
// out, for tests/cpu/test_neon.py to compare: a line with name, dtype, rounded operations of which
// a result is made and count, then the numbers. What a kernel reads and writes ends where memory
// does, so that an access behind it is a fault.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "kernels.h"

using namespace accel_cpu;

namespace {

constexpr int kThreads = 2;
constexpr DType kAll[] = {DType::f32, DType::bf16, DType::f16};

int64_t bytes_of(DType dtype, int64_t count) { return count * (dtype == DType::f32 ? 4 : 2); }

char* memory(int64_t bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
  void* start = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
  char* end = static_cast<char*>(start) + whole;
  if (start == MAP_FAILED || mprotect(end, page, PROT_NONE)) std::abort();
  return end - bytes;
}

template <class T>
T* numbers(const std::vector<T>& from) {
  const int64_t bytes = static_cast<int64_t>(from.size() * sizeof(T));
  return static_cast<T*>(std::memcpy(memory(bytes), from.data(), bytes));
}

// The same from run to run.
uint32_t random_bits() {
  static uint32_t state = 1;
  return state = state * 1664525 + 1013904223;
}

uint8_t* bytes(int64_t count) {
  std::vector<uint8_t> drawn;
  while (std::ssize(drawn) < count) drawn.push_back(static_cast<uint8_t>(random_bits() >> 24));
  return numbers(drawn);
}

// Odd whole numbers over a power of two, between -2 and 2: of 24 bits, or of 7, which both halves
// hold.
void* drawn(int64_t count, DType dtype = DType::f32) {
  const int bits = dtype == DType::f32 ? 24 : 7;
  char* to = memory(bytes_of(dtype, count));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t odd = (random_bits() >> (32 - bits)) * INT64_C(2) + 1 - (INT64_C(1) << bits);
    const float value = static_cast<float>(odd) / static_cast<float>(1 << (bits - 1));
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    const uint32_t sign = wide >> 16 & 0x8000, rest = wide & 0x7fffffff;
    const uint32_t f16 = sign | (rest - (112u << 23)) >> 13;  // exponents there are 112 less
    const auto narrow = static_cast<uint16_t>(dtype == DType::bf16 ? wide >> 16 : f16);
    if (dtype == DType::f32) std::memcpy(to + 4 * i, &wide, 4);
    if (dtype != DType::f32) std::memcpy(to + 2 * i, &narrow, 2);
  }
  return to;
}

Matrix rows(int64_t m, int64_t k, DType dtype = DType::f32) { return {drawn(m * k, dtype), k}; }
Matrix columns(int64_t m, int64_t k, DType dtype) { return {drawn(m * k, dtype), m, true}; }
Heads heads(int64_t m, int64_t h, int64_t d, DType dtype) {
  return {drawn(m * h * d, dtype), h * d, d};
}

void write(const std::string& name, const void* data, int64_t count, DType dtype,
           int64_t operations) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16"};
  std::printf("%s %s %ld %ld\n", name.c_str(), kNames[static_cast<int>(dtype)],
              static_cast<long>(operations), static_cast<long>(count));
  std::fwrite(data, 1, bytes_of(dtype, count), stdout);
}

// Memory for a result, which is written when this goes out of scope.
struct Result {
  std::string name;
  int64_t count;
  DType dtype;
  int64_t operations;
  void* data = memory(bytes_of(dtype, count));
  operator void*() const { return data; }
  operator float*() const { return static_cast<float*>(data); }
  ~Result() { write(name, data, count, dtype, operations); }
};

// A row is the same bits however many there are beside it.
void product(const std::string& name, LinearArgs args) {
  const int64_t row = bytes_of(args.out_dtype, args.n);
  const Result out = {name, args.m * args.n, args.out_dtype, args.k + args.rank + 9};
  args.out_stride = args.n;
  args.out = out;
  linear(args, kThreads);
  for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 12, 13, 74}) {
    args.m = m;
    args.out = memory(m * row);
    linear(args, kThreads);
    if (std::memcmp(args.out, out, m * row) == 0) continue;
    std::fprintf(stderr, "%s: rows depend on there being %ld\n", name.c_str(),
                 static_cast<long>(m));
    std::exit(1);
  }
}

void products(DType dtype) {
  struct Size {
    int64_t n, k;
  };
  const int64_t m = 75;  // more than are staged at once
  for (const auto& [n, k] : {Size{1, 1}, {5, 3}, {67, 131}, {130, 579}}) {
    const LinearArgs plain = {.x = rows(m, k, dtype), .w = rows(n, k, dtype),
                              .bias = drawn(n, dtype), .m = m, .n = n, .k = k, .dtype = dtype,
                              .out_dtype = dtype};
    product("linear", plain);
    LinearArgs args = plain;
    args.w = columns(n, k, dtype);
    args.out_dtype = DType::f32;
    product("linear by columns", args);
    args.gated = true;
    args.w_up = rows(n, k, dtype);
    args.bias_up = args.bias;
    args.act = Activation::silu;
    product("gated_linear", args);
    args = plain;
    args.rank = 7;
    args.u = rows(m, 7);
    args.lora_b = rows(n, 7, dtype);
    args.partial = rows(m, n);
    product("lora_linear", args);
  }
}

void quantized_products(DType dtype) {
  struct Size {
    int64_t n, k, groups;
  };
  for (const auto& [n, k, groups] : {Size{1, 2, 1}, {67, 132, 1}, {33, 576, 9}, {21, 580, 29}}) {
    for (const int bits : {8, 4}) {
      LinearArgs args = {.x = rows(75, k, dtype), .bias = drawn(n, dtype), .m = 75, .n = n, .k = k,
                         .dtype = dtype};
      args.quantized = {.bytes = {bytes(n * k * bits / 8), k * bits / 8}, .bits = bits,
                        .scales = rows(n, groups), .groups = groups, .group = k / groups};
      product("quantized_linear", args);
    }
  }
}

void attention_and_gradients(DType dtype) {
  constexpr int64_t kQ = 14, kK = 171, kH = 6, kG = 2, kD = 43, kE = 67;
  const Span spans[] = {{0, 13, 0, 77}, {13, 1, 77, 94}};
  AttentionArgs plain = {.q = heads(kQ, kH, kD, dtype), .k = heads(kK, kG, kD, dtype),
                         .v = heads(kK, kG, kE, dtype), .spans = numbers<Span>({spans[0], spans[1]}),
                         .span_count = 2, .h = kH, .g = kG, .d = kD, .e = kE, .scale = 0.15f,
                         .dtype = dtype};
  AttentionArgs windowed = plain, capped = plain;
  windowed.window = 9;
  windowed.dropout = {true, 5, 1u << 30, 4.0f / 3};
  capped.softcap = 3;
  capped.causal = false;
  capped.mask = {drawn(13 * 94, dtype), 0, 0, 94};
  capped.slopes = numbers<float>({0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f});
  for (AttentionArgs args : {plain, windowed, capped}) {
    constexpr int64_t kOperations = kD + kK + 99;
    const Result out = {"attention", kQ * kH * kE, dtype, kOperations};
    const Result log_sums = {"log_sums", kQ * kH, DType::f32, kOperations};
    args.out = out;
    args.log_sums = log_sums;
    attention(args, kThreads);
    const Result dq = {"dq", kQ * kH * kD, DType::f32, 2 * kOperations};
    const Result dk = {"dk", kK * kG * kD, DType::f32, 2 * kOperations};
    const Result dv = {"dv", kK * kG * kE, DType::f32, 2 * kOperations};
    // Not of `out`, of which a half may be rounded either way.
    attention_backward({.of = args, .grad = heads(kQ, kH, kE, dtype),
                        .out = heads(kQ, kH, kE, dtype), .log_sums = log_sums, .dq = dq, .dk = dk,
                        .dv = dv},
                       kThreads);
  }
}

void rotations(DType dtype) {
  constexpr int64_t kM = 5, kH = 3, kD = 47, kR = 19;
  for (const bool interleaved : {false, true}) {
    const Result out = {"rotary", kM * kH * kD, dtype, 3};
    rotary({.x = heads(kM, kH, kD, dtype), .cos = rows(kM, kR), .sin = rows(kM, kR), .out = out,
            .m = kM, .h = kH, .d = kD, .r = kR, .interleaved = interleaved, .dtype = dtype},
           kThreads);
  }
}

void norms(DType dtype, int64_t m, int64_t k) {
  const NormArgs args = {.x = rows(m, k, dtype), .residual = rows(m, k, dtype),
                         .w = drawn(k, dtype), .b = drawn(k, dtype), .m = m, .k = k, .eps = 1e-3f,
                         .dtype = dtype};
  const NormBackwardArgs gradients = {.grad = rows(m, k, dtype), .x = args.x,
                                      .residual = args.residual, .total_grad = rows(m, k, dtype),
                                      .w = args.w, .m = m, .k = k, .eps = 1e-3f, .dtype = dtype};
  for (const bool layer : {false, true}) {
    NormArgs forward = args;
    const Result total = {"total", m * k, dtype, 1}, out = {"norm", m * k, dtype, k + 9};
    forward.total = total;
    forward.out = out;
    (layer ? layer_norm : rms_norm)(forward, kThreads);
    NormBackwardArgs backward = gradients;
    const Result dx = {"norm's dx", m * k, dtype, 2 * k + 99};
    const Result dw = {"norm's dw", k, dtype, 2 * k + m + 99}, db = {"norm's db", k, dtype, m};
    backward.dx = dx;
    backward.dw = dw;
    backward.db = db;
    (layer ? layer_norm_backward : rms_norm_backward)(backward, kThreads);
  }
}

void elementwise(DType dtype, int64_t m, int64_t k) {
  const Matrix x = rows(m, k, dtype), other = rows(m, k, dtype);
  const void* b = drawn(k, dtype);
  for (const Activation act : {Activation::none, Activation::relu, Activation::gelu,
                               Activation::gelu_tanh, Activation::silu}) {
    const Result out = {"bias_act", m * k, dtype, 99}, dx = {"bias_act's dx", m * k, dtype, 99};
    const Result db = {"bias_act's db", k, dtype, m + 99};
    bias_act({.x = x, .b = b, .out = out, .m = m, .k = k, .act = act, .dtype = dtype}, kThreads);
    bias_act_backward({.grad = other, .x = x, .b = b, .dx = dx, .db = db, .m = m, .k = k,
                       .act = act, .dtype = dtype},
                      kThreads);
  }
  const Result kept = {"dropout_add", m * k, dtype, 3}, sums = {"dropout_add's sums", k, dtype, m};
  dropout_add({.x = x, .residual = other, .b = b, .out = kept, .sums = sums, .m = m, .k = k,
               .dropout = {true, 3, 1u << 30, 4.0f / 3}, .dtype = dtype},
              kThreads);
}

void exponentials(DType dtype, int64_t m, int64_t k) {
  const Matrix z = rows(m, k, dtype), grad = rows(m, k, dtype);
  {
    const Result p = {"softmax", m * k, dtype, k + 99}, dx = {"softmax's dx", m * k, dtype, k + 9};
    softmax({.x = z, .mask = drawn(k, dtype), .mask_at = numbers(std::vector<int64_t>(m, 0)),
             .out = p, .m = m, .k = k, .scale = 3, .dtype = dtype},
            kThreads);
    softmax_backward({.grad = grad, .p = z, .dx = dx, .m = m, .k = k, .scale = 3, .dtype = dtype},
                     kThreads);
  }
  const Result logprobs = {"logprob", m, DType::f32, k + 99};
  const Result entropies = {"entropy", m, DType::f32, k + 99};
  const LogprobArgs args = {.z = z, .ids = numbers(std::vector<int64_t>(m, k - 1)),
                            .logprob = logprobs, .entropy = entropies, .m = m, .v = k, .scale = 2,
                            .softcap = 5, .temperature = 0.7f, .dtype = dtype};
  logprob(args, kThreads);
  const Result dz = {"logprob's dz", m * k, dtype, k + 999};
  logprob_backward({.of = args, .logprob = logprobs, .entropy = entropies,
                    .of_logprob = static_cast<float*>(drawn(m)),
                    .of_entropy = static_cast<float*>(drawn(m)), .out = dz, .out_dtype = dtype},
                   kThreads);
}

// Every half is widened and rounded to itself; floats of every size are rounded to halves.
void conversions(DType dtype) {
  std::vector<uint16_t> halves;
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) halves.push_back(static_cast<uint16_t>(bits));
  const int64_t count = static_cast<int64_t>(halves.size());
  const Result same = {"halves", count, dtype, 0};
  bias_act({.x = {numbers(halves), count}, .out = same, .m = 1, .k = count, .dtype = dtype}, 1);

  std::vector<uint32_t> floats;
  for (uint64_t bits = 0; bits <= 0xffffffff; bits += 65521) {
    floats.push_back(static_cast<uint32_t>(bits));
  }
  const int64_t m = static_cast<int64_t>(floats.size());
  const Result rounded = {"rounded", m, dtype, 0};
  linear({.x = {numbers(floats), 1}, .w = {numbers<float>({1}), 1}, .out = rounded,
          .out_stride = 1, .m = m, .n = 1, .k = 1, .out_dtype = dtype},
         1);
}

}  // namespace

int main() {
  for (const DType dtype : kAll) {
    products(dtype);
    quantized_products(dtype);
    attention_and_gradients(dtype);
    rotations(dtype);
    for (const int64_t k : {1, 3, 19, 600}) {
      norms(dtype, 37, k);
      elementwise(dtype, 37, k);
      exponentials(dtype, 37, k);
    }
    if (dtype != DType::f32) conversions(dtype);
  }
}
