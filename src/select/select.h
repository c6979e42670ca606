// Stage 4. The exact top k of a row of scores, or all that reach a bound.
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

// Bit t of marked[b] says whether score 64 b + t reaches the bound: `bound`, or `other` in the blocks that lower[b] names.
// scores: [blocks, 64]; both bounds above hidden; lower (NULL: no block), marked: [blocks]. Returns how many do.
int64_t mark_reaching(const int16_t* scores, int64_t blocks, int16_t bound, const uint8_t* lower, int16_t other,
                      uint64_t* marked);

// The highest of scores [count]; hidden when all are.
int16_t highest_score(const int16_t* scores, int64_t count);

}  // namespace adamas
