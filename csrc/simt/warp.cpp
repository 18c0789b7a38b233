#include "simt/language.h"

namespace argus::simt {
namespace {

Exchange& exchange(void* const* payloads, int lane) {
  return *static_cast<Exchange*>(payloads[lane]);
}

// A source lane outside the segment of `width` lanes leaves the value unchanged; a lane that does not take
// part has no value to give.
template <class Source>
void shuffle_from(const char* name, void* const* payloads, unsigned mask, Source source) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    Exchange& own = exchange(payloads, lane);
    const int segment = lane & ~(own.width - 1);
    const int from = source(lane, segment, own);
    if (from >= 0 && (mask >> from & 1u) == 0) {
      fault(std::string(name) + " takes the value of lane " + std::to_string(from) + " into lane " +
            std::to_string(lane) + ", but lane " + std::to_string(from) + " is not in the mask");
    }
    own.result = from < 0 ? own.value : exchange(payloads, from).value;
  }
}

}  // namespace

void combine_shuffle_index(void* const* payloads, unsigned mask) {
  shuffle_from("__shfl_sync", payloads, mask, [](int, int segment, const Exchange& own) {
    return segment + (own.operand & (own.width - 1));
  });
}

void combine_shuffle_up(void* const* payloads, unsigned mask) {
  shuffle_from("__shfl_up_sync", payloads, mask, [](int lane, int segment, const Exchange& own) {
    return lane - own.operand >= segment ? lane - own.operand : -1;
  });
}

void combine_shuffle_down(void* const* payloads, unsigned mask) {
  shuffle_from("__shfl_down_sync", payloads, mask, [](int lane, int segment, const Exchange& own) {
    return lane + own.operand < segment + own.width ? lane + own.operand : -1;
  });
}

void combine_shuffle_xor(void* const* payloads, unsigned mask) {
  shuffle_from("__shfl_xor_sync", payloads, mask, [](int lane, int segment, const Exchange& own) {
    const int from = lane ^ own.operand;
    return from < segment + own.width ? from : -1;
  });
}

void combine_ballot(void* const* payloads, unsigned mask) {
  uint64_t votes = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) != 0 && exchange(payloads, lane).value != 0) votes |= 1ull << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) != 0) exchange(payloads, lane).result = votes;
  }
}

void combine_match(void* const* payloads, unsigned mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    Exchange& own = exchange(payloads, lane);
    own.result = 0;
    for (int other = 0; other < kLanes; ++other) {
      if ((mask >> other & 1u) != 0 && exchange(payloads, other).value == own.value)
        own.result |= 1ull << other;
    }
  }
}

}  // namespace argus::simt
