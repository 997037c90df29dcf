#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include "amx_registers.h"
#endif

namespace accel_cpu {
namespace {

struct Candidate {
  Kernels kernels;
  bool supported;
};

// Best first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Not asked for F16C: every CPU with AVX2 and FMA has it, and older compilers lack the name.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  Kernels avx512_bf16 = kAvx512Kernels;  // fp32 and fp16 gain nothing from the bf16 instructions
  avx512_bf16.isa = "avx512_bf16";
  avx512_bf16.linear[static_cast<int>(DType::bf16)] = linear_part_bf16_pairs;
  avx512_bf16.quantized_linear[static_cast<int>(DType::bf16)] = quantized_part_bf16_pairs;
  Kernels amx_bf16 = avx512_bf16;
  amx_bf16.isa = "amx_bf16";
  amx_bf16.linear[static_cast<int>(DType::bf16)] = linear_part_bf16_tiles;
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  all.push_back({amx_bf16, bf16 && has_amx_bf16()});
  all.push_back({avx512_bf16, bf16});
  all.push_back({kAvx512Kernels, avx512});
  all.push_back({kAvx2Kernels, avx2});
#endif
#if defined(__ARM_ARCH_ISA_A64)
  all.push_back({kNeonKernels, true});
#endif
  all.push_back({kScalarKernels, true});
  return all;
}

Kernels choose() {
  const char* variable = std::getenv("ACCEL_CPU_ISA");
  const std::string wanted = variable ? variable : "";
  std::string supported;
  for (const Candidate& candidate : candidates()) {
    if (!candidate.supported) continue;
    if (wanted.empty() || wanted == candidate.kernels.isa) return candidate.kernels;
    supported += (supported.empty() ? "" : ", ") + std::string(candidate.kernels.isa);
  }
  throw std::runtime_error("ACCEL_CPU_ISA asks for '" + wanted +
                           "', which this CPU lacks or accel_cpu does not know; possible here: " +
                           supported);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace accel_cpu
