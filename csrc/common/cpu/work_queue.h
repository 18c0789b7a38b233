// Distributes tasks of very different cost over torch's threads: the most expensive come first, and a thread
// that is done takes the next one. Which thread runs a task varies, so no two tasks may add to the same
// memory.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

namespace argus {

// Calls make_worker() once on every thread that takes part, and worker(task) for every task.
template <class Task, class MakeWorker>
void share_out(const std::vector<Task>& tasks, MakeWorker&& make_worker) {
  const int64_t count = static_cast<int64_t>(tasks.size());
  if (count == 0) return;
  std::vector<int64_t> order(tasks.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return tasks[a].cost > tasks[b].cost; });
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    auto worker = make_worker();
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) worker(tasks[order[i]]);
  });
}

}  // namespace argus
