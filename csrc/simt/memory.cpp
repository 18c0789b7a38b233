#include "simt/memory.h"

#include <link.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "simt/executor.h"
#include "simt/fiber.h"
#include "simt/regions.h"
#include "simt/wgmma.h"

// In a build with the address sanitizer the bytes around buffers and arrays are its red zones as well.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ARGUS_POISON(address, bytes) __asan_poison_memory_region(address, bytes)
#define ARGUS_UNPOISON(address, bytes) __asan_unpoison_memory_region(address, bytes)
// Plain writes are not instrumented there either, so which bytes were written is unknown.
#define ARGUS_WRITES_ARE_SEEN false
#else
#define ARGUS_POISON(address, bytes) static_cast<void>(0)
#define ARGUS_UNPOISON(address, bytes) static_cast<void>(0)
#if !defined(ARGUS_WRITES_ARE_SEEN)
#define ARGUS_WRITES_ARE_SEEN true
#endif
#endif

namespace argus::simt {

const Fiber& current_fiber();

namespace {

constexpr size_t kGuardBytes = 4096, kLine = 256;
constexpr size_t kSharedGap = 128, kMaxShared = 227 << 10, kWindow = 1024;
constexpr size_t kMaxArrays = 60, kArenaBytes = kMaxShared + 2 * (kMaxArrays + 1) * kSharedGap + kWindow;
constexpr uintptr_t kFar = 64 << 10;  // farther off, no buffer is named in a fault
constexpr size_t kMaxAccesses = 1 << 22;

struct AsyncCopy {
  uintptr_t to;
  std::array<unsigned char, 16> data;
  size_t bytes;
};

struct AsyncCopies {
  std::vector<AsyncCopy> open;
  std::deque<std::vector<AsyncCopy>> groups;
};

struct Memory {
  std::vector<std::unique_ptr<Region>> buffers, arrays;
  std::vector<const void*> tags;
  std::unique_ptr<unsigned char[]> arena{new unsigned char[kArenaBytes]};
  size_t arena_used = 0, shared_used = 0;
  void* dynamic = nullptr;
  uintptr_t arguments = 0;
  size_t arguments_bytes = 0;
  size_t accesses = 0;  // of the running thread since its last wait
  std::vector<AsyncCopies> copies;
};

Memory memory;

// The constants and static tables of the library that contains this code.
bool in_library(uintptr_t address) {
  static const auto ranges = [] {
    std::vector<std::pair<uintptr_t, uintptr_t>> found;
    const auto collect = [](dl_phdr_info* info, size_t, void* out) {
      std::vector<std::pair<uintptr_t, uintptr_t>> own;
      bool mine = false;
      for (int i = 0; i < info->dlpi_phnum; ++i) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        const uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        own.emplace_back(begin, begin + info->dlpi_phdr[i].p_memsz);
        mine = mine || reinterpret_cast<uintptr_t>(&memory) - begin < info->dlpi_phdr[i].p_memsz;
      }
      if (mine) *static_cast<decltype(own)*>(out) = own;
      return mine ? 1 : 0;
    };
    dl_iterate_phdr(collect, &found);
    return found;
  }();
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const auto& range) { return address >= range.first && address < range.second; });
}

std::string access_text(Kind kind, size_t bytes) {
  return std::string(verb(kind)) + " " + bytes_text(bytes);
}

[[noreturn]] void fault_out_of_bounds(uintptr_t address, size_t bytes, Kind kind) {
  const Region* nearest = nullptr;
  uintptr_t distance = ~uintptr_t{0};
  for (auto* regions : {&memory.arrays, &memory.buffers}) {
    for (const auto& region : *regions) {
      const uintptr_t gap = address >= region->end    ? address - region->end
                            : address < region->begin ? region->begin - address
                                                      : 0;
      if (gap < distance) nearest = region.get(), distance = gap;
    }
  }
  std::string text = "out of bounds: " + access_text(kind, bytes);
  if (nearest == nullptr || distance > kFar) {
    fault(text + " at an address that is in no device buffer and no shared array");
  }
  const std::string size = " (" + bytes_text(nearest->end - nearest->begin) + ")";
  const bool past = address >= nearest->begin;
  const uintptr_t offset = past ? address - nearest->begin : nearest->begin - address;
  fault(text + (past ? " at byte " : " at byte -") + std::to_string(offset) + " of " + nearest->name + size);
}

[[noreturn]] void fault_race(const Region& region, uintptr_t address, int thread, Kind kind,
                             const Touch& earlier) {
  std::string other = "thread " + thread_name(earlier.thread);
  if (earlier.block != order().block()) other += " of another block";
  std::string who = thread == current_thread() ? "" : "for thread " + thread_name(thread) + ": ";
  fault("race: " + who + verb(kind) + " byte " + std::to_string(address - region.begin) + " of " +
        region.name + ", which " + other + " " + past_verb(earlier.kind) + " with no barrier in between");
}

[[noreturn]] void fault_undefined(const Region& region, uintptr_t address, int thread, Kind kind) {
  const std::string who = thread == current_thread() ? "" : "for thread " + thread_name(thread) + ": ";
  fault("undefined: " + who + verb(kind) + " byte " + std::to_string(address - region.begin) + " of " +
        region.name + ", which nothing has written yet");
}

void touch(Region& region, uintptr_t address, int thread, Kind kind) {
  Cell& cell = region.cells[address - region.begin];
  if (cell.undelivered != 0) {
    fault("missing wait: " + access_text(kind, 1) + " at byte " + std::to_string(address - region.begin) +
          " of " + region.name + ", where a cp.async of thread " + thread_name(cell.undelivered - 1) +
          " has not arrived");
  }
  const auto conflicts = [&](const Touch& earlier) {
    const bool harmless = kind == Kind::read ? earlier.kind == Kind::read
                                             : kind == Kind::atomic && earlier.kind == Kind::atomic;
    return !harmless && !order().before(earlier, thread);
  };
  if (cell.write.by_worker() && conflicts(cell.write)) {
    fault("missing wait: " + std::string(verb(kind)) + " " + region.byte_text(address) + ", where " +
          order().work_of(cell.write) + " has not been waited for");
  }
  for (const Touch* earlier : {&cell.write, &cell.reads[0], &cell.reads[1]}) {
    if (conflicts(*earlier)) fault_race(region, address, thread, kind, *earlier);
  }
  if (!region.async.empty()) check_beside(region, address, thread, kind);
  if (kind != Kind::write && !cell.defined) fault_undefined(region, address, thread, kind);
  if (kind != Kind::read) {
    cell.defined = true;
    cell.write = order().now(thread, kind);
    return;
  }
  const bool by_another = cell.reads[0].thread != thread || cell.reads[0].block != order().block();
  if (by_another && !order().before(cell.reads[0], thread)) cell.reads[1] = cell.reads[0];
  cell.reads[0] = order().now(thread, kind);
}

std::unique_ptr<Region> make_region(std::string name, void* data, size_t bytes, bool shared, bool writable,
                                    bool defined) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  Cell fresh;
  fresh.defined = defined || !ARGUS_WRITES_ARE_SEEN;
  return std::make_unique<Region>(
      Region{std::move(name), begin, begin + bytes, shared, writable, std::vector<Cell>(bytes, fresh), {}});
}

void* add_array(const std::string& name, const void* tag, size_t bytes) {
  memory.shared_used += bytes;
  if (memory.shared_used > kMaxShared || memory.arrays.size() >= kMaxArrays) {
    fault("the block's shared arrays take " + bytes_text(memory.shared_used) + ", more than the " +
          std::to_string(kMaxShared) + " a block can have");
  }
  const size_t aligned = (bytes + kSharedGap - 1) / kSharedGap * kSharedGap;
  void* data = shared_pointer(static_cast<uint32_t>(memory.arena_used));
  // Unused bytes between arrays stay out of bounds.
  memory.arena_used += aligned + kSharedGap;
  ARGUS_UNPOISON(data, bytes);
  std::memset(data, 0xff, bytes);
  memory.arrays.push_back(make_region(name, data, bytes, true, true, false));
  memory.tags.push_back(tag);
  return data;
}

void deliver(const std::vector<AsyncCopy>& copies) {
  for (const AsyncCopy& copy : copies) {
    Region* region = find_region(copy.to, copy.to + copy.bytes);
    for (size_t i = 0; i < copy.bytes; ++i) region->cells[copy.to + i - region->begin].undelivered = 0;
    void* to = reinterpret_cast<void*>(copy.to);
    access(to, copy.bytes, Kind::write);
    std::memcpy(to, copy.data.data(), copy.bytes);
  }
}

}  // namespace

std::string bytes_text(size_t count) {
  return std::to_string(count) + (count == 1 ? " byte" : " bytes");
}

const char* verb(Kind kind) {
  switch (kind) {
    case Kind::read:
      return "reads";
    case Kind::write:
      return "writes";
    case Kind::atomic:
      return "atomically updates";
    case Kind::add:
      return "adds to";
  }
  return "";
}

const char* past_verb(Kind kind) {
  switch (kind) {
    case Kind::read:
      return "read";
    case Kind::write:
      return "wrote";
    case Kind::atomic:
      return "atomically updated";
    case Kind::add:
      return "added to";
  }
  return "";
}

Region* find_region(uintptr_t begin, uintptr_t end) {
  for (auto* regions : {&memory.arrays, &memory.buffers}) {
    for (const auto& region : *regions) {
      if (begin < region->end && end > region->begin) return region.get();
    }
  }
  return nullptr;
}

DeviceBuffer::DeviceBuffer(std::string name, void* host, size_t bytes, Contents contents)
    : DeviceBuffer(std::move(name), host, host, bytes, contents) {}

DeviceBuffer::DeviceBuffer(std::string name, const void* host, size_t bytes)
    : DeviceBuffer(std::move(name), host, nullptr, bytes, Contents::given) {}

DeviceBuffer::DeviceBuffer(std::string name, const void* from, void* back, size_t bytes, Contents contents)
    : memory_(new unsigned char[bytes + 2 * kGuardBytes + 2 * kLine]), back_(back), bytes_(bytes) {
  std::memset(memory_.get(), 0xff, bytes + 2 * kGuardBytes + 2 * kLine);
  const uintptr_t line =
      (reinterpret_cast<uintptr_t>(memory_.get()) + kGuardBytes + kLine - 1) / kLine * kLine;
  data_ = reinterpret_cast<void*>(line + reinterpret_cast<uintptr_t>(from) % kLine);
  // For fresh memory too, so that bytes that a kernel does not write keep the caller's contents.
  if (bytes > 0) std::memcpy(data_, from, bytes);
  ARGUS_POISON(memory_.get(), bytes + 2 * kGuardBytes + 2 * kLine);
  ARGUS_UNPOISON(data_, bytes);
  memory.buffers.push_back(make_region("buffer '" + name + "'", data_, bytes, false, back != nullptr,
                                       contents == Contents::given));
}

DeviceBuffer::~DeviceBuffer() {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data_);
  ARGUS_UNPOISON(memory_.get(), bytes_ + 2 * kGuardBytes + 2 * kLine);
  std::erase_if(memory.buffers, [&](const auto& region) { return region->begin == begin; });
}

void DeviceBuffer::copy_back() const {
  if (back_ != nullptr && bytes_ > 0) std::memcpy(back_, data_, bytes_);
}

static Region& require_inside(Region* region, uintptr_t address, size_t bytes, Kind kind) {
  if (region == nullptr || address < region->begin || address + bytes > region->end)
    fault_out_of_bounds(address, bytes, kind);
  if (kind != Kind::read && !region->writable)
    fault(access_text(kind, bytes) + " of " + region->name + ", read-only");
  return *region;
}

Region& require_region(uintptr_t address, size_t bytes, Kind kind) {
  return require_inside(find_region(address, address + bytes), address, bytes, kind);
}

void access_by(int thread, const void* pointer, size_t bytes, Kind kind) {
  if (bytes == 0) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  Region* region = find_region(address, address + bytes);
  if (region == nullptr) {
    const bool argument = address - memory.arguments < memory.arguments_bytes;
    if (kind == Kind::read && (argument || in_library(address))) return;
  }
  require_inside(region, address, bytes, kind);
  for (size_t i = 0; i < bytes; ++i) touch(*region, address + i, thread, kind);
}

void access(const void* pointer, size_t bytes, Kind kind) {
  if (!in_kernel()) return;
  if (++memory.accesses > kMaxAccesses) {
    fault("spins: " + std::to_string(kMaxAccesses) +
          " accesses without a barrier, as a wait for another thread makes");
  }
  if (current_fiber().owns(reinterpret_cast<uintptr_t>(pointer))) {
    if (registers_watched) touch_registers(pointer, bytes, kind);
    return;
  }
  access_by(current_thread(), pointer, bytes, kind);
}

void* shared_array(const void* tag, const char* name, size_t bytes) {
  for (size_t i = 0; i < memory.tags.size(); ++i) {
    if (memory.tags[i] == tag) return reinterpret_cast<void*>(memory.arrays[i]->begin);
  }
  return add_array("shared array '" + std::string(name) + "'", tag, bytes);
}

void* dynamic_shared() {
  if (memory.dynamic == nullptr) fault("uses dynamic shared memory, and the launch gave none");
  return memory.dynamic;
}

uint32_t shared_offset(const void* address) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(address) - shared_pointer(0));
}

unsigned char* shared_pointer(uint32_t offset) {
  const uintptr_t arena = reinterpret_cast<uintptr_t>(memory.arena.get());
  return reinterpret_cast<unsigned char*>((arena + kWindow - 1) / kWindow * kWindow + offset);
}

void require_shared(const char* instruction, const void* pointer, size_t alignment) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t arena = reinterpret_cast<uintptr_t>(memory.arena.get());
  if (address - arena >= kArenaBytes) {
    fault(std::string(instruction) + " of an address that is not in shared memory");
  }
  if (address % alignment != 0) {
    fault(std::string(instruction) + " of a shared address that is not a multiple of " +
          bytes_text(alignment));
  }
}

void copy_async(void* shared, const void* global, size_t bytes, size_t source_bytes) {
  require_shared("cp.async", shared, bytes);
  if (source_bytes > bytes) fault("cp.async of " + bytes_text(bytes) + " takes " + bytes_text(source_bytes));
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fault("cp.async of " + bytes_text(bytes) + " from a global address that is not a multiple of them");
  }
  access(global, source_bytes, Kind::read);
  access(shared, bytes, Kind::write);
  AsyncCopy copy{reinterpret_cast<uintptr_t>(shared), {}, bytes};
  std::memcpy(copy.data.data(), global, source_bytes);
  std::memset(shared, 0xff, bytes);
  Region* region = find_region(copy.to, copy.to + bytes);
  for (size_t i = 0; i < bytes; ++i) {
    region->cells[copy.to + i - region->begin].undelivered = static_cast<uint16_t>(current_thread() + 1);
  }
  memory.copies[current_thread()].open.push_back(copy);
}

void copy_async_commit() {
  AsyncCopies& own = memory.copies[current_thread()];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}

void copy_async_wait(int groups_left) {
  AsyncCopies& own = memory.copies[current_thread()];
  for (; own.groups.size() > static_cast<size_t>(groups_left); own.groups.pop_front())
    deliver(own.groups.front());
}

void copy_async_wait_all() {
  copy_async_commit();
  copy_async_wait(0);
}

void begin_launch_memory(const void* arguments, size_t bytes) {
  memory.arguments = reinterpret_cast<uintptr_t>(arguments);
  memory.arguments_bytes = bytes;
  order().begin_launch();
}

void begin_block_memory(int threads, size_t dynamic_bytes) {
  memory.arrays.clear();
  memory.tags.clear();
  // No array may count on more than the alignment that it asks for.
  memory.arena_used = kSharedGap;
  memory.shared_used = 0;
  ARGUS_POISON(memory.arena.get(), kArenaBytes);
  memory.copies.assign(threads, {});
  order().begin_block(threads);
  memory.dynamic = nullptr;
  if (dynamic_bytes > 0) memory.dynamic = add_array("dynamic shared memory", &memory, dynamic_bytes);
}

void begin_step() {
  memory.accesses = 0;
}

}  // namespace argus::simt
