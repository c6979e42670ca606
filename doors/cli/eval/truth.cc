#include "truth.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include <adamas/adamas.hpp>

namespace cli {
namespace {

float from_half(std::uint16_t bits) {
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction != 0 ? std::numeric_limits<float>::quiet_NaN() : sign * std::numeric_limits<float>::infinity();
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25));
}

float load(const std::byte* row, std::int32_t dtype, std::int64_t index) {
  std::uint32_t bits = 0;
  if (dtype == ADAMAS_F32) {
    std::memcpy(&bits, row + 4 * index, 4);
    return std::bit_cast<float>(bits);
  }
  std::uint16_t half;
  std::memcpy(&half, row + 2 * index, 2);
  return dtype == ADAMAS_F16 ? from_half(half) : std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
}

const std::byte* at(const void* base, std::int64_t offset) { return static_cast<const std::byte*>(base) + offset; }

// [tokens] the scores of one query head as adamas.h defines them; -inf: hidden.
std::vector<double> scores_of(const adamas_observation& observation, int head) {
  const adamas_step_params& step = *observation.step;
  const std::int64_t batch = step.batch - 1, row = step.rows - 1;
  const std::int64_t sequence = step.sequences != nullptr ? step.sequences[batch] : batch;
  const int kv_head = head / (observation.q_heads / observation.kv_heads);
  const std::byte* q = at(step.q, batch * step.q_stride_batch + row * step.q_stride_row + head * step.q_stride_head);
  const std::byte* k = at(step.k.data, sequence * step.k.stride_sequence + kv_head * step.k.stride_head);
  const std::byte* mask =
      step.mask != nullptr ? at(step.mask, batch * step.mask_stride_batch + row * step.mask_stride_row) : nullptr;
  const double scale = step.scale != 0 ? step.scale : 1 / std::sqrt(observation.head_dim);

  std::vector<double> scores(static_cast<std::size_t>(step.lengths[batch]));
  for (std::size_t t = 0; t < scores.size(); ++t) {
    const double bias = mask != nullptr ? load(mask, step.mask_dtype, static_cast<std::int64_t>(t)) : 0;
    if (std::isinf(bias)) {
      scores[t] = -std::numeric_limits<double>::infinity();
      continue;
    }
    const std::byte* key = k + static_cast<std::int64_t>(t) * step.k.stride_token;
    double dot = 0;
    for (std::int64_t d = 0; d < observation.head_dim; ++d)
      dot += static_cast<double>(load(q, step.q_dtype, d)) * load(key, step.k.dtype, d);
    dot *= scale;
    if (step.softcap > 0) dot = step.softcap * std::tanh(dot / step.softcap);
    scores[t] = dot + (step.slopes != nullptr ? step.slopes[head] : 1.0f) * bias;
  }
  return scores;
}

std::vector<std::int64_t> selection_of(const adamas_observation& observation, int head) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(observation.step->lengths[observation.step->batch - 1]));
  std::int64_t count = 0;
  adamas::detail::check(adamas_selection(observation.plan, head, tokens.data(), std::ssize(tokens), &count));
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

}  // namespace

std::vector<HeadTruth> truth_of(const adamas_observation& observation, double enough) {
  const adamas_step_params& step = *observation.step;
  std::vector<HeadTruth> truths;
  for (int head = 0; head < observation.q_heads; ++head) {
    const std::vector<double> scores = scores_of(observation, head);
    const std::vector<std::int64_t> selected = selection_of(observation, head);

    std::vector<double> descending = scores;
    std::sort(descending.begin(), descending.end(), std::greater<>());
    const double largest = descending.front();
    const auto weight = [&](double score) { return std::exp(score - largest); };
    const double sum = std::accumulate(descending.begin(), descending.end(), 0.0,
                                       [&](double so_far, double score) { return so_far + weight(score); });

    HeadTruth truth{.tokens = static_cast<double>(selected.size())};
    const double threshold = selected.empty() ? largest : descending[selected.size() - 1];
    for (const std::int64_t token : selected) {
      const double score = scores[static_cast<std::size_t>(token)];
      truth.top_found += score >= threshold ? 1 / truth.tokens : 0;
      truth.mass_true += weight(score) / sum;
    }
    for (double held = 0; held < enough * sum && truth.needed < static_cast<double>(scores.size()); ++truth.needed)
      held += weight(descending[static_cast<std::size_t>(truth.needed)]);

    const std::int64_t index = step.batch * step.rows * observation.q_heads - observation.q_heads + head;
    const auto said = [&](const float* values) {
      return values != nullptr ? static_cast<double>(values[index]) : std::numeric_limits<double>::quiet_NaN();
    };
    truth.mass_estimated = said(step.mass);
    truth.noise = said(step.noise);
    truths.push_back(truth);
  }
  return truths;
}

}  // namespace cli
