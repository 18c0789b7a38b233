// How the backward pass on the CPU cuts its rows and candidates; it depends on the sizes alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sampled_softmax_loss/score_tile.h"
#include "sampled_softmax_loss/workspace.h"

namespace argus::sampled_softmax_loss {

constexpr int64_t kWorkItems = 16;          // at least, if the sizes allow it
constexpr int64_t kStepElements = 1 << 18;  // of a section's partial d_query
constexpr int64_t kStripScores = 1 << 23;   // stored for a step, or those of one tile if they are more

struct BackwardPlan {
  int64_t blocks, groups, sections, section_rows, step_rows, steps;

  BackwardPlan(int64_t rows, int64_t drawn, int64_t width, bool stores_scores)
      : blocks(divide_up(drawn, kBlock)), groups(std::min(blocks, kWorkItems)) {
    const int64_t tiles = divide_up(rows, kTileRows);
    sections = groups == 0 ? 0 : std::min(divide_up(kWorkItems, groups), tiles);
    section_rows = sections == 0 ? 0 : divide_up(tiles, sections) * kTileRows;
    if (section_rows > 0) sections = divide_up(rows, section_rows);
    int64_t wanted = kStepElements / std::max<int64_t>(width, 1) / kTileRows;
    if (stores_scores && sections > 0)
      wanted = std::min(wanted, kStripScores / (sections * blocks * kBlock * kTileRows));
    step_rows = std::min(std::max<int64_t>(wanted, 1) * kTileRows, section_rows);
    steps = step_rows == 0 ? 0 : divide_up(section_rows, step_rows);
  }

  int64_t first_block(int64_t group) const { return blocks * group / groups; }
};

}  // namespace argus::sampled_softmax_loss
