// The whole step through the C ABI, against the references of its stages.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <numeric>
#include <set>
#include <tuple>

#include "adamas/adamas.h"
#include "attend/attend_ref.h"
#include "codes/codes.h"
#include "core/testing.h"
#include "estimate/estimate_ref.h"
#include "list/list.h"
#include "list/list_ref.h"
#include "rest/rest_ref.h"
#include "select/select_ref.h"

#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // the pair below is one
// Every allocation of this program's objects is counted, so that a test can say that a step makes none: the linker puts
// these in place of the C library's (--wrap, tests/CMakeLists.txt).
static std::atomic<int64_t> allocations = 0;
extern "C" {
void* __real_malloc(size_t bytes);
void* __real_calloc(size_t count, size_t bytes);
void* __real_realloc(void* p, size_t bytes);
void* __real_aligned_alloc(size_t alignment, size_t bytes);
void* __wrap_malloc(size_t bytes) {
  allocations++;
  return __real_malloc(bytes);
}
void* __wrap_calloc(size_t count, size_t bytes) {
  allocations++;
  return __real_calloc(count, bytes);
}
void* __wrap_realloc(void* p, size_t bytes) {
  allocations++;
  return __real_realloc(p, bytes);
}
void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  allocations++;
  return __real_aligned_alloc(alignment, bytes);
}
}
void* operator new(size_t bytes) {
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace adamas {
namespace {

class StepTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(StepTest);

#define EXPECT_OK(call) EXPECT_EQ(call, ADAMAS_OK) << adamas_last_error()
#define ASSERT_OK_STEP(fixture, params) \
  ASSERT_EQ(adamas_step((fixture).plan, (fixture).cache, &(params)), ADAMAS_OK) << adamas_last_error()

// K or V of some sequences in an odd layout: [sequences, tokens, kv_heads, head_dim] with gaps.
struct Cached {
  Cached(int64_t sequences, int64_t tokens, int kv_heads, int head_dim, DType dtype)
      : head_dim(head_dim),
        dtype(dtype),
        stride_head(row_bytes(dtype, head_dim) + 4),
        stride_token(kv_heads * stride_head + 8),
        stride_sequence(tokens * stride_token),
        bytes(size_t(sequences * stride_sequence)) {}
  void set(int64_t s, int64_t t, int g, int d, float x) {
    testing::store(bytes.data() + s * stride_sequence + t * stride_token + g * stride_head, dtype, d, x);
  }
  adamas_rows view() const { return {bytes.data(), int32_t(dtype), stride_sequence, stride_head, stride_token, nullptr, 0}; }
  int head_dim;
  DType dtype;
  int64_t stride_head, stride_token, stride_sequence;
  std::vector<std::byte> bytes;
};

using Settings = std::vector<std::pair<const char*, const char*>>;

// A fixed budget: what is selected is all that is attended to.
Settings fixed(Settings more = {}) {
  Settings all{{"min_context", "0"}, {"budget", "128"}, {"max_noise", "0"}};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

struct Shape {
  int64_t sequences = 1, tokens = 2000;
  int q_heads = 6, kv_heads = 2, head_dim = 64;
  DType k_dtype = DType::f16, v_dtype = DType::f16;
  Settings settings = {{"min_context", "0"}};
  int threads = 2;
  int64_t rotated = 0;
};

// A cache, a plan, random rows and a query for them.
struct Fixture {
  explicit Fixture(const Shape& s)
      : setup(s),
        k(s.sequences, s.tokens, s.kv_heads, s.head_dim, s.k_dtype),
        v(s.sequences, s.tokens, s.kv_heads, s.head_dim, s.v_dtype),
        random(11) {
    EXPECT_OK(adamas_config_init(&config));
    for (auto [name, value] : s.settings) EXPECT_OK(adamas_config_set(&config, name, value));
    const adamas_cache_params cache_params{sizeof cache_params,
                                           0,
                                           s.kv_heads,
                                           s.head_dim,
                                           s.sequences,
                                           s.tokens,
                                           s.rotated,
                                           ADAMAS_DEVICE_CPU,
                                           0,
                                           0,
                                           nullptr,
                                           0};
    EXPECT_OK(adamas_cache_create(&config, &cache_params, &cache));
    const adamas_plan_params plan_params{sizeof plan_params, s.q_heads, s.kv_heads,        s.head_dim,
                                         s.tokens,           s.threads, ADAMAS_DEVICE_CPU, 0};
    EXPECT_OK(adamas_plan_create(&config, &plan_params, &plan));
    std::normal_distribution<float> normal;
    for (int64_t b = 0; b < s.sequences; b++)
      for (int64_t t = 0; t < s.tokens; t++)
        for (int g = 0; g < s.kv_heads; g++)
          for (int d = 0; d < s.head_dim; d++) {
            k.set(b, t, g, d, normal(random) + (d < 8 ? 5.0f : 0.0f));
            v.set(b, t, g, d, normal(random));
          }
  }
  ~Fixture() {
    adamas_plan_destroy(plan);
    adamas_cache_destroy(cache);
  }
  void append_all() {
    for (int64_t b = 0; b < setup.sequences; b++) {
      const adamas_rows kv = k.view(), vv = v.view();
      EXPECT_OK(adamas_append(cache, b, 0, setup.tokens, &kv, &vv));
    }
  }
  // Random queries for batch x rows; out and lse ready.
  adamas_step_params params(int64_t batch, int64_t rows) {
    const int64_t row = setup.q_heads * setup.head_dim;
    q = testing::normal_vector(random, int(batch * rows * row), 2);
    out.assign(q.size(), -77);
    lse.assign(batch * rows * setup.q_heads, -77);
    adamas_step_params p{};
    p.struct_size = sizeof p;
    p.threads = setup.threads;
    p.batch = batch;
    p.rows = rows;
    p.q = q.data();
    p.q_stride_batch = p.out_stride_batch = rows * row * 4;
    p.q_stride_row = p.out_stride_row = row * 4;
    p.q_stride_head = p.out_stride_head = setup.head_dim * 4;
    p.k = k.view();
    p.v = v.view();
    p.out = out.data();
    p.lse = lse.data();
    p.stats = &stats;
    stats.struct_size = sizeof stats;
    return p;
  }
  std::vector<int32_t> selection(int h) {
    std::vector<int64_t> indices(setup.tokens);
    int64_t count = 0;
    EXPECT_OK(adamas_selection(plan, h, indices.data(), setup.tokens, &count));
    return {indices.begin(), indices.begin() + count};
  }
  Attention attention(const adamas_step_params& p, int64_t sequence, int h) const {
    const int g = h * setup.kv_heads / setup.q_heads;
    return {setup.head_dim,
            p.scale != 0 ? p.scale : 1 / std::sqrt(float(setup.head_dim)),
            p.softcap,
            rows_of(p.k, sequence, g, setup.tokens),
            rows_of(p.v, sequence, g, setup.tokens),
            bias.empty() ? nullptr : bias.data()};
  }
  // Every head of the last row equals reference attention over `tokens(h)`.
  template <class Tokens>
  void expect_attention(const adamas_step_params& p, int64_t batch, int64_t row, int64_t sequence, Tokens&& tokens) {
    for (int h = 0; h < setup.q_heads; h++) {
      const int64_t index = (batch * p.rows + row) * setup.q_heads + h;
      ref::Attended expected =
          ref::attend(attention(p, sequence, h), q.data() + index * setup.head_dim, p.slopes ? p.slopes[h] : 1, tokens(h));
      if (p.sink_logits != nullptr) {
        const double with = std::log(std::exp(expected.lse) + std::exp(double(p.sink_logits[h])));
        for (double& x : expected.out) x *= std::exp(expected.lse - with);
        expected.lse = with;
      }
      EXPECT_NEAR(lse[index], expected.lse, 2e-3) << "head " << h;
      for (int d = 0; d < setup.head_dim; d++)
        ASSERT_NEAR(out[index * setup.head_dim + d], expected.out[d], 2e-3) << "head " << h << ", dimension " << d;
    }
  }
  Shape setup;
  adamas_config config;
  adamas_cache* cache = nullptr;
  adamas_plan* plan = nullptr;
  Cached k, v;
  std::mt19937 random;
  std::vector<float> q, out, lse, bias;
  adamas_step_stats stats{};
};

std::vector<int32_t> range(int32_t n) {
  std::vector<int32_t> all(n);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// The codes of the first `tokens` rows of K of sequence 0, made by the reference.
struct ReferenceCodes {
  ReferenceCodes(const Fixture& f, int g, int64_t tokens)
      : layout{f.setup.head_dim},
        blocks(blocks_of(tokens)),
        memory(layout.head_bytes(blocks) / 8),
        scale(blocks),
        sigma(blocks) {
    for (int64_t b = 0; b < blocks; b++) {
      const Rows rows = rows_of(f.k.view(), 0, g, f.setup.tokens).from(b * block_tokens);
      ref::pack(
          ref::encode_block(rows, layout.head_dim, bits_between(0, tokens - b * block_tokens), b == 0, Coding::by_block),
          codes().block(b));
    }
  }
  Codes codes() { return {reinterpret_cast<std::byte*>(memory.data()), blocks, scale.data(), sigma.data(), layout}; }
  BlockLayout layout;
  int64_t blocks;
  std::vector<uint64_t> memory;
  std::vector<float> scale, sigma;
};

std::vector<float> rotated_query(const Fixture& f, int h) {
  std::vector<float> y(f.q.begin() + h * f.setup.head_dim, f.q.begin() + (h + 1) * f.setup.head_dim);
  rotate(y.data(), f.setup.head_dim);
  return y;
}

// The scores of a head by the references of its stages, the sinks marked and what is not live hidden.
ref::Scores reference_scores(Fixture& f, int h, int64_t tokens, Estimator estimator, int64_t sinks) {
  ReferenceCodes keys(f, h * f.setup.kv_heads / f.setup.q_heads, tokens);
  ref::Scores scores = ref::estimate(rotated_query(f, h).data(), f.setup.head_dim, estimator, 0, keys.codes(), keys.blocks);
  for (int64_t t = 0; t < int64_t(scores.score.size()); t++) {
    if (t < sinks) scores.score[t] = always_score;
    if (t >= tokens) scores.score[t] = hidden_score;
  }
  return scores;
}

std::vector<int32_t> reference_selection(Fixture& f, int h, int64_t tokens, Estimator estimator, int64_t budget,
                                         int64_t sinks) {
  const std::vector<int16_t> scores = reference_scores(f, h, tokens, estimator, sinks).score;
  return ref::select(scores.data(), int64_t(scores.size()), budget);
}

TEST_P(StepTest, SelectsWhatTheReferencesSelectAndAttendsToThat) {
  for (const char* estimator : {"dot", "manhattan"})
    for (int head_dim : {64, 80, 128, 256})
      for (auto [q_heads, kv_heads] : {std::pair{4, 4}, {6, 2}, {7, 1}}) {
        SCOPED_TRACE(::testing::Message() << estimator << ", head_dim " << head_dim << ", heads " << q_heads << "/"
                                          << kv_heads);
        Fixture f({.tokens = 777,
                   .q_heads = q_heads,
                   .kv_heads = kv_heads,
                   .head_dim = head_dim,
                   .v_dtype = DType::bf16,
                   .settings = fixed({{"estimator", estimator}, {"budget", "100"}})});
        f.append_all();
        adamas_step_params p = f.params(1, 1);
        ASSERT_OK_STEP(f, p);
        EXPECT_EQ(f.stats.rows_sparse, 1);
        const auto which = std::strcmp(estimator, "dot") == 0 ? Estimator::dot : Estimator::manhattan;
        for (int h = 0; h < q_heads; h++)
          ASSERT_EQ(f.selection(h), reference_selection(f, h, 777, which, 100, 4)) << "head " << h;
        f.expect_attention(p, 0, 0, 0, [&](int h) { return f.selection(h); });
      }
}

TEST_P(StepTest, TakesKAndVOfEveryDtype) {
  for (int i = 0; i < dtype_count; i++) {
    const DType k_dtype = testing::dtypes[i], v_dtype = testing::dtypes[(i + 4) % dtype_count];
    SCOPED_TRACE(::testing::Message() << "K " << dtype_names[i] << ", V " << dtype_names[int(v_dtype)]);
    Fixture f(
        {.tokens = 520, .head_dim = 96, .k_dtype = k_dtype, .v_dtype = v_dtype, .settings = fixed({{"budget", "100"}})});
    f.append_all();
    adamas_step_params p = f.params(1, 1);
    p.verify = 1;
    p.verify_rows = 520;
    ASSERT_OK_STEP(f, p);
    EXPECT_EQ(f.stats.rows_sparse, 1);
    EXPECT_EQ(f.stats.rows_stale, 0);
    for (int h = 0; h < f.setup.q_heads; h++)
      ASSERT_EQ(f.selection(h), reference_selection(f, h, 520, Estimator::dot, 100, 4)) << "head " << h;
    f.expect_attention(p, 0, 0, 0, [&](int h) { return f.selection(h); });
  }
}

// Rows that are to be multiplied by factors, and rows that were: the same bits, for powers of two.
TEST_P(StepTest, ScalesOfKAndVAreFactors) {
  for (const char* policy : {"adamas", "full"}) {
    const Shape shape{.tokens = 3000,
                      .k_dtype = DType::f32,
                      .v_dtype = DType::f32,
                      .settings = {{"min_context", "0"}, {"share", "0.002"}, {"policy", policy}}};
    Fixture plain(shape), small(shape);
    const auto multiply = [](Cached& rows, float by) {
      auto* x = reinterpret_cast<float*>(rows.bytes.data());
      for (size_t i = 0; i < rows.bytes.size() / 4; i++) x[i] *= by;
    };
    multiply(small.k, 0.25f), multiply(small.v, 0.125f);
    plain.append_all();
    small.append_all();
    adamas_step_params p = plain.params(1, 1), q = small.params(1, 1);
    q.k_scale = 4, q.v_scale = 8;
    ASSERT_OK_STEP(plain, p);
    ASSERT_OK_STEP(small, q);
    EXPECT_EQ(plain.out, small.out) << policy;
    EXPECT_EQ(plain.lse, small.lse) << policy;
  }
}

// Keys and queries that the caller rotated: the same step. Rotated values give a rotated output, and nothing needs to know.
TEST_P(StepTest, RotatedRowsGiveTheSameStep) {
  for (bool values : {false, true}) {
    Shape shape{.tokens = 3000,
                .k_dtype = DType::f32,
                .v_dtype = DType::f32,
                .settings = {{"min_context", "0"}, {"share", "0.002"}}};
    Fixture plain(shape);
    shape.rotated = ADAMAS_ROTATED_KEYS;
    Fixture turned(shape);
    const auto rotate_rows = [](Cached& rows, int kv_heads) {
      for (int64_t t = 0; t < rows.stride_sequence / rows.stride_token; t++)
        for (int g = 0; g < kv_heads; g++) {
          std::vector<float> row(rows.head_dim);
          std::byte* at = rows.bytes.data() + t * rows.stride_token + g * rows.stride_head;
          std::memcpy(row.data(), at, rows.head_dim * sizeof(float));
          rotate(row.data(), rows.head_dim);
          std::memcpy(at, row.data(), rows.head_dim * sizeof(float));
        }
    };
    const auto rotate_heads = [&](std::vector<float>& heads) {
      for (size_t i = 0; i < heads.size(); i += shape.head_dim) rotate(heads.data() + i, shape.head_dim);
    };
    rotate_rows(turned.k, shape.kv_heads);
    if (values) rotate_rows(turned.v, shape.kv_heads);
    plain.append_all();
    turned.append_all();
    adamas_step_params p = plain.params(1, 1), q = turned.params(1, 1);
    for (float& x : plain.q) x *= 0.3f;  // flat: much of the weight is in the rest
    turned.q = plain.q;
    rotate_heads(turned.q);
    q.q = turned.q.data();
    ASSERT_OK_STEP(plain, p);
    ASSERT_OK_STEP(turned, q);
    EXPECT_LT(plain.stats.tokens_selected, plain.stats.tokens_visible);
    if (values) rotate_heads(plain.out);
    for (int h = 0; h < shape.q_heads; h++) EXPECT_EQ(plain.selection(h), turned.selection(h)) << "head " << h;
    for (size_t i = 0; i < plain.out.size(); i++)
      ASSERT_NEAR(plain.out[i], turned.out[i], 2e-3) << "values " << values << ", " << i;
  }
}

TEST_P(StepTest, WithABudgetOfTheContextIsDense) {
  for (const char* policy : {"adamas", "full", "quest", "streaming", "oracle"})
    for (int64_t tokens : {1, 3, 4, 5, 63, 64, 65, 127, 500}) {
      SCOPED_TRACE(::testing::Message() << policy << ", tokens " << tokens);
      Fixture f({.tokens = tokens, .settings = {{"min_context", "0"}, {"policy", policy}, {"budget", "500"}}});
      f.append_all();
      adamas_step_params p = f.params(1, 1);
      ASSERT_OK_STEP(f, p);
      EXPECT_EQ(f.stats.rows_dense, 1);
      f.expect_attention(p, 0, 0, 0, [&](int) { return range(int32_t(tokens)); });
    }
}

TEST_P(StepTest, BelowTheMinimumContextIsDense) {
  Fixture f({.tokens = 600, .settings = {{"min_context", "601"}, {"budget", "64"}}});
  f.append_all();
  adamas_step_params p = f.params(1, 1);
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_dense, 1);
}

TEST_P(StepTest, BatchesOfDifferentLengthsAndManyRowsSelectForThemselves) {
  Fixture f({.sequences = 3, .tokens = 900, .settings = fixed({{"budget", "64"}})});
  f.append_all();
  const int64_t sequences[] = {2, 0, 1}, lengths[] = {900, 50, 333};
  adamas_step_params p = f.params(3, 5);
  p.sequences = sequences;
  p.lengths = lengths;
  p.causal = 1;
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_sparse, 10);
  EXPECT_EQ(f.stats.rows_dense, 5);
  for (int64_t r = 0; r < 5; r++) f.expect_attention(p, 1, r, 0, [&](int) { return range(int32_t(50 - 5 + r + 1)); });
  f.expect_attention(p, 2, 4, 1, [&](int h) { return f.selection(h); });
  // The same row alone gives the same.
  const std::vector<float> together = f.out;
  const auto q = f.q;
  adamas_step_params alone = f.params(1, 1);
  const int64_t row = f.setup.q_heads * f.setup.head_dim;
  std::copy_n(q.begin() + (0 * 5 + 2) * row, row, f.q.begin());
  const int64_t length = 900 - 5 + 2 + 1;
  alone.sequences = sequences;
  alone.lengths = &length;
  ASSERT_OK_STEP(f, alone);
  EXPECT_TRUE(std::equal(f.out.begin(), f.out.end(), together.begin() + 2 * row));
}

TEST_P(StepTest, TakesMaskSlopesSoftcapAndSinkLogits) {
  for (DType dtype : testing::plain_dtypes) {
    Fixture f({.tokens = 640, .settings = fixed({{"budget", "80"}, {"recent", "10"}})});
    f.append_all();
    std::vector<std::byte> mask(row_bytes(dtype, 640));
    f.bias.assign(640, 0);
    std::vector<int32_t> shown;
    for (int t = 0; t < 640; t++) {
      const bool hidden = t < 130 || t % 3 == 0 || (t >= 256 && t < 320);
      f.bias[t] = hidden ? -INFINITY : float(t - 640) / 64;
      testing::store(mask.data(), dtype, t, f.bias[t]);
      f.bias[t] = load_f32(mask.data(), dtype, t);
      if (!hidden) shown.push_back(t);
    }
    const float slopes[] = {0.5f, 1, 2, 0.25f, 0, 4}, sinks[] = {0, 1, -2, 3, -INFINITY, 5};
    for (int64_t budget : {80, 1000}) {
      adamas_step_params p = f.params(1, 1);
      p.mask = mask.data();
      p.mask_dtype = int32_t(dtype);
      p.slopes = slopes;
      p.sink_logits = sinks;
      p.softcap = 4;
      if (budget > 80) p.causal = 1;  // one row: the same tokens
      ASSERT_OK_STEP(f, p);
      EXPECT_EQ(f.stats.rows_sparse, 1);
      for (int h = 0; h < 6; h++) {
        const auto selected = f.selection(h);
        EXPECT_EQ(selected.size(), 80u);
        EXPECT_TRUE(std::includes(shown.begin(), shown.end(), selected.begin(), selected.end()));
        EXPECT_TRUE(std::equal(shown.begin(), shown.begin() + 4, selected.begin()))
            << "the first visible tokens are the sinks";
        EXPECT_TRUE(std::equal(shown.end() - 10, shown.end(), selected.end() - 10)) << "recent";
      }
      f.expect_attention(p, 0, 0, 0, [&](int h) { return f.selection(h); });
    }
  }
}

// Attention of every head of one row over all tokens, against the reference: |out - reference| <= share |reference|, and the
// lse.
void expect_near_full(Fixture& f, const adamas_step_params& p, double share, double lse_error, const char* what) {
  EXPECT_EQ(f.stats.rows_sparse, 1) << what;
  for (int h = 0; h < f.setup.q_heads; h++) {
    const ref::Attended full = ref::attend(f.attention(p, 0, h), f.q.data() + h * f.setup.head_dim,
                                           p.slopes ? p.slopes[h] : 1, range(int32_t(f.setup.tokens)));
    double error = 0, norm = 0;
    for (int d = 0; d < f.setup.head_dim; d++) {
      error += std::pow(f.out[h * f.setup.head_dim + d] - full.out[d], 2);
      norm += full.out[d] * full.out[d];
    }
    EXPECT_LE(std::sqrt(error), share * std::sqrt(norm)) << what << ", head " << h;
    EXPECT_NEAR(f.lse[h], full.lse, lse_error) << what << ", head " << h;
  }
}

// The unit of a head's scores can be so small that 16 bits do not reach from its best token to those that weigh nothing.
TEST_P(StepTest, FarTokensWeighNothingHoweverFineTheScores) {
  const float slopes[] = {0.5f, 0.25f, 0.125f, 0.0625f, 1, 2};
  for (float size : {1.0f, 0.1f, 0.01f})
    for (const char* what : {"slopes", "slopes and softcap", "a finite mask"}) {
      Fixture f({.tokens = 4000});
      for (int64_t t = 0; t < 4000; t++)
        for (int g = 0; g < 2; g++) f.v.set(0, t, g, 0, t < 3600 ? 3.0f : -3.0f);
      f.append_all();
      adamas_step_params p = f.params(1, 1);
      for (float& x : f.q) x *= size;
      f.bias.assign(4000, 0);
      std::vector<float> mask(4000, 0);
      if (*what == 's') {
        for (int t = 0; t < 4000; t++) f.bias[t] = float(t - 3999);
        p.slopes = slopes;
        if (std::strlen(what) > 6) p.softcap = 2;
      } else {
        for (int t = 0; t < 2000; t++) mask[t] = f.bias[t] = -1e4f;
        p.mask = mask.data();
      }
      ASSERT_OK_STEP(f, p);
      expect_near_full(f, p, 0.1, 0.05, what);
    }
}

// Blocks whose centres lie 30 apart, and rows within a block next to each other: beyond what the centre's offset holds.
TEST_P(StepTest, FarCentresWeighNothingHoweverFineTheScores) {
  for (float noise : {1.0f, 0.01f, 0.0001f}) {
    Fixture f({.tokens = 4096, .q_heads = 1, .kv_heads = 1, .k_dtype = DType::f32});
    adamas_step_params p = f.params(1, 1);
    double square = 0;
    for (float x : f.q) square += double(x) * x;
    std::normal_distribution<float> normal;
    for (int64_t t = 0; t < 4096; t++) {
      const double score = 15 * std::cos(double(t / block_tokens) / 10);
      for (int d = 0; d < 64; d++) f.k.set(0, t, 0, d, float(score * 8 / square) * f.q[d] + noise * normal(f.random));
      f.v.set(0, t, 0, 0, score > 0 ? 3.0f : -3.0f);
    }
    f.append_all();
    ASSERT_OK_STEP(f, p);
    expect_near_full(f, p, 0.1, 0.05, "turning keys");
  }
}

// What is attended to with positive weights lies among the values, also where estimates are off by a factor of e^30.
TEST_P(StepTest, TheOutputLiesAmongTheValues) {
  for (const char* estimator : {"dot", "manhattan"})
    for (const char* share : {"0.0004", "0.1"})
      for (float size : {1.0f, 8.0f, 60.0f}) {
        Fixture f({.tokens = 373,
                   .settings = {{"min_context", "0"}, {"max_noise", "0"}, {"estimator", estimator}, {"share", share}}});
        f.append_all();
        const adamas_step_params p = f.params(1, 1);
        for (float& x : f.q) x *= size;
        ASSERT_OK_STEP(f, p);
        for (float x : f.out) ASSERT_LE(std::abs(x), 6) << estimator << ", share " << share << ", queries " << size;
      }
}

TEST_P(StepTest, AQueryOfZerosWeighsAllTokensAlike) {
  for (const char* estimator : {"dot", "manhattan"})
    for (const char* min_mass : {"0", "0.9"}) {
      Fixture f({.tokens = 3000, .settings = {{"min_context", "0"}, {"estimator", estimator}, {"min_mass", min_mass}}});
      f.append_all();
      const adamas_step_params p = f.params(1, 1);
      std::fill(f.q.begin(), f.q.end(), 0.0f);
      ASSERT_OK_STEP(f, p);
      for (float lse : f.lse) EXPECT_NEAR(lse, std::log(3000.0), 0.01) << estimator << ", min_mass " << min_mass;
    }
}

TEST_P(StepTest, OfKeysThatAreAllTheSameTheLastAreSelected) {
  for (int i = 0; i < 8; i++) {
    Fixture f({.tokens = 1500, .k_dtype = DType::f32, .settings = fixed({{"sinks", "0"}, {"budget", "70"}})});
    std::normal_distribution<float> normal;
    f.random.seed(i);
    for (int g = 0; g < 2; g++)
      for (int d = 0; d < 64; d++) {
        const float x = normal(f.random);
        for (int64_t t = 0; t < 1500; t++) f.k.set(0, t, g, d, x);
      }
    f.append_all();
    const adamas_step_params p = f.params(1, 1);
    ASSERT_OK_STEP(f, p);
    for (int h = 0; h < 6; h++) {
      const auto selected = f.selection(h);
      ASSERT_EQ(selected.size(), 70u);
      EXPECT_EQ(selected.front(), 1430) << "keys " << i << ", head " << h;
    }
  }
}

// NaN and infinity reach the output of the heads that attend to them, and no other.
TEST_P(StepTest, NotANumberIsNotSwallowed) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const char* budget : {"80", "5000"}) {
      Fixture f({.tokens = 700, .settings = {{"min_context", "0"}, {"budget", budget}, {"recent", "8"}}});
      f.append_all();
      adamas_step_params p = f.params(1, 1);
      f.q[3] = bad;
      ASSERT_OK_STEP(f, p);
      for (int h = 0; h < 6; h++)
        EXPECT_EQ(std::isnan(f.out[h * 64]) && std::isnan(f.lse[h]), h == 0) << "query, budget " << budget;
      f.q[3] = 1;
      f.k.set(0, 699, 1, 5, bad);
      p.k = f.k.view();
      EXPECT_OK(adamas_append(f.cache, 0, 699, 1, &p.k, &p.v));
      for (int d = 0; d < 64; d++)
        f.q[3 * 64 + d] = f.q[4 * 64 + d] = f.q[5 * 64 + d] = 1;  // + inf times a positive is + inf
      ASSERT_OK_STEP(f, p);
      for (int h = 0; h < 6; h++)
        EXPECT_EQ(std::isnan(f.out[h * 64]) && std::isnan(f.lse[h]), h >= 3) << "key, budget " << budget;
    }
}

TEST_P(StepTest, AFullyHiddenRowIsZeroAndMinusInfinity) {
  Fixture f({.tokens = 300});
  f.append_all();
  const std::vector<float> mask(300, -INFINITY);
  adamas_step_params p = f.params(1, 1);
  p.mask = mask.data();
  ASSERT_OK_STEP(f, p);
  for (float x : f.out) EXPECT_EQ(x, 0);
  for (float x : f.lse) EXPECT_EQ(x, -INFINITY);
  for (const auto& [batch, rows] : {std::pair{0, 1}, {1, 0}}) {
    adamas_step_params none = f.params(1, 1);
    none.batch = batch;
    none.rows = rows;
    none.q = none.out = none.lse = nullptr;
    EXPECT_OK(adamas_step(f.plan, f.cache, &none)) << "nothing to do";
  }
}

std::vector<std::byte> block_bytes(const Fixture& f, int64_t sequence, int g, int64_t block) {
  size_t needed = 0;
  EXPECT_OK(adamas_block_bytes(f.cache, sequence, g, block, nullptr, 0, &needed));
  std::vector<std::byte> bytes(needed);
  EXPECT_OK(adamas_block_bytes(f.cache, sequence, g, block, bytes.data(), needed, &needed));
  return bytes;
}

TEST_P(StepTest, CodesAreTheSameHoweverTheRowsCame) {
  const Shape setup{.tokens = 300, .head_dim = 80};
  Fixture once(setup), pieces(setup), rolled_back(setup), on_sight(setup);
  once.append_all();
  const adamas_rows k = pieces.k.view(), v = pieces.v.view(), back = rolled_back.k.view();
  for (int64_t first = 0, step = 1; first < 300; first += step, step = step % 17 + 1)
    EXPECT_OK(adamas_append(pieces.cache, 0, first, std::min<int64_t>(step, 300 - first), &k, &v));
  EXPECT_OK(adamas_append(rolled_back.cache, 0, 0, 280, &back, nullptr));
  EXPECT_OK(adamas_truncate(rolled_back.cache, 0, 70));
  EXPECT_OK(adamas_append(rolled_back.cache, 0, 70, 230, nullptr, nullptr));
  EXPECT_OK(adamas_append(rolled_back.cache, 0, 100, 1, &back, nullptr));  // overwritten with the same
  for (Fixture* f : {&rolled_back, &on_sight}) {
    adamas_step_params p = f->params(1, 1);
    const int64_t length = 300;
    p.lengths = &length;
    ASSERT_OK_STEP((*f), p);
  }
  on_sight.append_all();
  for (int g = 0; g < 2; g++)
    for (int64_t b = 0; b < 5; b++) {
      const auto expected = block_bytes(once, 0, g, b);
      EXPECT_EQ(block_bytes(pieces, 0, g, b), expected) << "appended in pieces, block " << b;
      EXPECT_EQ(block_bytes(rolled_back, 0, g, b), expected) << "rolled back, block " << b;
      EXPECT_EQ(block_bytes(on_sight, 0, g, b), expected) << "seen by a step, block " << b;
    }
}

TEST_P(StepTest, ABlockOfAGapHasNoBytes) {
  Fixture f({.tokens = 1500});
  EXPECT_OK(adamas_append(f.cache, 0, 1000, 1, nullptr, nullptr));
  size_t needed = 0;
  EXPECT_OK(adamas_block_bytes(f.cache, 0, 0, 3, nullptr, 0, &needed));
  std::vector<std::byte> bytes(needed);
  EXPECT_EQ(adamas_block_bytes(f.cache, 0, 0, 3, bytes.data(), needed, &needed), ADAMAS_INVALID_ARGUMENT);
}

// Block 30 of 2000 tokens is the last one: 16 rows of it have codes, or 32, or (from row 1984 on) all.
TEST_P(StepTest, FreshRowsWaitForTheirGroupAndAreReadAsTheyAre) {
  Fixture f({});
  const auto view = [](const Cached& rows) { return rows.view(); };
  const auto append = [&](Fixture& to, int64_t first, int64_t last) {
    const adamas_rows k = view(to.k), v = view(to.v);
    EXPECT_OK(adamas_append(to.cache, 0, first, last - first, &k, &v));
  };
  const auto codes_of_first = [&](int64_t rows, int64_t block) {
    Fixture other({});
    append(other, 0, rows);
    return block_bytes(other, 0, 1, block);
  };
  append(f, 0, 1935);
  EXPECT_NE(block_bytes(f, 0, 1, 30), codes_of_first(1936, 30)) << "below 16 rows each one counts at once";
  append(f, 1935, 1940);
  for (int64_t t = 1940; t < 1960; t++) append(f, t, t + 1);
  EXPECT_EQ(block_bytes(f, 0, 1, 30), codes_of_first(1952, 30));

  adamas_step_params p = f.params(1, 1);
  const int64_t length = 1960;
  p.lengths = &length;
  p.verify = 1;
  p.verify_rows = 2000;
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.blocks_encoded, 0);
  for (int h = 0; h < f.setup.q_heads; h++) {
    const std::vector<int32_t> selection = f.selection(h);
    for (int32_t t = 1952; t < 1960; t++)
      EXPECT_TRUE(std::binary_search(selection.begin(), selection.end(), t)) << "token " << t;
  }
  const std::vector<float> before = f.out;
  f.k.set(0, 1955, 0, 3, 40);
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_stale, 0) << "no code was made from it";
  EXPECT_NE(f.out, before);
  f.k.set(0, 1940, 0, 3, 40);
  ASSERT_OK_STEP(f, p);
  EXPECT_GE(f.stats.rows_stale, 1);

  const std::vector<std::byte> whole = [&] {
    Fixture other({});
    append(other, 0, 1984);
    return block_bytes(other, 0, 1, 30);
  }();
  append(f, 1960, 1990);
  EXPECT_EQ(block_bytes(f, 0, 1, 30), whole) << "a block that is not the last one has codes of all its rows";
  EXPECT_OK(adamas_truncate(f.cache, 0, 1948));
  append(f, 1948, 1949);
  EXPECT_EQ(block_bytes(f, 0, 1, 30), codes_of_first(1936, 30));
}

TEST_P(StepTest, ThreadsDoNotChangeABit) {
  for (const char* policy : {"adamas", "full", "quest"})
    for (int64_t rows : {1, 30}) {  // threads share the one, and take whole rows of the many
      std::vector<float> out;
      std::vector<int32_t> selection;
      for (int threads : {1, 2, 3, 5, 16}) {
        Fixture f({.tokens = 1500, .settings = {{"min_context", "0"}, {"policy", policy}}, .threads = threads});
        adamas_step_params p = f.params(1, rows);
        const int64_t length = 1500;
        p.lengths = &length;
        p.causal = 1;
        ASSERT_OK_STEP(f, p);
        if (threads == 1) {
          out = f.out;
          selection = f.selection(5);
        }
        EXPECT_EQ(f.out, out) << policy << ", " << rows << " rows, " << threads << " threads";
        EXPECT_EQ(f.selection(5), selection) << policy << ", " << rows << " rows, " << threads << " threads";
      }
    }
}

TEST_P(StepTest, TimesSayWhereTheTimeWentAndChangeNothing) {
  using Times = adamas_step_times;
  using Stages = std::vector<int64_t Times::*>;
  const Stages all{&Times::look,  &Times::encode, &Times::prepare, &Times::estimate, &Times::select,
                   &Times::exact, &Times::check,  &Times::attend,  &Times::rest,     &Times::dense};
  const std::map<std::string, Stages> expected{
      {"adamas", {all.begin(), all.end() - 1}},
      {"full", {&Times::look, &Times::dense}},
      {"quest", {&Times::look, &Times::encode, &Times::prepare, &Times::select, &Times::check, &Times::attend}},
      {"oracle", {&Times::look, &Times::prepare, &Times::select, &Times::exact, &Times::attend}}};
  for (const auto& [policy, stages] : expected)
    for (int64_t rows : {1, 30})
      for (int threads : {1, 3}) {
        SCOPED_TRACE(policy + ", " + std::to_string(rows) + " rows, " + std::to_string(threads) + " threads");
        const Shape shape{
            .tokens = 1500, .settings = {{"min_context", "0"}, {"policy", policy.c_str()}}, .threads = threads};
        Fixture plain(shape), timed(shape);
        const int64_t length = 1500;
        Times times;
        std::memset(&times, -1, sizeof times);  // a step overwrites what it finds
        times.struct_size = sizeof times;
        adamas_step_params p{};
        for (Fixture* f : {&plain, &timed}) {
          p = f->params(1, rows);
          p.lengths = &length;
          p.causal = 1;
          p.verify = 1;
          p.verify_rows = 10;
          p.times = f == &timed ? &times : nullptr;
          ASSERT_OK_STEP(*f, p);
        }
        EXPECT_EQ(timed.out, plain.out);
        EXPECT_EQ(timed.lse, plain.lse);
        int64_t sum = 0;
        for (size_t i = 0; i < all.size(); i++) {
          sum += times.*all[i];
          const bool taken = std::find(stages.begin(), stages.end(), all[i]) != stages.end();
          EXPECT_EQ(times.*all[i] > 0, taken) << "stage " << i;
        }
        EXPECT_EQ(times.struct_size, sizeof times);
        EXPECT_LE(sum, threads * times.wall);
        EXPECT_LE(timed.stats.rows_read, timed.stats.tokens_selected + timed.stats.rows_dense);

        // Of each step alone, and nearly all of it; another program may take the processor between two laps, but not every
        // time.
        bool all_told = false;
        for (int attempt = 0; attempt < 50 && !all_told; attempt++) {
          ASSERT_OK_STEP(timed, p);
          sum = 0;
          for (auto stage : all) sum += times.*stage;
          EXPECT_LE(sum, threads * times.wall);
          all_told = threads > 1 || sum > times.wall / 2;
        }
        EXPECT_TRUE(all_told) << sum << " of " << times.wall << " ns";
      }
}

TEST_P(StepTest, ManyRowsAreEachAsOneAlone) {
  constexpr int64_t rows = 40;
  Fixture f({.sequences = 2, .tokens = 1500});
  f.append_all();
  adamas_step_params p = f.params(2, rows);
  p.causal = 1;
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_sparse, 2 * rows);
  const auto together = f.out;
  const auto last = f.selection(3);
  const adamas_step_stats all = f.stats;
  int64_t selected = 0;
  for (int64_t b = 0; b < 2; b++)
    for (int64_t r = 0; r < rows; r++) {
      const int64_t length = 1500 - rows + r + 1;
      adamas_step_params one = p;
      one.batch = one.rows = 1;
      one.sequences = &b;
      one.lengths = &length;
      one.q = f.q.data() + (b * rows + r) * f.setup.q_heads * f.setup.head_dim;
      one.out = f.out.data() + (b * rows + r) * f.setup.q_heads * f.setup.head_dim;
      ASSERT_OK_STEP(f, one);
      selected += f.stats.tokens_selected;
    }
  EXPECT_EQ(f.out, together);
  EXPECT_EQ(f.selection(3), last);
  EXPECT_EQ(all.tokens_selected, selected);
}

TEST_P(StepTest, AKeyThatChangedUnseenIsFoundByManyRows) {
  Fixture f({.tokens = 1500});
  f.append_all();
  adamas_step_params p = f.params(1, 30);
  p.causal = 1;
  p.verify = 1;
  p.verify_rows = 50;  // 30 times 50: all of them
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_stale, 0);
  for (int d = 0; d < f.setup.head_dim; d++) f.k.set(0, 700, 1, d, d % 2 ? 3.0f : -3.0f);
  ASSERT_OK_STEP(f, p);
  EXPECT_GT(f.stats.rows_stale, 0);
  EXPECT_EQ(f.stats.rows_sparse, 30);
  const auto mended = f.out;
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_stale, 0);
  EXPECT_EQ(f.out, mended);
}

// Who takes a row, and whether the last one selects, is nothing to the rows that are checked in turn.
TEST_P(StepTest, AKeyThatChangedIsFoundByAnyNumberOfThreads) {
  for (int threads : {1, 4}) {
    Fixture f({.tokens = 1500, .settings = fixed({{"budget", "5"}}), .threads = 4});  // nobody selects it
    f.append_all();
    adamas_step_params p = f.params(1, 30);
    p.threads = threads;
    p.verify = 1;
    p.verify_rows = 10;
    std::vector<float> mask(30 * 1500, 0.0f);
    std::fill(mask.begin() + 29 * 1500 + 5, mask.end(), -INFINITY);  // the last row is dense
    p.mask = mask.data();
    p.mask_stride_row = 1500 * 4;
    f.k.set(0, 100, 0, 3, 0.125f);  // of the first 300
    p.k = f.k.view();
    ASSERT_OK_STEP(f, p);
    EXPECT_EQ(f.stats.rows_dense, 1);
    EXPECT_GT(f.stats.rows_stale, 0) << threads << " threads";
  }
}

TEST_P(StepTest, AllocatesNothing) {
  const std::pair<const char*, const char*> cases[] = {{"adamas", "auto"}, {"adamas", "64"},    {"full", "64"},
                                                       {"quest", "64"},    {"streaming", "64"}, {"oracle", "64"}};
  for (auto [policy, budget] : cases) {
    const int64_t none = allocations;
    Fixture f({.tokens = 700, .settings = {{"min_context", "0"}, {"policy", policy}, {"budget", budget}}});
    EXPECT_GT(allocations - none, 20) << "the arrays of a plan are not counted";
    f.append_all();
    adamas_step_params p = f.params(1, 1);
    p.verify = 1;
    p.verify_rows = 10;
    adamas_step_times times{};
    times.struct_size = sizeof times;
    p.times = &times;
    for (int step = 0; step < 3; step++) {
      EXPECT_OK(adamas_append(f.cache, 0, 650 + step, 1, nullptr, nullptr));
      const int64_t before = allocations;
      const adamas_status status = adamas_step(f.plan, f.cache, &p);
      EXPECT_EQ(allocations - before, 0) << policy << ' ' << budget;
      EXPECT_OK(status);
    }
  }
}

TEST_P(StepTest, NoticesKeysThatChangedBehindItsBack) {
  Fixture f({.tokens = 1000, .settings = fixed()}), fresh({.tokens = 1000, .settings = fixed()});
  f.append_all();
  adamas_step_params p = f.params(1, 1);
  p.verify = 1;
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_stale, 0);
  for (int64_t t = 200; t < 1000; t++)  // as a shift or a restored state would
    for (int g = 0; g < 2; g++)
      for (int d = 0; d < 64; d++) {
        const float x = load_f32(f.k.bytes.data() + (1199 - t) * f.k.stride_token + g * f.k.stride_head, DType::f16, d);
        fresh.k.set(0, t, g, d, x);
      }
  fresh.v.bytes = f.v.bytes;
  f.k.bytes = fresh.k.bytes;
  p.k = f.k.view();
  ASSERT_OK_STEP(f, p);
  EXPECT_GT(f.stats.rows_stale, 0);
  fresh.append_all();
  adamas_step_params q = fresh.params(1, 1);
  fresh.q = f.q;
  q.q = fresh.q.data();
  ASSERT_OK_STEP(fresh, q);
  EXPECT_EQ(f.out, fresh.out);
}

// Of every sequence, also where several take turns: each has its own place in its own rows.
TEST_P(StepTest, TheRotatingCheckFindsARowThatNobodySelects) {
  for (int64_t sequences : {1, 2, 4, 8})
    for (int64_t verify_rows : {16, 100}) {
      constexpr int64_t tokens = 1000;
      Fixture f({.sequences = sequences, .tokens = tokens, .settings = fixed({{"budget", "16"}})});
      f.append_all();
      adamas_step_params p = f.params(1, 1);
      p.verify = 1;
      p.verify_rows = verify_rows;
      for (int64_t s = 0; s < sequences; s += std::max<int64_t>(1, sequences - 1)) {
        p.sequences = &s;
        ASSERT_OK_STEP(f, p);
        int64_t changed = 130 + 7 * s;  // not a row that is read
        const auto is_read = [&](int64_t token) {
          for (int h = 0; h < f.setup.q_heads; h++)
            if (const auto read = f.selection(h); std::binary_search(read.begin(), read.end(), int32_t(token))) return true;
          return false;
        };
        while (is_read(changed)) changed++;
        f.k.set(s, changed, 0, 3, 0.125f);
        p.k = f.k.view();
        int64_t found = 0;
        for (int64_t round = 0; round < (tokens + verify_rows - 1) / verify_rows; round++)
          for (int64_t t = 0; t < sequences; t++) {  // in turn
            p.sequences = &t;
            ASSERT_OK_STEP(f, p);
            if (t == s)
              found += f.stats.rows_stale;
            else
              EXPECT_EQ(f.stats.rows_stale, 0);
          }
        EXPECT_EQ(found, 1) << "sequence " << s << " of " << sequences << ", " << verify_rows << " rows a step";
      }
    }
}

TEST_P(StepTest, UnusedSlotsNeverLeak) {
  Fixture clean({.tokens = 700}), dirty({.tokens = 700});
  for (int64_t t = 650; t < 700; t++)
    for (int g = 0; g < 2; g++)
      for (int d = 0; d < 64; d++) {
        dirty.k.set(0, t, g, d, d % 2 ? NAN : INFINITY);
        dirty.v.set(0, t, g, d, NAN);
      }
  const int64_t length = 650;
  for (Fixture* f : {&clean, &dirty}) {
    const adamas_rows k = f->k.view();
    EXPECT_OK(adamas_append(f->cache, 0, 0, 650, &k, nullptr));
    adamas_step_params p = f->params(1, 1);
    p.lengths = &length;
    ASSERT_OK_STEP((*f), p);
  }
  EXPECT_EQ(clean.out, dirty.out);
}

TEST_P(StepTest, StreamingAndQuestSelectWhatTheyPromise) {
  Fixture streaming({.tokens = 1000, .settings = {{"min_context", "0"}, {"policy", "streaming"}, {"budget", "50"}}});
  adamas_step_params p = streaming.params(1, 1);
  const int64_t length = 1000;
  p.lengths = &length;
  ASSERT_OK_STEP(streaming, p);
  std::vector<int32_t> expected = range(4);
  for (int32_t t = 1000 - 46; t < 1000; t++) expected.push_back(t);
  EXPECT_EQ(streaming.selection(3), expected);

  Fixture quest({.tokens = 1000, .settings = {{"min_context", "0"}, {"policy", "quest"}, {"budget", "64"}}});
  p = quest.params(1, 1);
  p.lengths = &length;
  ASSERT_OK_STEP(quest, p);
  const Rows rows = rows_of(quest.k.view(), 0, 1, quest.setup.tokens);
  std::vector<std::pair<float, int>> pages;
  for (int page = 0; page < 62; page++) {  // the last, of 8 tokens, is kept anyway
    double bound = 0;
    for (int d = 0; d < 64; d++) {
      float lowest = INFINITY, highest = -INFINITY;
      for (int t = 0; t < 16; t++) {
        lowest = std::min(lowest, load_f32(rows.row(page * 16 + t), DType::f16, d));
        highest = std::max(highest, load_f32(rows.row(page * 16 + t), DType::f16, d));
      }
      bound += std::max(double(quest.q[5 * 64 + d]) * lowest, double(quest.q[5 * 64 + d]) * highest);
    }
    pages.emplace_back(float(bound), page);
  }
  std::sort(pages.rbegin(), pages.rend());
  expected.clear();
  for (int i = 0; i < 3; i++)
    for (int t = 0; t < 16; t++) expected.push_back(pages[i].second * 16 + t);
  for (int t = 992; t < 1000; t++) expected.push_back(t);
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(quest.selection(5), expected);
  quest.expect_attention(p, 0, 0, 0, [&](int h) { return quest.selection(h); });
}

double exact_score(const Fixture& f, int h, int64_t token) {
  const Rows rows = rows_of(f.k.view(), 0, h * f.setup.kv_heads / f.setup.q_heads, f.setup.tokens);
  double sum = 0;
  for (int d = 0; d < f.setup.head_dim; d++)
    sum += double(f.q[h * f.setup.head_dim + d]) * load_f32(rows.row(token), rows.dtype, d);
  return sum / std::sqrt(double(f.setup.head_dim));
}

// A list and a rest of one head, token by token: list.h and rest.h in double precision. `selected` is the list of the step.
struct ReferenceList {
  std::vector<double> out;
  double lse, mass;
  std::vector<double>
      shares;  // [tokens] of the softmax, as they may be, over the share that is listed: from 1 on a token is a candidate

  ReferenceList(Fixture& f, const adamas_step_params& p, int h, int64_t tokens, Estimator estimator, double noise,
                const std::vector<int32_t>& selected, const std::vector<uint8_t>* mixed = nullptr) {
    const int head_dim = f.setup.head_dim, g = h * f.setup.kv_heads / f.setup.q_heads;
    const double scale = 1 / std::sqrt(double(head_dim));
    ref::Scores scores = reference_scores(f, h, tokens, estimator, 0);
    const auto is_hidden = [&](int64_t t) { return !f.bias.empty() && std::isinf(f.bias[t]); };
    const auto exact = [&](int64_t t) {
      double s = exact_score(f, h, t);
      if (p.softcap > 0) s = double(p.softcap) * std::tanh(s / double(p.softcap));
      return s;
    };
    int64_t sinks = 0;
    std::vector<char> always(tokens);
    for (int64_t t = 0; t < tokens && sinks < f.config.sinks; t++)
      if (!is_hidden(t)) always[t] = 1, sinks++;
    WeightScale e{scale * scores.unit, scale * scores.highest_centre, p.softcap, 0};
    double total = 0;
    for (int64_t t = 0; t < tokens; t++) {
      if (is_hidden(t))
        scores.score[t] = hidden_score;
      else if (always[t])
        total += std::exp(exact(t)), scores.score[t] = hidden_score;
      else
        total += ref::weight(e, scores.score[t]);
    }
    const double of_softmax = f.config.share * std::exp(-std::sqrt(noise)) * total;
    const HeadEstimates head{e, scores.score.data(), blocks_of(tokens), nullptr};
    const double share = std::min(of_softmax, std::exp(ref::edge(head, fewest_blocks(head.blocks))));
    for (int64_t t = 0; t < tokens; t++) {
      const bool is_mixed = mixed != nullptr && (*mixed)[t / block_tokens] != 0;
      const double least = is_mixed ? std::min(share, of_softmax * hidden_rows_share) : share;
      shares.push_back(always[t] ? INFINITY : ref::weight(e, scores.score[t]) / least);
    }

    std::vector<double> list_scores;
    int16_t bound = hidden_score + 1;
    while (bound < always_score && ref::weight(e, bound) < share) bound++;
    for (int32_t t : selected) list_scores.push_back(exact(t));
    e.max = float(*std::max_element(list_scores.begin(), list_scores.end()));
    const HeadList list{e,
                        bound,
                        nullptr,
                        selected.data(),
                        int64_t(selected.size()),
                        mixed != nullptr ? mixed->data() : nullptr,
                        blocks_of(tokens)};
    const ref::Rest rest = ref::rest(list, scores.score, list_scores);
    out.assign(head_dim, 0);
    const Rows v = rows_of(f.v.view(), 0, g, f.setup.tokens);
    for (size_t i = 0; i < selected.size(); i++)
      for (int d = 0; d < head_dim; d++) out[d] += rest.weights[i] * load_f32(v.row(selected[i]), v.dtype, d);
    for (int64_t b = 0; b < blocks_of(tokens); b++) {
      const std::vector<float> mean =
          ref::mean_value(v.from(b * block_tokens), head_dim, bits_between(0, tokens - b * block_tokens), b == 0);
      for (int d = 0; d < head_dim; d++) out[d] += rest.means[b] * double(mean[d]);
    }
    for (double& x : out) x /= rest.listed + rest.rest;
    lse = rest.max + std::log(rest.listed + rest.rest + rest.beside_hidden);
    mass = rest.mass();
  }
};

// Every token that may matter to a head is listed, by whichever head; and what was not needed by anyone is not.
void expect_list(const std::vector<ReferenceList>& heads, const std::vector<int32_t>& list, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++) {
    double share = 0;
    for (const ReferenceList& head : heads) share = std::max(share, head.shares[t]);
    if (std::abs(share - 1) < 0.06) continue;  // the total is within the four percent of its weights
    EXPECT_EQ(std::binary_search(list.begin(), list.end(), int32_t(t)), share >= 1) << "token " << t << ", share " << share;
  }
}

TEST_P(StepTest, AListAndARestAreWhatTheReferenceSays) {
  for (const char* estimator : {"dot", "manhattan"})
    for (int head_dim : {64, 80, 112, 256})
      for (float softcap : {0.0f, 20.0f})
        for (const char* share : {"0.0004", "0.004"}) {
          SCOPED_TRACE(::testing::Message()
                       << estimator << ", head_dim " << head_dim << ", softcap " << softcap << ", share " << share);
          Fixture f({.tokens = 1111,
                     .q_heads = 3,
                     .kv_heads = 1,
                     .head_dim = head_dim,
                     .settings = {{"min_context", "0"}, {"max_noise", "0"}, {"estimator", estimator}, {"share", share}}});
          f.append_all();
          adamas_step_params p = f.params(1, 1);
          p.softcap = softcap;
          std::vector<float> mass(3), noise(3);
          p.mass = mass.data();
          p.noise = noise.data();
          const int64_t length = 1104;  // no row waits for its group
          p.lengths = &length;
          ASSERT_OK_STEP(f, p);
          const auto which = std::strcmp(estimator, "dot") == 0 ? Estimator::dot : Estimator::manhattan;
          const std::vector<int32_t> list = f.selection(0);
          std::vector<ReferenceList> heads;
          for (int h = 0; h < 3; h++) {
            EXPECT_EQ(f.selection(h), list) << "one list for all heads";
            heads.emplace_back(f, p, h, length, which, double(noise[h]), list);
            EXPECT_NEAR(f.lse[h], heads[h].lse,
                        5e-2);  // the total is right within four percent, and with it which tokens are low (rest_test.cc is
                                // stricter)
            EXPECT_NEAR(mass[h], heads[h].mass, 4e-2);
            for (int d = 0; d < head_dim; d++)
              ASSERT_NEAR(f.out[h * head_dim + d], heads[h].out[d], 5e-2) << "head " << h << ", dimension " << d;
          }
          expect_list(heads, list, length);
          EXPECT_EQ(f.stats.tokens_selected, 3 * int64_t(list.size()));
          EXPECT_EQ(f.stats.rows_read, int64_t(list.size()));
        }
}

// Half of every second block is another sequence's.
TEST_P(StepTest, MixedBlocksAreListedFurtherDownAndLeftOut) {
  Fixture f({.tokens = 1088,
             .q_heads = 2,
             .kv_heads = 1,
             .settings = {{"min_context", "0"}, {"max_noise", "0"}, {"share", "0.004"}, {"sinks", "0"}}});
  f.append_all();
  f.bias.assign(1088, 0);
  std::vector<uint8_t> mixed(17);
  for (int64_t t = 0; t < 1088; t++) {
    if (t / 64 % 2 == 0 || t % 2 == 0) continue;
    f.bias[t] = -INFINITY;
    mixed[t / 64] = 1;
  }
  adamas_step_params p = f.params(1, 1);
  p.mask = f.bias.data();
  std::vector<float> mass(2), noise(2);
  p.mass = mass.data();
  p.noise = noise.data();
  ASSERT_OK_STEP(f, p);
  std::vector<ReferenceList> heads;
  const std::vector<int32_t> list = f.selection(0);
  for (int h = 0; h < 2; h++) {
    heads.emplace_back(f, p, h, 1088, Estimator::dot, double(noise[h]), list, &mixed);
    EXPECT_NEAR(f.lse[h], heads[h].lse, 1e-2);
    EXPECT_NEAR(mass[h], heads[h].mass, 1e-2);
    for (int d = 0; d < 64; d++)
      ASSERT_NEAR(f.out[h * 64 + d], heads[h].out[d], 2e-2) << "head " << h << ", dimension " << d;
  }
  expect_list(heads, list, 1088);
}

// A head with one important token lists no less than it takes to measure by, and so does a flat one.
TEST_P(StepTest, ListsHaveAFloor) {
  Fixture f({.tokens = 6000, .q_heads = 1, .kv_heads = 1});
  adamas_step_params p = f.params(1, 1);
  for (int d = 0; d < 64; d++) f.k.set(0, 3000, 0, d, 2 * f.q[d]);
  f.append_all();
  const int64_t length = 5952, fewest = fewest_blocks(blocks_of(length));
  p.lengths = &length;
  for (float by : {1.0f, 0.01f}) {
    for (float& x : f.q) x *= by;
    ASSERT_OK_STEP(f, p);
    std::set<int32_t> blocks;
    for (int32_t t : f.selection(0))
      if (t >= f.config.sinks) blocks.insert(t / block_tokens);
    EXPECT_GE(int64_t(blocks.size()), fewest);
    EXPECT_LE(int64_t(f.selection(0).size()), 4 * fewest);
  }
}

// The noise is what the estimate is off by: its variance, over all tokens, as an average over heads.
TEST_P(StepTest, TheNoiseIsTheVarianceOfTheEstimate) {
  for (auto [estimator, which] : {std::pair{"dot", Estimator::dot}, {"manhattan", Estimator::manhattan}}) {
    Fixture f({.tokens = 2000, .q_heads = 8, .kv_heads = 2, .settings = {{"min_context", "0"}, {"estimator", estimator}}});
    f.append_all();
    adamas_step_params p = f.params(1, 1);
    std::vector<float> noise(8);
    p.noise = noise.data();
    ASSERT_OK_STEP(f, p);
    double ratio = 0;
    for (int h = 0; h < 8; h++) {
      const ref::Scores scores = reference_scores(f, h, 2000, which, 0);
      double squares = 0;
      for (int t = 0; t < 2000; t++) {
        const double error = (scores.unit * scores.score[t] + scores.highest_centre) / 8 - exact_score(f, h, t);
        squares += error * error;
      }
      ratio += squares / 2000 / double(noise[h]) / 8;
    }
    EXPECT_NEAR(ratio, 1, 0.12) << estimator;
  }
}

TEST_P(StepTest, ANoisyHeadIsReadDensely) {
  Fixture f({.tokens = 1500, .q_heads = 6, .kv_heads = 2});
  f.append_all();
  adamas_step_params p = f.params(1, 1);
  for (int h : {1, 4, 5})
    for (int d = 0; d < 64; d++) f.q[h * 64 + d] *= 20;
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_sparse, 1);
  EXPECT_EQ(f.stats.heads_guarded, 3);
  for (int h = 0; h < 6; h++)
    EXPECT_EQ(f.selection(h).size(), h == 1 || h >= 4 ? 1500u : f.selection(h == 3 ? 3 : 0).size()) << "head " << h;
  const std::vector<float> out = f.out;
  Fixture full({.tokens = 1500, .q_heads = 6, .kv_heads = 2, .settings = {{"policy", "full"}}});
  full.append_all();
  adamas_step_params q = full.params(1, 1);
  full.q = f.q;
  q.q = full.q.data();
  ASSERT_OK_STEP(full, q);
  for (int h : {1, 4, 5})
    for (int d = 0; d < 64; d++) EXPECT_EQ(full.out[h * 64 + d], out[h * 64 + d]) << "head " << h << ", dimension " << d;
}

TEST_P(StepTest, AFloorForTheMassWidensTheSelection) {
  int64_t before = 0;
  for (const char* floor : {"0", "0.3", "0.6", "1"}) {
    Fixture f({.tokens = 3000, .settings = {{"min_context", "0"}, {"share", "0.02"}, {"min_mass", floor}}});
    f.append_all();
    adamas_step_params p = f.params(1, 1);
    std::vector<float> mass(6);
    p.mass = mass.data();
    ASSERT_OK_STEP(f, p);
    for (float m : mass) {
      EXPECT_GE(m, std::atof(floor));
      EXPECT_LE(m, 1);
    }
    EXPECT_GE(f.stats.tokens_selected, before);
    before = f.stats.tokens_selected;
    if (*floor == '1') {
      EXPECT_EQ(f.stats.heads_widened, 6);
      f.expect_attention(p, 0, 0, 0, [&](int) { return range(3000); });
    }
  }
  EXPECT_EQ(before, 6 * 3000);
}

// The mass that a step reports is the share of the softmax in the tokens that it selected.
TEST_P(StepTest, TheMassIsTheShareOfTheSoftmaxSelected) {
  for (const char* policy : {"adamas", "oracle"}) {
    Fixture f({.tokens = 2000, .settings = {{"min_context", "0"}, {"policy", policy}}});
    f.append_all();
    adamas_step_params p = f.params(1, 1);
    std::vector<float> mass(6);
    p.mass = mass.data();
    ASSERT_OK_STEP(f, p);
    for (int h = 0; h < 6; h++) {
      double all = 0, selected = 0;
      for (int t = 0; t < 2000; t++) all += std::exp(exact_score(f, h, t));
      for (int32_t t : f.selection(h)) selected += std::exp(exact_score(f, h, t));
      EXPECT_NEAR(mass[h], selected / all, *policy == 'o' ? 1e-4 : 0.1) << policy << ", head " << h;
    }
  }
}

// Sinks and recent tokens may be all that the budget has room for, and far below the best token.
TEST_P(StepTest, TheMassIsTrueWhenWhatMustBeSelectedFillsTheBudget) {
  for (const char* floor : {"0", "0.5"}) {
    Fixture f({.tokens = 1500,
               .q_heads = 1,
               .kv_heads = 1,
               .settings = {{"min_context", "0"}, {"budget", "64"}, {"recent", "60"}, {"min_mass", floor}}});
    adamas_step_params p = f.params(1, 1);
    for (int64_t t = 700; t < 710; t++)
      for (int d = 0; d < 64; d++) f.k.set(0, t, 0, d, f.q[d]);
    f.append_all();
    float mass = -1;
    p.mass = &mass;
    ASSERT_OK_STEP(f, p);
    const bool widened = std::atof(floor) > 0;
    EXPECT_EQ(f.stats.heads_widened, widened);
    EXPECT_EQ(mass >= 0.5f, widened) << mass;
  }
}

TEST_P(StepTest, TheOracleSelectsTheTopTokensByTheirTrueScores) {
  Fixture f({.tokens = 1000, .settings = {{"min_context", "0"}, {"policy", "oracle"}, {"budget", "70"}}});
  f.append_all();
  adamas_step_params p = f.params(1, 1);
  ASSERT_OK_STEP(f, p);
  for (int h = 0; h < 6; h++) {
    std::vector<double> scores;
    for (int t = 0; t < 1000; t++) scores.push_back(exact_score(f, h, t));
    std::vector<double> sorted = scores;
    std::sort(sorted.rbegin(), sorted.rend());
    const auto selected = f.selection(h);
    ASSERT_EQ(selected.size(), 70u);
    for (int32_t t : selected) EXPECT_GE(scores[t], sorted[69] - 1.1e-3);
  }
  f.expect_attention(p, 0, 0, 0, [&](int h) { return f.selection(h); });
}

TEST_P(StepTest, TheOracleLeavesOutAKeyThatIsNotANumber) {
  std::vector<int32_t> selected;
  for (bool bad : {false, true}) {
    Fixture f({.tokens = 1000, .settings = {{"min_context", "0"}, {"policy", "oracle"}, {"budget", "70"}, {"sinks", "0"}}});
    if (bad) f.k.set(0, 0, 0, 3, std::numeric_limits<float>::quiet_NaN());
    f.append_all();
    const adamas_step_params p = f.params(1, 1);
    ASSERT_OK_STEP(f, p);
    EXPECT_TRUE(std::isfinite(f.lse[0]));
    if (bad) {
      EXPECT_EQ(f.selection(0), selected);
    }
    selected = f.selection(0);
    ASSERT_NE(selected.front(), 0);
  }
}

// A block that holds rows which a row does not see gives it no mean value: half of every block is another sequence's here,
// with opposite values, so the mean is nothing.
TEST_P(StepTest, HiddenValuesStayOutOfTheTail) {
  Fixture f({.tokens = 2048});
  const std::vector<float> ours = testing::normal_vector(f.random, 64);
  for (int64_t t = 0; t < 2048; t++)
    for (int g = 0; g < 2; g++)
      for (int d = 0; d < 64; d++)
        f.v.set(0, t, g, d, (t % 2 == 0 ? ours[d] : -ours[d]) + 0.1f * float((t * 7 + d) % 11 - 5));
  f.append_all();
  std::vector<float> mask(2048);
  for (int t = 1; t < 2048; t += 2) mask[t] = -INFINITY;
  adamas_step_params p = f.params(1, 1);
  for (float& x : f.q) x *= 0.2f;  // flat: most of the weight is in the tail
  p.mask = mask.data();
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.stats.rows_sparse, 1);
  for (int h = 0; h < 6; h++) {
    double along = 0, squares = 0;
    for (int d = 0; d < 64; d++) {
      along += double(f.out[h * 64 + d]) * ours[d];
      squares += double(ours[d]) * ours[d];
    }
    EXPECT_NEAR(along / squares, 1, 0.15) << "head " << h;
  }
}

// ---- prompts -----------------------------------------------------------------------------------------

TEST_P(StepTest, APromptIsReadDensely) {
  for (const char* policy : {"adamas", "full", "quest"}) {
    Fixture f({.sequences = 2, .tokens = 400, .settings = {{"min_context", "0"}, {"policy", policy}}});
    f.append_all();
    const int64_t sequences[] = {1, 0}, lengths[] = {400, 70};
    adamas_step_params p = f.params(2, 70);
    p.sequences = sequences;
    p.lengths = lengths;
    p.causal = 1;
    p.verify = 1;
    p.verify_rows = 10;
    ASSERT_OK_STEP(f, p);
    EXPECT_EQ(f.stats.rows_dense, 140);
    EXPECT_EQ(f.stats.rows_sparse, 0);
    for (int64_t r : {0, 1, 17, 63, 69})
      for (int64_t b : {0, 1})
        f.expect_attention(p, b, r, sequences[b], [&](int) { return range(int32_t(lengths[b] - 70 + r + 1)); });
    EXPECT_EQ(f.selection(3), range(70)) << "of the last sequence and row";
  }
}

TEST_P(StepTest, FewerRowsAreNoPromptNorAreThoseThatSelect) {
  for (const auto& [name, value, rows] :
       {std::tuple{"prompt", "dense", 63}, {"prompt", "engine", 64}, {"rows", "all", 64}}) {
    Fixture f({.tokens = 400, .settings = fixed({{name, value}})});
    f.append_all();
    adamas_step_params p = f.params(1, rows);
    p.causal = 1;
    ASSERT_OK_STEP(f, p);
    EXPECT_EQ(f.stats.rows_sparse, rows) << name << ' ' << value;
  }
}

TEST_P(StepTest, TheLastRowsOfASparsePromptAreDense) {
  const auto read = [](const char* prompt) {
    Fixture f({.tokens = 1000, .settings = {{"prompt", prompt}}});
    adamas_step_params p = f.params(1, 100);
    const int64_t length = 1000;
    p.lengths = &length;
    p.causal = 1;
    p.scale = 0.5f;
    EXPECT_EQ(adamas_step(f.plan, f.cache, &p), ADAMAS_OK) << adamas_last_error();
    EXPECT_EQ(f.stats.rows_dense, 100);
    return f.out;
  };
  const std::vector<float> sparse = read("sparse"), dense = read("dense");
  double moved = 0, most = 0;  // by rows that leave something out, and by the last
  for (size_t i = 0; i < sparse.size(); i++) {
    double& difference = i < 84 * 6 * 64 ? moved : most;
    difference = std::max(difference, double(std::abs(sparse[i] - dense[i])));
  }
  EXPECT_LT(most, 1e-3);
  EXPECT_GT(moved, 10 * most);
}

TEST_P(StepTest, APromptTakesMaskSlopesSoftcapSinkLogitsAndScales) {
  Fixture f({.tokens = 300, .v_dtype = DType::q8_0});
  constexpr int64_t rows = 66;
  std::vector<float> mask(rows * 300);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t t = 0; t < 300; t++)
      mask[r * 300 + t] = t > 230 + r || (r + t) % 5 == 0 || r == 7 ? -INFINITY : float(t - 300) / 64;
  const float slopes[] = {0.5f, 1, 2, 0.25f, 0, 4}, sinks[] = {0, 1, -2, 3, -INFINITY, 5};
  adamas_step_params p = f.params(1, rows);
  const int64_t length = 300;
  p.lengths = &length;
  p.mask = mask.data();
  p.mask_stride_row = 300 * 4;
  p.slopes = slopes;
  p.sink_logits = sinks;
  p.softcap = 4;
  ASSERT_OK_STEP(f, p);
  for (int64_t r : {0, 1, 33, 65}) {
    std::vector<int32_t> shown;
    for (int t = 0; t < 300; t++)
      if (mask[r * 300 + t] != -INFINITY) shown.push_back(t);
    f.bias.assign(mask.begin() + r * 300, mask.begin() + (r + 1) * 300);
    f.expect_attention(p, 0, r, 0, [&](int) { return shown; });
  }
  for (int h = 0; h < 6; h++)  // nothing but the sink
    for (int d = 0; d < 64; d++) EXPECT_EQ(f.out[(7 * 6 + h) * 64 + d], 0);
  EXPECT_EQ(f.lse[7 * 6 + 4], -INFINITY);
  EXPECT_EQ(f.lse[7 * 6 + 3], 3);

  p.mask = nullptr;  // ALiBi by distance
  p.causal = 1;
  p.k_scale = 0.5f;
  p.v_scale = 2;
  ASSERT_OK_STEP(f, p);
  for (float& x : f.out) x /= 2;
  for (int64_t r : {0, 65}) {
    for (int t = 0; t < 300; t++) f.bias[t] = float(t - (300 - rows + r));
    adamas_step_params half = p;
    half.scale = 0.5f / 8;
    f.expect_attention(half, 0, r, 0, [&](int) { return range(int32_t(300 - rows + r + 1)); });
  }
}

TEST_P(StepTest, APromptIsTheSameForAnyThreadsAndPartsOfWholeBlocks) {
  constexpr int64_t tokens = 1300, rows = 1280;  // more than a pass
  std::vector<float> out;
  for (const char* prompt : {"sparse", "dense"})
    for (int threads : {1, 2, 3, 16}) {
      Fixture f({.tokens = tokens, .settings = {{"prompt", prompt}}, .threads = threads});
      adamas_step_params p = f.params(1, rows);
      const int64_t length = tokens;
      p.lengths = &length;
      p.causal = 1;
      p.scale = 0.5f;
      ASSERT_OK_STEP(f, p);
      if (threads > 1) {
        EXPECT_EQ(f.out, out) << threads << " threads, " << prompt;
        continue;
      }
      EXPECT_NE(f.out, out) << "sparse and dense";
      out = f.out;
    }
  for (int64_t part : {64, 640}) {
    Fixture f({.tokens = 1280});
    const adamas_step_params whole = f.params(1, 1280);
    adamas_step_params p = whole;
    const int64_t all = 1280;
    p.lengths = &all;
    p.causal = 1;
    ASSERT_OK_STEP(f, p);
    out = f.out;
    for (int64_t first = 0; first < 1280; first += part) {
      const int64_t length = first + part;
      p.rows = part;
      p.lengths = &length;
      p.q = static_cast<const float*>(whole.q) + first * 6 * 64;
      p.out = whole.out + first * 6 * 64;
      ASSERT_OK_STEP(f, p);
    }
    EXPECT_EQ(f.out, out) << "parts of " << part;
  }
}

TEST_P(StepTest, APromptAllocatesNothing) {
  Fixture f({.tokens = 700});
  adamas_step_params p = f.params(1, 200);
  const int64_t length = 700;
  p.lengths = &length;
  p.causal = 1;
  ASSERT_OK_STEP(f, p);  // OpenMP makes its threads
  const int64_t before = allocations;
  const adamas_status status = adamas_step(f.plan, f.cache, &p);
  EXPECT_EQ(allocations - before, 0);
  EXPECT_OK(status);
}

TEST_P(StepTest, TokensOfNobodyInAPromptHaveNoEffect) {
  Fixture f({.tokens = 300});
  std::vector<float> mask(70 * 300);
  for (int64_t i = 0; i < 70 * 300; i++) mask[i] = i % 300 > 150 + i / 300 || i % 300 == 40 ? -INFINITY : 0;
  adamas_step_params p = f.params(1, 70);
  const int64_t length = 300;
  p.lengths = &length;
  p.mask = mask.data();
  p.mask_stride_row = 300 * 4;
  ASSERT_OK_STEP(f, p);
  const auto clean = f.out;
  for (int64_t t : {40, 221, 299}) {
    f.k.set(0, t, 0, 5, NAN);
    f.v.set(0, t, 1, 5, INFINITY);
  }
  ASSERT_OK_STEP(f, p);
  EXPECT_EQ(f.out, clean);
}

}  // namespace
}  // namespace adamas
