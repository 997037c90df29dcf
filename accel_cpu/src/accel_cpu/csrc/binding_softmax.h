// The torch side of softmax, and of what flows back through the one in logprob.
#pragma once

#include <ATen/ops/zeros.h>

#include <vector>

#include "binding_rows.h"

namespace accel_cpu {
namespace {

// Where each row of t, [..., k], begins.
std::vector<int64_t> starts_of_rows(const at::Tensor& t) {
  const int64_t leading = t.dim() - 1;
  std::vector<int64_t> starts(t.numel() / t.size(-1));
  at::DimVector index(leading, 0);
  int64_t at = 0;
  for (int64_t& start : starts) {
    start = at;
    for (int64_t d = leading - 1; d >= 0; --d) {
      at += t.stride(d);
      if (++index[d] < t.size(d)) break;
      at -= index[d] * t.stride(d);
      index[d] = 0;
    }
  }
  return starts;
}

at::Tensor softmax_native(at::Tensor x, const OptionalTensor& mask, double scale) {
  const char* op = "softmax_native";
  check_x(op, x);
  at::Tensor out = like(x);
  if (out.numel() == 0) return out;

  SoftmaxArgs args = args_of<SoftmaxArgs>(op, x);
  args.scale = static_cast<float>(scale);
  args.x = matrix_of(x);
  at::Tensor added;
  std::vector<int64_t> starts;
  if (mask) {
    added = mask->expand(x.sizes());
    check_operand(op, "mask", added, x, x.sizes());
    if (!has_unit_stride(added)) added = added.contiguous();
    starts = starts_of_rows(added);
    args.mask = added.const_data_ptr();
    args.mask_at = starts.data();
  }
  args.out = out.mutable_data_ptr();
  softmax(args, at::get_num_threads());
  return out;
}

at::Tensor softmax_gradient(at::Tensor grad, at::Tensor p, double scale) {
  const char* op = "softmax_gradient";
  check_x(op, p);
  check_operand(op, "grad", grad, p, p.sizes());
  at::Tensor dx = like(p);
  if (dx.numel() == 0) return dx;

  SoftmaxBackwardArgs args = args_of<SoftmaxBackwardArgs>(op, p);
  args.scale = static_cast<float>(scale);
  args.grad = matrix_of(grad);
  args.p = matrix_of(p);
  args.dx = dx.mutable_data_ptr();
  softmax_backward(args, at::get_num_threads());
  return dx;
}

// [m] in fp32, or none; `t` keeps it alive.
const float* optional_rows_of(const char* op, const char* name, OptionalTensor& t,
                              const at::Tensor& ids) {
  if (!t) return nullptr;
  TORCH_CHECK(t->scalar_type() == at::kFloat && t->numel() == ids.numel(), op, ": ", name, " is ",
              t->scalar_type(), " of shape ", t->sizes(), "; it must be Float, one for each id");
  t = t->contiguous();
  return t->const_data_ptr<float>();
}

// The gradient of logits z from those of what logprob made of them, and with `sums` its sum over
// the rows, in fp32. With `anchors`, the adjusted logits of the ids, z is a tile of the vocabulary,
// and an id outside [0, v) another tile's.
std::tuple<at::Tensor, at::Tensor> logprob_gradients(
    at::Tensor z, at::Tensor ids, OptionalTensor anchors, const at::Tensor& chosen,
    const at::Tensor& entropy, OptionalTensor of_logprob, OptionalTensor of_entropy, double scale,
    std::optional<double> softcap, double temperature, at::ScalarType out_dtype, bool sums) {
  const char* op = "logprob_gradients";
  check_x(op, z);
  TORCH_CHECK(ids.scalar_type() == at::kLong && ids.numel() * z.size(-1) == z.numel(), op,
              ": ids is ", ids.scalar_type(), " of shape ", ids.sizes(), "; it must be Long, one ",
              "for each row of z, of shape ", z.sizes());
  at::Tensor dz = uninitialized(z.sizes(), z.options().dtype(out_dtype)), sum;
  if (sums) sum = at::zeros({z.size(-1)}, z.options().dtype(at::kFloat));
  if (z.numel() == 0) return {dz, sum};

  LogprobBackwardArgs args;
  args.of.dtype = dtype_of(op, "z", z.scalar_type());
  args.of.z = matrix_of(z);
  ids = ids.contiguous();
  args.of.ids = ids.const_data_ptr<int64_t>();
  args.of.m = ids.numel();
  args.of.v = z.size(-1);
  args.of.scale = static_cast<float>(scale);
  args.of.softcap = static_cast<float>(softcap.value_or(0));
  args.of.temperature = static_cast<float>(temperature);
  OptionalTensor chosen_rows = chosen, entropy_rows = entropy;
  args.logprob = optional_rows_of(op, "chosen", chosen_rows, ids);
  args.entropy = optional_rows_of(op, "entropy", entropy_rows, ids);
  args.anchors = optional_rows_of(op, "anchors", anchors, ids);
  args.of_logprob = optional_rows_of(op, "of_logprob", of_logprob, ids);
  args.of_entropy = optional_rows_of(op, "of_entropy", of_entropy, ids);
  args.out_dtype = dtype_of(op, "out_dtype", out_dtype);
  args.out = dz.mutable_data_ptr();
  args.sums = sums ? sum.mutable_data_ptr<float>() : nullptr;
  logprob_backward(args, at::get_num_threads());
  return {dz, sum};
}

}  // namespace
}  // namespace accel_cpu
