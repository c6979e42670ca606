// Scores anew, where biases move them, or where a head's centres lie too far apart for 16 bits in its own unit. One meaning
// for every device: plain loops are fast enough for what is rare.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "estimate/estimate.h"
#include "rest/rest.h"
#include "select/select.h"

namespace adamas {

inline constexpr double lightest = 100;  // exponent below the highest estimate at which a float is zero

// Estimates of scores [blocks, 64], relative to that of the highest centre; returns the largest, -inf of none.
// moved(estimate, position): with its bias. centres, offsets: [blocks] as block_offsets gave them; estimates: as scores.
template <class Moved>
float estimate_anew(const WeightScale& e, double scale, const double* centres, const int16_t* offsets, int64_t blocks,
                    Moved&& moved, const int16_t* scores, float* estimates) {
  const double origin = capped(e.highest, e.softcap);
  constexpr float farthest = 1e30f;  // and NaN stands there, below
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t b = 0; b < blocks; b++) {
    const double centre = scale * centres[b] - e.unit * offsets[b];
    for (int64_t t = b * block_tokens; t < (b + 1) * block_tokens; t++) {
      estimates[t] = -farthest;
      if (scores[t] == hidden_score) continue;
      const double estimate = moved(capped(e.unit * scores[t] + centre, e.softcap) - origin, t);
      if (estimate > -double(farthest)) estimates[t] = float(std::min(estimate, double(farthest)));
      top = std::max(top, estimates[t]);
    }
  }
  return top;
}

// Scores, in place, relative to the highest estimate `top` of all, in a unit that lets `lightest` below it be told apart.
inline WeightScale score_anew(const WeightScale& e, float top, const float* estimates, int64_t blocks, int16_t* scores) {
  const double origin = capped(e.highest, e.softcap), unit = std::max(e.unit, lightest / always_score);
  for (int64_t t = 0; t < blocks * block_tokens; t++) {
    const double units = std::max((double(estimates[t]) - double(top)) / unit, -32767.0);
    scores[t] = scores[t] == hidden_score ? hidden_score : int16_t((units + round_shift) - round_shift);
  }
  const double highest = std::isfinite(top) ? origin + double(top) : origin;
  return {unit, highest, 0, float(highest)};
}

// Both, where no estimate lies elsewhere. estimates: scratch.
template <class Moved>
WeightScale rescale(const WeightScale& e, double scale, const double* centres, const int16_t* offsets, int64_t blocks,
                    Moved&& moved, float* estimates, int16_t* scores) {
  const float top = estimate_anew(e, scale, centres, offsets, blocks, moved, scores, estimates);
  return score_anew(e, top, estimates, blocks, scores);
}

}  // namespace adamas
