#include "simt/tma.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "simt/mbarrier.h"
#include "simt/regions.h"

namespace argus::simt {
namespace {

constexpr uint32_t kEncoded = 0x7e4a0590;
constexpr uint32_t kChunk = 16;  // swizzles move 16 bytes as one

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("cuTensorMapEncodeTiled: " + what);
}

std::string of_dimension(int d) {
  return " of dimension " + std::to_string(d);
}

void check_request(const TensorMapRequest& asked) {
  require(asked.rank >= 1 && asked.rank <= kMaxRank, "a rank of " + std::to_string(asked.rank));
  const int size = asked.element_bytes;
  require(size == 1 || size == 2 || size == 4 || size == 8, "elements of " + std::to_string(size) + " bytes");
  require(reinterpret_cast<uintptr_t>(asked.base) % 16 == 0, "an address that is not a multiple of 16");
  for (int d = 0; d < asked.rank; ++d) {
    require(asked.extents[d] >= 1 && asked.extents[d] <= 1ull << 32, "the extent" + of_dimension(d));
    require(asked.box[d] >= 1 && asked.box[d] <= 256,
            "a box of more than 256 elements, or none," + of_dimension(d));
    require(asked.element_strides[d] >= 1 && asked.element_strides[d] <= 8,
            "the element stride" + of_dimension(d));
    if (d == 0) continue;
    const uint64_t stride = asked.strides[d - 1];
    require(stride % 16 == 0 && stride < 1ull << 40,
            "a stride that is not a multiple of 16" + of_dimension(d));
  }
  const uint32_t inner = asked.box[0] * static_cast<uint32_t>(size);
  require(inner % 16 == 0, "a box whose rows are " + std::to_string(inner) + " bytes, not a multiple of 16");
  const int swizzle = asked.swizzle_bytes;
  require(swizzle == 0 || swizzle == 32 || swizzle == 64 || swizzle == 128,
          "a swizzle of " + std::to_string(swizzle) + " bytes");
  require(swizzle == 0 || inner <= static_cast<uint32_t>(swizzle),
          "a box whose rows are " + std::to_string(inner) + " bytes, more than its swizzle of " +
              std::to_string(swizzle));
}

float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

void add_floats(unsigned char* to, const unsigned char* from, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i += sizeof(float)) {
    float sum, part;
    std::memcpy(&sum, to + i, sizeof(float));
    std::memcpy(&part, from + i, sizeof(float));
    sum = flushed(flushed(sum) + flushed(part));
    std::memcpy(to + i, &sum, sizeof(float));
  }
}

// A store or add under way, of the thread's group that is `clock`-th.
struct Store {
  const char* instruction;
  Kind kind;
  std::vector<TileRun> runs;
  uint32_t clock;
  std::vector<unsigned char> data{};
  bool is_read = false, is_written = false;

  void read() {
    if (is_read) return;
    for (const TileRun& run : runs) {
      const unsigned char* from = shared_pointer(run.shared);
      data.insert(data.end(), from, from + run.bytes);
    }
    is_read = true;
  }
  void write() {
    if (is_written) return;
    read();
    const unsigned char* from = data.data();
    for (const TileRun& run : runs) {
      auto* to = reinterpret_cast<unsigned char*>(run.global);
      if (kind == Kind::add) {
        add_floats(to, from, run.bytes);
      } else {
        std::memcpy(to, from, run.bytes);
      }
      from += run.bytes;
    }
    is_written = true;
  }
};

// The bulk groups of a thread.
struct Stores {
  std::vector<std::shared_ptr<Store>> all;
  int read_worker = -1, write_worker = -1;
  uint32_t committed = 0, read = 0;
};
std::vector<Stores> of_thread;  // made at the block's first store

Stores& own_stores() {
  if (of_thread.empty()) of_thread.resize(kMaxThreads);
  return of_thread[current_thread()];
}

// Checks and queues what the running thread stores.
void issue_store(const char* instruction, Kind kind, std::vector<TileRun> runs) {
  const int thread = current_thread();
  order().widen();
  Stores& own = own_stores();
  if (own.read_worker < 0) {
    const std::string work = instruction + std::string(" of thread ") + thread_name(thread);
    own.read_worker = order().add_worker(work);
    own.write_worker = order().add_worker(work);
  }
  const auto store = std::make_shared<Store>(Store{instruction, kind, std::move(runs), own.committed + 1});
  const View& view = order().view(thread);
  for (const TileRun& run : store->runs) {
    check_async(instruction, view, shared_pointer(run.shared), run.bytes, Kind::read);
    check_async(instruction, view, reinterpret_cast<void*>(run.global), run.bytes, kind);
  }
  for (const TileRun& run : store->runs) {
    mark_copy_read(shared_pointer(run.shared), run.bytes,
                   order().worker_touch(own.read_worker, store->clock, Kind::read));
    mark_async_write(reinterpret_cast<void*>(run.global), run.bytes,
                     order().worker_touch(own.write_worker, store->clock, kind));
  }
  own.all.push_back(store);
  defer([store] {
    store->read();
    defer([store] { store->write(); });
  });
}

// The one run of a bulk copy.
std::vector<TileRun> bulk_run(const std::string& instruction, void* global, const void* shared,
                              uint32_t bytes) {
  require_shared(instruction.c_str(), shared, kChunk);
  const uintptr_t to = reinterpret_cast<uintptr_t>(global);
  if (bytes % kChunk != 0)
    fault(instruction + " of " + bytes_text(bytes) + ", not a multiple of " + std::to_string(kChunk));
  if (to % kChunk != 0)
    fault(instruction + " to a global address that is not a multiple of " + bytes_text(kChunk));
  if (const Region* region = find_region(to, to + bytes); region != nullptr && region->shared)
    fault(instruction + " to " + region->name + ", expected global memory");
  return {{to, shared_offset(shared), bytes, true}};
}

const EncodedTensorMap& require_map(const char* instruction, const void* address, int rank) {
  const auto& map = *static_cast<const EncodedTensorMap*>(address);
  if (reinterpret_cast<uintptr_t>(address) % 64 != 0 || map.encoded != kEncoded)
    fault(std::string(instruction) + " of what is not a tensor map");
  if (map.rank != rank) {
    fault(std::string(instruction) + " with " + std::to_string(rank) + " coordinates of a tensor of rank " +
          std::to_string(map.rank));
  }
  return map;
}

// An index in the box to the tensor's coordinates.
bool next_index(const EncodedTensorMap& map, std::array<uint32_t, kMaxRank>& index) {
  for (int d = 1; d < map.rank; ++d) {
    if (++index[d] < map.box[d]) return true;
    index[d] = 0;
  }
  return false;
}

// Fills the destination with 0xff until the bytes come.
void load_runs(const std::vector<TileRun>& runs, const View& view, const Touch& touch) {
  for (const TileRun& run : runs) {
    void* to = shared_pointer(run.shared);
    check_async("a TMA load", view, to, run.bytes, Kind::write);
    if (run.inside) {
      const void* from = reinterpret_cast<const void*>(run.global);
      check_async("a TMA load", view, from, run.bytes, Kind::read);
    }
  }
  for (const TileRun& run : runs) {
    if (run.inside) mark_copy_read(reinterpret_cast<const void*>(run.global), run.bytes, touch);
    void* to = shared_pointer(run.shared);
    mark_async_write(to, run.bytes, touch);
    std::memset(to, 0xff, run.bytes);
  }
}

}  // namespace

size_t EncodedTensorMap::box_bytes() const {
  size_t bytes = element_bytes;
  for (int d = 0; d < rank; ++d) bytes *= box[d];
  return bytes;
}

EncodedTensorMap encode_tensor_map(const TensorMapRequest& asked) {
  check_request(asked);
  EncodedTensorMap map{};
  map.base = reinterpret_cast<uint64_t>(asked.base);
  map.rank = static_cast<uint8_t>(asked.rank);
  map.element_bytes = static_cast<uint8_t>(asked.element_bytes);
  map.swizzle_bytes = static_cast<uint8_t>(asked.swizzle_bytes);
  for (int d = 0; d < asked.rank; ++d) {
    // Without interleaving the contiguous dimension has no stride.
    const uint32_t step = d == 0 ? 1 : asked.element_strides[d];
    map.extents[d] = static_cast<uint32_t>(std::min<uint64_t>(asked.extents[d], 0xffffffffu));
    map.box[d] = static_cast<uint16_t>((asked.box[d] + step - 1) / step);
    map.element_strides[d] = static_cast<uint8_t>(step);
    if (d > 0) map.strides[d - 1] = asked.strides[d - 1];
  }
  map.encoded = kEncoded;
  return map;
}

uint32_t swizzled(uint32_t shared, int swizzle_bytes) {
  const uint32_t chunks = static_cast<uint32_t>(swizzle_bytes) / kChunk;
  return chunks == 0 ? shared : shared ^ ((shared >> 7 & (chunks - 1)) << 4);
}

std::vector<TileRun> tile_runs(const EncodedTensorMap& map, const int32_t* coordinates, uint32_t shared) {
  std::vector<TileRun> runs;
  std::array<uint32_t, kMaxRank> index{};
  const uint32_t size = map.element_bytes, per_chunk = kChunk / size;
  do {
    uint64_t row = map.base;
    bool inside = true;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t at = coordinates[d] + static_cast<int64_t>(index[d]) * map.element_strides[d];
      inside = inside && at >= 0 && at < static_cast<int64_t>(map.extents[d]);
      row += static_cast<uint64_t>(at) * map.strides[d - 1];
    }
    for (uint32_t column = 0; column < map.box[0]; column += per_chunk, shared += kChunk) {
      // The part of a chunk that the tensor has is one run; what lies before and after it are others.
      for (uint32_t i = 0; i < per_chunk;) {
        const int64_t at = static_cast<int64_t>(coordinates[0]) + column + i;
        const auto has = [&](int64_t x) {
          return inside && x >= 0 && x < static_cast<int64_t>(map.extents[0]);
        };
        uint32_t count = 1;
        while (i + count < per_chunk && has(at + count) == has(at)) ++count;
        runs.push_back({row + static_cast<uint64_t>(at) * size,
                        swizzled(shared, map.swizzle_bytes) + i * size, count * size, has(at)});
        i += count;
      }
    }
  } while (next_index(map, index));
  return runs;
}

void tma_load(void* shared, const void* map_address, const int32_t* coordinates, int rank, void* barrier) {
  const EncodedTensorMap& map = require_map("a TMA load", map_address, rank);
  require_shared("a TMA load", shared, 128);
  const uint32_t bytes = static_cast<uint32_t>(map.box_bytes());
  const View& view = order().view(current_thread());
  const Touch touch = mbarrier_announce(barrier, bytes, view);
  auto runs = tile_runs(map, coordinates, shared_offset(shared));
  load_runs(runs, view, touch);
  defer([runs = std::move(runs), barrier, bytes] {
    for (const TileRun& run : runs) {
      unsigned char* to = shared_pointer(run.shared);
      if (run.inside) {
        std::memcpy(to, reinterpret_cast<const void*>(run.global), run.bytes);
      } else {
        std::memset(to, 0, run.bytes);
      }
    }
    mbarrier_complete(barrier, bytes);
  });
}

void tma_store(const void* map_address, const int32_t* coordinates, int rank, const void* shared) {
  const EncodedTensorMap& map = require_map("a TMA store", map_address, rank);
  require_shared("a TMA store", shared, 128);
  auto runs = tile_runs(map, coordinates, shared_offset(shared));
  std::erase_if(runs, [](const TileRun& run) { return !run.inside; });
  issue_store("a TMA store", Kind::write, std::move(runs));
}

void bulk_store(void* global, const void* shared, uint32_t bytes) {
  issue_store("a bulk store", Kind::write, bulk_run("a bulk store", global, shared, bytes));
}

void bulk_add(float* global, const float* shared, uint32_t bytes) {
  issue_store("a bulk add", Kind::add, bulk_run("a bulk add", global, shared, bytes));
}

void bulk_commit() {
  ++own_stores().committed;
}

void bulk_wait(int groups_left, bool read_only) {
  const int thread = current_thread();
  Stores& own = own_stores();
  const uint32_t done = own.committed - std::min(own.committed, static_cast<uint32_t>(groups_left));
  for (const auto& store : own.all) {
    if (store->clock > done) continue;
    read_only ? store->read() : store->write();
  }
  if (!read_only) std::erase_if(own.all, [&](const auto& store) { return store->clock <= done; });
  own.read = std::max(own.read, done);
  if (own.read_worker < 0) return;
  order().observe(thread, own.read_worker, done);
  if (!read_only) order().observe(thread, own.write_worker, done);
}

void begin_block_copies() {
  of_thread.clear();
}

void exit_thread_copies(int thread) {
  if (of_thread.empty()) return;
  for (const auto& store : of_thread[thread].all) {
    if (store->clock > of_thread[thread].read)
      fault("missing wait: it exits, and " + std::string(store->instruction) +
            " may not have read its shared memory");
  }
}

}  // namespace argus::simt
