// Splits independent work over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace argus::host {

// OMP_NUM_THREADS where it is set, else the cores of the machine up to 8: more do not help what waits for
// memory.
inline int64_t max_threads() {
  const char* limit = std::getenv("OMP_NUM_THREADS");
  const int64_t asked = limit != nullptr ? std::strtol(limit, nullptr, 10) : 0;
  const int64_t machine = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return asked > 0 ? std::min(asked, machine) : std::min<int64_t>(machine, 8);
}

// Calls work(first, last) for ranges that cover [0, count), each of at least `grain` where there are several.
template <class Work>
void parallel_for(int64_t count, int64_t grain, const Work& work) {
  const int64_t workers = std::clamp<int64_t>(count / grain, 1, max_threads());
  // They join where they end, also when the system refuses to start another.
  std::vector<std::jthread> threads;
  for (int64_t worker = 1; worker < workers; ++worker) {
    threads.emplace_back(work, count * worker / workers, count * (worker + 1) / workers);
  }
  work(0, count / workers);
}

}  // namespace argus::host
