// Single stages: beside their references, beside a step, and of a context in parts.
#include "step/stages.h"

#include <barrier>
#include <functional>
#include <thread>

#include "attend/attend_ref.h"
#include "core/testing.h"
#include "estimate/estimate_ref.h"
#include "list/rescale.h"
#include "select/select_ref.h"
#include "step/row.h"

namespace adamas {
namespace {

constexpr int q_heads = 4, kv_heads = 2, head_dim = 64;
using Settings = std::vector<std::pair<const char*, const char*>>;

adamas_config config_of(const Settings& settings) {
  adamas_config config;
  EXPECT_EQ(adamas_config_init(&config), ADAMAS_OK);
  for (auto [name, value] : Settings{{"min_context", "0"}, {"max_noise", "0"}})
    EXPECT_EQ(adamas_config_set(&config, name, value), ADAMAS_OK);
  for (auto [name, value] : settings) EXPECT_EQ(adamas_config_set(&config, name, value), ADAMAS_OK) << adamas_last_error();
  return config;
}

// K, V [kv_heads, tokens, head_dim] and a query.
struct Context {
  Context(int64_t tokens, const std::function<float(std::mt19937&, int64_t, int)>& key) : tokens(tokens) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    k.resize(kv_heads * tokens * head_dim);
    v.resize(k.size());
    for (int g = 0; g < kv_heads; g++)
      for (int64_t t = 0; t < tokens; t++)
        for (int d = 0; d < head_dim; d++) {
          k[(g * tokens + t) * head_dim + d] = key(random, t, d);
          v[(g * tokens + t) * head_dim + d] = normal(random);
        }
    q = testing::normal_vector(random, q_heads * head_dim, 2);
  }
  // From a token on.
  adamas_rows rows(const std::vector<float>& of, int64_t first) const {
    return {of.data() + first * head_dim, ADAMAS_F32, 0, tokens * head_dim * 4, head_dim * 4, nullptr, 0};
  }
  // Attention of the query to all of it.
  adamas_attend_params attention(std::vector<float>& out, std::vector<float>& lse) const {
    adamas_attend_params p{};
    p.struct_size = sizeof p;
    p.q_heads = q_heads;
    p.kv_heads = kv_heads;
    p.head_dim = head_dim;
    p.q_dtype = ADAMAS_F32;
    p.threads = 2;
    p.q = q.data();
    p.q_stride_head = head_dim * 4;
    p.tokens = tokens;
    p.k = rows(k, 0);
    p.v = rows(v, 0);
    p.out = out.data();
    p.lse = lse.data();
    return p;
  }
  int64_t tokens;
  std::vector<float> k, v, q;
};

float normal_key(std::mt19937& random, int64_t t, int d) {
  return std::normal_distribution<float>()(random) * (1 + float(t / 64 % 3)) + (d < 8 ? float(t / 64 % 5) : 0.0f);
}
float one_of_few(std::mt19937&, int64_t t, int d) { return float((t * 7 % 11 * 13 + d * 5) % 17) - 8; }  // many equal scores
float flat(std::mt19937&, int64_t t, int d) { return float(t / 64 * 3 + d % 5); }                        // no block deviates
float far_blocks(std::mt19937& random, int64_t t, int d) {  // some centres are cut
  return 0.01f * std::normal_distribution<float>()(random) + (t / 64 % 4 == 1 && d == 3 ? 400.0f : 0.0f);
}

// Tokens [origin, origin + tokens) of a context, with their codes.
struct Part {
  Part(const Context& context, const adamas_config& config, int64_t origin, int64_t tokens)
      : origin(origin), tokens(tokens) {
    adamas_cache_params params{};
    params.struct_size = sizeof params;
    params.kv_heads = kv_heads;
    params.head_dim = head_dim;
    params.sequences = 1;
    params.capacity = std::max<int64_t>(1, tokens);
    params.origin = origin;
    EXPECT_EQ(adamas_cache_create(&config, &params, &cache), ADAMAS_OK) << adamas_last_error();
    const adamas_rows k = context.rows(context.k, origin), v = context.rows(context.v, origin);
    EXPECT_EQ(adamas_append(cache, 0, 0, tokens, &k, &v), ADAMAS_OK) << adamas_last_error();
  }
  ~Part() { adamas_cache_destroy(cache); }
  Part(const Part&) = delete;

  adamas_cache* cache = nullptr;
  int64_t origin, tokens;
  adamas_status status = ADAMAS_OK;
  std::string sentence;
  std::vector<int16_t> scores;  // [q_heads, tokens to whole blocks]
  std::vector<double> unit = std::vector<double>(q_heads), highest = unit;
  std::vector<float> noise = std::vector<float>(q_heads);
  std::vector<std::vector<int64_t>> selected;  // [q_heads]
};

adamas_status score_and_select(const Context& context, Part& part, int64_t budget, adamas_merge_fn merge, void* user) {
  const int64_t places = padded(part.tokens), room = std::min(budget, places);
  part.scores.assign(q_heads * places, 0);
  adamas_score_params s{};
  s.struct_size = sizeof s;
  s.q_heads = q_heads;
  s.q = context.q.data();
  s.q_stride_head = head_dim * 4;
  s.threads = 1;
  s.scores = part.scores.data();
  s.unit = part.unit.data();
  s.highest = part.highest.data();
  s.noise = part.noise.data();
  s.merge = merge;
  s.user = user;
  if (const adamas_status status = adamas_scores(part.cache, &s); status != ADAMAS_OK) return status;
  std::vector<int64_t> indices(q_heads * room), counts(q_heads);
  const adamas_select_params p{sizeof p,      q_heads, places, part.scores.data(), budget, indices.data(),
                               counts.data(), merge,   user};
  if (const adamas_status status = adamas_select(&p); status != ADAMAS_OK) return status;
  for (int h = 0; h < q_heads; h++)
    part.selected.emplace_back(indices.begin() + h * room, indices.begin() + h * room + counts[h]);
  return ADAMAS_OK;
}

// Parts meet in turn: each lays down what it has, and takes what all have.
class Meeting {
 public:
  explicit Meeting(int parts) : values_(parts), all_here_(parts), all_read_(parts) {}
  struct Place {
    Meeting* meeting;
    int part;
  };
  static int32_t merge(void* user, int32_t op, double* values, int64_t count) {
    const auto [meeting, part] = *static_cast<Place*>(user);
    return meeting->meet(part, op, values, count);
  }
  // A part that failed: the others do not wait for it.
  void leave() {
    all_here_.arrive_and_drop();
    all_read_.arrive_and_drop();
  }
  int calls = 0;       // of the first part
  int64_t values = 0;  // of the same

 private:
  int32_t meet(int part, int32_t op, double* values, int64_t count) {
    values_[part].assign(values, values + count);
    all_here_.arrive_and_wait();
    int32_t failed = 0;
    for (const auto& one : values_) failed |= int64_t(one.size()) != count;
    for (int64_t i = 0; i < count && failed == 0; i++) {
      double of_all = op == ADAMAS_MERGE_MAX ? -INFINITY : 0;
      for (int other = op == ADAMAS_MERGE_BEHIND ? part + 1 : 0; other < int(values_.size()); other++)
        of_all = op == ADAMAS_MERGE_MAX ? std::max(of_all, values_[other][i]) : of_all + values_[other][i];
      values[i] = of_all;
    }
    if (part == 0) {
      calls++;
      this->values += count;
    }
    all_read_.arrive_and_wait();
    return failed;
  }
  std::vector<std::vector<double>> values_;
  std::barrier<> all_here_, all_read_;
};

using Cuts = std::vector<int64_t>;  // where parts begin, and where the last one ends

std::vector<std::unique_ptr<Part>> in_parts(const Context& context, const adamas_config& config, const Cuts& cuts,
                                            int64_t budget, Meeting& meeting) {
  std::vector<std::unique_ptr<Part>> parts;
  for (size_t i = 0; i + 1 < cuts.size(); i++)
    parts.push_back(std::make_unique<Part>(context, config, padded(cuts[i]), cuts[i + 1] - cuts[i]));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < parts.size(); i++)
    threads.emplace_back([&, i] {
      Meeting::Place place{&meeting, int(i)};
      parts[i]->status = score_and_select(context, *parts[i], budget, Meeting::merge, &place);
      if (parts[i]->status != ADAMAS_OK) meeting.leave();
      parts[i]->sentence = adamas_last_error();
    });
  for (std::thread& thread : threads) thread.join();
  return parts;
}

std::vector<std::byte> block_bytes(const Part& part, int g, int64_t block) {
  size_t size = 0;
  EXPECT_EQ(adamas_block_bytes(part.cache, 0, g, block, nullptr, 0, &size), ADAMAS_OK);
  std::vector<std::byte> bytes(size);
  EXPECT_EQ(adamas_block_bytes(part.cache, 0, g, block, bytes.data(), size, nullptr), ADAMAS_OK) << adamas_last_error();
  return bytes;
}

class StagesTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(StagesTest);

TEST_P(StagesTest, ScoresAreTheReferences) {
  for (const auto key : {normal_key, one_of_few, flat})
    for (const char* estimator : {"dot", "manhattan"}) {
      const Context context(700, key);
      const adamas_config config = config_of({{"budget", "128"}, {"estimator", estimator}, {"recent", "3"}});
      Part part(context, config, 0, context.tokens);
      ASSERT_EQ(score_and_select(context, part, 128, nullptr, nullptr), ADAMAS_OK) << adamas_last_error();

      Cache cache(config, {sizeof(adamas_cache_params), 0, kv_heads, head_dim, 1, context.tokens, 0, 0, 0, 0, nullptr, 0});
      cache.blocks.append(0, 0, context.tokens);
      std::vector<float> scratch(block_tokens * head_dim);
      encode_marked(cache, context.rows(context.k, 0), nullptr, 0, 0, blocks_of(context.tokens), scratch.data());
      for (int h = 0; h < q_heads; h++) {
        std::vector<float> y(context.q.begin() + h * head_dim, context.q.begin() + (h + 1) * head_dim);
        rotate(y.data(), head_dim);
        const ref::Scores expected = ref::estimate(
            y.data(), head_dim, config.estimator == ADAMAS_ESTIMATOR_DOT ? Estimator::dot : Estimator::manhattan, 0,
            cache.codes(0, h / 2), blocks_of(context.tokens));
        ASSERT_FALSE(expected.offset_clipped);
        EXPECT_DOUBLE_EQ(part.unit[h], expected.unit / std::sqrt(float(head_dim)));
        EXPECT_DOUBLE_EQ(part.highest[h], expected.highest_centre / std::sqrt(float(head_dim)));
        for (int64_t t = 0; t < padded(context.tokens); t++) {
          const bool always = t < 4 || t >= context.tokens - context.tokens % 16 || t >= context.tokens - 3;
          const int16_t wanted = t >= context.tokens ? hidden_score : always ? always_score : expected.score[t];
          ASSERT_EQ(part.scores[h * padded(context.tokens) + t], wanted) << "head " << h << ", token " << t;
        }
      }
    }
}

TEST_P(StagesTest, OneAfterTheOtherAreAStep) {
  for (const auto key : {normal_key, one_of_few, flat, far_blocks}) {
    const Context context(1234, key);
    const adamas_config config = config_of({{"budget", "100"}, {"recent", "5"}});
    Part part(context, config, 0, context.tokens);
    ASSERT_EQ(score_and_select(context, part, 100, nullptr, nullptr), ADAMAS_OK) << adamas_last_error();

    const adamas_plan_params shape{sizeof shape, q_heads, kv_heads, head_dim, context.tokens, 1, ADAMAS_DEVICE_CPU, 0};
    adamas_plan* plan = nullptr;
    ASSERT_EQ(adamas_plan_create(&config, &shape, &plan), ADAMAS_OK);
    std::vector<float> out(q_heads * head_dim), lse(q_heads), noise(q_heads);
    adamas_step_params p{};
    p.struct_size = sizeof p;
    p.threads = p.causal = 1;
    p.batch = p.rows = 1;
    p.q = context.q.data();
    p.q_stride_head = p.out_stride_head = head_dim * 4;
    p.k = context.rows(context.k, 0);
    p.v = context.rows(context.v, 0);
    p.out = out.data();
    p.lse = lse.data();
    p.noise = noise.data();
    ASSERT_EQ(adamas_step(plan, part.cache, &p), ADAMAS_OK) << adamas_last_error();

    std::vector<int64_t> indices(q_heads * 100), counts(q_heads);
    for (int h = 0; h < q_heads; h++) {
      std::vector<int64_t> tokens(100);
      int64_t count = 0;
      ASSERT_EQ(adamas_selection(plan, h, tokens.data(), 100, &count), ADAMAS_OK);
      tokens.resize(count);
      EXPECT_EQ(part.selected[h], tokens);
      EXPECT_FLOAT_EQ(part.noise[h], noise[h]);
      std::copy(tokens.begin(), tokens.end(), indices.begin() + h * 100);
      counts[h] = count;
    }
    std::vector<float> attended(out.size()), attended_lse(q_heads);
    adamas_attend_params a = context.attention(attended, attended_lse);
    a.indices = indices.data();
    a.index_stride = 100;
    a.counts = counts.data();
    ASSERT_EQ(adamas_attend(&a), ADAMAS_OK) << adamas_last_error();
    for (size_t i = 0; i < out.size(); i++) EXPECT_NEAR(attended[i], out[i], 1e-4);
    for (int h = 0; h < q_heads; h++) EXPECT_NEAR(attended_lse[h], lse[h], 1e-5 * (1 + std::abs(lse[h])));
    adamas_plan_destroy(plan);
  }
}

// Codes, scores and selections of a context in parts are those of the whole, whatever they look like.
TEST_P(StagesTest, PartsAreTheWhole) {
  const Cuts cuts[] = {{0, 1234},
                       {0, 640, 1234},
                       {0, 64, 1024, 1234},
                       {0, 0, 64, 64, 320, 896, 1216, 1234, 1234},  // empty ones: before, between, and behind
                       {0, 128, 256, 384, 512, 640, 768, 1024, 1234}};
  const std::pair<const char*, Settings> variants[] = {{"default", {}},
                                                       {"manhattan", {{"estimator", "manhattan"}}},
                                                       {"sinks and recent", {{"sinks", "70"}, {"recent", "30"}}},
                                                       {"paper", {{"preset", "paper"}, {"dense_layers", "0"}}}};
  for (const auto key : {normal_key, one_of_few, flat, far_blocks})
    for (const auto& [name, settings] : variants)
      for (const int64_t budget : {120, 700}) {
        SCOPED_TRACE(::testing::Message() << name << ", budget " << budget);
        const Context context(1234, key);
        Settings all = settings;
        const std::string budget_text = std::to_string(budget);
        all.emplace_back("budget", budget_text.c_str());
        all.emplace_back("min_context", "0");
        const adamas_config config = config_of(all);
        Part whole(context, config, 0, context.tokens);
        ASSERT_EQ(score_and_select(context, whole, budget, nullptr, nullptr), ADAMAS_OK) << adamas_last_error();
        const int64_t places = padded(context.tokens);
        for (const Cuts& cut : cuts) {
          SCOPED_TRACE(cut.size() - 1);
          Meeting meeting(int(cut.size()) - 1);
          const auto parts = in_parts(context, config, cut, budget, meeting);
          std::vector<std::vector<int64_t>> selected(q_heads);
          for (const auto& part : parts) {
            ASSERT_EQ(part->status, ADAMAS_OK) << part->sentence;
            EXPECT_EQ(part->unit, whole.unit);
            EXPECT_EQ(part->highest, whole.highest);
            for (int64_t b = 0; b < blocks_of(part->tokens); b++)
              for (int g = 0; g < kv_heads; g++)
                ASSERT_EQ(block_bytes(*part, g, b), block_bytes(whole, g, part->origin / block_tokens + b));
            for (int h = 0; h < q_heads; h++) {
              EXPECT_NEAR(part->noise[h], whole.noise[h], 1e-6 * whole.noise[h]);
              for (int64_t t = 0; t < part->tokens; t++)
                ASSERT_EQ(part->scores[h * padded(part->tokens) + t], whole.scores[h * places + part->origin + t])
                    << "head " << h << ", token " << part->origin + t;
              for (const int64_t t : part->selected[h]) selected[h].push_back(part->origin + t);
            }
          }
          for (int h = 0; h < q_heads; h++) {
            const auto expected = ref::select(whole.scores.data() + h * places, places, budget);
            EXPECT_EQ(selected[h], std::vector<int64_t>(expected.begin(), expected.end()));
            EXPECT_EQ(selected[h], whole.selected[h]);
          }
          EXPECT_EQ(meeting.calls, key == far_blocks && config.preset != ADAMAS_PRESET_PAPER ? 6 : 5);  // paper: no centres
        }
      }
}

TEST_P(StagesTest, SelectsOfAnyNumberOfScores) {
  std::mt19937 random(8);
  for (const int64_t count : {0, 1, 63, 64, 65, 500})
    for (const int64_t budget : {1, 20, 1000}) {
      std::vector<int16_t> scores(2 * count);
      for (int16_t& score : scores) score = int16_t(int(random() % 40) - 20);
      for (int64_t i = 0; i < count; i += 9) scores[i] = i % 2 == 0 ? hidden_score : always_score;
      const int64_t room = std::min(budget, count);
      std::vector<int64_t> indices(2 * room + 1), counts(2);
      const adamas_select_params p{sizeof p,      2,       count,  scores.data(), budget, indices.data(),
                                   counts.data(), nullptr, nullptr};
      ASSERT_EQ(adamas_select(&p), ADAMAS_OK) << adamas_last_error();
      for (int h = 0; h < 2; h++) {
        const auto expected = ref::select(scores.data() + h * count, count, budget);
        ASSERT_EQ(counts[h], int64_t(expected.size()));
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), indices.begin() + h * room));
      }
    }
}

TEST_P(StagesTest, AttentionIsTheReferences) {
  const Context context(300, normal_key);
  const std::vector<int64_t> indices{299, 0, 7, 64, 5, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4};  // [q_heads, 4]
  const std::vector<int64_t> counts{4, 1, 0, 4};
  for (const bool all : {false, true})
    for (const float softcap : {0.0f, 5.0f}) {
      std::vector<float> out(q_heads * head_dim, -7), lse(q_heads, -7);
      adamas_attend_params p = context.attention(out, lse);
      p.indices = all ? nullptr : indices.data();
      p.index_stride = 4;
      p.counts = all ? nullptr : counts.data();
      p.scale = 0.3f;
      p.softcap = softcap;
      ASSERT_EQ(adamas_attend(&p), ADAMAS_OK) << adamas_last_error();
      for (int h = 0; h < q_heads; h++) {
        std::vector<int32_t> tokens(indices.begin() + h * 4, indices.begin() + h * 4 + counts[h]);
        if (all) {
          tokens.resize(context.tokens);
          std::iota(tokens.begin(), tokens.end(), 0);
        }
        const Attention a{
            head_dim, 0.3f, softcap, rows_of(p.k, 0, h / 2, context.tokens), rows_of(p.v, 0, h / 2, context.tokens),
            nullptr};
        const ref::Attended expected = ref::attend(a, context.q.data() + h * head_dim, 1, tokens);
        for (int d = 0; d < head_dim; d++) EXPECT_NEAR(out[h * head_dim + d], expected.out[d], 1e-4);
        if (tokens.empty())
          EXPECT_EQ(lse[h], -INFINITY);
        else
          EXPECT_NEAR(lse[h], expected.lse, 1e-4);
      }
    }
}

TEST(Stages, PartsThatLeaveAGapAreRefused) {
  const Context context(1234, normal_key);
  const adamas_config config = config_of({{"budget", "120"}});
  Meeting meeting(2);
  std::vector<std::unique_ptr<Part>> parts;
  parts.push_back(std::make_unique<Part>(context, config, 0, 100));
  parts.push_back(std::make_unique<Part>(context, config, 128, 300));
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++)
    threads.emplace_back([&, i] {
      Meeting::Place place{&meeting, i};
      parts[i]->status = score_and_select(context, *parts[i], 120, Meeting::merge, &place);
      parts[i]->sentence = adamas_last_error();
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& part : parts) {
    EXPECT_EQ(part->status, ADAMAS_INVALID_ARGUMENT);
    EXPECT_NE(part->sentence.find("400 tokens and end at 428"), std::string::npos) << part->sentence;
  }
}

TEST(Stages, APartThatMeetsNobodyFails) {
  const Context context(640, normal_key);
  Part part(context, config_of({{"budget", "120"}}), 0, 640);
  const auto fails = [](void*, int32_t, double*, int64_t) -> int32_t { return 7; };
  EXPECT_EQ(score_and_select(context, part, 120, fails, nullptr), ADAMAS_INVALID_ARGUMENT);
  EXPECT_NE(std::string(adamas_last_error()).find("merge gave 7"), std::string::npos) << adamas_last_error();
}

}  // namespace
}  // namespace adamas
