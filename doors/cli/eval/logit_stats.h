// What logits say about the token that came, and how far they are from other logits.
#pragma once

#include <cstdint>
#include <span>

namespace cli {

struct Prediction {
  double log_sum = 0;  // of exp(logit - largest): log p(token) = logit - largest - log_sum
  float largest = 0;
  std::int32_t top = 0;  // the token of the largest logit

  double log_probability(float logit) const { return static_cast<double>(logit) - largest - log_sum; }
};

Prediction prediction_of(std::span<const float> logits);

// KL(full || other) = sum_token p_full (log p_full - log p_other), in nats, at least 0.
double divergence(std::span<const float> full, const Prediction& of_full, std::span<const float> other,
                  const Prediction& of_other);

}  // namespace cli
