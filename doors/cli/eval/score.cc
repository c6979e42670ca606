#include "score.h"

#include <algorithm>
#include <cmath>

namespace cli {

Prediction prediction_of(std::span<const float> logits) {
  Prediction prediction;
  const auto top = std::max_element(logits.begin(), logits.end());
  prediction.top = static_cast<std::int32_t>(top - logits.begin());
  prediction.largest = *top;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - prediction.largest);
  prediction.log_sum = std::log(sum);
  return prediction;
}

double divergence(std::span<const float> full, const Prediction& of_full, std::span<const float> other,
                  const Prediction& of_other) {
  // sum p (logit_full - logit_other) + the difference of their normalisers, which p weighs with 1 in all
  double sum = 0, total = 0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    const double p = std::exp(full[i] - of_full.largest);
    sum += p * (static_cast<double>(full[i]) - other[i]);
    total += p;
  }
  return std::max(0.0, sum / total - (of_full.largest + of_full.log_sum) + (of_other.largest + of_other.log_sum));
}

}  // namespace cli
