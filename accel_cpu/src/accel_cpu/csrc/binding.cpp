// The torch side: checks metadata, turns tensors into plain arguments (kernels.h) and registers the
// ops. Schemas carry no fake kernel and no gradient: those come from the contracts, in Python.
#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "binding_experts.h"
#include "binding_products.h"

namespace accel_cpu {
namespace {

at::Tensor linear_native(at::Tensor x, const at::Tensor& w, const OptionalTensor& b,
                         std::optional<std::string_view> act,
                         std::optional<at::ScalarType> out_dtype) {
  const char* op = "linear_native";
  Projection main{"w", w, "b", b};
  LinearArgs args = product_of(op, x, main);
  args.act = activation_of(op, act);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

at::Tensor gated_linear_native(at::Tensor x, const at::Tensor& w_gate, const at::Tensor& w_up,
                               const OptionalTensor& b_gate, const OptionalTensor& b_up,
                               std::string_view act, std::optional<at::ScalarType> out_dtype) {
  const char* op = "gated_linear_native";
  Projection gate{"w_gate", w_gate, "b_gate", b_gate}, up{"w_up", w_up, "b_up", b_up};
  LinearArgs args = product_of(op, x, gate);
  check_projection(op, up, x, args.n);
  args.act = activation_of(op, act);
  args.gated = true;
  args.w_up = as_it_lies(up.w);
  args.bias_up = vector_of(up.b);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

at::Tensor lora_linear_native(at::Tensor x, const at::Tensor& w, const at::Tensor& lora_a,
                              at::Tensor lora_b, const OptionalTensor& b, double scale,
                              std::optional<at::ScalarType> out_dtype) {
  const char* op = "lora_linear_native";
  Projection main{"w", w, "b", b}, inner{"lora_a", lora_a, "", std::nullopt};
  LinearArgs args = product_of(op, x, main);
  const LinearArgs down = product_of(op, x, inner);
  check_operand(op, "lora_b", lora_b, x, {args.n, down.n});
  const at::Tensor u = run(op, down, x, at::kFloat);
  args.rank = down.n;
  args.u = {u.const_data_ptr(), args.rank};
  args.lora_b = as_it_lies(lora_b);
  args.scale = static_cast<float>(scale);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

at::Tensor quantized_linear_native(at::Tensor x, at::Tensor w, at::Tensor scales, OptionalTensor b,
                                   int64_t bits, std::optional<std::string_view> act,
                                   std::optional<at::ScalarType> out_dtype) {
  const char* op = "quantized_linear_native";
  check_x(op, x);
  LinearArgs args;
  args.dtype = dtype_of(op, "x", x.scalar_type());
  args.k = x.size(-1);
  args.quantized = quantized_of(op, w, scales, args.k, bits);
  args.m = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  args.n = w.size(0);
  if (b) check_operand(op, "b", *b, x, {args.n});
  args.x = x.dim() == 2 ? as_it_lies(x) : matrix_of(x);
  args.bias = vector_of(b);
  args.act = activation_of(op, act);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

// A product and the partial sum it is added to. `x`, `p` and `partial` keep alive what those point
// to.
LinearArgs sum_of(const char* op, at::Tensor& x, Projection& p, OptionalTensor& partial) {
  LinearArgs args = product_of(op, x, p);
  if (!partial) return args;
  TORCH_CHECK(partial->sizes() == at::IntArrayRef(result_shape(args, x)), op,
              ": partial has shape ", partial->sizes(), "; it must be the result's, ",
              at::IntArrayRef(result_shape(args, x)));
  args.partial_dtype = dtype_of(op, "partial", partial->scalar_type());
  args.partial = matrix_of(*partial);
  return args;
}

at::Tensor tiled_linear_native(at::Tensor x, const at::Tensor& w, const OptionalTensor& b,
                               OptionalTensor partial, std::optional<at::ScalarType> out_dtype) {
  const char* op = "tiled_linear_native";
  Projection main{"w", w, "b", b};
  return run(op, sum_of(op, x, main, partial), x, out_dtype.value_or(x.scalar_type()));
}

void tiled_linear_native_into(at::Tensor x, const at::Tensor& w, const OptionalTensor& b,
                              OptionalTensor partial, const at::Tensor& out) {
  const char* op = "tiled_linear_native_into";
  Projection main{"w", w, "b", b};
  const LinearArgs args = sum_of(op, x, main, partial);
  TORCH_CHECK(out.sizes() == at::IntArrayRef(result_shape(args, x)), op, ": out has shape ",
              out.sizes(), "; it must be the result's, ", at::IntArrayRef(result_shape(args, x)));
  if (row_stride(out)) return run_into(op, args, out);
  out.copy_(run(op, args, x, out.scalar_type()));
}

// Of the logits of hidden rows no more than this is held at once, in fp32.
constexpr int64_t kLogitBytes = 16 << 20;

// Rows enough for kLogitBytes at a time: their logits, bit for bit those of linear with out_dtype
// fp32, then what `args` asks of them.
void logprob_of_hidden(LinearArgs product, LogprobArgs args, const at::TensorOptions& options,
                       int threads) {
  const int64_t m = args.m;
  args.v = product.n;
  if (m == 0) return;
  const int64_t rows = std::min(m, std::max<int64_t>(kLogitBytes / (4 * args.v), 1));
  const at::Tensor z = at::empty({rows, args.v}, options);
  product.out = z.mutable_data_ptr();
  product.out_stride = args.v;
  args.z = {z.const_data_ptr(), args.v};
  for (int64_t done = 0; done < m; done += rows) {
    product.m = args.m = std::min(rows, m - done);
    linear(product, threads);
    logprob(args, threads);
    product.x = from_row(product.x, rows, product.dtype);
    args.ids += rows;
    args.logprob += rows;
    args.entropy += rows;
  }
}

void check_ids(const char* op, const at::Tensor& ids, int64_t v) {
  const int64_t* all = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    TORCH_CHECK_INDEX(0 <= all[i] && all[i] < v, op, ": ids holds ", all[i],
                      ", which is no logit's: V is ", v);
  }
}

std::tuple<at::Tensor, at::Tensor> logprob_native(at::Tensor x, const at::Tensor& ids,
                                                  const OptionalTensor& w, const OptionalTensor& b,
                                                  double scale, std::optional<double> softcap,
                                                  double temperature) {
  const char* op = "logprob_native";
  check_x(op, x);
  const at::IntArrayRef shape = x.sizes().slice(0, x.dim() - 1);
  TORCH_CHECK(ids.scalar_type() == at::kLong && ids.sizes() == shape, op, ": ids is ",
              ids.scalar_type(), " of shape ", ids.sizes(), "; beside x of shape ", x.sizes(),
              " it must be Long of shape ", shape);
  TORCH_CHECK(w || !b, op, ": b is given without w; x is the logits then, and b must be None");
  TORCH_CHECK(!softcap || *softcap > 0, op, ": softcap is ", *softcap, "; it must be more than 0");

  const at::TensorOptions options = x.options().dtype(at::kFloat);
  const at::Tensor chosen = at::empty(shape, options), entropy = at::empty(shape, options);
  const at::Tensor rows_ids = ids.contiguous();
  LogprobArgs args;
  args.ids = rows_ids.const_data_ptr<int64_t>();
  args.logprob = chosen.mutable_data_ptr<float>();
  args.entropy = entropy.mutable_data_ptr<float>();
  args.m = ids.numel();
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap.value_or(0));
  args.temperature = static_cast<float>(temperature);
  if (w) {
    Projection head{"w", *w, "b", b};
    const LinearArgs product = product_of(op, x, head);
    check_ids(op, rows_ids, product.n);
    logprob_of_hidden(product, args, options, at::get_num_threads());
  } else {
    args.v = x.size(-1);
    args.dtype = dtype_of(op, "x", x.scalar_type());
    args.z = matrix_of(x);
    check_ids(op, rows_ids, args.v);
    logprob(args, at::get_num_threads());
  }
  return {chosen, entropy};
}

void tune(int64_t m, int64_t n, int64_t k, at::ScalarType dtype, bool alone, int64_t columns) {
  tune_linear(m, n, k, dtype_of("tune_linear", "dtype", dtype), {alone, columns});
}

std::string isa() { return kernels().isa; }

TORCH_LIBRARY_FRAGMENT(accel_cpu_kernels, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "linear_native(Tensor x, Tensor w, Tensor? b=None, str? act=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "gated_linear_native(Tensor x, Tensor w_gate, Tensor w_up, Tensor? b_gate=None, "
      "Tensor? b_up=None, str act=\"silu\", ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "lora_linear_native(Tensor x, Tensor w, Tensor lora_a, Tensor lora_b, Tensor? b=None, "
      "float scale=1.0, ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "quantized_linear_native(Tensor x, Tensor w, Tensor scales, Tensor? b=None, int bits=8, "
      "str? act=None, ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "tiled_linear_native(Tensor x, Tensor w, Tensor? b=None, Tensor? partial=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "tiled_linear_native_into(Tensor x, Tensor w, Tensor? b, Tensor? partial, Tensor(a!) out) "
      "-> ()",
      tags);
  m.def(
      "logprob_native(Tensor x, Tensor ids, Tensor? w=None, Tensor? b=None, float scale=1.0, "
      "float? softcap=None, float temperature=1.0) -> (Tensor, Tensor)",
      tags);
  m.def(
      "grouped_linear_native(Tensor x, Tensor w, Tensor ends, Tensor? b=None, str? act=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def("grouped_weight_gradient(Tensor grad, Tensor x, Tensor ends) -> Tensor", tags);
  m.def("isa() -> str", tags);
  m.impl("isa", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(isa));
  m.def(
      "tune_linear(int m, int n, int k, ScalarType dtype, bool alone, int columns) -> ()", tags);
  m.impl("tune_linear", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(tune));
}

TORCH_LIBRARY_IMPL(accel_cpu_kernels, CPU, m) {
  m.impl("linear_native", TORCH_FN(linear_native));
  m.impl("gated_linear_native", TORCH_FN(gated_linear_native));
  m.impl("lora_linear_native", TORCH_FN(lora_linear_native));
  m.impl("quantized_linear_native", TORCH_FN(quantized_linear_native));
  m.impl("tiled_linear_native", TORCH_FN(tiled_linear_native));
  m.impl("tiled_linear_native_into", TORCH_FN(tiled_linear_native_into));
  m.impl("logprob_native", TORCH_FN(logprob_native));
  m.impl("grouped_linear_native", TORCH_FN(grouped_linear_native));
  m.impl("grouped_weight_gradient", TORCH_FN(grouped_weight_gradient));
}

}  // namespace
}  // namespace accel_cpu
