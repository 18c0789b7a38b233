// Blocks that add to the same tiles in a fixed order, with one planted fault at a time, beside the same
// without it: the sums are those of a loop in that order, bit for bit.
#include "cases.h"
#include "sm90_turns.cuh"

namespace {

using argus::launch;
using argus::LaunchShape;
using cases::Buffer;
using cases::expect;
using sm90_turns::First;
using sm90_turns::kThreads;
using sm90_turns::kTile;
using sm90_turns::Memory;
using sm90_turns::Plant;
using sm90_turns::Work;

// [tiles, kTile] and the notes, as the last block reads them; `backwards`: the parts in the other order.
std::vector<float> expected(const Work& work, bool backwards) {
  std::vector<float> values(static_cast<size_t>(work.tiles * kTile), 0.0f);
  for (int turn = 0; turn < work.blocks; ++turn) {
    const int block = backwards ? work.blocks - 1 - turn : turn;
    for (int tile = work.first_tile(block); tile < work.tiles; ++tile) {
      for (int i = 0; i < kTile; ++i)
        values[static_cast<size_t>(tile * kTile + i)] += sm90_turns::part_value(work.part_of(block), tile, i);
    }
  }
  for (int block = 0; block < work.blocks; ++block) values.push_back(static_cast<float>(block + 1));
  return values;
}

void add_in_turns(const Work& work, Plant plant) {
  const std::vector<float> right = expected(work, false);
  std::vector<float> host_sums(static_cast<size_t>(work.tiles * kTile), 0.0f);
  const bool taking_turns = plant != Plant::adds_in_no_order;
  const auto contents = !taking_turns ? argus::simt::Contents::given : argus::simt::Contents::fresh;
  argus::simt::DeviceBuffer sums("sums", static_cast<void*>(host_sums.data()),
                                 work.tiles * kTile * sizeof(float), contents);
  Buffer<int32_t> turns("turns", static_cast<size_t>(work.tiles));
  Buffer<float> notes("notes", static_cast<size_t>(work.blocks)), read("read", right.size());
  const Memory memory{sums.as<float>(), turns.get(), notes.get(), read.get()};
  const int blocks = work.blocks + (taking_turns ? 1 : 0);
  LaunchShape shape{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  shape.in_order = taking_turns && plant != Plant::launch_not_in_order;
  launch("add_in_turns", sm90_turns::add_in_turns, shape, nullptr, memory, work, plant);
  for (size_t i = 0; i < right.size(); ++i) expect("read", i, read.result()[i], right[i]);
  for (int tile = 0; tile < work.tiles; ++tile)
    expect("turns", static_cast<size_t>(tile), turns.result()[static_cast<size_t>(tile)],
           work.last_turn(tile));
  if (expected(work, true) == right) throw std::runtime_error("the order of the parts does not matter");
}

constexpr Work kCausal{6, 6, true, First::bulk_store};
constexpr Work kFull{4, 5, false, First::bulk_store};

ARGUS_CASE(turns_causal) {
  add_in_turns(kCausal, Plant::none);
}
ARGUS_CASE(turns_full) {
  add_in_turns(kFull, Plant::none);
}
ARGUS_CASE(turns_after_plain_writes_fenced_by_the_writer) {
  add_in_turns({4, 5, false, First::plain_fenced_by_writer}, Plant::none);
}
ARGUS_CASE(turns_after_plain_writes_fenced_by_the_adder) {
  add_in_turns({5, 5, true, First::plain_fenced_by_adder}, Plant::none);
}

#define ARGUS_PLANT(NAME, WORK)      \
  ARGUS_CASE(fault_##NAME) {         \
    add_in_turns(WORK, Plant::NAME); \
  }
ARGUS_PLANT(turn_not_waited_for, kCausal)
ARGUS_PLANT(adds_in_no_order, kFull)
ARGUS_PLANT(wrong_predecessor, kCausal)
ARGUS_PLANT(turn_passed_when_only_read, kCausal)
ARGUS_PLANT(turn_passed_before_the_wait, kCausal)
ARGUS_PLANT(turn_passed_by_another_thread, kFull)
ARGUS_PLANT(source_overwritten_early, kFull)
ARGUS_PLANT(no_proxy_fence_before_the_add, kCausal)
constexpr Work kPlain{5, 5, true, First::plain_fenced_by_adder};
ARGUS_PLANT(no_global_fence_after_plain_writes, kPlain)
ARGUS_PLANT(launch_not_in_order, kCausal)
ARGUS_PLANT(exit_before_the_add_is_read, kCausal)
ARGUS_PLANT(added_to_fresh_memory, kCausal)
ARGUS_PLANT(bytes_not_in_chunks, kFull)
ARGUS_PLANT(sums_read_without_a_barrier, kCausal)

}  // namespace
