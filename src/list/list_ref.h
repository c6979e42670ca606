// What the candidates of a query head are: list.h in plain loops, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "list/list.h"
#include "rest/rest_ref.h"
#include "select/select.h"

namespace adamas::ref {

// log( sum of exp(s^_t) over the scores + exp(always) ), relative to nothing.
inline double log_total(const HeadEstimates& head, double always) {
  double highest = always;
  for (int64_t i = 0; i < head.blocks * block_tokens; i++)
    if (head.scores[i] != hidden_score) highest = std::max(highest, estimate(head.scale, head.scores[i]));
  double sum = std::exp(always - highest);
  for (int64_t i = 0; i < head.blocks * block_tokens; i++)
    if (head.scores[i] != hidden_score) sum += std::exp(estimate(head.scale, head.scores[i]) - highest);
  return highest + std::log(sum);
}

// The highest edge that k blocks have an estimate at, as an estimate.
inline double edge(const HeadEstimates& head, int64_t k) {
  std::vector<double> highest(head.blocks, -INFINITY);
  for (int64_t i = 0; i < head.blocks * block_tokens; i++)
    if (head.scores[i] != hidden_score)
      highest[i / block_tokens] = std::max(highest[i / block_tokens], estimate(head.scale, head.scores[i]));
  const double top = *std::max_element(highest.begin(), highest.end());
  for (int i = 1;; i++) {
    const double at = top - std::ldexp(1 + i % 32 / 32.0, i / 32 - 10) * std::numbers::ln2;
    if (i == list_edges || std::count_if(highest.begin(), highest.end(), [&](double x) { return x > at; }) >= k) return at;
  }
}

// What an estimate has to reach for a share of the softmax to be possible. slack: added to that.
inline double least(const HeadEstimates& head, double share, double noise, double always, double slack = 0) {
  return log_total(head, always) + std::log(share) - std::sqrt(noise) + slack;
}

// From which score on tokens are candidates.
inline int16_t bound(const HeadEstimates& head, double share, double noise, double always, double slack = 0) {
  const double from = std::min(std::max(least(head, share, noise, always, slack), edge(head, most_blocks(head.blocks))),
                               edge(head, fewest_blocks(head.blocks)));
  int score = hidden_score + 1;
  while (score < always_score - 1 && estimate(head.scale, int16_t(score)) < from) score++;
  return int16_t(score);
}

// Of [blocks * 64] scores, which are candidates.
inline std::vector<char> candidates(const HeadEstimates& head, double share, double noise, double always, double slack = 0) {
  const int64_t tokens = head.blocks * block_tokens;
  const int16_t within = bound(head, share, noise, always, slack);
  const double beside_hidden = least(head, share, noise, always, slack) + std::log(hidden_rows_share);
  std::vector<char> is(tokens);
  for (int64_t i = 0; i < tokens; i++) {
    if (head.scores[i] == hidden_score) continue;
    is[i] = head.scores[i] >= within;
    if (head.has_hidden_rows != nullptr && head.has_hidden_rows[i / block_tokens] != 0)
      is[i] |= estimate(head.scale, head.scores[i]) >= beside_hidden;
  }
  return is;
}

}  // namespace adamas::ref
