// The torch side of rotary and embedding.
#pragma once

#include "binding.h"
#include "binding_attention.h"

namespace accel_cpu {
namespace {

void check_turns(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x,
                 int64_t r) {
  at::DimVector shape(x.sizes().slice(0, x.dim() - 2));
  shape.push_back(r);
  TORCH_CHECK(t.sizes() == shape, op, ": ", name, " has shape ", t.sizes(), "; beside x of shape ",
              x.sizes(), " and cos it must be ", at::IntArrayRef(shape));
  TORCH_CHECK(t.scalar_type() == at::kFloat, op, ": ", name, " is ", t.scalar_type(),
              "; it must be Float");
}

at::Tensor rotary_native(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                         bool interleaved) {
  const char* op = "rotary_native";
  TORCH_CHECK(x.dim() >= 2, op, ": x must be [..., H, D], but has shape ", x.sizes());
  TORCH_CHECK(cos.dim() >= 1 && 2 * cos.size(-1) <= x.size(-1), op, ": cos must be [..., R / 2] ",
              "with R at most D = ", x.size(-1), ", but has shape ", cos.sizes());
  RotaryArgs args;
  args.r = cos.size(-1);
  check_turns(op, "cos", cos, x, args.r);
  check_turns(op, "sin", sin, x, args.r);
  args.dtype = dtype_of(op, "x", x.scalar_type());
  at::Tensor out = uninitialized(x.sizes(), x.options());
  if (out.numel() == 0) return out;

  at::Tensor rows = x, cosines = cos, sines = sin;
  args.interleaved = interleaved;
  args.d = x.size(-1);
  args.h = x.size(-2);
  args.m = x.numel() / (args.h * args.d);
  args.x = heads_of(rows);
  args.cos = matrix_of(cosines);
  args.sin = matrix_of(sines);
  args.out = out.mutable_data_ptr();
  rotary(args, at::get_num_threads());
  return out;
}

at::Tensor embedding_native(const at::Tensor& ids, const at::Tensor& w) {
  const char* op = "embedding_native";
  TORCH_CHECK(w.dim() == 2, op, ": w must be [V, H], but has shape ", w.sizes());
  TORCH_CHECK(ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt, op, ": ids is ",
              ids.scalar_type(), "; possible are Long and Int");
  const at::Tensor wide = ids.to(at::kLong).contiguous();
  EmbeddingArgs args;
  args.ids = wide.const_data_ptr<int64_t>();
  args.m = wide.numel();
  for (int64_t i = 0; i < args.m; ++i) {
    TORCH_CHECK_INDEX(0 <= args.ids[i] && args.ids[i] < w.size(0), op, ": ids holds ", args.ids[i],
                      " at position ", i, "; w has V = ", w.size(0), " rows");
  }
  at::DimVector shape(ids.sizes());
  shape.push_back(w.size(1));
  at::Tensor out = uninitialized(shape, w.options());
  if (out.numel() == 0) return out;

  at::Tensor rows = w;
  args.w = matrix_of(rows);
  args.k = w.size(1);
  args.element_size = w.element_size();
  args.out = out.mutable_data_ptr();
  embedding(args, at::get_num_threads());
  return out;
}

}  // namespace
}  // namespace accel_cpu
