#if defined(__x86_64__)
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile this file with the flags listed in kernels.h"
#endif

#include "vec_avx2.h"  // first: the others are written over its vectors

#include "attention_backward.h"
#include "attention_parts.h"
#include "attention_rows.h"
#include "linear_part.h"
#include "linear_quantized.h"
#include "rotary_rows.h"
#include "row_table.h"

namespace accel_cpu {

const Kernels kAvx2Kernels = {
    "avx2",
    {linear_part<Widened<float>>, linear_part<Widened<bf16>>, linear_part<Widened<f16>>},
    {quantized_part<float>, quantized_part<bf16>, quantized_part<f16>},
    {rotary_rows<float>, rotary_rows<bf16>, rotary_rows<f16>},
    {attention_block<float>, attention_block<bf16>, attention_block<f16>},
    {attention_step<float>, attention_step<bf16>, attention_step<f16>},
    attention_backward_block,
    kRowKernels,
};

}  // namespace accel_cpu

#endif
