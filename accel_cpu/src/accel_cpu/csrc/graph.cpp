// Graphs of the host processor: the torch operations that a thread calls, recorded while they run
// and called again without the Python that led to them.
//
// A replay calls the same operations on the same arguments, with new results in place of the
// recorded ones; tensors that came from outside are kept alive and read as they are then. Results
// that somebody still holds when the recording ends get the values of each replay, as those of a
// CUDA graph do. Of an operation that calls others only the outermost is recorded.
//
// Kernels of this package run with a team of threads (team.h) that stays as long as what lies
// between them is too small for torch to use threads of its own.

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "graph_operation.h"

namespace {

// True for graphs' own comings and goings: Python's collector may drop one while another is
// recorded, and no replay can drop it again.
bool of_graphs(const c10::OperatorName& name) {
  return name.name == "accel_cpu_graphs::create" || name.name == "accel_cpu_graphs::drop";
}

class Graph {
 public:
  void record(const c10::OperatorName& name, Stack arguments, const Stack& results) {
    if (makes_room(name) || of_graphs(name)) return;
    Operation made{c10::Dispatcher::singleton().findSchemaOrThrow(name.name.c_str(),
                                                                  name.overload_name.c_str()),
                   {}, {}, {}, {}, {}};
    bool reads = false;
    std::unordered_map<const at::TensorImpl*, bool> given;
    each_tensor(arguments, [&](const at::Tensor& t, int64_t argument, int64_t element) {
      reads = true;
      given[t.unsafeGetTensorImpl()] = true;
      const auto found = made_here_.find(t.unsafeGetTensorImpl());
      if (found != made_here_.end()) made.uses.push_back({argument, element, found->second});
    });
    for (const auto& result : results) {
      const bool tensors = result.isTensor() || result.isTensorList() || result.isNone();
      if (reads && !tensors) reads_values_ = toString(name);
    }
    each_tensor(results, [&](const at::Tensor& t, int64_t, int64_t) {
      if (!reads) {
        // Python may get another tensor of the same memory, so that is what has to stay.
        made.made_of_nothing.push_back(t);
        return;
      }
      if (!t.defined() || given.count(t.unsafeGetTensorImpl())) {
        made.results.push_back(-1);  // in place: whoever has the argument has the result
        return;
      }
      made_here_[t.unsafeGetTensorImpl()] = values_.size();
      made.results.push_back(values_.size());
      values_.push_back(t);
    });
    if (made.results.size() == 1 && only_views(made.handle.schema())) {
      if (made.results[0] < 0) return;  // the argument itself
      made.view = view_of(arguments, results);
    }
    made.ours = name.name.rfind("accel_cpu_kernels::", 0) == 0;
    made.large = !made.ours && !made.view && is_large(name, arguments, results);
    if (made.ours && is_product(name)) {
      each_tensor(arguments, [&](const at::Tensor& t, int64_t, int64_t) {
        if (!made_here_.count(t.unsafeGetTensorImpl()) && is_weight(t)) made.weights.push_back(t);
      });
    }
    made.arguments = without_uses(std::move(arguments), made.uses);
    operations_.push_back(std::move(made));
  }

  // Forgets results that nobody else holds, and finds out when each is read for the last time.
  void finish() {
    made_here_.clear();
    const auto reads = reads_values_;
    if (!reads.empty()) clear();
    TORCH_CHECK(reads.empty(), "a graph cannot be made of ", reads,
                ": it reads a tensor's values on the host, and what follows would depend on them");
    std::vector<int64_t> last(values_.size(), -1);
    for (size_t i = 0; i < operations_.size(); ++i) {
      for (const auto& use : operations_[i].uses) last[use.value] = i;
      for (const auto value : operations_[i].results) {
        if (value >= 0) last[value] = i;
      }
    }
    const Operation* next = nullptr;
    for (auto one = operations_.rbegin(); one != operations_.rend(); ++one) {
      one->next = next;
      if (!one->weights.empty()) next = &*one;
    }
    held_ = std::vector<at::Tensor>(values_.size());
    for (size_t value = 0; value < values_.size(); ++value) {
      // Not by use_count(): Python's object of a tensor counts for as long as we hold the tensor.
      const c10::weak_intrusive_ptr<at::TensorImpl> seen(values_[value].getIntrusivePtr());
      values_[value].reset();
      if (auto held = seen.lock()) {
        held_[value] = at::Tensor(std::move(held));
      } else {
        operations_[last[value]].last_uses.push_back(value);
      }
    }
  }

  void clear() { *this = Graph(); }

  void replay() {
    at::AutoGradMode no_grad(false);
    const auto in_team = team_of();
    for (size_t first = 0, last; first < operations_.size(); first = last) {
      last = first + 1;
      const auto goes_on = [&] { return !operations_[last - 1].large && !operations_[last].large; };
      while (last < operations_.size() && goes_on()) ++last;
      if (in_team && has_several_of_ours(first, last)) {
        with_team(*in_team, first, last);
      } else {
        run(first, last, nullptr);
      }
    }
    for (size_t value = 0; value < held_.size(); ++value) {  // after what is done in place
      if (held_[value].defined()) held_[value].copy_(values_[value]);
      values_[value].reset();
    }
  }

 private:
  // What gives threads to a function, if the kernels' library is here and there is more than one.
  static std::optional<c10::OperatorHandle> team_of() {
    if (at::get_num_threads() == 1 || at::in_parallel_region()) return std::nullopt;
    return c10::Dispatcher::singleton().findSchema({"accel_cpu_kernels::in_team", ""});
  }

  bool has_several_of_ours(size_t first, size_t last) const {
    return std::count_if(operations_.begin() + first, operations_.begin() + last,
                         [](const Operation& one) { return one.ours; }) > 1;
  }

  void with_team(const c10::OperatorHandle& in_team, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) operations_[i].find_weights();
    struct Part {
      Graph* graph;
      size_t first, last;
    } part{this, first, last};
    const accel_cpu::TeamWork work = [](Team& team, void* context) {
      const auto& part = *static_cast<Part*>(context);
      part.graph->run(part.first, part.last, &team);
    };
    Stack stack{reinterpret_cast<int64_t>(work), reinterpret_cast<int64_t>(&part)};
    in_team.callBoxed(stack);
  }

  void run(size_t first, size_t last, Team* team) {
    Stack stack;
    for (size_t i = first; i < last; ++i) {
      const Operation& operation = operations_[i];
      if (operation.view) {
        const auto& whole = viewed_by(operation);
        if (operation.view->is_of(whole)) {
          values_[operation.results[0]] = viewed(whole, *operation.view);
          for (const auto value : operation.last_uses) values_[value].reset();
          continue;
        }
      }
      if (team) operation.announce_next(*team, &operations_[last - 1]);
      stack = operation.arguments;
      for (const auto& use : operation.uses) {
        if (use.element < 0) {
          stack[use.argument] = values_[use.value];
        } else {  // `stack` shares the list with the operation
          auto& list = stack[use.argument];
          if (list.toListRef().data() == operation.arguments[use.argument].toListRef().data()) {
            list = list.toList().copy();
          }
          list.toList().set(use.element, values_[use.value]);
        }
      }
      operation.handle.callBoxed(stack);
      size_t next = 0;
      each_tensor(stack, [&](const at::Tensor& t, int64_t, int64_t) {
        if (!operation.made_of_nothing.empty()) {
          operation.made_of_nothing.at(next++).copy_(t);
          return;
        }
        const int64_t value = operation.results.at(next++);
        if (value < 0) return;
        values_[value] = t;
      });
      for (const auto value : operation.last_uses) values_[value].reset();
    }
  }

  const at::Tensor& viewed_by(const Operation& operation) const {
    const bool made_here = operation.arguments[0].isNone();  // then it is the first use
    return made_here ? values_[operation.uses[0].value] : operation.arguments[0].toTensor();
  }

  static Stack without_uses(Stack stack, const std::vector<Use>& uses) {
    for (const auto& use : uses) {
      if (use.element < 0) {
        stack[use.argument] = c10::IValue();
      } else {
        auto list = stack[use.argument].toList().copy();
        list.set(use.element, at::Tensor());
        stack[use.argument] = list;
      }
    }
    return stack;
  }

  std::vector<Operation> operations_;
  std::vector<at::Tensor> values_;  // results, while they are read
  std::vector<at::Tensor> held_;    // the recorded results that somebody holds
  std::unordered_map<const at::TensorImpl*, int64_t> made_here_;
  std::string reads_values_;
};

// What a thread records at present.
struct Recording {
  Graph* graph;
  at::CallbackHandle callback;
  int64_t depth;
  Stack arguments;
};
thread_local std::unique_ptr<Recording> recording;

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& call) {
  if (recording && recording->depth++ == 0) {
    recording->arguments.assign(call.inputs().begin(), call.inputs().end());
  }
  return nullptr;
}

void leave(const at::RecordFunction& call, at::ObserverContext*) {
  if (!recording || --recording->depth != 0) return;
  const auto name = call.operator_name();
  if (name) recording->graph->record(*name, std::move(recording->arguments), call.outputs());
}

std::mutex graphs_mutex;
std::unordered_map<int64_t, std::unique_ptr<Graph>> graphs;
int64_t graphs_made = 0;

Graph& graph_of(int64_t number) {
  const std::lock_guard<std::mutex> lock(graphs_mutex);
  return *graphs.at(number);
}

int64_t create() {
  const std::lock_guard<std::mutex> lock(graphs_mutex);
  graphs[++graphs_made] = std::make_unique<Graph>();
  return graphs_made;
}

void drop(int64_t number) {
  std::unique_ptr<Graph> dropped;  // destroyed without the lock: tensors may have deleters
  const std::lock_guard<std::mutex> lock(graphs_mutex);
  dropped = std::move(graphs.at(number));
  graphs.erase(number);
}

void begin(int64_t number) {
  TORCH_CHECK(!recording, "a graph is being recorded in this thread already");
  auto begun = std::make_unique<Recording>();
  begun->graph = &graph_of(number);
  begun->callback = at::addThreadLocalCallback(at::RecordFunctionCallback(enter, leave)
                                                   .needsInputs(true)
                                                   .needsOutputs(true)
                                                   .scopes({at::RecordScope::FUNCTION}));
  recording = std::move(begun);
}

void end(bool whole) {
  const auto ended = std::move(recording);
  recording = nullptr;
  at::removeCallback(ended->callback);
  whole ? ended->graph->finish() : ended->graph->clear();
}

void replay(int64_t number) { graph_of(number).replay(); }

}  // namespace

TORCH_LIBRARY(accel_cpu_graphs, m) {
  m.def("create", &create);
  m.def("drop", &drop);
  m.def("begin", &begin);
  m.def("end", &end);
  m.def("replay", &replay);
}
