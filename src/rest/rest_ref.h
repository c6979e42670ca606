// What the list and the rest of a query head mean: rest.h in plain loops, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "rest/rest.h"
#include "select/select.h"

namespace adamas::ref {

// What a score stands for.
inline double estimate(const WeightScale& e, int16_t score) {
  const double s = e.unit * score + e.highest;
  return e.softcap > 0 ? e.softcap * std::tanh(s / e.softcap) : s;
}

inline double weight(const WeightScale& e, int16_t score) {
  return score == hidden_score ? 0 : std::exp(estimate(e, score) - double(e.max));
}

struct Rest {
  double max = 0;  // the largest exact score, which all sums are relative to
  double listed = 0, rest = 0, beside_hidden = 0;
  std::vector<double> weights;  // [count] of listed values
  std::vector<double> means;    // [blocks] of mean values
  double mass() const { return listed / (listed + rest + beside_hidden); }
};

// scores: [blocks * 64] of all tokens; exact: [count] of the list's.
inline Rest rest(const HeadList& list, const std::vector<int16_t>& scores, const std::vector<double>& exact) {
  Rest out;
  out.max = -std::numeric_limits<double>::infinity();
  for (double s : exact) out.max = std::max(out.max, s);

  std::vector<char> is_listed(scores.size()), is_low(list.count);
  const double limit = estimate(list.e, list.bound) + std::numbers::ln2 + 1e-6 * list.e.unit;
  double low = 0, guessed = 0;
  for (int64_t i = 0; i < list.count; i++) {
    const int16_t score = scores[list.positions[i]];
    is_listed[list.positions[i]] = 1;
    out.weights.push_back(std::exp(exact[i] - out.max));
    out.listed += out.weights[i];
    is_low[i] = score >= list.bound && estimate(list.e, score) <= limit;
    if (!is_low[i]) continue;
    low += out.weights[i];
    guessed += weight(list.e, score);
  }
  const double expected = std::exp(std::min(double(list.e.max) - out.max, double(highest_weight)));
  const double factor = std::isfinite(low / guessed) ? std::min(low / guessed, highest_factor * expected) : expected;

  const auto has_mean = [&](int64_t block) { return list.has_hidden_rows == nullptr || list.has_hidden_rows[block] == 0; };
  for (int64_t b = 0; b < list.blocks; b++) {
    double sum = 0;
    for (int64_t t = b * block_tokens; t < (b + 1) * block_tokens; t++)
      sum += is_listed[t] ? 0 : factor * weight(list.e, scores[t]);
    out.means.push_back(has_mean(b) ? sum : 0);
    (has_mean(b) ? out.rest : out.beside_hidden) += sum;
  }

  double with_mean = 0;
  for (int64_t i = 0; i < list.count; i++)
    if (is_low[i] && has_mean(list.positions[i] / block_tokens)) with_mean += out.weights[i];
  for (int64_t i = 0; i < list.count && with_mean > 0; i++) {
    const int64_t block = list.positions[i] / block_tokens;
    if (!is_low[i] || !has_mean(block)) continue;
    const double more = double(lean) * out.rest / with_mean * out.weights[i];
    out.weights[i] += more;
    out.means[block] -= more;
  }
  return out;
}

}  // namespace adamas::ref
