// Splits independent work over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace argus::host {

// OMP_NUM_THREADS where it is set, else the machine's cores, at most 8: more do not help work that is bound
// by memory.
inline int64_t max_threads() {
  const char* limit = std::getenv("OMP_NUM_THREADS");
  const int64_t asked = limit != nullptr ? std::strtol(limit, nullptr, 10) : 0;
  const int64_t machine = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return asked > 0 ? std::min(asked, machine) : std::min<int64_t>(machine, 8);
}

// Calls work(first, last) for ranges that cover [0, count), each of at least `grain` if there are several
// ranges.
template <class Work>
void parallel_for(int64_t count, int64_t grain, const Work& work) {
  const int64_t workers = std::clamp<int64_t>(count / grain, 1, max_threads());
  // The destructors join the threads, also if the system refuses to start another one.
  std::vector<std::jthread> threads;
  for (int64_t worker = 1; worker < workers; ++worker) {
    threads.emplace_back(work, count * worker / workers, count * (worker + 1) / workers);
  }
  work(0, count / workers);
}

}  // namespace argus::host
