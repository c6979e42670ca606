// A softmax over part of the tokens: enough to merge with the rest.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/shape.h"

namespace adamas {

// max: the largest score; sum: of exp(score - max); out: sum of exp(score - max) v, [head_dim].
// Empty: max = -inf, sum = 0, out = 0.
struct SoftmaxState {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
  float* out = nullptr;

  void clear(int head_dim) {
    max = -std::numeric_limits<float>::infinity();
    sum = 0;
    for (int d = 0; d < head_dim; d++) out[d] = 0;
  }

  void merge(const SoftmaxState& other, int head_dim) {
    if (other.sum == 0) return;
    const float top = std::max(max, other.max);
    const float mine = sum == 0 ? 0.0f : std::exp(max - top);
    const float theirs = std::exp(other.max - top);
    for (int d = 0; d < head_dim; d++) out[d] = out[d] * mine + other.out[d] * theirs;
    sum = sum * mine + other.sum * theirs;
    max = top;
  }

  // One more logit whose value is 0 (a learned attention sink).
  void merge_logit(float logit, int head_dim) {
    if (logit == -std::numeric_limits<float>::infinity()) return;
    const float top = std::max(max, logit);
    const float mine = sum == 0 ? 0.0f : std::exp(max - top);
    for (int d = 0; d < head_dim; d++) out[d] *= mine;
    sum = sum * mine + std::exp(logit - top);
    max = top;
  }

  // Natural log of the sum of exp(score): -inf when there was no token.
  float lse() const { return sum == 0 ? -std::numeric_limits<float>::infinity() : max + std::log(sum); }
};

}  // namespace adamas
