// The table of the ops that go through rows, for the instruction set of the vec_*.h included
// before it.
#pragma once

#include "bias_act_rows.h"
#include "dropout_rows.h"
#include "gate_rows.h"
#include "layer_norm_rows.h"
#include "logprob_backward_rows.h"
#include "logprob_rows.h"
#include "norm_backward_rows.h"
#include "rms_norm_rows.h"
#include "softmax_rows.h"

namespace accel_cpu {
namespace {

constexpr RowKernels kRowKernels = {
    {rms_norm_rows<float>, rms_norm_rows<bf16>, rms_norm_rows<f16>},
    {layer_norm_rows<float>, layer_norm_rows<bf16>, layer_norm_rows<f16>},
    {rms_norm_backward_rows<float>, rms_norm_backward_rows<bf16>, rms_norm_backward_rows<f16>},
    {layer_norm_backward_rows<float>, layer_norm_backward_rows<bf16>,
     layer_norm_backward_rows<f16>},
    {bias_act_rows<float>, bias_act_rows<bf16>, bias_act_rows<f16>},
    {bias_act_backward_rows<float>, bias_act_backward_rows<bf16>, bias_act_backward_rows<f16>},
    {gate_backward_rows<float>, gate_backward_rows<bf16>, gate_backward_rows<f16>},
    {dropout_add_rows<float>, dropout_add_rows<bf16>, dropout_add_rows<f16>},
    {softmax_rows<float>, softmax_rows<bf16>, softmax_rows<f16>},
    {softmax_backward_rows<float>, softmax_backward_rows<bf16>, softmax_backward_rows<f16>},
    {logprob_rows<float>, logprob_rows<bf16>, logprob_rows<f16>},
    {logprob_backward_rows<float>, logprob_backward_rows<bf16>, logprob_backward_rows<f16>},
    {sum_of_rows<float>, sum_of_rows<bf16>, sum_of_rows<f16>},
};

}  // namespace
}  // namespace accel_cpu
