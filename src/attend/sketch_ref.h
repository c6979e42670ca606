// What the second tier and the tail mean, token by token in double precision.
#pragma once

#include <cmath>
#include <vector>

#include "attend/sketch.h"
#include "codes/codes.h"
#include "codes/codes_ref.h"
#include "select/select.h"

namespace adamas::ref {

inline double weight(const Estimated& e, int16_t score) {
  if (score == hidden_score || score == always_score) return 0;
  double s = e.unit * score + e.highest;
  if (e.softcap > 0) s = e.softcap * std::tanh(s / e.softcap);
  return std::exp(s - double(e.max));
}

// The mean value of a block, in the rotated space.
inline double mean_value(const Codes& values, int64_t block, int dim) {
  return double(values.block(block).centre[dim]) * values.centre_scale[block];
}

inline double level_value(const Codes& values, int64_t token, int dim) {
  const int64_t b = token / block_tokens;
  return (2 * code_at(values.block(b), int(token % block_tokens), dim) - 3) * double(level_sigmas) * values.sigma[b];
}

}  // namespace adamas::ref
