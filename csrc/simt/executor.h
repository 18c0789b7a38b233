// Runs device code on the CPU: a block's threads are fibers of one operating-system thread, blocks run one
// after another, and a seed shuffles both orders. A fiber runs until it waits at a barrier or a warp
// collective, so the code between two of them is one step, and the order of the threads' steps is drawn anew
// each time.
// Forbidden actions of device code end the launch with a Fault that names kernel, block and thread: a barrier
// that some threads never reach, an access outside the device buffers and shared arrays, a race (memory.h),
// undefined behaviour (instrument.cpp). Work beside the threads, such as TMA copies, is queued with defer()
// and done at drawn moments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

namespace argus::simt {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;

struct Dim {
  unsigned x = 1, y = 1, z = 1;
  unsigned long long count() const { return static_cast<unsigned long long>(x) * y * z; }
};

struct Grid {
  const char* kernel = "kernel";
  Dim blocks, threads;
  size_t dynamic_shared = 0;
  bool in_order = false;  // blocks wait for blocks before them: they run in ascending order, x fastest
};

class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Site = std::source_location;

// Seeds the orders of blocks and threads in later launches.
void set_seed(uint64_t seed);

// Runs body(arguments) in every thread of the grid; every thread may read the arguments. Throws Fault.
void run(const Grid& grid, void (*body)(const void*), const void* arguments, size_t arguments_bytes);

// Ends the launch from device code.
[[noreturn]] void fault(const std::string& what);

// Whether device code is running, and which thread of the block it is.
bool in_kernel();
bool launch_in_order();
int current_thread();
std::string thread_name(int thread);

struct Votes {
  int count;  // threads of the block whose predicate was not zero
  int threads;
};

// The block-wide barrier; all threads must come from the same line.
Votes block_barrier(const char* name, bool predicate, Site site);

// What threads wait for until another thread, or work beside the threads, calls wake(); a deadlock report
// describes it.
class Waitable {
 public:
  virtual std::string describe() const = 0;

 protected:
  ~Waitable() = default;
};
void wait_for(const Waitable& object, const char* name, Site site);
void wake(const Waitable& object);

// Does `action` at a drawn moment before the block ends, outside every thread.
void defer(std::function<void()> action);

// Waits until the 128 threads of the warpgroup have called it; then `combine` runs once over their payloads,
// and all continue. It orders no memory accesses.
void warpgroup_collective(const char* name, void* payload, void (*combine)(void* const* payloads), Site site);

// Waits until every lane of `mask` has called it with the same name and mask; then `combine` runs once over
// their payloads (indexed by lane, null outside the mask), and all continue. `orders_memory`: whether it
// orders memory accesses, as __syncwarp does.
using Combine = void (*)(void* const* payloads, unsigned mask);
void warp_collective(const char* name, unsigned mask, void* payload, Combine combine, bool orders_memory,
                     Site site);

}  // namespace argus::simt
