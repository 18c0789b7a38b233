// argus_native::pairwise_loss and its backward: checks, the order of time, registration. Compiled into both
// op libraries.
#include "pairwise_loss/pairwise_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>
#include <vector>

#include "common/cpu/stored_type.h"
#include "common/torch/check.h"
#include "common/torch/memory.h"
#include "common/torch/stream.h"
#include "pairwise_loss/pairwise_loss_cuda.h"

namespace argus::pairwise_loss {
namespace {

constexpr const char* kOp = "pairwise_loss";

#ifndef ARGUS_CUDA_LIBRARY

struct Inputs {
  Tensor scores, grades, offsets, times;
  int64_t window;

  int64_t users() const { return offsets.size(0) - 1; }
  int64_t offset(int64_t user) const { return offsets.const_data_ptr<int32_t>()[user]; }
};

Inputs checked(const Tensor& scores, const Tensor& grades, const Tensor& offsets, const Tensor& times,
               int64_t window) {
  check_shape(kOp, "scores", scores, "[T]", {-1});
  check_shape(kOp, "grades", grades, "[T]", {scores.size(0)});
  check_shape(kOp, "times", times, "[T]", {scores.size(0)});
  check_shape(kOp, "offsets", offsets, "[B + 1]", {-1});
  check_dtype(kOp, "scores", scores,
              {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  check_dtype(kOp, "grades", grades, {ScalarType::Long});
  check_dtype(kOp, "times", times, {ScalarType::Long});
  check_dtype(kOp, "offsets", offsets, {ScalarType::Int});
  if (window < 0) fail(kOp, "window is ", window, ", expected at least 0");
  if (offsets.size(0) < 1) fail(kOp, "offsets is empty, expected [B + 1] values, the first of them 0");
  Inputs inputs{dense(kOp, "scores", scores), dense(kOp, "grades", grades), dense(kOp, "offsets", offsets),
                dense(kOp, "times", times), window};
  if (inputs.offset(0) != 0) fail(kOp, "offsets[0] is ", inputs.offset(0), ", expected 0");
  for (int64_t user = 0; user < inputs.users(); ++user) {
    if (inputs.offset(user + 1) < inputs.offset(user)) fail(kOp, "offsets fall at user ", user);
  }
  if (inputs.offset(inputs.users()) > scores.size(0)) {
    fail(kOp, "offsets end at ", inputs.offset(inputs.users()), ", expected at most ", scores.size(0));
  }
  return inputs;
}

// The index of each user's first event among those with a grade ≥ 0, and the total number of these.
std::vector<int64_t> graded_offsets(const Inputs& inputs) {
  const int64_t* grades = inputs.grades.const_data_ptr<int64_t>();
  std::vector<int64_t> places(static_cast<size_t>(inputs.users()) + 1);
  for (int64_t user = 0; user < inputs.users(); ++user) {
    int64_t count = 0;
    for (int64_t row = inputs.offset(user); row < inputs.offset(user + 1); ++row) count += grades[row] >= 0;
    places[user + 1] = places[user] + count;
  }
  return places;
}

template <class T>
TimeOrder<Arithmetic<T>> time_order(const Inputs& inputs) {
  const std::vector<int64_t> places = graded_offsets(inputs);
  TimeOrder<Arithmetic<T>> order(places.back());
  const T* scores = static_cast<const T*>(inputs.scores.const_data_ptr());
  const int64_t* grades = inputs.grades.const_data_ptr<int64_t>();
  const int64_t* times = inputs.times.const_data_ptr<int64_t>();
  torch::stable::parallel_for(0, inputs.users(), 1, [&](int64_t first, int64_t last) {
    for (int64_t user = first; user < last; ++user) {
      const int64_t to = places[user], count = places[user + 1] - to;
      put_rows_in_time_order(order, to, grades, times, inputs.offset(user), inputs.offset(user + 1));
      put_grades(order, to, count, grades);
      put_windows(order, to, count, times, inputs.window);
      for (int64_t k = to; k < to + count; ++k) order.scores[k] = load(scores[order.rows[k]]);
    }
  });
  return order;
}

std::tuple<Tensor, Tensor, Tensor> forward_on_cpu(Tensor scores, Tensor grades, Tensor offsets, Tensor times,
                                                  int64_t window) {
  const Inputs inputs = checked(scores, grades, offsets, times, window);
  const bool wide = scores.scalar_type() == ScalarType::Double;
  const Tensor loss = empty(scores, {}, wide ? ScalarType::Double : ScalarType::Float);
  const Tensor pairs = empty(times, {});
  const Tensor concordant = empty(times, {});
  Totals totals;
  with_stored_type(dtype_of(scores), [&]<class T>() {
    const auto order = time_order<T>(inputs);
    std::vector<Totals> parts(static_cast<size_t>(part_count(order.padded_count())));
    torch::stable::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t first, int64_t last) {
      forward_cpu(order, first, last, parts.data());
    });
    for (const Totals& part : parts) {
      totals.loss += part.loss;
      totals.pairs += part.pairs;
      totals.concordant += part.concordant;
    }
  });
  if (wide) {
    *loss.mutable_data_ptr<double>() = totals.loss;
  } else {
    *loss.mutable_data_ptr<float>() = static_cast<float>(totals.loss);
  }
  *pairs.mutable_data_ptr<int64_t>() = totals.pairs;
  *concordant.mutable_data_ptr<int64_t>() = totals.concordant;
  return {loss, pairs, concordant};
}

template <class T>
void write_gradients(const Inputs& inputs, double d_loss, T* to) {
  using A = Arithmetic<T>;
  const TimeOrder<A> order = time_order<T>(inputs);
  std::vector<A> gradients(static_cast<size_t>(order.padded_count()));
  torch::stable::parallel_for(0, part_count(order.padded_count()), 1, [&](int64_t first, int64_t last) {
    backward_cpu(order, first, last, gradients.data());
    const int64_t events = static_cast<int64_t>(order.rows.size());
    const int64_t end = std::min(events, last * kPart);
    for (int64_t k = first * kPart; k < end; ++k)
      store(to[order.rows[k]], gradients[k] * static_cast<A>(d_loss));
  });
}

Tensor backward_on_cpu(Tensor d_loss, Tensor scores, Tensor grades, Tensor offsets, Tensor times,
                       int64_t window) {
  const Inputs inputs = checked(scores, grades, offsets, times, window);
  const bool wide = scores.scalar_type() == ScalarType::Double;
  check_shape(kOp, "d_loss", d_loss, "[]", {});
  check_dtype(kOp, "d_loss", d_loss, {wide ? ScalarType::Double : ScalarType::Float});
  const double factor = wide ? *d_loss.const_data_ptr<double>() : *d_loss.const_data_ptr<float>();
  const Tensor d_scores = zeros(scores, {scores.size(0)});
  with_stored_type(dtype_of(scores), [&]<class T>() {
    write_gradients(inputs, factor, static_cast<T*>(d_scores.mutable_data_ptr()));
  });
  return d_scores;
}

#else

void check_row(const char* name, const Tensor& tensor, const Tensor& scores, ScalarType dtype) {
  check_shape(kOp, name, tensor, "[T]", {scores.size(0)});
  check_dtype(kOp, name, tensor, {dtype});
  check_contiguous(kOp, name, tensor);
  check_same_device(kOp, name, tensor, "scores", scores);
}

// The order of events and the kernels' shared scratch. The memory lives as long as this object; torch's
// allocator reuses it only for later work on the same stream.
struct Work {
  Tensor scores, grades, begin, end, loss, pairs, concordant;
  CudaParams params;

  Work(const Tensor& given, const Tensor& given_grades, const Tensor& order, const Tensor& users,
       const Tensor& times, int64_t user_count, int64_t window)
      : scores(empty(given, {given.size(0)}, ScalarType::Float)),
        grades(empty(times, {given.size(0)})),
        begin(empty(users, {given.size(0)})),
        end(empty(users, {given.size(0)})),
        loss(empty(given, {cuda_parts(given.size(0))}, ScalarType::Double)),
        pairs(empty(times, {cuda_parts(given.size(0))})),
        concordant(empty(times, {cuda_parts(given.size(0))})),
        params{
            .scores = given.const_data_ptr(),
            .grades = given_grades.const_data_ptr<int64_t>(),
            .order = order.const_data_ptr<int64_t>(),
            .sorted_times = times.const_data_ptr<int64_t>(),
            .sorted_users = users.const_data_ptr<int32_t>(),
            .count = given.size(0),
            .window = window,
            .users = static_cast<int32_t>(user_count),
            .dtype = dtype_of(given),
            .sorted_scores = scores.mutable_data_ptr<float>(),
            .sorted_grades = grades.mutable_data_ptr<int64_t>(),
            .begin = begin.mutable_data_ptr<int32_t>(),
            .end = end.mutable_data_ptr<int32_t>(),
            .part_loss = loss.mutable_data_ptr<double>(),
            .part_pairs = pairs.mutable_data_ptr<int64_t>(),
            .part_concordant = concordant.mutable_data_ptr<int64_t>(),
        } {}
};

Work checked_work(const Tensor& scores, const Tensor& grades, const Tensor& order, const Tensor& users,
                  const Tensor& times, int64_t user_count, int64_t window) {
  check_shape(kOp, "scores", scores, "[T]", {-1});
  check_dtype(kOp, "scores", scores, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check_contiguous(kOp, "scores", scores);
  check_row("grades", grades, scores, ScalarType::Long);
  check_row("order", order, scores, ScalarType::Long);
  check_row("users", users, scores, ScalarType::Int);
  check_row("times", times, scores, ScalarType::Long);
  if (window < 0) fail(kOp, "window is ", window, ", expected at least 0");
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (user_count < 0 || user_count > kMax) fail(kOp, "user_count is ", user_count, ", expected 0 to ", kMax);
  if (scores.size(0) > kMax) fail(kOp, "scores has ", scores.size(0), " events, expected at most ", kMax);
  return Work(scores, grades, order, users, times, user_count, window);
}

std::tuple<Tensor, Tensor, Tensor> forward_on_cuda(Tensor scores, Tensor grades, Tensor order, Tensor users,
                                                   Tensor times, int64_t user_count, int64_t window) {
  const CurrentStream stream(scores);
  Work work = checked_work(scores, grades, order, users, times, user_count, window);
  const Tensor loss = zeros(scores, {}, ScalarType::Float);
  const Tensor pairs = zeros(times, {});
  const Tensor concordant = zeros(times, {});
  if (scores.size(0) == 0) return {loss, pairs, concordant};
  work.params.loss = loss.mutable_data_ptr<float>();
  work.params.pairs = pairs.mutable_data_ptr<int64_t>();
  work.params.concordant = concordant.mutable_data_ptr<int64_t>();
  launch_forward_cuda(work.params, stream.get());
  return {loss, pairs, concordant};
}

Tensor backward_on_cuda(Tensor d_loss, Tensor scores, Tensor grades, Tensor order, Tensor users, Tensor times,
                        int64_t user_count, int64_t window) {
  const CurrentStream stream(scores);
  check_shape(kOp, "d_loss", d_loss, "[]", {});
  check_dtype(kOp, "d_loss", d_loss, {ScalarType::Float});
  check_same_device(kOp, "d_loss", d_loss, "scores", scores);
  Work work = checked_work(scores, grades, order, users, times, user_count, window);
  // Zeros, because an `order` that is not a permutation leaves rows out.
  const Tensor d_scores = zeros(scores, {scores.size(0)});
  if (scores.size(0) == 0) return d_scores;
  work.params.d_loss = d_loss.const_data_ptr<float>();
  work.params.d_scores = d_scores.mutable_data_ptr();
  launch_backward_cuda(work.params, stream.get());
  return d_scores;
}

#endif

}  // namespace
}  // namespace argus::pairwise_loss

#ifndef ARGUS_CUDA_LIBRARY

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "pairwise_loss(Tensor scores, Tensor grades, Tensor offsets, Tensor times, int window) -> (Tensor, "
      "Tensor, Tensor)");
  m.def(
      "pairwise_loss_backward(Tensor d_loss, Tensor scores, Tensor grades, Tensor offsets, Tensor times, int "
      "window) -> Tensor");
  // Events user by user in the order of time: sorted_users[k] and sorted_times[k] belong to row order[k];
  // events with user user_count are in no pair.
  m.def(
      "pairwise_loss_ordered(Tensor scores, Tensor grades, Tensor order, Tensor sorted_users, Tensor "
      "sorted_times, int user_count, int window) -> (Tensor, Tensor, Tensor)");
  m.def(
      "pairwise_loss_ordered_backward(Tensor d_loss, Tensor scores, Tensor grades, Tensor order, Tensor "
      "sorted_users, Tensor sorted_times, int user_count, int window) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("pairwise_loss", TORCH_BOX(&argus::pairwise_loss::forward_on_cpu));
  m.impl("pairwise_loss_backward", TORCH_BOX(&argus::pairwise_loss::backward_on_cpu));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("pairwise_loss_ordered", TORCH_BOX(&argus::pairwise_loss::forward_on_cuda));
  m.impl("pairwise_loss_ordered_backward", TORCH_BOX(&argus::pairwise_loss::backward_on_cuda));
}

#endif
