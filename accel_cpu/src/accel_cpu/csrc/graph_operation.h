// An operation of a graph: what is called, and what is known of it from when it was recorded.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "team.h"

namespace {

using accel_cpu::Lying;
using accel_cpu::Team;
using torch::jit::Stack;

// Where a result of an earlier operation stands: argument number `argument`, or element `element`
// of that argument where it is a list.
struct Use {
  int64_t argument;
  int64_t element;  // -1: the argument itself
  int64_t value;
};

// How a result lies in the memory of the first argument, if that has the sizes and strides that it
// had when this was recorded.
struct View {
  at::DimVector whole_sizes, whole_strides, sizes, strides;
  int64_t offset;  // from the argument's first element

  bool is_of(const at::Tensor& whole) const {
    return whole.sizes() == whole_sizes && whole.strides() == whole_strides;
  }
};

struct Operation {
  c10::OperatorHandle handle;
  Stack arguments;  // None where a Use says what comes there
  std::vector<Use> uses;
  std::vector<int64_t> results;  // the values that its results are, in order; -1 for an argument's
  std::vector<at::Tensor> made_of_nothing;  // its results if it has no tensor for an argument
  std::vector<int64_t> last_uses;  // of values that no later operation reads
  std::optional<View> view;        // then that is all it does
  bool ours = false;               // a kernel that deals its work to a team
  bool large = false;              // torch's, and it may use threads of its own
  std::vector<at::Tensor> weights;  // what it reads from end to end
  std::vector<Lying> lying;         // where they lie in this replay
  const Operation* next = nullptr;  // the next that has weights

  void find_weights() {
    lying.clear();
    for (const auto& t : weights) {
      const bool gone = t.storage().nbytes() < t.nbytes();  // shards that are not gathered
      if (!gone) lying.push_back({t.const_data_ptr(), static_cast<int64_t>(t.nbytes())});
    }
  }
  // To a team that parts after the operation `last`.
  void announce_next(Team& team, const Operation* last) const {
    if (next && next <= last) team.read_next(next->lying.data(), next->lying.size());
  }
};

// The tensors of a stack one by one, those in lists too: see(tensor, argument, element).
template <class See>
void each_tensor(const Stack& stack, const See& see) {
  for (size_t i = 0; i < stack.size(); ++i) {
    if (stack[i].isTensor()) {
      see(stack[i].toTensor(), i, -1);
    } else if (stack[i].isList()) {
      const auto elements = stack[i].toListRef();
      for (size_t j = 0; j < elements.size(); ++j) {
        if (elements[j].isTensor()) see(elements[j].toTensor(), i, j);
      }
    }
  }
}

// True for what makes a tensor without values. It is not recorded: torch fills what it makes of
// Python's numbers behind the dispatcher, and what recorded operations write may as well be written
// to the same place again.
bool makes_room(const c10::OperatorName& name) {
  static const std::unordered_set<std::string> names{
      "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
      "aten::new_empty_strided"};
  return names.count(name.name) != 0;
}

// True for what writes to no argument.
bool only_reads(const c10::FunctionSchema& schema) {
  for (const auto& argument : schema.arguments()) {
    if (argument.alias_info() && argument.alias_info()->isWrite()) return false;
  }
  return true;
}

// True for what at most looks at an argument in another way.
bool only_views(const c10::FunctionSchema& schema) {
  return schema.returns().size() == 1 && schema.returns()[0].alias_info() && only_reads(schema);
}

// What the operation has done if its result is a view of its first argument. Of a decode step of
// narrow layers a third of the operations are views, and torch takes 0.5 to 1 us for each.
std::optional<View> view_of(const Stack& arguments, const Stack& results) {
  if (!results[0].isTensor() || !arguments[0].isTensor()) return std::nullopt;
  const at::Tensor &whole = arguments[0].toTensor(), &part = results[0].toTensor();
  const bool plain = whole.defined() && !whole.is_quantized() && !whole.is_nested() &&
                     !whole.key_set().has(c10::DispatchKey::Python);
  const bool lies = plain && part.defined() && whole.layout() == at::kStrided &&
                    part.layout() == at::kStrided && part.is_alias_of(whole) &&
                    part.dtype() == whole.dtype() && part.key_set() == whole.key_set();
  if (!lies) return std::nullopt;
  return View{at::DimVector(whole.sizes()), at::DimVector(whole.strides()),
              at::DimVector(part.sizes()), at::DimVector(part.strides()),
              part.storage_offset() - whole.storage_offset()};
}

at::Tensor viewed(const at::Tensor& whole, const View& view) {
  auto part = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(whole.storage()), whole.key_set(), whole.dtype());
  part.unsafeGetTensorImpl()->set_sizes_and_strides(view.sizes, view.strides,
                                                    whole.storage_offset() + view.offset);
  // What is written through it is seen by who has kept the whole for a gradient.
  if (!whole.is_inference()) {
    part.unsafeGetTensorImpl()->set_version_counter(whole.unsafeGetTensorImpl()->version_counter());
  }
  return part;
}

// True for what reads its tensors from end to end.
bool is_product(const c10::OperatorName& name) {
  return name.name.find("linear") != std::string::npos;
}

// True for what takes long enough to read that somebody had better begin.
bool is_weight(const at::Tensor& t) {
  constexpr size_t kLeast = 1 << 15;
  return t.defined() && t.is_contiguous() && t.nbytes() >= kLeast;
}

// True for what reads or writes only some rows of its first argument.
bool touches_rows(const c10::OperatorName& name) {
  static const std::unordered_set<std::string> names{
      "aten::embedding", "aten::gather", "aten::index", "aten::index_copy_", "aten::index_put_",
      "aten::index_select"};
  return names.count(name.name) != 0;
}

// True if a tensor has more elements than torch goes over by one thread, or gains much by more for.
bool is_large(const c10::OperatorName& name, const Stack& arguments, const Stack& results) {
  constexpr int64_t kSmall = 1 << 17;
  const at::Tensor skipped = touches_rows(name) ? arguments[0].toTensor() : at::Tensor();
  bool found = false;
  const auto see = [&](const at::Tensor& t, int64_t, int64_t) {
    found |= t.defined() && !t.is_same(skipped) && t.numel() > kSmall;
  };
  each_tensor(arguments, see);
  each_tensor(results, see);
  return found;
}

}  // namespace
