#include "list/list.h"

#include <algorithm>
#include <cmath>

#include "codes/codes.h"
#include "select/select.h"

namespace adamas {
namespace {

// log(exp(a) + exp(b))
double log_add(double a, double b) { return std::max(a, b) + std::log1p(std::exp(-std::abs(a - b))); }

double log_total(const WeightScale& e, const Threshold& threshold) {
  const double estimated = threshold.estimated > 0 ? double(e.max) + std::log(double(threshold.estimated)) : -INFINITY;
  if (threshold.always == -INFINITY) return estimated;
  return estimated > -INFINITY ? log_add(estimated, threshold.always) : threshold.always;
}

// The lowest score whose estimate reaches a logit.
int16_t score_reaching(const WeightScale& e, double logit) {
  if (e.softcap > 0)
    logit = logit > -double(e.softcap) ? e.softcap * std::atanh(std::min(logit / e.softcap, 1 - 1e-9)) : -INFINITY;
  const double units = std::ceil((logit - e.highest) / e.unit);
  return units > hidden_score + 1 ? int16_t(std::min(units, always_score - 1.0)) : int16_t(hidden_score + 1);
}

}  // namespace

double noise_of(const Query& query, int head_dim, double mean_square_sigma, double scale, Estimator estimator) {
  const double squares = double(query.rms) * query.rms * head_dim;
  return (estimator == Estimator::dot ? distortion : manhattan_distortion) * squares * mean_square_sigma * scale * scale;
}

int octave_of(const WeightScale& e) { return int(std::clamp(std::log(2.0) / e.unit, 1.0, 65536.0)); }

int16_t mark_candidates(const HeadEstimates& head, const Threshold& threshold, uint64_t* marked, RankScratch scratch) {
  const double least = std::log(threshold.share) + log_total(head.scale, threshold) - std::sqrt(threshold.noise);
  const int16_t bound = score_reaching(head.scale, least);
  const int16_t lower = score_reaching(head.scale, least + std::log(hidden_rows_share));
  const int64_t most = most_listed(threshold.visible);
  const int64_t count = mark_reaching(head.scores, head.blocks, bound, head.has_hidden_rows, lower, marked);
  if (count >= fewest_listed && count <= most) return bound;
  const int64_t kept = select(head.scores, head.blocks * block_tokens, count > most ? most : fewest_listed,
                              scratch.positions, scratch.select);
  return mark_positions(head.scores, head.blocks, scratch.positions, kept, marked);
}

int16_t mark_positions(const int16_t* scores, int64_t blocks, const int32_t* positions, int64_t count, uint64_t* marked) {
  int16_t lowest = always_score;
  std::fill_n(marked, blocks, uint64_t{0});
  for (int64_t i = 0; i < count; i++) {
    const auto position = uint32_t(positions[i]);
    marked[position / block_tokens] |= uint64_t{1} << position % block_tokens;
    if (scores[position] != hidden_score) lowest = std::min(lowest, scores[position]);
  }
  return lowest;
}

int64_t list_marked(const uint64_t* marked, const int32_t* ids, int64_t blocks, int32_t* positions, int32_t* tokens) {
  int64_t count = 0;
  for (int64_t b = 0; b < blocks; b++) {
    const int32_t first = ids[b] * block_tokens;
    for_each_bit(marked[b], [&](int t) {
      positions[count] = int32_t(b * block_tokens + t);
      tokens[count++] = first + t;
    });
  }
  return count;
}

}  // namespace adamas
