// Host twins of turns between blocks (common/cuda/sm90/turns.cuh): words in global memory that one block
// passes on and a later one waits for.
//
// Blocks run one after another, in ascending order where the launch is `in_order`: the hardest schedule for
// these waits that a GPU allows, since no block may count on one that starts later. Whoever waits has seen
// all that the thread had seen whose pass_turn wrote the value.
#pragma once

#include <cstdint>

#include "simt/executor.h"

namespace argus::simt {

// Returns once the word has the value.
void wait_turn(const int32_t* turn, int32_t value, Site site);
void pass_turn(int32_t* turn, int32_t value);

}  // namespace argus::simt
