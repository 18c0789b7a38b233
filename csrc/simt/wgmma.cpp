#include "simt/wgmma.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "simt/regions.h"
#include "simt/tensor_core.h"
#include "simt/tma.h"

namespace argus::simt {
namespace {

constexpr int kRows = 64, kThreads = 4 * kLanes;
constexpr uint32_t kChunk = 16;
constexpr uint32_t kUnfinished = 0x7fbadbad;  // a NaN that no operation gives

// D of the operations under way that accumulate into the same registers.
struct Accumulators {
  int columns;
  std::array<float*, kThreads> registers;
  std::vector<float> values;        // [64, columns]
  uint32_t last = 0;                // number of the last operation
  std::array<bool, 4> delivered{};  // to each warp
};

struct Operation {
  ProductShape shape;
  uint32_t number;
  uint64_t a, b;
  uint32_t window;  // of the block's shared memory
  bool a_in_registers;
  std::array<std::array<uint32_t, 4>, kThreads> a_registers;
  std::shared_ptr<Accumulators> d;
};

struct Warp {
  std::deque<uint32_t> groups;  // the last operation of each
  uint32_t waited = 0;
  int worker = -1;
};

struct Warpgroup {
  uint32_t issued = 0;
  std::deque<Operation> queue;
  std::vector<std::shared_ptr<Accumulators>> open;
  std::array<Warp, 4> warps;
};

// Registers of a thread that operations under way use.
struct InUse {
  uintptr_t begin, end;
  uint32_t product;
  bool accumulators;
  std::array<uint32_t, 4> held;  // A's contents
};

struct Thread {
  bool fenced = false;
  std::unordered_set<uintptr_t> touched;  // words, since the last fence
  std::vector<InUse> in_use;
};

struct Products {
  std::vector<Warpgroup> groups;
  std::vector<Thread> threads;
  int block_threads = 0;
} products;  // of the block, made when it first uses wgmma

struct Issue {
  const ProductShape* shape;
  float* d;
  const uint32_t* a;
  uint64_t descriptor_a, descriptor_b;
};

const Issue& issue_of(void* const* payloads, int thread) {
  return *static_cast<const Issue*>(payloads[thread]);
}

int row_of(int thread, int i) {
  return thread / kLanes * 16 + thread % kLanes / 4 + i / 2 % 2 * 8;
}

int column_of(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}

// The 16-byte chunks of an operand of `rows` rows; descriptors know offsets in the block's window alone.
template <class Visit>
void for_each_chunk(const ProductShape& shape, uint64_t bits, uint32_t window, bool mn_major, int rows,
                    const Visit& visit) {
  const MatrixDescriptor descriptor = decode_descriptor(bits);
  const int size = shape.element_bytes(), per_chunk = static_cast<int>(kChunk) / size;
  for (int row = 0; row < rows; row += mn_major ? per_chunk : 1) {
    for (int k = 0; k < shape.depth(); k += mn_major ? 1 : per_chunk)
      visit(row, k, shared_pointer(window + operand_offset(descriptor, mn_major, size, row, k)));
  }
}

double number_at(Element element, const unsigned char* from) {
  if (element == Element::tf32) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    return tf32(word);
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return element == Element::f16 ? narrow_bits<__half>(bits) : narrow_bits<__nv_bfloat16>(bits);
}

// [rows, depth], as the tensor cores read them.
std::vector<double> read_operand(const ProductShape& shape, uint64_t bits, uint32_t window, bool mn_major,
                                 int rows) {
  std::vector<double> numbers(static_cast<size_t>(rows * shape.depth()));
  const int size = shape.element_bytes(), per_chunk = static_cast<int>(kChunk) / size;
  for_each_chunk(shape, bits, window, mn_major, rows, [&](int row, int k, const unsigned char* chunk) {
    for (int i = 0; i < per_chunk; ++i) {
      const int at = mn_major ? (row + i) * shape.depth() + k : row * shape.depth() + k + i;
      numbers[at] = number_at(shape.element, chunk + i * size);
    }
  });
  return numbers;
}

std::vector<double> read_registers(const Operation& operation) {
  const int depth = operation.shape.depth();
  std::vector<double> numbers(static_cast<size_t>(kRows * depth));
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int i = 0; i < 4; ++i) {
      const int row = thread / kLanes * 16 + thread % kLanes / 4 + i % 2 * 8;
      const uint32_t word = operation.a_registers[thread][i];
      if (operation.shape.element == Element::tf32) {
        numbers[row * depth + thread % 4 + i / 2 * 4] = tf32(word);
        continue;
      }
      for (int half = 0; half < 2; ++half) {
        numbers[row * depth + thread % 4 * 2 + i / 2 * 8 + half] = operation.shape.element == Element::f16
                                                                       ? narrow<__half>(word, half)
                                                                       : narrow<__nv_bfloat16>(word, half);
      }
    }
  }
  return numbers;
}

void compute(const Operation& operation) {
  const ProductShape& shape = operation.shape;
  std::vector<double> a = operation.a_in_registers
                              ? read_registers(operation)
                              : read_operand(shape, operation.a, operation.window, shape.mn_major_a, kRows);
  const std::vector<double> b =
      read_operand(shape, operation.b, operation.window, shape.mn_major_b, shape.columns);
  if (shape.negate) {
    for (double& number : a) number = -number;
  }
  const int depth = shape.depth();
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < shape.columns; ++column) {
      float& d = operation.d->values[row * shape.columns + column];
      const float before = shape.scale_d ? d : 0.0f;
      const double *from_a = &a[row * depth], *from_b = &b[column * depth];
      d = depth == 8 ? sum_of_products<8>(before, from_a, from_b, 1)
                     : sum_of_products<16>(before, from_a, from_b, 1);
    }
  }
}

void compute_up_to(Warpgroup& group, uint32_t number) {
  for (; !group.queue.empty() && group.queue.front().number <= number; group.queue.pop_front())
    compute(group.queue.front());
}

void require_fence(const Thread& thread, const void* registers, size_t words, const char* what) {
  if (!thread.fenced) fault("missing wgmma.fence: none comes before the first wgmma");
  const uintptr_t begin = reinterpret_cast<uintptr_t>(registers);
  for (size_t i = 0; i < words; ++i) {
    if (thread.touched.contains(begin / 4 + i)) {
      fault(std::string("missing wgmma.fence: ") + what +
            " was accessed since the last one, and a wgmma is to use it");
    }
  }
}

// The open accumulators that these registers are, or null.
std::shared_ptr<Accumulators> find_open(const Warpgroup& group, void* const* payloads) {
  const Issue& first = issue_of(payloads, 0);
  const auto begin = reinterpret_cast<uintptr_t>(first.d);
  for (const auto& open : group.open) {
    const auto other = reinterpret_cast<uintptr_t>(open->registers[0]);
    const bool apart = begin + 2 * first.shape->columns <= other || other + 2 * open->columns <= begin;
    if (apart) continue;
    if (begin != other || open->columns != first.shape->columns)
      fault("missing wait: a wgmma of another shape accumulates into registers of one under way");
    return open;
  }
  return nullptr;
}

std::shared_ptr<Accumulators> open_accumulators(Warpgroup& group, void* const* payloads, int first_thread) {
  if (auto open = find_open(group, payloads)) return open;
  const int columns = issue_of(payloads, 0).shape->columns;
  auto made = std::make_shared<Accumulators>();
  made->columns = columns;
  made->values.resize(static_cast<size_t>(kRows * columns));
  for (int thread = 0; thread < kThreads; ++thread) {
    float* d = made->registers[thread] = issue_of(payloads, thread).d;
    require_fence(products.threads[first_thread + thread], d, columns / 2, "an accumulator");
    for (int i = 0; i < columns / 2; ++i) {
      made->values[row_of(thread, i) * columns + column_of(thread, i)] = d[i];
      std::memcpy(d + i, &kUnfinished, sizeof(float));
    }
    const uintptr_t begin = reinterpret_cast<uintptr_t>(d);
    products.threads[first_thread + thread].in_use.push_back({begin, begin + 2 * columns, 0, true, {}});
  }
  group.open.push_back(made);
  return made;
}

void hold_a(Operation& operation, void* const* payloads, int first_thread) {
  for (int thread = 0; thread < kThreads; ++thread) {
    const uint32_t* a = issue_of(payloads, thread).a;
    Thread& own = products.threads[first_thread + thread];
    require_fence(own, a, 4, "a register of A");
    std::copy(a, a + 4, operation.a_registers[thread].begin());
    const uintptr_t begin = reinterpret_cast<uintptr_t>(a);
    own.in_use.push_back({begin, begin + 16, operation.number, false, operation.a_registers[thread]});
  }
}

void check_operand(const Operation& operation, uint64_t descriptor, bool mn_major, int rows, const View& view,
                   int group) {
  const auto each = [&](const auto& visit) {
    for_each_chunk(operation.shape, descriptor, operation.window, mn_major, rows,
                   [&](int, int, const unsigned char* chunk) { visit(chunk); });
  };
  each([&](const unsigned char* chunk) { check_async("a wgmma", view, chunk, kChunk, Kind::read); });
  each([&](const unsigned char* chunk) { mark_product_read(chunk, kChunk, group, operation.number); });
}

void check_issue(void* const* payloads) {
  const Issue& first = issue_of(payloads, 0);
  for (int thread = 1; thread < kThreads; ++thread) {
    const Issue& other = issue_of(payloads, thread);
    const bool same = other.descriptor_a == first.descriptor_a && other.descriptor_b == first.descriptor_b &&
                      *other.shape == *first.shape;
    if (!same) fault("a wgmma whose descriptors or shape differ between threads of the warpgroup");
  }
  const ProductShape& shape = *first.shape;
  if (shape.columns < 8 || shape.columns > 256 || shape.columns % 8 != 0)
    fault("a wgmma of " + std::to_string(shape.columns) + " columns");
  if (shape.element == Element::tf32 && (shape.mn_major_a || shape.mn_major_b))
    fault("a wgmma of tf32 whose operands are not K-major");
}

// Runs in the thread that came last.
void combine_issue(void* const* payloads) {
  check_issue(payloads);
  const int first_thread = current_thread() / kThreads * kThreads, index = first_thread / kThreads;
  Warpgroup& group = products.groups[index];
  const Issue& first = issue_of(payloads, 0);
  const ProductShape& shape = *first.shape;
  View view = order().view(first_thread);
  for (int thread = 1; thread < kThreads; ++thread) view = meet(view, order().view(first_thread + thread));
  for (int warp = 0; warp < 4; ++warp) {
    if (group.warps[warp].worker < 0) group.warps[warp].worker = order().add_worker("a wgmma");
  }
  const uint32_t window = static_cast<uint32_t>(current_rank()) * kRankWindow;
  Operation operation{
      shape, ++group.issued, first.descriptor_a, first.descriptor_b, window, first.a != nullptr, {}, {}};
  operation.d = open_accumulators(group, payloads, first_thread);
  operation.d->last = operation.number;
  if (operation.a_in_registers) {
    hold_a(operation, payloads, first_thread);
  } else {
    check_operand(operation, operation.a, shape.mn_major_a, kRows, view, index);
  }
  check_operand(operation, operation.b, shape.mn_major_b, shape.columns, view, index);
  group.queue.push_back(std::move(operation));
  defer([&group] {
    if (!group.queue.empty()) compute_up_to(group, group.queue.front().number);
  });
}

void require_unchanged(const InUse& held) {
  const auto* words = reinterpret_cast<const unsigned char*>(held.begin);
  const size_t bytes = held.end - held.begin;
  for (size_t i = 0; i < bytes; i += 4) {
    const uint32_t expected = held.accumulators ? kUnfinished : held.held[i / 4];
    if (std::memcmp(words + i, &expected, 4) != 0)
      fault("missing wait: a register of a wgmma was written before the wait for it");
  }
}

// Gives a warp the results of the operations up to `done`.
void deliver(Warpgroup& group, int warp, int first_thread, uint32_t done) {
  for (const auto& open : group.open) {
    // A warp may wait again before the others have waited once.
    if (open->last > done || open->delivered[warp]) continue;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int thread = warp * kLanes + lane;
      float* d = open->registers[thread];
      Thread& own = products.threads[first_thread + thread];
      const auto held = std::find_if(own.in_use.begin(), own.in_use.end(), [&](const InUse& one) {
        return one.begin == reinterpret_cast<uintptr_t>(d);
      });
      require_unchanged(*held);
      own.in_use.erase(held);
      for (int i = 0; i < open->columns / 2; ++i)
        d[i] = open->values[row_of(thread, i) * open->columns + column_of(thread, i)];
    }
    open->delivered[warp] = true;
  }
  const auto to_all = [](const auto& open) {
    return std::all_of(open->delivered.begin(), open->delivered.end(), std::identity{});
  };
  std::erase_if(group.open, to_all);
  for (int lane = 0; lane < kLanes; ++lane) {
    std::erase_if(products.threads[first_thread + warp * kLanes + lane].in_use, [&](const InUse& one) {
      const bool over = !one.accumulators && one.product <= done;
      if (over) require_unchanged(one);
      return over;
    });
  }
}

// The running thread's warpgroup, which must be whole.
Warpgroup& own_group(const char* name) {
  if (products.threads.empty()) {
    products.groups.resize(products.block_threads / kThreads);
    products.threads.resize(products.block_threads);
  }
  const size_t index = static_cast<size_t>(current_thread() / kThreads);
  if (index >= products.groups.size()) fault(std::string(name) + " outside a warpgroup of 128 threads");
  return products.groups[index];
}

int own_warp() {
  return current_thread() % kThreads / kLanes;
}

void combine_fence(void* const*, unsigned) {
  const int first = current_thread() / kLanes * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    products.threads[first + lane].fenced = true;
    products.threads[first + lane].touched.clear();
  }
}

void combine_commit(void* const*, unsigned) {
  Warpgroup& group = own_group("wgmma.commit_group");
  group.warps[own_warp()].groups.push_back(group.issued);
}

void combine_wait(void* const* payloads, unsigned) {
  const size_t left = static_cast<size_t>(*static_cast<const int*>(payloads[current_thread() % kLanes]));
  Warpgroup& group = own_group("wgmma.wait_group");
  const int warp = own_warp(), first_thread = current_thread() / kThreads * kThreads;
  Warp& own = group.warps[warp];
  for (; own.groups.size() > left; own.groups.pop_front()) own.waited = own.groups.front();
  if (own.worker < 0) return;
  compute_up_to(group, own.waited);
  deliver(group, warp, first_thread, own.waited);
  for (int lane = 0; lane < kLanes; ++lane)
    order().observe(first_thread + warp * kLanes + lane, own.worker, own.waited);
}

constexpr unsigned kAll = 0xffffffffu;

}  // namespace

bool registers_watched = false;

MatrixDescriptor decode_descriptor(uint64_t bits) {
  constexpr uint64_t kReserved = 3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52;
  if ((bits & kReserved) != 0) fault("a matrix descriptor with bits set that must be 0");
  const auto field = [&](int from) { return static_cast<uint32_t>(bits >> from & 0x3fff) * kChunk; };
  constexpr int kSwizzles[] = {0, 128, 64, 32};
  return {field(0), field(16), field(32), static_cast<uint32_t>(bits >> 49 & 7), kSwizzles[bits >> 62]};
}

uint32_t operand_offset(const MatrixDescriptor& descriptor, bool mn_major, int element_bytes, int row,
                        int k) {
  const auto bytes = [&](int elements) { return static_cast<uint32_t>(elements * element_bytes); };
  const int per_chunk = static_cast<int>(kChunk) / element_bytes;
  // A pattern's rows are `width` bytes long; without a swizzle the pattern is a core matrix of 8 chunks.
  const uint32_t width =
      descriptor.swizzle_bytes == 0 ? kChunk : static_cast<uint32_t>(descriptor.swizzle_bytes);
  const bool plain = descriptor.swizzle_bytes == 0;
  uint32_t at = descriptor.start;
  if (mn_major) {
    const int in_row = plain ? per_chunk : descriptor.swizzle_bytes / element_bytes;
    at += bytes(row % in_row) +
          static_cast<uint32_t>(row / in_row) * (plain ? descriptor.stride : descriptor.leading);
    at += static_cast<uint32_t>(k % 8) * width +
          static_cast<uint32_t>(k / 8) * (plain ? descriptor.leading : descriptor.stride);
  } else {
    at += static_cast<uint32_t>(row % 8) * width + static_cast<uint32_t>(row / 8) * descriptor.stride;
    at += plain ? static_cast<uint32_t>(k / per_chunk) * descriptor.leading + bytes(k % per_chunk) : bytes(k);
  }
  // The base offset is the row of the pattern that the data's first row has by its address.
  const uint32_t shift = descriptor.base_offset << 7;
  return plain ? at : swizzled(at - shift, descriptor.swizzle_bytes) + shift;
}

void wgmma(const ProductShape& shape, float* d, const uint32_t* a, uint64_t descriptor_a,
           uint64_t descriptor_b, Site site) {
  own_group("wgmma");
  Issue own{&shape, d, a, descriptor_a, descriptor_b};
  warpgroup_collective("wgmma.mma_async", &own, combine_issue, site);
}

void wgmma_fence(Site site) {
  own_group("wgmma.fence");
  order().widen();
  registers_watched = true;
  warp_collective("wgmma.fence", kAll, nullptr, combine_fence, false, site);
}

void wgmma_commit(Site site) {
  own_group("wgmma.commit_group");
  warp_collective("wgmma.commit_group", kAll, nullptr, combine_commit, false, site);
}

void wgmma_wait(int groups_left, Site site) {
  own_group("wgmma.wait_group");
  warp_collective("wgmma.wait_group", kAll, &groups_left, combine_wait, false, site);
}

bool product_over(const View& view, int warpgroup, uint32_t product) {
  const auto& warps = products.groups[warpgroup].warps;
  return std::all_of(warps.begin(), warps.end(),
                     [&](const Warp& warp) { return order().has(view, warp.worker, product); });
}

void touch_registers(const void* address, size_t bytes, Kind kind) {
  Thread& own = products.threads[current_thread()];
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  for (const InUse& one : own.in_use) {
    if (begin < one.end && end > one.begin) {
      fault(std::string("missing wait: ") + verb(kind) +
            (one.accumulators ? " an accumulator" : " a register of A") +
            " of a wgmma that has not been waited for");
    }
  }
  for (uintptr_t word = begin / 4; word <= (end - 1) / 4; ++word) own.touched.insert(word);
}

void begin_block_products(int threads) {
  products.groups.clear();
  products.threads.clear();
  products.block_threads = threads;
  registers_watched = false;
}

void exit_thread_products(int thread) {
  const size_t index = static_cast<size_t>(thread / kThreads);
  if (index >= products.groups.size()) return;
  const Warpgroup& group = products.groups[index];
  if (group.issued > group.warps[thread % kThreads / kLanes].waited)
    fault("missing wait: it exits, and a wgmma of its warpgroup has not been waited for");
}

}  // namespace argus::simt
