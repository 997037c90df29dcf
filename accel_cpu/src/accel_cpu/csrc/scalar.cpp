#include "vec_scalar.h"  // first: the others are written over its vectors

#include "linear_block.h"
#include "rms_norm_rows.h"

namespace accel_cpu {

const Kernels kScalarKernels = {
    "scalar",
    {linear_block<Widened<float>>, linear_block<Widened<bf16>>, linear_block<Widened<f16>>},
    {rms_norm_rows<float>, rms_norm_rows<bf16>, rms_norm_rows<f16>},
};

}  // namespace accel_cpu
