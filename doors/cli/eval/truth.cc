#include "truth.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "../true_scores.h"

namespace cli {
namespace {

// `sink_logit`: one more logit of the softmax, which is no token; nullptr: none.
HeadTruth truth_of_head(const std::vector<float>& scores, const std::vector<std::int64_t>& selected, const float* sink_logit,
                        double enough) {
  std::vector<float> descending = scores;
  std::sort(descending.begin(), descending.end(), std::greater<>());
  const double largest = std::max(descending.front(), sink_logit != nullptr ? *sink_logit : descending.front());
  const auto weight = [&](double score) { return std::exp(score - largest); };
  double sum = sink_logit != nullptr ? weight(*sink_logit) : 0;
  for (const float score : descending) sum += weight(score);

  HeadTruth truth;
  truth.tokens = static_cast<double>(selected.size());
  const float threshold = selected.empty() ? descending.front() : descending[selected.size() - 1];
  for (const std::int64_t token : selected) {
    const float score = scores[static_cast<std::size_t>(token)];
    truth.top_found += score >= threshold ? 1 / truth.tokens : 0;
    truth.mass_true += weight(score) / sum;
  }
  double held = 0;
  for (auto score = descending.begin(); score != descending.end() && held < enough * sum; ++score, ++truth.needed)
    held += weight(*score);
  return truth;
}

}  // namespace

std::vector<HeadTruth> truth_of(const adamas_observation& observation, double enough) {
  const adamas_step_params& step = *observation.step;
  const auto said = [&](const float* values, std::size_t head) {  // of the last row
    const std::int64_t row = step.batch * step.rows - 1;
    return values != nullptr ? static_cast<double>(values[row * observation.q_heads + static_cast<std::int64_t>(head)])
                             : std::numeric_limits<double>::quiet_NaN();
  };
  std::vector<HeadTruth> truths;
  for (std::int32_t kv_head = 0; kv_head < observation.kv_heads; ++kv_head)
    for (const std::vector<float>& scores : scores_of(observation, kv_head)) {
      const std::size_t head = truths.size();
      const float* sink_logit = step.sink_logits != nullptr ? step.sink_logits + head : nullptr;
      truths.push_back(
          truth_of_head(scores, selection_of(observation, static_cast<std::int32_t>(head)), sink_logit, enough));
      truths.back().mass_estimated = said(step.mass, head);
      truths.back().noise = said(step.noise, head);
    }
  return truths;
}

}  // namespace cli
