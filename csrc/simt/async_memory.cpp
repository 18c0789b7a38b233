#include <cstring>

#include "simt/async.h"
#include "simt/executor.h"
#include "simt/mbarrier.h"
#include "simt/regions.h"
#include "simt/tma.h"
#include "simt/wgmma.h"

namespace argus::simt {
namespace {

std::string product_text(int warpgroup) {
  const int first = 4 * kLanes * warpgroup;
  return "a wgmma of threads " + std::to_string(first) + " to " + std::to_string(first + 4 * kLanes - 1);
}

[[noreturn]] void fault_missing_wait(const std::string& access, const Region& region, uintptr_t address,
                                     const std::string& work) {
  fault("missing wait: " + access + " " + region.byte_text(address) + ", where " + work +
        " has not been waited for");
}

// One access beside the threads, byte by byte; neighbours mostly share their touches.
struct Check {
  const char* instruction;
  const View& view;
  Kind kind;
  Touch passed{};
  bool any_passed = false;

  std::string access() const { return std::string(instruction) + " " + verb(kind); }

  void against(const Region& region, uintptr_t address, const Touch& earlier) {
    if (any_passed && std::memcmp(&earlier, &passed, sizeof(Touch)) == 0) return;
    if (!order().before(earlier, view)) {
      const bool elsewhere = earlier.block != order().block();
      const std::string race = "race: " + access() + " " + region.byte_text(address) + ", which ";
      if (earlier.by_worker() && elsewhere && !order().knows_block(earlier.block, view))
        fault(race + "a copy of another block " + past_verb(earlier.kind) + ", in no fixed order");
      if (earlier.by_worker()) fault_missing_wait(access(), region, address, order().work_of(earlier));
      fault(race + (elsewhere ? "another block " : "thread " + thread_name(earlier.thread) + " ") +
            past_verb(earlier.kind) + " with no barrier in between");
    }
    if (!order().fenced(earlier, view, region.shared)) {
      fault("missing proxy fence: " + access() + " " + region.byte_text(address) + ", which thread " +
            thread_name(earlier.thread) + (earlier.block != order().block() ? " of another block " : " ") +
            past_verb(earlier.kind) + " with no fence.proxy.async" + (region.shared ? "" : ".global") +
            " in between");
    }
    passed = earlier;
    any_passed = true;
  }

  void byte(const Region& region, uintptr_t address) {
    const Cell& cell = region.cells[address - region.begin];
    if (cell.undelivered != 0) {
      fault_missing_wait(access(), region, address,
                         "a cp.async of thread " + thread_name(cell.undelivered - 1));
    }
    against(region, address, cell.write);
    if (kind != Kind::write && !cell.defined) {
      fault("undefined: " + access() + " " + region.byte_text(address) + ", which nothing has written yet");
    }
    if (kind == Kind::read) return;
    against(region, address, cell.reads[0]);
    against(region, address, cell.reads[1]);
    if (region.async.empty()) return;
    const AsyncCell& beside = region.async[address - region.begin];
    if (beside.barrier) fault(access() + " " + region.byte_text(address) + ", which belongs to an mbarrier");
    for (int group = 0; group < kMaxWarpgroups; ++group) {
      const uint32_t product = beside.products[group];
      if (product != 0 && !product_over(view, group, product))
        fault_missing_wait(access(), region, address, product_text(group));
    }
    for (const Touch& copy : beside.copies) against(region, address, copy);
  }
};

}  // namespace

void check_beside(Region& region, uintptr_t address, int thread, Kind kind) {
  const AsyncCell& cell = region.async[address - region.begin];
  if (cell.barrier && kind != Kind::atomic) {
    fault(std::string(verb(kind)) + " " + region.byte_text(address) + ", which belongs to an mbarrier");
  }
  if (kind == Kind::read) return;
  for (int group = 0; group < kMaxWarpgroups; ++group) {
    const uint32_t product = cell.products[group];
    if (product != 0 && !product_over(order().view(thread), group, product))
      fault_missing_wait(verb(kind), region, address, product_text(group));
  }
  for (const Touch& copy : cell.copies) {
    if (!order().before(copy, thread)) fault_missing_wait(verb(kind), region, address, order().work_of(copy));
  }
}

void check_async(const char* instruction, const View& view, const void* address, size_t bytes, Kind kind) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  const Region& region = require_region(begin, bytes, kind);
  Check check{instruction, view, kind};
  for (size_t i = 0; i < bytes; ++i) check.byte(region, begin + i);
}

void mark_async_write(const void* address, size_t bytes, const Touch& touch) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  Region& region = *find_region(begin, begin + bytes);
  for (uintptr_t at = begin; at < begin + bytes; ++at) {
    // What came before is ordered before this write, and what follows will be ordered after it.
    Cell fresh;
    fresh.write = touch;
    fresh.defined = true;
    region.cells[at - region.begin] = fresh;
    region.async_cell(at) = {};
  }
}

void mark_copy_read(const void* address, size_t bytes, const Touch& touch) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  Region& region = *find_region(begin, begin + bytes);
  for (uintptr_t at = begin; at < begin + bytes; ++at) {
    AsyncCell& cell = region.async_cell(at);
    const Touch& last = cell.copies[0];
    if (last.block != kNoBlock && (last.thread != touch.thread || last.block != touch.block))
      cell.copies[1] = last;
    cell.copies[0] = touch;
  }
}

void mark_product_read(const void* address, size_t bytes, int warpgroup, uint32_t product) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  Region& region = *find_region(begin, begin + bytes);
  for (uintptr_t at = begin; at < begin + bytes; ++at) region.async_cell(at).products[warpgroup] = product;
}

void begin_block_async(int threads) {
  begin_block_barriers(threads);
  begin_block_copies();
  begin_block_products(threads);
}

void end_block_async() {
  end_block_barriers();
}

void exit_thread(int thread) {
  exit_thread_copies(thread);
  exit_thread_products(thread);
}

}  // namespace argus::simt
