#include "simt/turns.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "simt/async.h"
#include "simt/regions.h"

namespace argus::simt {
namespace {

struct Pass {
  int32_t value;
  std::shared_ptr<const Snapshots> released;
};

struct Waiting final : Waitable {
  const int32_t* turn;
  int32_t value;
  std::string name;

  Waiting(const int32_t* turn, int32_t value, std::string name)
      : turn(turn), value(value), name(std::move(name)) {}
  std::string describe() const override {
    return name + " holds " + std::to_string(*turn) + ", awaited is " + std::to_string(value) +
           ", and no earlier block has set it";
  }
};

std::map<const int32_t*, Pass> passed;  // the last of the launch, by word
std::vector<const Waiting*> waiting;

// Words are accessed atomically; where in global memory this one lies.
std::string use_turn(const char* instruction, const int32_t* turn, Kind kind) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(turn);
  if (address % sizeof(int32_t) != 0) fault(std::string(instruction) + " of a misaligned address");
  const Region& region = require_region(address, sizeof(int32_t), kind);
  if (region.shared) fault(std::string(instruction) + " of " + region.name + ", expected global memory");
  order().widen();
  access(turn, sizeof(int32_t), Kind::atomic);
  return region.byte_text(address);
}

}  // namespace

void wait_turn(const int32_t* turn, int32_t value, Site site) {
  if (!launch_in_order())
    fault("wait_turn in a launch that is not in_order: the block that it waits for may start later");
  const Waiting self(turn, value, use_turn("wait_turn", turn, Kind::read));
  waiting.push_back(&self);
  while (*turn != value) wait_for(self, "wait_turn", site);
  std::erase(waiting, &self);
  const auto found = passed.find(turn);
  if (found != passed.end() && found->second.value == value)
    order().acquire_from_blocks(current_thread(), *found->second.released);
}

void pass_turn(int32_t* turn, int32_t value) {
  use_turn("pass_turn", turn, Kind::atomic);
  *turn = value;
  passed[turn] = {value, order().release_to_blocks(current_thread())};
  for (const Waiting* one : waiting) {
    if (one->turn == turn) wake(*one);
  }
}

void begin_launch_turns() {
  passed.clear();
  waiting.clear();
}

}  // namespace argus::simt
