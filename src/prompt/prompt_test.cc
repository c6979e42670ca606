#include "prompt/prompt.h"

#include "core/testing.h"
#include "prompt/prompt_ref.h"

namespace adamas {
namespace {

using testing::Matrix;

class PromptTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(PromptTest);

// Keys, values and queries of one KV head, and what each row sees.
struct Prompt {
  Prompt(int head_dim, int64_t tokens, int64_t rows, int heads, DType k_dtype = DType::f16, DType v_dtype = DType::f16,
         float logits = 1)
      : head_dim(head_dim),
        tokens(tokens),
        heads(heads),
        k(tokens, head_dim, k_dtype, 2),
        v(tokens, head_dim, v_dtype, 6),
        q(rows * heads, head_dim, DType::f32, 4),
        visible(rows, std::vector<uint64_t>(blocks_of(tokens))),
        live(blocks_of(tokens)) {
    std::mt19937 random(uint32_t(head_dim + tokens + rows));
    k.fill_normal(random);
    v.fill_normal(random);
    q.fill_normal(random, logits);
    for (int64_t r = 0; r < rows; r++) seen.push_back({visible[r].data(), blocks_of(tokens), false, nullptr, DType::f32, 0});
  }
  template <class Sees>
  void show(Sees&& sees) {  // sees(row, token)
    for (size_t r = 0; r < seen.size(); r++)
      for (int64_t t = 0; t < tokens; t++)
        if (sees(int64_t(r), t)) {
          visible[r][t / 64] |= uint64_t{1} << t % 64;
          live[t / 64] |= uint64_t{1} << t % 64;
        }
  }
  void show_causal() {
    show([&](int64_t r, int64_t t) { return t <= tokens - int64_t(seen.size()) + r; });
  }
  PromptContext context() const { return {head_dim, scale, softcap, k.view(), v.view(), live.data()}; }
  PromptQuery query(int64_t i, SoftmaxState* state) const {
    return {&seen[i / heads], q.view().row(i), DType::f32, 0.5f + float(i % heads), sparse(i), state};
  }

  struct Result {
    std::vector<SoftmaxState> states;
    std::vector<float> outs;
  };
  // The queries [first, last), `together` at a time.
  Result run(int64_t first, int64_t last, int64_t together) const {
    Result result{std::vector<SoftmaxState>(last - first), std::vector<float>((last - first) * head_dim)};
    std::vector<PromptQuery> queries;
    for (int64_t i = first; i < last; i++) {
      result.states[i - first].out = result.outs.data() + (i - first) * head_dim;
      queries.push_back(query(i, &result.states[i - first]));
    }
    PromptRoom room(head_dim);
    for (int64_t i = 0; i < last - first; i += together)
      attend_prompt(context(), queries.data() + i, int(std::min(together, last - first - i)), room);
    return result;
  }
  Result run() const { return run(0, queries(), prompt_queries(head_dim)); }
  int64_t queries() const { return int64_t(seen.size()) * heads; }

  int head_dim;
  int64_t tokens;
  int heads;
  Matrix k, v, q;
  std::vector<std::vector<uint64_t>> visible;
  std::vector<uint64_t> live;
  std::vector<PromptRow> seen;
  float scale = 0.125f, softcap = 0;
  bool (*sparse)(int64_t query) = [](int64_t) { return false; };
};

double norm(const Rows& rows, int64_t row, int head_dim) {
  double squares = 0;
  for (int d = 0; d < head_dim; d++) {
    const double x = load_f32(rows.row(row), rows.dtype, d);
    squares += x * x;
  }
  return std::sqrt(squares);
}

// docs/numerics.md derives it. A score is wrong by at most `score`, a weight by 0.01% and by half a step of the largest of
// its block (64 of them together: 0.2% of the block), a value by half a step of 1/16000 of its dimension's norm over the
// block. On the average all of these are roundings that know nothing of each other.
void expect_reference(const Prompt& p) {
  const PromptContext a = p.context();
  const Prompt::Result result = p.run();
  double key = 0, value = 0, squares = 0, values = 0, errors = 0;
  int64_t numbers = 0;
  for (int64_t t = 0; t < p.tokens; t++) {
    key = std::max(key, norm(a.k, t, p.head_dim));
    for (int d = 0; d < p.head_dim; d++) {
      const double x = p.v.at(t, d);
      value = std::max(value, std::abs(x));
      squares += x * x;
      values++;
    }
  }
  for (int64_t i = 0; i < p.queries(); i++) {
    const SoftmaxState& state = result.states[i];
    const PromptQuery query = p.query(i, nullptr);
    const ref::Attended expected = ref::attend_prompt(a, query);
    if (std::isinf(expected.lse)) {
      EXPECT_EQ(state.lse(), expected.lse) << "query " << i;
      EXPECT_EQ(state.sum, 0);
      continue;
    }
    const double largest = a.scale * norm(p.q.view(), i, p.head_dim) * key;
    const double biases = query.row->biased ? 2 * query.slope * double(p.tokens) : 0;
    const double score = largest * std::sqrt(p.head_dim) / 32700 + (largest + biases) * 0x1p-20;
    const double bound = (4 * score + 2e-4 + 4e-3 + 3e-4) * value;
    EXPECT_NEAR(state.lse(), expected.lse, score + 1e-4 + 2e-3) << "query " << i;
    for (int d = 0; d < p.head_dim; d++) {
      const double error = state.out[d] / state.sum - expected.out[d];
      ASSERT_LE(std::abs(error), bound) << "query " << i << ", dimension " << d;
      errors += error * error;
      numbers++;
    }
  }
  const double typical = a.scale * norm(p.q.view(), 0, p.head_dim) * key * 2e-5;
  EXPECT_LE(std::sqrt(errors / double(numbers)), (typical + 3e-4) * std::sqrt(squares / values));
}

TEST_P(PromptTest, EqualsTheReferenceWithinItsBound) {
  for (int head_dim : head_dims)
    for (DType dtype : testing::dtypes) {
      if (!testing::fits(dtype, head_dim)) continue;
      SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim << ", dtype " << int(dtype));
      Prompt keys(head_dim, 190, 5, 3, dtype, DType::f16);
      keys.show_causal();
      expect_reference(keys);
      Prompt values(head_dim, 130, 5, 3, DType::bf16, dtype);
      values.show_causal();
      expect_reference(values);
    }
}

TEST_P(PromptTest, TakesAnyNumberOfTokensAndQueries) {
  for (int64_t tokens : {1, 2, 63, 64, 65, 127, 300})
    for (int64_t rows : {1, 3, 17, 64, 70}) {
      if (rows > tokens) continue;
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << rows << " rows");
      Prompt p(64, tokens, rows, 1 + int(tokens % 4), DType::f16, DType::f16, 3);
      p.show_causal();
      expect_reference(p);
    }
}

TEST_P(PromptTest, SeesWhatTheMaskShows) {
  Prompt window(64, 400, 40, 3);
  window.show([&](int64_t r, int64_t t) { return t <= 360 + r && t > 260 + r; });
  expect_reference(window);
  Prompt holes(128, 400, 40, 2);
  holes.show([&](int64_t r, int64_t t) { return (r * 7919 + t * 104729) % 11 < 4 && r % 9 != 5; });
  expect_reference(holes);
}

TEST_P(PromptTest, TakesSoftcapAndLargeScales) {
  for (float scale : {0.125f, 4.0f}) {
    Prompt p(64, 200, 20, 3);
    p.scale = scale;
    p.show_causal();
    expect_reference(p);
    p.softcap = 5;
    expect_reference(p);
  }
}

TEST_P(PromptTest, TakesBiases) {
  for (DType dtype : testing::plain_dtypes) {
    Prompt p(64, 200, 20, 3);
    p.show_causal();
    Matrix mask(20, 200, dtype);
    std::mt19937 random(3);
    mask.fill_normal(random);
    for (size_t r = 0; r < p.seen.size(); r++) {
      p.seen[r].biased = r % 3 != 2;
      p.seen[r].mask_dtype = dtype;
      p.seen[r].mask = mask.view().row(int64_t(r));
    }
    expect_reference(p);
    for (size_t r = 0; r < p.seen.size(); r++) {  // ALiBi without a mask
      p.seen[r].mask = nullptr;
      p.seen[r].newest = 180 + int64_t(r);
    }
    expect_reference(p);
  }
}

TEST_P(PromptTest, KeysWithALargeCommonPart) {  // as models with a bias of K have them
  Prompt p(128, 300, 30, 2, DType::f32, DType::f16);
  for (int64_t t = 0; t < p.tokens; t++)
    for (int d : {3, 77}) p.k.set(t, d, 200);
  p.show_causal();
  expect_reference(p);
}

// Keys of a block lie about a direction of its own, which 16 neighbouring queries look for in their own measure; and what a
// block of values has in a dimension of its own shows whether it was read.
void give_topics(Prompt& p) {
  const int64_t blocks = p.tokens / 64, rows = p.queries();
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> topic(blocks * 64);
  for (float& x : topic) x = normal(random);
  for (int64_t t = 0; t < p.tokens; t++) {
    for (int d = 0; d < 64; d++) p.k.set(t, d, topic[t / 64 * 64 + d] + 0.3f * normal(random));
    p.v.set(t, int(t / 64), 1000);
  }
  std::vector<float> wanted(blocks);
  for (int64_t r = 0; r < rows; r++) {
    if (r % 16 == 0)
      for (float& x : wanted) x = 0.25f * normal(random);
    for (int d = 0; d < 64; d++) {
      float x = 0.1f * normal(random);
      for (int64_t b = 0; b < blocks; b++) x += wanted[b] * topic[b * 64 + d];
      p.q.set(r, d, x);
    }
  }
  p.sparse = [](int64_t) { return true; };
}

TEST_P(PromptTest, SparseQueriesLeaveOutWhatTheReferenceDoes) {
  constexpr int64_t blocks = 20, rows = 192;
  Prompt p(64, blocks * 64, rows, 1);
  give_topics(p);
  p.show_causal();
  const PromptContext a = p.context();
  const Prompt::Result result = p.run();
  const int together = prompt_vector();
  int64_t vectors = 0, pairs = 0, read = 0;
  for (int64_t first = 0; first < rows; first += together) {
    std::vector<PromptQuery> queries;
    for (int64_t i = first; i < std::min(rows, first + together); i++) queries.push_back(p.query(i, nullptr));
    const ref::SparseAttended expected = ref::attend_sparse(a, queries, blocks);
    if (expected.closest < 1.02) continue;  // either is right
    vectors++;
    pairs += blocks;
    read += int64_t(expected.read.size());
    for (size_t j = 0; j < queries.size(); j++) {
      const SoftmaxState& state = result.states[first + int64_t(j)];
      EXPECT_NEAR(state.lse(), expected.queries[j].lse, 3e-3) << "query " << first + int64_t(j);
      for (int d = 0; d < 64; d++)
        EXPECT_NEAR(state.out[d] / state.sum, expected.queries[j].out[d], 0.02 + 5e-3 * std::abs(expected.queries[j].out[d]))
            << "query " << first + int64_t(j) << ", dimension " << d;
    }
  }
  EXPECT_GE(vectors * together, rows / 2);
  EXPECT_GE(read, pairs / 10);
  EXPECT_LE(read, pairs * 9 / 10);
}

TEST_P(PromptTest, SparseQueriesLoseNoMoreThanTheirBound) {
  for (const bool flat : {false, true}) {  // flat: every block of 400 is next to nothing, and together they are half
    constexpr int64_t rows = 40;
    const int64_t tokens = flat ? 25600 : 2000;
    Prompt p(64, tokens, rows, 1, DType::f16, DType::f16, flat ? 0.1f : 8.0f);
    if (flat)
      for (int64_t i = 0; i < rows; i++) p.q.set(i, 3, 60);
    if (flat)
      for (int64_t t = 0; t < tokens; t++) p.k.set(t, 3, t < 64 ? 0.8f : 0);
    p.show_causal();
    const Prompt::Result dense = p.run();
    p.sparse = [](int64_t) { return true; };
    const Prompt::Result sparse = p.run();
    double value = 0, lost = 0;
    for (int64_t t = 0; t < tokens; t++)
      for (int d = 0; d < 64; d++) value = std::max(value, double(std::abs(p.v.at(t, d))));
    for (int64_t i = 0; i < rows; i++) {
      const double loss = dense.states[i].lse() - sparse.states[i].lse();
      lost = std::max(lost, loss);
      EXPECT_GE(loss, -1e-4) << "query " << i;
      EXPECT_LE(loss, std::log1p(negligible_in_all) + 1e-4) << "query " << i;
      for (int d = 0; d < 64; d++)
        EXPECT_NEAR(sparse.states[i].out[d] / sparse.states[i].sum, dense.states[i].out[d] / dense.states[i].sum,
                    2 * -std::expm1(-loss) * value + 1e-3)
            << "query " << i << ", dimension " << d;
    }
    EXPECT_GE(lost, flat ? 0.9 * std::log1p(negligible_in_all) : 1e-4);
  }
}

TEST_P(PromptTest, ADenseQueryMissesNothingAmongSparseOnes) {
  Prompt p(64, 12 * 64, 96, 1);
  give_topics(p);
  p.show_causal();
  p.sparse = [](int64_t) { return false; };
  const Prompt::Result dense = p.run();
  p.sparse = [](int64_t i) { return i % 4 != 1; };
  const auto same = [&](const Prompt::Result& other, int64_t i) {
    return std::equal(&dense.outs[i * 64], &dense.outs[i * 64] + 64, &other.outs[i * 64]);
  };
  const Prompt::Result mixed = p.run();
  for (int64_t i = 1; i < 96; i += 4) EXPECT_TRUE(same(mixed, i)) << "query " << i;
  p.sparse = [](int64_t i) { return i < 48; };
  const Prompt::Result half = p.run();
  int others = 0;
  for (int64_t i = 0; i < 48; i++) others += !same(half, i);
  EXPECT_GT(others, 8);
  for (int64_t i = 48; i < 96; i++) EXPECT_TRUE(same(half, i)) << "query " << i;
}

TEST_P(PromptTest, SparseQueriesTakeMasksAndNoNumbers) {
  Prompt p(64, 12 * 64, 96, 1);
  give_topics(p);
  p.show([](int64_t r, int64_t t) { return t > 100 + r && t < 600 + r && t % 3 != 0 && r % 11 != 5; });
  const Prompt::Result result = p.run();
  for (int64_t i = 0; i < 96; i++) {
    const ref::Attended dense = ref::attend_prompt(p.context(), p.query(i, nullptr));
    if (i % 11 == 5)
      EXPECT_EQ(result.states[i].sum, 0);
    else
      EXPECT_NEAR(result.states[i].lse(), dense.lse, negligible_in_all) << "query " << i;
  }
  p.k.set(400, 5, std::numeric_limits<float>::quiet_NaN());  // seen by all who see anything but a third
  p.v.set(200, 5, std::numeric_limits<float>::infinity());
  const Prompt::Result spoilt = p.run();
  for (int64_t i = 0; i < 96; i++) EXPECT_EQ(std::isnan(spoilt.states[i].sum), i % 11 != 5) << "query " << i;
}

TEST_P(PromptTest, AQueryDoesNotDependOnItsNeighbours) {
  Prompt p(64, 500, 60, 3);
  p.show_causal();
  const Prompt::Result all = p.run();
  for (int64_t together : {1, 5, 48, 100}) {
    const Prompt::Result parts = p.run(0, p.queries(), together);
    EXPECT_EQ(parts.outs, all.outs);
    for (int64_t i = 0; i < p.queries(); i++) {
      EXPECT_EQ(parts.states[i].max, all.states[i].max);
      EXPECT_EQ(parts.states[i].sum, all.states[i].sum);
    }
  }
}

TEST_P(PromptTest, WhatNobodySeesHasNoEffect) {
  Prompt clean(64, 256, 30, 2), spoilt(64, 256, 30, 2);
  for (Prompt* p : {&clean, &spoilt}) p->show([](int64_t r, int64_t t) { return t < 150 + r && t != 77; });
  for (int64_t t : {int64_t{77}, int64_t{180}, int64_t{255}}) {
    spoilt.k.set(t, 5, std::numeric_limits<float>::quiet_NaN());
    spoilt.v.set(t, 6, std::numeric_limits<float>::infinity());
  }
  EXPECT_EQ(clean.run().outs, spoilt.run().outs);
}

TEST_P(PromptTest, WhatIsNoNumberReachesThoseWhoSeeIt) {
  for (bool values : {false, true})
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Prompt p(64, 256, 64, 2), clean(64, 256, 64, 2);
      p.show_causal();
      clean.show_causal();
      (values ? p.v : p.k).set(220, 5, bad);
      const Prompt::Result result = p.run(), expected = clean.run();
      for (int64_t i = 0; i < p.queries(); i++)
        if (192 + i / 2 >= 220)
          EXPECT_TRUE(std::isnan(result.states[i].sum)) << "query " << i;
        else
          EXPECT_NEAR(result.states[i].out[3], expected.states[i].out[3], 5e-3 * expected.states[i].sum) << "query " << i;
    }
  Prompt p(64, 100, 2, 2);
  p.show_causal();
  p.q.set(1, 7, std::numeric_limits<float>::quiet_NaN());
  const Prompt::Result result = p.run();
  for (int64_t i = 0; i < 4; i++) EXPECT_EQ(std::isnan(result.states[i].sum), i == 1);
}

TEST_P(PromptTest, StaysFiniteForHugeLogits) {
  Prompt p(64, 100, 10, 2, DType::f32, DType::f32, 1e4f);
  for (int64_t t = 0; t < p.tokens; t++) p.k.set(t, int(t % 64), 1e5f);
  p.show_causal();
  const Prompt::Result result = p.run();
  for (const SoftmaxState& state : result.states) EXPECT_GE(state.sum, 0.999f);
  for (float x : result.outs) EXPECT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace adamas
