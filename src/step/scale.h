// What a step's products are multiplied by: a caller's 0 stands for a default.
#pragma once

#include <cmath>

#include "adamas/adamas.h"

namespace adamas {

// Of q . k, before anything else is done to a score.
inline float score_scale(const adamas_step_params& p, int head_dim) {
  return (p.scale != 0 ? p.scale : 1.0f / std::sqrt(float(head_dim))) * (p.k_scale != 0 ? p.k_scale : 1.0f);
}
// Of what is attended to.
inline float value_scale(const adamas_step_params& p) { return p.v_scale != 0 ? p.v_scale : 1.0f; }

}  // namespace adamas
