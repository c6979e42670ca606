// The C++ face: layouts, sizes, settings, errors and ownership. What a step computes is tested elsewhere.
#include <gtest/gtest.h>

#include <adamas/adamas.hpp>
#include <array>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace {

constexpr int q_heads = 4, kv_heads = 2, head_dim = 64, tokens = 300;

std::vector<float> random_floats(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

// [heads, tokens, dim] as [tokens, heads, dim]
std::vector<float> tokens_first(const std::vector<float>& heads_first) {
  std::vector<float> turned(heads_first.size());
  for (int h = 0; h < kv_heads; ++h)
    for (int t = 0; t < tokens; ++t)
      for (int i = 0; i < head_dim; ++i)
        turned[static_cast<std::size_t>((t * kv_heads + h) * head_dim + i)] =
            heads_first[static_cast<std::size_t>((h * tokens + t) * head_dim + i)];
  return turned;
}

template <class Call>
adamas::Error error_of(Call&& call) {
  try {
    call();
  } catch (const adamas::Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return {adamas::Status::ok, ""};
}

class Attention : public testing::Test {
 protected:
  const adamas::Config config{.budget = 32, .min_context = 0};
  adamas::Cache cache{{.kv_heads = kv_heads, .head_dim = head_dim, .capacity = tokens}, config};
  adamas::Plan plan{{.q_heads = q_heads, .kv_heads = kv_heads, .head_dim = head_dim, .max_tokens = tokens}, config};
  const std::vector<float> k = random_floats(kv_heads * tokens * head_dim, 1);
  const std::vector<float> v = random_floats(kv_heads * tokens * head_dim, 2);
  const std::vector<float> q = random_floats(q_heads * head_dim, 3);
  std::vector<float> out = std::vector<float>(q_heads * head_dim);
  std::vector<float> expected = out;

  void SetUp() override {
    cache.append({.count = tokens}, k, v);
    plan.step(cache, {.q = q, .k = k, .v = v, .out = expected});
  }
};

TEST_F(Attention, OneLineForContiguousMemory) {
  const auto stats = plan.step(cache, {.q = q, .k = k, .v = v, .out = out});
  EXPECT_EQ(stats.tokens_selected, q_heads * 32);
  EXPECT_EQ(stats.rows_sparse, 1);
  EXPECT_EQ(plan.selection(0).size(), 32u);
  EXPECT_EQ(out, expected);
}

TEST_F(Attention, TimesOfTheStages) {
  adamas_step_times times{};
  times.struct_size = sizeof times;
  plan.step(cache, {.q = q, .k = k, .v = v, .out = out, .times = &times});
  EXPECT_GT(times.wall, times.estimate);
  EXPECT_GT(times.estimate, 0);
  EXPECT_EQ(out, expected);
}

TEST_F(Attention, TokensFirst) {
  const auto k2 = tokens_first(k), v2 = tokens_first(v);
  adamas::Cache other({.kv_heads = kv_heads, .head_dim = head_dim, .capacity = tokens}, config);
  other.append({.count = tokens}, adamas::RowsView::tokens_first(k2), adamas::RowsView::tokens_first(v2));
  EXPECT_EQ(other.block_bytes(0, 1, 2), cache.block_bytes(0, 1, 2));
  plan.step(other, {.q = q, .k = adamas::RowsView::tokens_first(k2), .v = adamas::RowsView::tokens_first(v2), .out = out});
  EXPECT_EQ(out, expected);
}

TEST_F(Attention, StridesAndSpans) {
  const adamas::RowsStrides strides{.head = tokens * head_dim, .token = head_dim};
  std::array<float, q_heads * 2 * head_dim> wide{};  // every second row of it
  plan.step(cache, {.q = {q.data(), {.head = head_dim}},
                    .k = {k.data(), strides},
                    .v = std::span<const float>(v),
                    .out = {wide.data(), {.head = 2 * head_dim}}});
  for (int h = 0; h < q_heads; ++h)
    for (int i = 0; i < head_dim; ++i)
      EXPECT_EQ(wide.at(static_cast<std::size_t>(2 * h * head_dim + i)),
                expected.at(static_cast<std::size_t>(h * head_dim + i)));
}

TEST_F(Attention, KAndVMayHoldMoreThanTheCapacity) {
  const std::vector<float> longer = random_floats(kv_heads * (tokens + 7) * head_dim, 4);
  EXPECT_NO_THROW(plan.step(cache, {.q = q, .k = longer, .v = longer, .out = out}));
}

TEST_F(Attention, SizesAreChecked) {
  const std::vector<float> short_k(k.begin(), k.end() - kv_heads * head_dim), odd(k.begin(), k.end() - 1);
  const auto error = error_of([&] { plan.step(cache, {.q = q, .k = short_k, .v = v, .out = out}); });
  EXPECT_STREQ(error.what(), "k: 38272 elements; expected sequences 1 x kv_heads 2 x tokens 300 or more x head_dim 64");
  EXPECT_THROW(plan.step(cache, {.q = q, .k = odd, .v = v, .out = out}), adamas::Error);
  EXPECT_THROW(plan.step(cache, {.q = out, .k = k, .v = v, .out = std::span(out).first(8)}), adamas::Error);
  EXPECT_THROW(plan.step(cache, {.q = k, .k = k, .v = v, .out = out}), adamas::Error);
  EXPECT_THROW(plan.step(cache, {.q = q, .k = k, .v = v, .out = out, .batch = -1}), adamas::Error);
  std::array<float, 3> lse{};
  EXPECT_THROW(plan.step(cache, {.q = q, .k = k, .v = v, .out = out, .lse = lse}), adamas::Error);
  const std::array<float, 3> slopes{};
  EXPECT_THROW(plan.step(cache, {.q = q, .k = k, .v = v, .out = out, .slopes = slopes}), adamas::Error);
  EXPECT_THROW(cache.append({.first = std::numeric_limits<std::int64_t>::max(), .count = 1}, k), adamas::Error);
}

TEST_F(Attention, MaskHidesTokens) {
  std::vector<float> mask(tokens, -std::numeric_limits<float>::infinity());
  const std::array<std::int64_t, 1> lengths{tokens};
  const auto step = [&] {
    plan.step(cache, {.q = q, .k = k, .v = v, .out = out, .lengths = lengths, .causal = false, .mask = mask});
  };
  mask[17] = 0;
  step();
  for (std::size_t i = 0; i < head_dim; ++i) EXPECT_FLOAT_EQ(out[i], v[17 * head_dim + i]);

  EXPECT_THROW(plan.step(cache, {.q = q, .k = k, .v = v, .out = out, .mask = mask}), adamas::Error);
  mask.resize(tokens - 1);
  EXPECT_THROW(step(), adamas::Error);
}

TEST_F(Attention, TruncateClearAndAppendLater) {
  cache.truncate(0, 10);
  cache.append({.first = 10, .count = tokens - 10});
  plan.step(cache, {.q = q, .k = k, .v = v, .out = out});
  EXPECT_EQ(out, expected);
  cache.clear_all();
  plan.step(cache, {.q = q, .k = k, .v = v, .out = out});
  EXPECT_EQ(out, std::vector<float>(out.size(), 0));
  EXPECT_GT(cache.bytes(), 0u);
}

// As an engine appends: the newest rows of a batch, whose lengths say where they are.
TEST_F(Attention, TheNewestRowsOfABatch) {
  cache.clear_all();
  const std::array<std::int64_t, 1> most{tokens - 3}, all{tokens};
  cache.append({.k = k, .v = v, .rows = tokens - 3, .lengths = most});
  cache.append({.k = k, .v = v, .rows = 3, .lengths = all});
  plan.step(cache, {.q = q, .k = k, .v = v, .out = out});
  EXPECT_EQ(out, expected);
  EXPECT_EQ(plan.workspace_bytes(), 0u);  // a CPU needs none
  const auto error = error_of([&] { cache.append({.k = k, .v = v, .batch = 2, .lengths = all}); });
  EXPECT_NE(std::string(error.what()).find("lengths"), std::string::npos) << error.what();
}

TEST_F(Attention, MovesAndDoesNotCopy) {
  static_assert(!std::is_copy_constructible_v<adamas::Cache> && std::is_nothrow_move_constructible_v<adamas::Cache>);
  static_assert(!std::is_copy_constructible_v<adamas::Plan> && std::is_nothrow_move_constructible_v<adamas::Plan>);
  adamas::Cache moved = std::move(cache);
  adamas::Plan moved_plan = std::move(plan);
  moved_plan.step(moved, {.q = q, .k = k, .v = v, .out = out});
  EXPECT_EQ(out, expected);
}

TEST(Config, NamesOnlyWhatDiffers) {
  adamas_config standard;
  ASSERT_EQ(adamas_config_init(&standard), ADAMAS_OK);
  const adamas::Config config{.budget = 64};
  EXPECT_EQ(config.budget, 64);
  EXPECT_EQ(config.sinks, standard.sinks);
  EXPECT_EQ(config.min_context, standard.min_context);
}

TEST(Config, PresetGivesTheRest) {
  const adamas::Config paper{.preset = adamas::Preset::paper, .sinks = 1};
  EXPECT_EQ(paper.estimator, adamas::Estimator::manhattan);
  EXPECT_EQ(paper.dense_layers, 2);
  EXPECT_EQ(paper.sinks, 1);
  EXPECT_EQ(adamas::Config{}.set("preset", "paper").get("dense_layers"), "2");
}

TEST(Config, HoldsEverySetting) {
  const std::pair<const char*, const char*> others[] = {
      {"preset", "paper"},   {"policy", "quest"},  {"estimator", "manhattan"},
      {"budget", "99"},      {"share", "0.01"},    {"sinks", "7"},
      {"recent", "9"},       {"max_noise", "3"},   {"min_mass", "0.5"},
      {"dense_layers", "5"}, {"min_context", "1"}, {"prompt", "sparse"},
      {"rows", "all"},       {"stats", "1"}};
  EXPECT_EQ(std::size(others), adamas::settings().size());
  for (const auto& [name, value] : others) {
    EXPECT_NE(adamas::Config{}.get(name), value);
    EXPECT_EQ(adamas::Config{}.set(name, value).get(name), value);
  }
}

TEST(Config, ErrorsNameTheRange) {
  const auto error = error_of([] { adamas::Config{}.set("budget", "-1"); });
  EXPECT_EQ(error.status(), adamas::Status::invalid_argument);
  EXPECT_NE(std::string(error.what()).find("1 to 2147483647"), std::string::npos) << error.what();
  EXPECT_THROW((adamas::Config{.budget = 0}.check()), adamas::Error);
}

TEST(Cache, RefusesWithTheLibrarysSentence) {
  const auto error = error_of([] { adamas::Cache({.kv_heads = 1, .head_dim = 97, .capacity = 64}); });
  EXPECT_EQ(error.status(), adamas::Status::unsupported);
  EXPECT_NE(std::string(error.what()).find("97"), std::string::npos) << error.what();
}

TEST(Views, TakeElementTypesAndNothingElse) {
  static_assert(std::is_convertible_v<std::vector<adamas::f16>&, adamas::RowsView>);
  static_assert(std::is_convertible_v<std::span<const adamas::bf16>, adamas::QueryView>);
  static_assert(!std::is_convertible_v<std::vector<double>&, adamas::RowsView>);
  static_assert(std::is_convertible_v<std::vector<float>&, adamas::OutView>);
  static_assert(!std::is_convertible_v<const std::vector<float>&, adamas::OutView>);
}

}  // namespace
