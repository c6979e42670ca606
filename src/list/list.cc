#include "list/list.h"

#include <algorithm>
#include <cmath>
#include <numbers>

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

// The score at the highest edge that k blocks reach.
int16_t score_at_edge(const HeadEstimates& head, double top, int64_t k) {
  int64_t reaching[list_edges] = {};
  for (int64_t b = 0; b < head.blocks; b++) {
    const int16_t score = highest_score(head.scores + b * block_tokens, block_tokens);
    const double octaves = (top - estimate_of(head.scale, score)) * std::numbers::log2e;
    reaching[score == hidden_score ? list_edges - 1 : edge_beyond(float(octaves))]++;
  }
  int edge = 0;
  for (int64_t all = reaching[0]; all < k && edge + 1 < list_edges;) all += reaching[++edge];
  return score_reaching(head.scale, top - double(edge_distance(edge)) * std::numbers::ln2);
}

}  // namespace

double noise_of(const Query& query, int head_dim, double mean_square_sigma, double scale, Estimator estimator) {
  const double squares = double(query.rms) * query.rms * head_dim;
  return (estimator == Estimator::dot ? distortion : manhattan_distortion) * squares * mean_square_sigma * scale * scale;
}

int octave_of(const WeightScale& e) { return int(std::clamp(std::log(2.0) / e.unit, 1.0, 65536.0)); }

int16_t mark_candidates(const HeadEstimates& head, const Threshold& threshold, uint64_t* marked) {
  const double least = std::log(threshold.share) + log_total(head.scale, threshold) - std::sqrt(threshold.noise);
  const int16_t bound = score_reaching(head.scale, least);
  const int16_t lower = score_reaching(head.scale, least + std::log(hidden_rows_share));
  mark_reaching(head.scores, head.blocks, bound, head.has_hidden_rows, lower, marked);
  const int64_t fewest = fewest_blocks(head.blocks), most = most_blocks(head.blocks);
  // An edge lies between the least and a 32nd of its distance above it: if so many blocks reach that, nothing moves the
  // bound.
  const double top = estimate_of(head.scale, highest_score(head.scores, head.blocks * block_tokens));
  const int16_t above = score_reaching(head.scale, least + (top - least) / 32);
  int64_t reaching = 0, surely = 0;  // reaching: no fewer than do
  for (int64_t b = 0; b < head.blocks; b++) {
    reaching += marked[b] != 0;
    if (marked[b] != 0 && surely < fewest) surely += highest_score(head.scores + b * block_tokens, block_tokens) >= above;
  }
  int16_t within = bound;
  if (surely < fewest || reaching >= most || top - least < edge_distance(0) * std::numbers::ln2)
    within = std::min(std::max(bound, score_at_edge(head, top, most)), score_at_edge(head, top, fewest));
  if (within != bound)
    mark_reaching(head.scores, head.blocks, within, head.has_hidden_rows, std::min(lower, within), marked);
  return within;
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
