// Quest (arXiv 2406.10774): pages of 16 tokens with the minimum and maximum of each channel of the keys. A page's score
// bounds the scores of its tokens from above:
//
//   sum_d max(q_d min_d, q_d max_d)
//
// The top budget / 16 pages are attended to whole; the page of the newest visible token is always among them.
#pragma once

#include <cstdint>

#include "codes/layout.h"
#include "core/rows.h"

namespace adamas {

inline constexpr int quest_page = 16;

// Minimum and maximum of the live rows of one page: min, max [head_dim]; zeros when no row is live. An element that is NaN
// counts as 0.
void quest_bounds(const Rows& rows, int head_dim, int64_t first_token, uint32_t live, float* min, float* max);

// The bounds of every block's four pages.
struct QuestBounds {
  PerBlock<float> bounds;  // [4, 2, head_dim]
  Places places = nullptr;

  float* of(int64_t block) const { return bounds.at(place_of(places, block)); }
};
constexpr int64_t quest_block(int head_dim) {
  return int64_t{block_tokens / quest_page} * 2 * head_dim;
}  // floats of a block

// visible: [blocks] of 64. scores: scratch [pages]. tokens: room for budget, or 16 when the budget is less. Returns the
// number of visible tokens of the chosen pages.
int64_t select_quest(const float* q, int head_dim, const QuestBounds& bounds, const uint64_t* visible, int64_t blocks,
                     int64_t budget, float* scores, int32_t* pages, int32_t* tokens);

}  // namespace adamas
