// What the executor remembers of every byte that device code may access, for the twins of instructions that
// work beside the threads: TMA copies and wgmma. Their accesses are checked where they are issued, against
// all that the issuing threads may have seen by then; accesses that follow are checked against them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "simt/memory.h"
#include "simt/order.h"

namespace argus::simt {

constexpr int kMaxWarpgroups = kMaxThreads / (4 * kLanes);

struct Cell {
  Touch write, reads[2];
  uint16_t undelivered = 0;  // 1 + the thread whose cp.async will write the byte
  bool defined = false;      // it was written, or the buffer came with contents
};

// Of regions that the async proxy has accessed.
struct AsyncCell {
  std::array<uint32_t, kMaxWarpgroups> products{};  // 1 + each warpgroup's last wgmma that reads the byte
  Touch copies[2];                                  // the last reads by TMA copies
  bool barrier = false;                             // it belongs to an mbarrier
};

struct Region {
  std::string name;
  uintptr_t begin, end;
  bool shared, writable;
  std::vector<Cell> cells;
  std::vector<AsyncCell> async;

  AsyncCell& async_cell(uintptr_t address) {
    if (async.empty()) async.resize(cells.size());
    return async[address - begin];
  }
  std::string byte_text(uintptr_t address) const {
    return "byte " + std::to_string(address - begin) + " of " + name;
  }
};

// The region that overlaps the bytes, or null; the one that holds all of them and may be accessed so, or a
// fault.
Region* find_region(uintptr_t begin, uintptr_t end);
Region& require_region(uintptr_t address, size_t bytes, Kind kind);
const char* verb(Kind kind);
const char* past_verb(Kind kind);
std::string bytes_text(size_t count);

// An address in the shared window, which begins at a multiple of 1024; and the way back.
uint32_t shared_offset(const void* address);
unsigned char* shared_pointer(uint32_t offset);

// Whether an access by the thread conflicts with work beside the threads that is not known to be over.
void check_beside(Region& region, uintptr_t address, int thread, Kind kind);

// Checks an access that `instruction`, issued with this view, lets work beside the threads make.
void check_async(const char* instruction, const View& view, const void* address, size_t bytes, Kind kind);
void mark_async_write(const void* address, size_t bytes, const Touch& touch);
void mark_copy_read(const void* address, size_t bytes, const Touch& touch);
void mark_product_read(const void* address, size_t bytes, int warpgroup, uint32_t product);

}  // namespace argus::simt
