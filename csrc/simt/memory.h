// Which memory device code may access, and in which order. Every access of instrumented code is checked here
// (instrument.cpp).
//
// Allowed: the thread's own stack, constants of the library, and the bytes of device buffers and shared
// arrays; anything else is out of bounds. Each byte of a buffer or array remembers its last write and two
// last reads. An access is a race if an earlier one, of which at least one wrote and not both were atomic,
// came from another thread and nothing orders the two: no __syncthreads for threads of a block, no __syncwarp
// for lanes of a warp, no turn (turns.h) for threads of different blocks. A byte of a shared array, or of a
// buffer of fresh memory, may not be read before it is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "simt/order.h"

namespace argus::simt {

enum class Contents : uint8_t { given, fresh };  // initialised, or uninitialised as from an allocator

// A copy of host memory that device code may use; guard bytes lie on both sides. Its offset in a 256-byte
// line is that of the original. release() copies the contents back to the original, if writable.
class DeviceBuffer {
 public:
  DeviceBuffer(std::string name, void* host, size_t bytes, Contents contents = Contents::given);
  DeviceBuffer(std::string name, const void* host, size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  void copy_back() const;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  DeviceBuffer(std::string name, const void* from, void* back, size_t bytes, Contents contents);

  std::unique_ptr<unsigned char[]> memory_;
  void* data_;
  void* back_;
  size_t bytes_;
};

// Checks one access by the running thread, or on behalf of another thread of the block.
void access(const void* address, size_t bytes, Kind kind);
void access_by(int thread, const void* address, size_t bytes, Kind kind);

// The block's array for a declaration, known by its tag; the same for every thread, undefined at first.
void* shared_array(const void* tag, const char* name, size_t bytes);
void* dynamic_shared();
// Faults unless `address` lies in shared memory and is aligned.
void require_shared(const char* instruction, const void* address, size_t alignment);

// cp.async: the bytes arrive at the wait; until then no thread may access the destination. Source bytes past
// `source_bytes` are zero.
void copy_async(void* shared, const void* global, size_t bytes, size_t source_bytes);
void copy_async_commit();
void copy_async_wait(int groups_left);
void copy_async_wait_all();

// Called by the executor.
void begin_launch_memory(const void* arguments, size_t bytes);
void begin_block_memory(int threads, size_t dynamic_bytes);
void begin_step();

}  // namespace argus::simt
