// What a score means, token by token and dimension by dimension.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "codes/codes.h"
#include "codes/codes_ref.h"
#include "estimate/estimate.h"

namespace adamas::ref {

struct Scores {
  std::vector<int16_t> score;  // [blocks, 64]
  double unit = 0;
  double highest_centre = 0;
  bool offset_clipped = false;
  float rms = 0, reference = 0;  // of the query; sigma_ref
  std::vector<double> centre;    // [blocks] c_b
  std::vector<int16_t> offset;   // [blocks] C_b
};

// y: the rotated query [head_dim]; the blocks `ids` are scored. threshold as in prepare_query.
inline Scores estimate(const float* y, int head_dim, Estimator estimator, float threshold, const Codes& codes,
                       const std::vector<int32_t>& ids) {
  const int64_t blocks = int64_t(ids.size());
  float m = 0;
  double squares = 0;
  for (int d = 0; d < head_dim; d++) {
    m = std::max(m, std::abs(y[d]));
    squares += double(y[d]) * y[d];
  }
  if (!(m > smallest_query)) m = 0;
  const float rms = float(std::sqrt(squares / head_dim));
  const float t = threshold > 0 ? threshold : threshold_sigmas * rms;

  std::vector<float> sigmas;
  float rounding = 0;
  for (int32_t b : ids) {
    sigmas.push_back(codes.sigma_of(b));
    rounding = std::max(rounding, codes.centre_scale_of(b));
  }
  float reference = *std::max_element(sigmas.begin(), sigmas.end());
  std::vector<int> exponents;
  for (float s : sigmas)
    if (s > 0) exponents.push_back(std::ilogb(s));
  if (!exponents.empty()) {
    std::sort(exponents.begin(), exponents.end());
    const int median = exponents[(exponents.size() - 1) / 2];
    reference = std::min(reference, std::ldexp(1.0f, std::min(median + 4, 127)));
  }

  Scores out;
  out.rms = rms;
  out.reference = reference;
  std::vector<double>& centre = out.centre;
  centre.resize(blocks);
  for (int64_t b = 0; b < blocks; b++) {
    int64_t sum = 0;
    for (int d = 0; d < head_dim; d++) {
      const int q16 = m > 0 ? int(std::nearbyint(y[d] * (32767.0f / m))) : 0;
      sum += int64_t(q16) * codes.block(ids[b]).centre[d];
    }
    centre[b] = double(sum) * (double(m) / 32767.0 * double(codes.centre_scale_of(ids[b])));
  }
  const auto [lowest, highest] = std::minmax_element(centre.begin(), centre.end());
  out.highest_centre = *highest;
  out.unit = estimator == Estimator::dot ? double(m) / query_levels * double(level_sigmas) * double(reference)
                                         : double(distance_weight) * double(rms) * double(reference) / distance_scale;
  if (!(out.unit > 0)) {
    out.unit = std::max((*highest - *lowest) / 16384.0, double(rms) * std::sqrt(head_dim) * double(rounding));
  }
  if (!(out.unit > 0)) out.unit = flat_unit;
  out.offset_clipped = (*lowest - *highest) / out.unit < lowest_centre;

  for (int64_t b = 0; b < blocks; b++) {
    const int weight =
        reference > 0
            ? int(std::nearbyint(std::min(32767.0, 32767.0 * (double(codes.sigma_of(ids[b])) / double(reference)))))
            : 0;
    const int offset = int(std::nearbyint(std::max(double(lowest_centre), (centre[b] - out.highest_centre) / out.unit)));
    out.offset.push_back(int16_t(offset));
    for (int token = 0; token < block_tokens; token++) {
      int inner = estimator == Estimator::dot ? 0 : int(std::nearbyint(mean_distance * distance_scale * head_dim));
      for (int d = 0; d < head_dim; d++) {
        const int code = code_at(codes.block(ids[b]), token, d);
        if (estimator == Estimator::dot) {
          const int q8 = m > 0 ? int(std::nearbyint(y[d] * (float(query_levels) / m))) : 0;
          inner += q8 * (2 * code - 3);
        } else {
          const int query_code = (y[d] > -t) + (y[d] > 0) + (y[d] > t);
          inner -= distance_scale * std::abs(query_code - code);
        }
      }
      out.score.push_back(int16_t(((inner * weight + (1 << 14)) >> 15) + offset));
    }
  }
  return out;
}

// The first blocks of a sequence.
inline Scores estimate(const float* y, int head_dim, Estimator estimator, float threshold, const Codes& codes,
                       int64_t blocks) {
  std::vector<int32_t> ids(blocks);
  std::iota(ids.begin(), ids.end(), 0);
  return estimate(y, head_dim, estimator, threshold, codes, ids);
}

}  // namespace adamas::ref
