// Stage 4. The exact top k of a row of scores.
//
// Among equal scores the larger position wins: it is the more recent token. Positions are written in ascending order, so
// that the rows they name are read forwards. A score of `hidden` is never selected; `always` marks tokens that must be.
#pragma once

#include <cstdint>

namespace adamas {

inline constexpr int16_t hidden_score = -32768;
inline constexpr int16_t always_score = 32767;
inline constexpr int64_t select_scratch(int64_t count) { return 6 * count + 256; }  // int16 elements

// scores: [count], count a multiple of 64. positions: room for min(k, count). Returns how many were selected:
// min(k, the number of scores that are not hidden). scratch: [select_scratch(count)].
int64_t select(const int16_t* scores, int64_t count, int64_t k, int32_t* positions, int16_t* scratch);

// The same with k = the number of scores at or above `bound`, but at least `least` and at most `most`; `selected` are the scores at
// the positions. Both have room for `count`.
int64_t select_reaching(const int16_t* scores, int64_t count, int16_t bound, int64_t least, int64_t most, int32_t* positions,
                        int16_t* selected, int16_t* scratch);

// The highest of scores [count]; hidden when all are.
int16_t highest_score(const int16_t* scores, int64_t count);

}  // namespace adamas
