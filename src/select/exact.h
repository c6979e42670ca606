// Scores that were computed exactly, as select() ranks them: in thousandths below the largest, 32.767 at most. The weights of
// two tokens whose ranks are equal differ by less than 0.1%.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace adamas {

inline int16_t rank_of(float score, float largest) {
  const float below = (score - largest) * 1000.0f;
  return below >= -32767.0f ? int16_t(std::nearbyint(std::min(below, 0.0f))) : int16_t(-32767);  // NaN is last
}

}  // namespace adamas
