#include "self_test.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "f16.h"

namespace cli {
namespace {

using Indices = std::vector<std::int64_t>;

// ---- data ----------------------------------------------------------------------------------------------------------

struct Data {
  std::vector<float> k, v;                // [kv_heads, tokens, head_dim], each value exact in f16
  std::vector<adamas::f16> k_f16, v_f16;  // the same
  std::vector<float> q;                   // [q_heads, head_dim]
  std::vector<float> slopes;              // [q_heads] or none
};

// A power of two per head, falling, as ALiBi defines them for a power of two of heads.
std::vector<float> slopes_of(const AttentionShape& shape) {
  std::vector<float> slopes;
  if (shape.alibi > 0)
    for (std::int64_t h = 0; h < shape.q_heads; ++h)
      slopes.push_back(
          static_cast<float>(std::exp2(-shape.alibi * static_cast<double>(h + 1) / static_cast<double>(shape.q_heads))));
  return slopes;
}

Data random_data(const AttentionShape& shape, std::int64_t tokens) {
  Data data;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& values, std::int64_t size, float spread) {
    values.resize(static_cast<std::size_t>(size));
    for (float& value : values) value = cut_to_f16(spread * normal(random));
  };
  fill(data.k, shape.kv_heads * tokens * shape.head_dim, 1);
  fill(data.v, shape.kv_heads * tokens * shape.head_dim, 1);
  fill(data.q, shape.q_heads * shape.head_dim, 3);  // logits with a deviation of 3: some tokens matter, most do not
  std::ranges::transform(data.k, std::back_inserter(data.k_f16), to_f16);
  std::ranges::transform(data.v, std::back_inserter(data.v_f16), to_f16);
  data.slopes = slopes_of(shape);
  return data;
}

// ---- the reference -------------------------------------------------------------------------------------------------

struct Reference {
  std::vector<double> out;    // [head_dim]
  std::vector<double> bound;  // how far the output of a right kernel in f32 can be from it
};

// With u = 2^-24, to first order: a logit is a sum of head_dim products, so it is off by at most
// (head_dim + 2) u sum |q_i k_i| scale, and a few u of each term added later; a weight exp(logit - max) is then off by
// the error of two logits and a few u of its argument, relatively; numerator and denominator are sums of n terms. So
//   |error_j| <= sum_t p_t |v_tj| * 2 (2 max_t |logit error| + (8 + 2 range of logits + n) u).
Reference attention(const AttentionShape& shape, const Data& data, std::int64_t tokens, std::int64_t q_head,
                    const Indices& seen) {
  constexpr double u = 0x1p-24;
  const auto dims = static_cast<std::size_t>(shape.head_dim);
  const std::int64_t kv_head = q_head / (shape.q_heads / shape.kv_heads);
  const auto row = [&](const std::vector<float>& values, std::int64_t token) {
    return std::span(values).subspan(static_cast<std::size_t>(kv_head * tokens + token) * dims, dims);
  };
  const auto q = std::span(data.q).subspan(static_cast<std::size_t>(q_head) * dims, dims);
  const double scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));

  std::vector<double> weights;
  double highest = -INFINITY, lowest = INFINITY, logit_error = 0;
  for (const std::int64_t token : seen) {
    double logit = 0, absolute = 0;
    const auto k = row(data.k, token);
    for (std::size_t i = 0; i < dims; ++i) {
      logit += double{q[i]} * k[i] * scale;
      absolute += std::abs(double{q[i]} * k[i] * scale);
    }
    double error = static_cast<double>(dims + 2) * absolute;
    if (shape.softcap > 0) {
      logit = shape.softcap * std::tanh(logit / shape.softcap);
      error += 8 * shape.softcap;
    }
    if (!data.slopes.empty()) {
      const double bias = double{data.slopes[static_cast<std::size_t>(q_head)]} * static_cast<double>(token - (tokens - 1));
      logit += bias;
      error += 2 * std::abs(bias);
    }
    weights.push_back(logit);
    highest = std::max(highest, logit);
    lowest = std::min(lowest, logit);
    logit_error = std::max(logit_error, error * u);
  }
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - highest);

  Reference reference{std::vector<double>(dims), std::vector<double>(dims)};
  const double relative = 2 * (2 * logit_error + (8 + 2 * (highest - lowest) + static_cast<double>(seen.size())) * u);
  for (std::size_t t = 0; t < seen.size(); ++t) {
    const auto v = row(data.v, seen[t]);
    for (std::size_t i = 0; i < dims; ++i) {
      reference.out[i] += weights[t] / sum * v[i];
      reference.bound[i] += weights[t] / sum * std::abs(double{v[i]}) * relative;
    }
  }
  return reference;
}

// ---- the test ------------------------------------------------------------------------------------------------------

void compare(Deviation& worst, std::span<const float> out, const Reference& reference) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const Deviation here{std::isfinite(out[i]) ? std::abs(out[i] - reference.out[i]) : INFINITY, reference.bound[i]};
    if (worst.bound == 0 || here.error * worst.bound > worst.error * here.bound) worst = here;
  }
}

std::string why_invalid(const Indices& selected, std::int64_t tokens, const adamas::Config& config) {
  if (static_cast<std::int64_t>(selected.size()) != config.budget)
    return fmt::format("{} tokens were selected, not {}", selected.size(), config.budget);
  if (std::ranges::adjacent_find(selected, std::greater_equal{}) != selected.end())
    return "the selected tokens do not ascend";
  if (selected.front() < 0 || selected.back() >= tokens) return "a selected token is outside the context";
  for (std::int64_t i = 0; i < config.sinks; ++i)
    if (!std::ranges::binary_search(selected, i)) return fmt::format("the sink {} was not selected", i);
  for (std::int64_t i = tokens - config.recent; i < tokens; ++i)
    if (!std::ranges::binary_search(selected, i)) return fmt::format("the recent token {} was not selected", i);
  return "";
}

// One step over all tokens.
struct Stepped {
  std::vector<float> out;           // [q_heads, head_dim]
  std::vector<Indices> selections;  // [q_heads]
};

Stepped step(const AttentionShape& shape, const Data& data, std::int64_t tokens, const adamas::Config& config) {
  const auto heads = static_cast<std::int32_t>(shape.q_heads);
  const auto kv_heads = static_cast<std::int32_t>(shape.kv_heads);
  const auto head_dim = static_cast<std::int32_t>(shape.head_dim);
  const auto threads = static_cast<std::int32_t>(std::clamp(std::thread::hardware_concurrency(), 1u, 64u));
  adamas::Cache cache({.kv_heads = kv_heads, .head_dim = head_dim, .capacity = tokens}, config);
  adamas::Plan plan(
      {.q_heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .max_tokens = tokens, .max_threads = threads}, config);

  Stepped stepped{std::vector<float>(data.q.size()), {}};
  cache.append({.count = tokens}, data.k_f16, data.v_f16);
  plan.step(cache, {.q = data.q,
                    .k = data.k_f16,
                    .v = data.v_f16,
                    .out = stepped.out,
                    .softcap = static_cast<float>(shape.softcap),
                    .slopes = data.slopes,
                    .threads = threads});
  for (std::int32_t head = 0; head < heads; ++head) stepped.selections.push_back(plan.selection(head));
  return stepped;
}

std::span<const float> of_head(const AttentionShape& shape, const std::vector<float>& out, std::size_t head) {
  const auto dims = static_cast<std::size_t>(shape.head_dim);
  return std::span(out).subspan(head * dims, dims);
}

// The worst deviation of any head, each compared over the tokens that it attended to.
Deviation deviation(const AttentionShape& shape, const Data& data, std::int64_t tokens, const Stepped& stepped) {
  Deviation worst;
  for (std::size_t head = 0; head < stepped.selections.size(); ++head)
    compare(worst, of_head(shape, stepped.out, head),
            attention(shape, data, tokens, static_cast<std::int64_t>(head), stepped.selections[head]));
  return worst;
}

// Root of the summed squares of what separates two outputs.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double squares = 0;
  for (std::size_t i = 0; i < a.size(); ++i) squares += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(squares);
}

}  // namespace

SelfTest self_test(const AttentionShape& shape, adamas::Config config) {
  // Long enough for a selection to mean something; shorter for very many KV heads, to stay within a second and 100 MiB.
  const std::int64_t tokens = std::clamp<std::int64_t>((1 << 23) / (shape.kv_heads * shape.head_dim), 64, 4096);
  config.policy = adamas::Policy::adamas;
  config.min_context = 0;
  config.dense_layers = 0;
  const adamas::Config automatic = config;
  const bool with_rest = config.budget == ADAMAS_BUDGET_AUTO;
  config.budget = std::min(adamas_budget_tokens(config.budget), tokens / 2);
  config.sinks = std::min(config.sinks, config.budget / 2);
  config.recent = std::min(config.recent, config.budget / 2);

  SelfTest test{
      .shape = shape, .tokens = tokens, .budget = config.budget, .dense = {}, .sparse = {}, .rest = 1, .failure = {}};
  const Data data = random_data(shape, tokens);
  adamas::Config everything = config;
  everything.budget = tokens;
  const Stepped dense = step(shape, data, tokens, everything);
  test.dense = deviation(shape, data, tokens, dense);

  adamas::Config alone = config;
  alone.max_noise = alone.min_mass = 0;
  const Stepped sparse = step(shape, data, tokens, alone);
  for (const Indices& selected : sparse.selections)
    if (test.failure.empty()) test.failure = why_invalid(selected, tokens, config);
  if (test.failure.empty()) test.sparse = deviation(shape, data, tokens, sparse);

  if (with_rest) test.rest = distance(step(shape, data, tokens, automatic).out, dense.out) / distance(sparse.out, dense.out);

  if (test.failure.empty() && !test.dense.within()) test.failure = "dense attention is off by more than its bound";
  if (test.failure.empty() && !test.sparse.within()) test.failure = "sparse attention is off by more than its bound";
  if (test.failure.empty() && with_rest && !(test.rest < 1))
    test.failure = "a list and a rest are no closer to full attention";
  return test;
}

}  // namespace cli
