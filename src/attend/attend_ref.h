// What attention means, in double precision.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "attend/attend.h"

namespace adamas::ref {

struct Attended {
  std::vector<double> out;  // [head_dim]
  double lse;
};

inline Attended attend(const Attention& a, const float* q, float slope, const std::vector<int32_t>& tokens) {
  std::vector<double> scores;
  double max = -std::numeric_limits<double>::infinity();
  for (int32_t t : tokens) {
    double s = 0;
    for (int d = 0; d < a.head_dim; d++) s += double(q[d]) * load_f32(a.k.row(t), a.k.dtype, d);
    s *= a.scale;
    if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
    if (a.bias != nullptr) s += double(slope) * a.bias[t];
    scores.push_back(s);
    max = std::max(max, s);
  }
  Attended result{std::vector<double>(a.head_dim, 0.0), max};
  double sum = 0;
  for (size_t i = 0; i < tokens.size(); i++) {
    const double weight = std::exp(scores[i] - max);
    sum += weight;
    for (int d = 0; d < a.head_dim; d++) result.out[d] += weight * load_f32(a.v.row(tokens[i]), a.v.dtype, d);
  }
  if (sum > 0)
    for (double& x : result.out) x /= sum;
  result.lse = sum > 0 ? max + std::log(sum) : -std::numeric_limits<double>::infinity();
  return result;
}

}  // namespace adamas::ref
