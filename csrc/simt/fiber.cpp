#include "simt/fiber.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ARGUS_START_SWITCH(save, bottom, bytes) __sanitizer_start_switch_fiber(save, bottom, bytes)
#define ARGUS_FINISH_SWITCH(fake, bottom, bytes) __sanitizer_finish_switch_fiber(fake, bottom, bytes)
#else
#define ARGUS_START_SWITCH(save, bottom, bytes) static_cast<void>(0)
#define ARGUS_FINISH_SWITCH(fake, bottom, bytes) static_cast<void>(0)
#endif

#if defined(__x86_64__)
// Saves the callee-saved registers on the current stack and restores those on the other.
extern "C" __attribute__((visibility("hidden"))) void argus_simt_switch(void** save, void* load);
asm(R"(
.text
.hidden argus_simt_switch
.globl argus_simt_switch
.type argus_simt_switch, @function
argus_simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size argus_simt_switch, .-argus_simt_switch
)");
#endif

namespace argus::simt {
namespace {

constexpr size_t kGuardBytes = 4096;
Fiber* entering = nullptr;

}  // namespace

void enter_fiber() {
  Fiber* self = entering;
  ARGUS_FINISH_SWITCH(nullptr, &self->scheduler_stack_, &self->scheduler_bytes_);
  self->entry_();
}

Fiber::~Fiber() {
  if (stack_ != 0) munmap(reinterpret_cast<void*>(stack_ - kGuardBytes), kStackBytes + kGuardBytes);
}

void Fiber::reset(void (*entry)()) {
  if (stack_ == 0) {
    void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    // A thread that overflows its stack must not run into its neighbour's.
    mprotect(memory, kGuardBytes, PROT_NONE);
    stack_ = reinterpret_cast<uintptr_t>(memory) + kGuardBytes;
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(reinterpret_cast<void*>(stack_), kStackBytes);
#endif
  entry_ = entry;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&enter_fiber);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = reinterpret_cast<void*>(stack_);
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, &enter_fiber, 0);
#endif
}

void Fiber::resume() {
  entering = this;
  ARGUS_START_SWITCH(&scheduler_fake_, reinterpret_cast<void*>(stack_), kStackBytes);
#if defined(__x86_64__)
  argus_simt_switch(&scheduler_, pointer_);
#else
  swapcontext(&scheduler_, &context_);
#endif
  ARGUS_FINISH_SWITCH(scheduler_fake_, nullptr, nullptr);
}

void Fiber::suspend([[maybe_unused]] bool for_good) {
  ARGUS_START_SWITCH(for_good ? nullptr : &own_fake_, scheduler_stack_, scheduler_bytes_);
#if defined(__x86_64__)
  argus_simt_switch(&pointer_, scheduler_);
#else
  swapcontext(&context_, &scheduler_);
#endif
  ARGUS_FINISH_SWITCH(own_fake_, &scheduler_stack_, &scheduler_bytes_);
}

}  // namespace argus::simt
