// Stackful coroutines, which run the threads of a block. On x86-64 a switch is a dozen instructions,
// elsewhere it is swapcontext; under the address sanitizer it tells the sanitizer which stack is in use.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace argus::simt {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 128 << 10;

  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch runs entry() from its beginning; entry must not return. Reuses the fiber's stack.
  void reset(void (*entry)());

  bool owns(uintptr_t address) const { return address - stack_ < kStackBytes; }

  // From the scheduler into the fiber and back. A fiber that will not be resumed may be reset.
  void resume();
  void suspend(bool for_good);

 private:
  uintptr_t stack_ = 0;
  void (*entry_)() = nullptr;
#if defined(__x86_64__)
  void *pointer_ = nullptr, *scheduler_ = nullptr;
#else
  ucontext_t context_, scheduler_;
#endif
  void *own_fake_ = nullptr, *scheduler_fake_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_bytes_ = 0;

  friend void enter_fiber();
};

}  // namespace argus::simt
