// What the candidates of a query head are: list.h in plain loops, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
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

// Of [blocks * 64] scores, which reach the threshold. slack: added to what an estimate has to reach.
inline std::vector<char> reaching(const HeadEstimates& head, double share, double noise, double always, double slack = 0) {
  const int64_t tokens = head.blocks * block_tokens;
  const double least = log_total(head, always) + std::log(share) - std::sqrt(noise) + slack;
  std::vector<char> reaches(tokens);
  for (int64_t i = 0; i < tokens; i++) {
    if (head.scores[i] == hidden_score) continue;
    const bool beside_hidden_rows = head.has_hidden_rows != nullptr && head.has_hidden_rows[i / block_tokens] != 0;
    reaches[i] = estimate(head.scale, head.scores[i]) >= least + (beside_hidden_rows ? std::log(hidden_rows_share) : 0);
  }
  return reaches;
}

// Which are candidates: all that reach the threshold, or by rank when these are too few or too many.
inline std::vector<char> candidates(const HeadEstimates& head, double share, double noise, double always, int64_t visible) {
  const int64_t tokens = head.blocks * block_tokens;
  std::vector<char> is_candidate = reaching(head, share, noise, always);
  const int64_t count = std::count(is_candidate.begin(), is_candidate.end(), 1);
  if (count >= fewest_listed && count <= most_listed(visible)) return is_candidate;
  const int64_t shown =
      std::count_if(head.scores, head.scores + tokens, [](int16_t score) { return score != hidden_score; });
  // The highest scores; of equal ones the later position.
  std::vector<int64_t> order(tokens);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return head.scores[a] != head.scores[b] ? head.scores[a] > head.scores[b] : a > b;
  });
  std::fill(is_candidate.begin(), is_candidate.end(), 0);
  const int64_t wanted = std::min(shown, count > most_listed(visible) ? most_listed(visible) : fewest_listed);
  for (int64_t i = 0; i < wanted; i++) is_candidate[order[i]] = 1;
  return is_candidate;
}

}  // namespace adamas::ref
