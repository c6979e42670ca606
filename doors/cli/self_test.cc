#include "self_test.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "f16.h"

namespace cli {
namespace {

// ---- data ----------------------------------------------------------------------------------------------------------

struct Data {
  std::vector<adamas::f16> k, v;  // [kv_heads, tokens, head_dim]
  std::vector<float> q;           // [q_heads, head_dim]
  std::vector<float> slopes;      // [q_heads] or none
  double score = 0, value = 0;    // no score and no value of V is larger
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

double longest_row(std::span<const float> values, std::int64_t head_dim) {
  double longest = 0;
  for (auto dims = static_cast<std::size_t>(head_dim); !values.empty(); values = values.subspan(dims)) {
    double squares = 0;
    for (const float value : values.first(dims)) squares += double{value} * value;
    longest = std::max(longest, std::sqrt(squares));
  }
  return longest;
}

Data random_data(const AttentionShape& shape, std::int64_t tokens) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto values = [&](std::int64_t rows, float spread) {
    std::vector<float> all(static_cast<std::size_t>(rows * shape.head_dim));
    for (float& value : all) value = cut_to_f16(spread * normal(random));
    return all;
  };
  const std::vector<float> k = values(shape.kv_heads * tokens, 1), v = values(shape.kv_heads * tokens, 1);
  Data data;
  data.q = values(shape.q_heads, 3);  // scores with a deviation of 3: some tokens matter, most do not
  std::ranges::transform(k, std::back_inserter(data.k), to_f16);
  std::ranges::transform(v, std::back_inserter(data.v), to_f16);
  data.slopes = slopes_of(shape);
  data.score =
      longest_row(data.q, shape.head_dim) * longest_row(k, shape.head_dim) / std::sqrt(static_cast<double>(shape.head_dim));
  if (!data.slopes.empty()) data.score += double{data.slopes.front()} * static_cast<double>(tokens);
  for (const float value : v) data.value = std::max(data.value, std::abs(double{value}));
  return data;
}

// ---- one step over all tokens --------------------------------------------------------------------------------------

struct Stepped {
  std::vector<float> out;                             // [q_heads, head_dim]
  std::vector<float> lse, mass, noise;                // [q_heads]
  std::vector<std::vector<std::int64_t>> selections;  // [q_heads]
  std::int64_t rows_sparse = 0, heads_guarded = 0;
  std::vector<std::byte> codes;  // of all blocks
};

std::vector<std::byte> codes_of(const adamas::Cache& cache, const AttentionShape& shape, std::int64_t tokens) {
  std::vector<std::byte> codes;
  for (std::int32_t head = 0; head < shape.kv_heads; ++head)
    for (std::int64_t block = 0; block * ADAMAS_BLOCK_TOKENS < tokens; ++block) {
      const std::vector<std::byte> bytes = cache.block_bytes(0, head, block);
      codes.insert(codes.end(), bytes.begin(), bytes.end());
    }
  return codes;
}

Stepped step(const AttentionShape& shape, const Data& data, std::int64_t tokens, const adamas::Config& config,
             adamas_device device) {
  const auto heads = static_cast<std::int32_t>(shape.q_heads);
  const auto kv_heads = static_cast<std::int32_t>(shape.kv_heads);
  const auto head_dim = static_cast<std::int32_t>(shape.head_dim);
  const auto threads = static_cast<std::int32_t>(std::clamp(std::thread::hardware_concurrency(), 1u, 64u));
  adamas::Cache cache({.kv_heads = kv_heads, .head_dim = head_dim, .capacity = tokens, .device = device}, config);
  adamas::Plan plan({.q_heads = heads,
                     .kv_heads = kv_heads,
                     .head_dim = head_dim,
                     .max_tokens = tokens,
                     .max_threads = threads,
                     .device = device},
                    config);

  const auto of_heads = [&] { return std::vector<float>(static_cast<std::size_t>(heads)); };
  Stepped stepped{std::vector<float>(data.q.size()), of_heads(), of_heads(), of_heads(), {}, 0, 0, {}};
  cache.append({.count = tokens}, data.k, data.v);
  const adamas_step_stats stats = plan.step(cache, {.q = data.q,
                                                    .k = data.k,
                                                    .v = data.v,
                                                    .out = stepped.out,
                                                    .lse = stepped.lse,
                                                    .mass = stepped.mass,
                                                    .noise = stepped.noise,
                                                    .softcap = static_cast<float>(shape.softcap),
                                                    .slopes = data.slopes,
                                                    .threads = threads});
  stepped.rows_sparse = stats.rows_sparse;
  stepped.heads_guarded = stats.heads_guarded;
  for (std::int32_t head = 0; head < heads; ++head) stepped.selections.push_back(plan.selection(head));
  stepped.codes = codes_of(cache, shape, tokens);
  return stepped;
}

// ---- the comparison ------------------------------------------------------------------------------------------------

struct Bounds {
  double out, lse, mass;
};

// Where the same tokens are attended to: docs/numerics.md, attend. Masses are made of estimates in any case.
Bounds bounds_of_rounding(const AttentionShape& shape, const Data& data, std::int64_t tokens) {
  const double relative =
      (2 * static_cast<double>(shape.head_dim + 8) * data.score + static_cast<double>(tokens) + 16) * 0x1p-24;
  return {relative * data.value, relative + 1e-6 * data.score, 0.02};
}

// Weights of estimates are within 4%, and with them the sum that a list's threshold follows from: a list may differ at its
// end. As tests/bits/bits.cc has them, for values of about 1.
constexpr Bounds bounds_of_estimates{0.1, 0.06, 0.02};

void compare(Deviation& worst, std::span<const float> values, std::span<const float> expected, double bound) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Deviation here{std::isfinite(values[i]) ? std::abs(double{values[i]} - expected[i]) : INFINITY, bound};
    if (worst.bound == 0 || here.error * worst.bound > worst.error * here.bound) worst = here;
  }
}

// What is not as it should be; empty: nothing.
std::string difference(const Stepped& cpu, const Stepped& reference, const Bounds& bounds, bool same_tokens,
                       Deviation& worst) {
  compare(worst, cpu.out, reference.out, bounds.out);
  compare(worst, cpu.lse, reference.lse, bounds.lse);
  Deviation mass;
  compare(mass, cpu.mass, reference.mass, bounds.mass);
  if (cpu.codes != reference.codes) return "codes of K or means of V are others";
  if (cpu.noise != reference.noise) return "the noise of the estimates is another";
  if (cpu.rows_sparse != reference.rows_sparse || cpu.heads_guarded != reference.heads_guarded)
    return "other heads are read in full";
  if (same_tokens && cpu.selections != reference.selections) return "other tokens are selected";
  if (!worst.within()) return "the output is off by more than its bound";
  if (!mass.within()) return "the mass is off by more than its bound";
  return "";
}

}  // namespace

SelfTest self_test(const AttentionShape& shape, adamas::Config config) {
  // Long enough for a selection to mean something; shorter for very many KV heads, to stay within a second and 100 MiB.
  const std::int64_t tokens = std::clamp<std::int64_t>((1 << 23) / (shape.kv_heads * shape.head_dim), 64, 4096);
  config.policy = adamas::Policy::adamas;
  config.min_context = 0;
  config.dense_layers = 0;
  config.min_mass = 0;  // which one device may just reach, and another just miss
  const adamas::Config automatic = config;
  const bool with_rest = config.budget == ADAMAS_BUDGET_AUTO;
  config.budget = std::min(adamas_budget_tokens(config.budget), tokens / 2);
  config.sinks = std::min(config.sinks, config.budget / 2);
  config.recent = std::min(config.recent, config.budget / 2);
  adamas::Config alone = config, everything = config;
  alone.max_noise = 0;  // every head selects
  everything.budget = tokens;

  SelfTest test{
      .shape = shape, .tokens = tokens, .budget = config.budget, .dense = {}, .sparse = {}, .list = {}, .failure = {}};
  const Data data = random_data(shape, tokens);
  const std::string in_use = adamas::isa_in_use();
  const auto compare_devices = [&](const char* what, const adamas::Config& with, const Bounds& bounds, bool same_tokens,
                                   Deviation& worst) {
    const Stepped reference = step(shape, data, tokens, with, ADAMAS_DEVICE_REFERENCE);
    for (const std::string& isa : adamas::instruction_sets()) {
      adamas::force_isa(isa);
      const std::string why =
          difference(step(shape, data, tokens, with, ADAMAS_DEVICE_CPU), reference, bounds, same_tokens, worst);
      if (test.failure.empty() && !why.empty()) test.failure = fmt::format("{} with {}: {}", what, isa, why);
    }
    adamas::force_isa(in_use);
  };
  const Bounds rounding = bounds_of_rounding(shape, data, tokens);
  compare_devices("all tokens", everything, rounding, true, test.dense);
  compare_devices("a fixed budget", alone, rounding, true, test.sparse);
  if (with_rest) compare_devices("a list and a rest", automatic, bounds_of_estimates, false, test.list);
  return test;
}

}  // namespace cli
