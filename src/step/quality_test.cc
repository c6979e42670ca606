// What the published codes miss: keys that share a vector far longer than what tells them apart, turning slowly with the
// position as rotary embedding turns the bias of the Qwen family's keys in its slow pairs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "adamas/adamas.h"

namespace {

constexpr int64_t tokens = 32768;
constexpr int head_dim = 128, queries = 32;
constexpr double pi = 3.14159265358979323846;

// [tokens, head_dim]: random keys, plus a common vector `times` their norm.
std::vector<float> keys_with_common_vector(float times) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(tokens * head_dim);
  for (float& x : keys) x = normal(random);
  const int pairs = 16;  // periods from 50,000 tokens up
  const float amplitude = times * std::sqrt(float(head_dim)) / std::sqrt(float(pairs));
  for (int64_t t = 0; t < tokens; t++)
    for (int i = 0; i < pairs; i++) {
      const double angle = 2 * pi * double(t) / (50000.0 * std::pow(1.5, i)) + i;
      keys[t * head_dim + 2 * i] += amplitude * float(std::cos(angle));
      keys[t * head_dim + 2 * i + 1] += amplitude * float(std::sin(angle));
    }
  return keys;
}

// Mean share of the true top 128 that a step selects. `slow` is the size of the queries in the 16 slow pairs: at 1 the
// common vector decides alone and the true top 128 lie within one run of some thousand neighbours; at 0.02 position and
// token both have their say.
double share_found(const std::vector<float>& keys, float slow, const char* preset, const char* estimator) {
  adamas_config config;
  adamas_config_init(&config);
  for (auto [name, value] : {std::pair{"preset", preset},
                             {"estimator", estimator},
                             {"dense_layers", "0"},
                             {"sinks", "0"},
                             {"budget", "128"},
                             {"max_noise", "0"}})
    EXPECT_EQ(adamas_config_set(&config, name, value), ADAMAS_OK) << adamas_last_error();
  adamas_cache* cache;
  const adamas_cache_params cache_params{sizeof cache_params, 0, 1, head_dim, 1, tokens, 0,
                                         ADAMAS_DEVICE_CPU,   0, 0, nullptr,  0};
  EXPECT_EQ(adamas_cache_create(&config, &cache_params, &cache), ADAMAS_OK);
  adamas_plan* plan;
  const adamas_plan_params plan_params{sizeof plan_params, 1, 1, head_dim, tokens, 2, ADAMAS_DEVICE_CPU, 0};
  EXPECT_EQ(adamas_plan_create(&config, &plan_params, &plan), ADAMAS_OK);

  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  double share = 0;
  for (int i = 0; i < queries; i++) {
    std::vector<float> q(head_dim), out(head_dim);
    for (int d = 0; d < head_dim; d++) q[d] = normal(random) * (d < 32 ? slow : 1.0f);
    adamas_step_params p{};
    p.struct_size = sizeof p;
    p.threads = 2;
    p.batch = p.rows = 1;
    p.lengths = &tokens;
    p.q = q.data();
    p.k = p.v = {keys.data(), ADAMAS_F32, 0, 0, head_dim * 4, nullptr, 0};
    p.out = out.data();
    EXPECT_EQ(adamas_step(plan, cache, &p), ADAMAS_OK) << adamas_last_error();
    std::vector<int64_t> selected(128);
    int64_t count;
    EXPECT_EQ(adamas_selection(plan, 0, selected.data(), 128, &count), ADAMAS_OK);

    std::vector<double> scores(tokens);
    for (int64_t t = 0; t < tokens; t++)
      for (int d = 0; d < head_dim; d++) scores[t] += double(q[d]) * keys[t * head_dim + d];
    std::vector<int64_t> order(tokens);
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + 127, order.end(),
                     [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    const double bound = scores[order[127]];
    share += double(std::count_if(selected.begin(), selected.end(), [&](int64_t t) { return scores[t] >= bound; })) / 128;
  }
  adamas_plan_destroy(plan);
  adamas_cache_destroy(cache);
  return share / queries;
}

TEST(CommonVector, DoesNotChangeWhatIsFound) {
  const std::vector<float> plain = keys_with_common_vector(0), common = keys_with_common_vector(50);
  for (auto [estimator, floor] : {std::pair{"dot", 0.5}, {"manhattan", 0.15}}) {
    const double without = share_found(plain, 0.02f, "default", estimator);
    const double with = share_found(common, 0.02f, "default", estimator);
    const double dominated = share_found(common, 1, "default", estimator);
    std::printf("%-9s finds %.1f%% of the true top 128 without the common vector, %.1f%% with it, %.1f%% where it decides\n",
                estimator, 100 * without, 100 * with, 100 * dominated);
    EXPECT_NEAR(with, without, 0.03) << estimator;
    EXPECT_GT(dominated, without - 0.03) << estimator;
    EXPECT_GT(without, floor) << estimator;
  }
  std::printf("preset paper finds %.1f%% without it, %.1f%% with it, %.1f%% where it decides\n",
              100 * share_found(plain, 0.02f, "paper", "manhattan"), 100 * share_found(common, 0.02f, "paper", "manhattan"),
              100 * share_found(common, 1, "paper", "manhattan"));
}

// One block a thousand times as large as the rest takes no resolution from the others.
TEST(CommonVector, OneHugeBlockLeavesTheOthersTheirResolution) {
  std::vector<float> keys = keys_with_common_vector(0);
  const double without = share_found(keys, 1, "default", "dot");
  for (int64_t i = 0; i < 64 * head_dim; i++) keys[192 * 64 * head_dim + i] *= 1000;
  const double with = share_found(keys, 1, "default", "dot");
  std::printf("dot finds %.1f%% without a huge block, %.1f%% with one\n", 100 * without, 100 * with);
  EXPECT_GT(with, without - 0.03);
}

}  // namespace
