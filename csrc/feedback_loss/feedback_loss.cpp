// argus_native::feedback_loss and its backward: checks, the sums over blocks, registration. Compiled into
// both op libraries.
#include "feedback_loss/feedback_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "common/cpu/huge_pages.h"
#include "common/cpu/stored_type.h"
#include "common/torch/check.h"
#include "common/torch/memory.h"
#include "common/torch/stream.h"
#include "feedback_loss/feedback_loss_cuda.h"

namespace argus::feedback_loss {
namespace {

constexpr const char* kOp = "feedback_loss";

// The arguments, made contiguous if needed; params points into them.
struct Inputs {
  Tensor hidden, weight, bias, targets;
  std::optional<Tensor> task_weight, row_weight;
  std::vector<int64_t> classes;

  bool wide() const { return hidden.scalar_type() == ScalarType::Double; }
  ScalarType statistics() const { return wide() ? ScalarType::Double : ScalarType::Float; }

  double task_weight_of(int64_t task) const {
    if (!task_weight) return 1.0;
    return wide() ? task_weight->const_data_ptr<double>()[task] : task_weight->const_data_ptr<float>()[task];
  }

  Params params() const {
    return Params{
        .hidden = hidden.const_data_ptr(),
        .weight = weight.const_data_ptr(),
        .bias = bias.const_data_ptr(),
        .targets = targets.const_data_ptr<int64_t>(),
        .classes = classes.data(),
        .row_weight = row_weight ? row_weight->const_data_ptr() : nullptr,
        .rows = hidden.size(0),
        .hidden_stride = hidden.stride(0),
        .width = hidden.size(1),
        .columns = weight.size(1),
        .tasks = static_cast<int64_t>(classes.size()),
        .dtype = dtype_of(hidden),
    };
  }
};

void check_arguments(const Inputs& inputs) {
  check_shape(kOp, "hidden", inputs.hidden, "[N, D]", {-1, -1});
  const int64_t rows = inputs.hidden.size(0), tasks = static_cast<int64_t>(inputs.classes.size());
  int64_t columns = 0;
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t count = inputs.classes[static_cast<size_t>(task)];
    if (count < 1) fail(kOp, "classes[", task, "] is ", count, ", expected at least 1");
    columns = checked_sum(kOp, "the sum of classes", columns, count);
  }
  check_dtype(kOp, "hidden", inputs.hidden,
              {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  check_shape(kOp, "weight", inputs.weight, "[D, C]", {inputs.hidden.size(1), columns});
  check_shape(kOp, "bias", inputs.bias, "[C]", {columns});
  check_shape(kOp, "targets", inputs.targets, "[N, F]", {rows, tasks});
  check_dtype(kOp, "weight", inputs.weight, {inputs.hidden.scalar_type()});
  check_dtype(kOp, "bias", inputs.bias, {inputs.hidden.scalar_type()});
  check_dtype(kOp, "targets", inputs.targets, {ScalarType::Long});
  if (inputs.task_weight) {
    check_shape(kOp, "task_weight", *inputs.task_weight, "[F]", {tasks});
    check_dtype(kOp, "task_weight", *inputs.task_weight, {inputs.statistics()});
  }
  if (inputs.row_weight) {
    check_shape(kOp, "row_weight", *inputs.row_weight, "[N]", {rows});
    check_dtype(kOp, "row_weight", *inputs.row_weight, {inputs.statistics()});
  }
}

Inputs checked(const Tensor& hidden, const Tensor& weight, const Tensor& bias, const Tensor& targets,
               const std::vector<int64_t>& classes, const std::optional<Tensor>& task_weight,
               const std::optional<Tensor>& row_weight) {
  Inputs inputs{hidden, weight, bias, targets, task_weight, row_weight, classes};
  check_arguments(inputs);
  if (hidden.size(1) > 1 && hidden.stride(1) != 1) inputs.hidden = dense(kOp, "hidden", hidden);
  inputs.weight = dense(kOp, "weight", weight);
  inputs.bias = dense(kOp, "bias", bias);
  inputs.targets = dense(kOp, "targets", targets);
  inputs.task_weight = dense(kOp, "task_weight", task_weight);
  inputs.row_weight = dense(kOp, "row_weight", row_weight);
  return inputs;
}

// Without rows or tasks the gradients are zero.
bool no_losses(const Inputs& inputs) {
  return inputs.classes.empty() || inputs.hidden.size(0) == 0;
}

std::tuple<Tensor, Tensor, Tensor> zero_gradients(const Inputs& inputs) {
  const int64_t rows = inputs.hidden.size(0), width = inputs.hidden.size(1), columns = inputs.bias.size(0);
  return {zeros(inputs.hidden, {rows, width}), zeros(inputs.hidden, {width, columns}),
          zeros(inputs.hidden, {columns})};
}

#ifndef ARGUS_CUDA_LIBRARY

void check_targets(const Params& params) {
  std::atomic<bool> fit{true};
  torch::stable::parallel_for(0, block_count(params.rows), 1, [&](int64_t first, int64_t last) {
    if (!targets_fit_cpu(params, first, last)) fit = false;
  });
  if (fit) return;
  for (int64_t row = 0; row < params.rows; ++row) {
    for (int64_t task = 0; task < params.tasks; ++task) {
      const int64_t target = params.targets[row * params.tasks + task];
      const int64_t highest = highest_target(params.classes[task]);
      if (target < -1 || target > highest) {
        fail(kOp, "targets[", row, ", ", task, "] is ", target, ", expected -1 or 0 to ", highest);
      }
    }
  }
}

// parts[block · tasks + f] of every block, then their sums in the order of blocks.
template <class Fill>
std::vector<double> summed_over_blocks(const Params& params, Fill&& fill) {
  const int64_t blocks = block_count(params.rows);
  std::vector<double> parts(static_cast<size_t>(blocks * params.tasks)),
      sums(static_cast<size_t>(params.tasks));
  torch::stable::parallel_for(0, blocks, 1,
                              [&](int64_t first, int64_t last) { fill(params, first, last, parts.data()); });
  for (size_t i = 0; i < parts.size(); ++i) sums[i % sums.size()] += parts[i];
  return sums;
}

// v_f / Σ w of the rows that observed the task, 0 where none did.
std::vector<double> scales(const Inputs& inputs, const Params& params) {
  std::vector<double> found = summed_over_blocks(params, sum_weights_cpu);
  for (int64_t task = 0; task < params.tasks; ++task) {
    const double total = found[task];
    found[task] = total > 0.0 ? inputs.task_weight_of(task) / total : 0.0;
  }
  return found;
}

Tensor forward_on_cpu(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, std::vector<int64_t> classes,
                      std::optional<Tensor> task_weight, std::optional<Tensor> row_weight) {
  const Inputs inputs = checked(hidden, weight, bias, targets, classes, task_weight, row_weight);
  const Params params = inputs.params();
  check_targets(params);
  const Tensor losses = empty(hidden, {params.tasks}, inputs.statistics());
  const std::vector<double> scale = scales(inputs, params);
  const std::vector<double> sums = summed_over_blocks(params, forward_cpu);
  for (int64_t task = 0; task < params.tasks; ++task) {
    const double loss = scale[task] == 0.0 ? 0.0 : sums[task] * scale[task];
    if (inputs.wide()) {
      losses.mutable_data_ptr<double>()[task] = loss;
    } else {
      losses.mutable_data_ptr<float>()[task] = static_cast<float>(loss);
    }
  }
  return losses;
}

// Adds up the blocks' partial sums in order and turns columns into d_weight [width, columns] and d_bias.
template <class T>
void put_sums(const Params& params, const std::vector<Arithmetic<T>>& d_weight_parts,
              const std::vector<Arithmetic<T>>& d_bias_parts, T* d_weight, T* d_bias) {
  const int64_t width = padded_width(params.width), columns = gradient_columns(params.columns);
  const int64_t blocks = block_count(params.rows);
  std::vector<double> sum(static_cast<size_t>(width));
  for (int64_t c = 0; c < params.columns; ++c) {
    std::fill(sum.begin(), sum.end(), 0.0);
    double bias = 0.0;
    for (int64_t block = 0; block < blocks; ++block) {
      const Arithmetic<T>* part = d_weight_parts.data() + (block * columns + c) * width;
      for (int64_t d = 0; d < width; ++d) sum[d] += part[d];
      bias += d_bias_parts[block * columns + c];
    }
    for (int64_t d = 0; d < params.width; ++d)
      store(d_weight[d * params.columns + c], static_cast<Arithmetic<T>>(sum[d]));
    store(d_bias[c], static_cast<Arithmetic<T>>(bias));
  }
}

template <class T>
void backward_typed(const Params& params, const std::vector<double>& factors, const Tensor& d_hidden,
                    const Tensor& d_weight, const Tensor& d_bias) {
  using A = Arithmetic<T>;
  const int64_t blocks = block_count(params.rows), columns = gradient_columns(params.columns);
  std::vector<A> weight_parts(static_cast<size_t>(blocks * columns * padded_width(params.width)));
  std::vector<A> bias_parts(static_cast<size_t>(blocks * columns));
  void* to = d_hidden.mutable_data_ptr();
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    backward_cpu(params, factors.data(), first, last, to, weight_parts.data(), bias_parts.data());
  });
  put_sums<T>(params, weight_parts, bias_parts, static_cast<T*>(d_weight.mutable_data_ptr()),
              static_cast<T*>(d_bias.mutable_data_ptr()));
}

std::tuple<Tensor, Tensor, Tensor> backward_on_cpu(Tensor d_loss, Tensor hidden, Tensor weight, Tensor bias,
                                                   Tensor targets, std::vector<int64_t> classes,
                                                   std::optional<Tensor> task_weight,
                                                   std::optional<Tensor> row_weight) {
  const Inputs inputs = checked(hidden, weight, bias, targets, classes, task_weight, row_weight);
  const Params params = inputs.params();
  check_targets(params);
  check_shape(kOp, "d_loss", d_loss, "[F]", {params.tasks});
  check_dtype(kOp, "d_loss", d_loss, {inputs.statistics()});
  if (no_losses(inputs)) return zero_gradients(inputs);
  const Tensor gradient = dense(kOp, "d_loss", d_loss);
  std::vector<double> factors = scales(inputs, params);
  for (int64_t task = 0; task < params.tasks; ++task) {
    factors[task] *= inputs.wide() ? gradient.const_data_ptr<double>()[task]
                                   : static_cast<double>(gradient.const_data_ptr<float>()[task]);
  }
  const Tensor d_hidden = empty(hidden, {params.rows, params.width});
  prefer_huge_pages(d_hidden.mutable_data_ptr(),
                    static_cast<size_t>(params.rows * params.width * hidden.element_size()));
  const Tensor d_weight = empty(hidden, {params.width, params.columns});
  const Tensor d_bias = empty(hidden, {params.columns});
  with_stored_type(params.dtype,
                   [&]<class T>() { backward_typed<T>(params, factors, d_hidden, d_weight, d_bias); });
  return {d_hidden, d_weight, d_bias};
}

#else

void check_limits(const Inputs& inputs) {
  const int64_t tasks = static_cast<int64_t>(inputs.classes.size());
  if (tasks > kMaxTasks) fail(kOp, "classes has ", tasks, " tasks, expected at most ", kMaxTasks);
  if (inputs.weight.size(1) > kMaxLogits) {
    fail(kOp, "weight has ", inputs.weight.size(1), " columns, expected at most ", kMaxLogits);
  }
  check_dtype(kOp, "hidden", inputs.hidden, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  for (const auto& [name, tensor] : {std::pair{"weight", &inputs.weight}, std::pair{"bias", &inputs.bias},
                                     std::pair{"targets", &inputs.targets}})
    check_same_device(kOp, name, *tensor, "hidden", inputs.hidden);
  for (const auto& [name, tensor] :
       {std::pair{"task_weight", &inputs.task_weight}, std::pair{"row_weight", &inputs.row_weight}}) {
    if (*tensor) check_same_device(kOp, name, **tensor, "hidden", inputs.hidden);
  }
}

const float* floats_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

// The kernels' scratch; torch's allocator reuses it only for later work on the same stream.
struct Work {
  Tensor hidden, part_loss, part_weight, scale;
  CudaParams params;

  explicit Work(const Inputs& inputs)
      : hidden(dense(kOp, "hidden", inputs.hidden)),
        part_loss(scratch(inputs, cuda_parts(hidden.size(0)) * tasks(inputs), ScalarType::Double)),
        part_weight(scratch(inputs, cuda_parts(hidden.size(0)) * tasks(inputs), ScalarType::Double)),
        scale(scratch(inputs, tasks(inputs), ScalarType::Float)),
        params{
            .hidden = hidden.const_data_ptr(),
            .weight = inputs.weight.const_data_ptr(),
            .bias = inputs.bias.const_data_ptr(),
            .targets = inputs.targets.const_data_ptr<int64_t>(),
            .task_weight = floats_or_null(inputs.task_weight),
            .row_weight = floats_or_null(inputs.row_weight),
            .rows = hidden.size(0),
            .width = hidden.size(1),
            .columns = static_cast<int32_t>(inputs.weight.size(1)),
            .tasks = static_cast<int32_t>(inputs.classes.size()),
            .dtype = dtype_of(hidden),
            .part_loss = part_loss.mutable_data_ptr<double>(),
            .part_weight = part_weight.mutable_data_ptr<double>(),
            .scale = scale.mutable_data_ptr<float>(),
        } {
    for (size_t task = 0; task < inputs.classes.size(); ++task)
      params.classes[task] = static_cast<int32_t>(inputs.classes[task]);
  }

 private:
  static int64_t tasks(const Inputs& inputs) { return static_cast<int64_t>(inputs.classes.size()); }
  static Tensor scratch(const Inputs& inputs, int64_t size, ScalarType dtype) {
    return empty(inputs.hidden, {size}, dtype);
  }
};

Tensor forward_on_cuda(Tensor hidden, Tensor weight, Tensor bias, Tensor targets,
                       std::vector<int64_t> classes, std::optional<Tensor> task_weight,
                       std::optional<Tensor> row_weight) {
  const CurrentStream stream(hidden);
  const Inputs inputs = checked(hidden, weight, bias, targets, classes, task_weight, row_weight);
  check_limits(inputs);
  Work work(inputs);
  if (no_losses(inputs)) return zeros(hidden, {work.params.tasks}, ScalarType::Float);
  const Tensor losses = empty(hidden, {work.params.tasks}, ScalarType::Float);
  work.params.loss = losses.mutable_data_ptr<float>();
  launch_forward_cuda(work.params, stream.get());
  return losses;
}

std::tuple<Tensor, Tensor, Tensor> backward_on_cuda(Tensor d_loss, Tensor hidden, Tensor weight, Tensor bias,
                                                    Tensor targets, std::vector<int64_t> classes,
                                                    std::optional<Tensor> task_weight,
                                                    std::optional<Tensor> row_weight) {
  const CurrentStream stream(hidden);
  const Inputs inputs = checked(hidden, weight, bias, targets, classes, task_weight, row_weight);
  check_limits(inputs);
  Work work(inputs);
  CudaParams& params = work.params;
  check_shape(kOp, "d_loss", d_loss, "[F]", {params.tasks});
  check_dtype(kOp, "d_loss", d_loss, {ScalarType::Float});
  check_same_device(kOp, "d_loss", d_loss, "hidden", hidden);
  if (no_losses(inputs)) return zero_gradients(inputs);
  const Tensor gradient = dense(kOp, "d_loss", d_loss);
  const Tensor d_hidden = empty(hidden, {params.rows, params.width});
  const Tensor d_weight = empty(hidden, {params.width, params.columns});
  const Tensor d_bias = empty(hidden, {params.columns});
  const int64_t parts = cuda_parts(params.rows);
  const Tensor weight_parts = empty(hidden, {parts * params.columns * params.width}, ScalarType::Float);
  const Tensor bias_parts = empty(hidden, {parts * params.columns}, ScalarType::Float);
  params.d_loss = gradient.const_data_ptr<float>();
  params.d_weight_part = weight_parts.mutable_data_ptr<float>();
  params.d_bias_part = bias_parts.mutable_data_ptr<float>();
  params.d_hidden = d_hidden.mutable_data_ptr();
  params.d_weight = d_weight.mutable_data_ptr();
  params.d_bias = d_bias.mutable_data_ptr();
  launch_backward_cuda(params, stream.get());
  return {d_hidden, d_weight, d_bias};
}

#endif

}  // namespace
}  // namespace argus::feedback_loss

#ifndef ARGUS_CUDA_LIBRARY

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "feedback_loss(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, int[] classes, Tensor? "
      "task_weight, Tensor? row_weight) -> Tensor");
  m.def(
      "feedback_loss_backward(Tensor d_loss, Tensor hidden, Tensor weight, Tensor bias, Tensor targets, "
      "int[] "
      "classes, Tensor? task_weight, Tensor? row_weight) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("feedback_loss", TORCH_BOX(&argus::feedback_loss::forward_on_cpu));
  m.impl("feedback_loss_backward", TORCH_BOX(&argus::feedback_loss::backward_on_cpu));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("feedback_loss", TORCH_BOX(&argus::feedback_loss::forward_on_cuda));
  m.impl("feedback_loss_backward", TORCH_BOX(&argus::feedback_loss::backward_on_cuda));
}

#endif
