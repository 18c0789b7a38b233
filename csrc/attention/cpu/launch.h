// Runs attention over packed histories on torch's threads, forward and backward, and adds up sums that
// several tasks share, in an order that does not depend on the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/cpu/backward.h"
#include "attention/cpu/forward.h"
#include "attention/cpu/problem.h"
#include "common/cpu/matmul.h"
#include "common/cpu/work_queue.h"

namespace argus::attention {

// Queries per piece: enough that packing the keys before them costs little in comparison.
constexpr int64_t kForwardRows = 1024, kForwardPieces = 1 << 20;
// Each piece of the backward pass has its own sums of dK and dV: few pieces keep memory linear in the length.
constexpr int64_t kBackwardRows = 2048, kBackwardPieces = 4;

// Rows [used, rows) of a packed tensor, past the last user: zero.
template <class T>
void zero_padding(void* packed, int64_t used, int64_t rows, int64_t row_elements) {
  std::fill(static_cast<T*>(packed) + used * row_elements, static_cast<T*>(packed) + rows * row_elements,
            T{});
}

template <class T, class Rule>
void forward(const Forward& call, const Rule& rule) {
  const Arguments& p = call.given;
  T* out = static_cast<T*>(call.out);
  auto* statistics = static_cast<Arithmetic<T>*>(call.log_sum_exp);
  zero_padding<T>(out, p.offsets[p.users], p.rows, p.row_elements());
  for (int64_t head = 0; statistics != nullptr && head < p.heads; ++head) {
    std::fill(statistics + head * p.rows + p.offsets[p.users], statistics + (head + 1) * p.rows, 0);
  }
  const Work work = cut_work(p, kForwardRows, kForwardPieces);
  matmul::with_operand<T>([&]<class P>() {
    share_out(work.tasks, [&] {
      auto worker = std::make_unique<ForwardWorker<T, P, Rule>>(p, rule, out, statistics);
      return [&work, worker = std::move(worker)](const Task& task) { (*worker)(work, task); };
    });
  });
}

// Adds up the sums of the pieces that one user and head were cut into, and writes them.
template <class T>
void join_parts(const Backward& call, const Work& work, std::vector<KeySums<Arithmetic<T>>>& parts) {
  using A = Arithmetic<T>;
  const Arguments& p = call.given;
  std::vector<Task> joins;
  const int64_t count = static_cast<int64_t>(work.pieces.size());
  for (int64_t i = 0; i < count; i += work.pieces[i].parts) {
    const Piece& piece = work.pieces[i];
    if (piece.parts > 1) joins.push_back({i, i, i + piece.parts, static_cast<double>(piece.user.keys)});
  }
  share_out(joins, [&] {
    return [&](const Task& join) {
      const Piece& piece = work.pieces[join.first];
      KeySums<A> whole;
      whole.zero(0, piece.user.keys, p.width);
      for (int64_t i = join.first; i < join.last; ++i) {
        const int64_t size = (parts[i].end - parts[i].begin) * p.width, shift = parts[i].begin * p.width;
        for (int64_t j = 0; j < size; ++j) whole.d_k[shift + j] += parts[i].d_k[j];
        for (int64_t j = 0; j < size; ++j) whole.d_v[shift + j] += parts[i].d_v[j];
        parts[i] = {};
      }
      put_key_sums<T>(call, piece, whole);
    };
  });
}

// Sums of the tasks' bias gradients: `sums` [tasks, heads of a group, positions + times] to two tables, null
// where not wanted.
template <class A>
void join_tables(const Backward& call, const Work& work, const std::vector<double>& sums) {
  const int64_t heads = call.given.heads, positions = call.given.positions, times = call.given.times;
  A* d_position = static_cast<A*>(call.d_position_bias);
  A* d_time = static_cast<A*>(call.d_time_bias);
  std::vector<double> whole(static_cast<size_t>(heads * (positions + times)), 0.0);
  const int64_t group_entries = heads_of_group(call.given) * (positions + times);
  for (const Task& task : work.tasks) {
    double* to = whole.data() + work.pieces[task.first].key_head * group_entries;
    const double* from = sums.data() + task.index * group_entries;
    for (int64_t i = 0; i < group_entries; ++i) to[i] += from[i];
  }
  for (int64_t head = 0; head < heads; ++head) {
    const double* from = whole.data() + head * (positions + times);
    for (int64_t i = 0; d_position != nullptr && i < positions; ++i)
      d_position[head * positions + i] = static_cast<A>(from[i]);
    for (int64_t i = 0; d_time != nullptr && i < times; ++i)
      d_time[head * times + i] = static_cast<A>(from[positions + i]);
  }
}

template <class T, class Rule>
void backward(const Backward& call, const Rule& rule) {
  using A = Arithmetic<T>;
  const Arguments& p = call.given;
  zero_padding<T>(call.d_q, p.offsets[p.users], p.rows, p.row_elements());
  for (void* gradient : {call.d_k, call.d_v})
    zero_padding<T>(gradient, p.key_offsets[p.users], p.key_rows, p.key_row_elements());
  const Work work = cut_work(p, kBackwardRows, kBackwardPieces);
  std::vector<KeySums<A>> parts(work.pieces.size());
  const bool tables = call.d_position_bias != nullptr || call.d_time_bias != nullptr;
  const int64_t entries = tables ? heads_of_group(p) * (int64_t{p.positions} + p.times) : 0;
  std::vector<double> sums(work.tasks.size() * static_cast<size_t>(entries));
  matmul::with_operand<T>([&]<class P>() {
    share_out(work.tasks, [&] {
      auto worker = std::make_unique<BackwardWorker<T, P, Rule>>(call, rule, &parts);
      return [&, worker = std::move(worker)](const Task& task) {
        (*worker)(work, task, tables ? sums.data() + task.index * entries : nullptr);
      };
    });
  });
  join_parts<T>(call, work, parts);
  if (tables) join_tables<A>(call, work, sums);
}

}  // namespace argus::attention
