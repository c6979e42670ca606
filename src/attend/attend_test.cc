#include "attend/attend.h"

#include <numeric>

#include "attend/attend_ref.h"
#include "core/testing.h"

namespace adamas {
namespace {

using testing::Matrix;

class AttendTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(AttendTest);

struct Case {
  int head_dim;
  DType k_dtype, v_dtype;
  float softcap;
  bool biased;
  float logits;  // size of the scores
};

// A score rounds head_dim + 4 times relative to sum |q_d k_d|; the weight exp(s) moves by as much, relatively; the sum of
// weights and of values rounds once a token. Together |error| <= (2 (head_dim + 8) |s| + tokens + 16) eps max|v|.
void expect_reference(const Case& c, int64_t tokens, int heads) {
  SCOPED_TRACE(::testing::Message() << "head_dim " << c.head_dim << ", dtypes " << int(c.k_dtype) << int(c.v_dtype)
                                    << ", softcap " << c.softcap << ", biased " << c.biased << ", tokens " << tokens
                                    << ", heads " << heads << ", logits " << c.logits);
  std::mt19937 random(7);
  Matrix k(tokens, c.head_dim, c.k_dtype, 2), v(tokens, c.head_dim, c.v_dtype, 6);
  k.fill_normal(random);
  v.fill_normal(random);
  const std::vector<float> bias = testing::normal_vector(random, int(tokens));
  const Attention a{c.head_dim, 1 / std::sqrt(float(c.head_dim)), c.softcap, k.view(),
                    v.view(),   c.biased ? bias.data() : nullptr};
  std::vector<int32_t> all(tokens), odd;
  std::iota(all.begin(), all.end(), 0);
  std::vector<uint64_t> visible(blocks_of(tokens)), odd_visible(blocks_of(tokens));
  for (int32_t t : all) {
    visible[t / 64] |= uint64_t{1} << t % 64;
    if (t % 2 == 1) {
      odd.push_back(t);
      odd_visible[t / 64] |= uint64_t{1} << t % 64;
    }
  }
  std::vector<std::vector<float>> queries;
  std::vector<const float*> q;
  std::vector<float> slopes;
  for (int h = 0; h < heads; h++) {
    queries.push_back(testing::normal_vector(random, c.head_dim, c.logits));
    slopes.push_back(0.5f + float(h));
  }
  for (const auto& row : queries) q.push_back(row.data());

  const auto check = [&](const std::vector<int32_t>& list, auto&& run) {
    std::vector<float> outs(heads * c.head_dim);
    std::vector<SoftmaxState> states(heads);
    for (int h = 0; h < heads; h++) {
      states[h].out = outs.data() + h * c.head_dim;
      states[h].clear(c.head_dim);
    }
    run(states.data());
    for (int h = 0; h < heads; h++) {
      const ref::Attended expected = ref::attend(a, queries[h].data(), slopes[h], list);
      if (list.empty()) {
        EXPECT_EQ(states[h].lse(), expected.lse);
        EXPECT_EQ(states[h].sum, 0);
        continue;
      }
      const double s = 6 * c.logits + 8;
      const double bound = (2 * (c.head_dim + 8) * s + double(list.size()) + 16) * 0x1p-24 * 6;
      EXPECT_NEAR(states[h].lse(), expected.lse, bound + std::abs(expected.lse) * 1e-6);
      for (int d = 0; d < c.head_dim; d++)
        ASSERT_NEAR(states[h].out[d] / states[h].sum, expected.out[d], bound) << "head " << h << ", dimension " << d;
    }
  };
  check(all, [&](SoftmaxState* states) { attend_list(a, q.data(), slopes.data(), heads, all.data(), tokens, states); });
  check(odd, [&](SoftmaxState* states) {
    attend_list(a, q.data(), slopes.data(), heads, odd.data(), int64_t(odd.size()), states);
  });
  check(odd, [&](SoftmaxState* states) {  // in two halves
    std::vector<std::vector<float>> scores(heads, std::vector<float>(odd.size()));
    std::vector<float*> to(heads), outs(heads);
    for (int h = 0; h < heads; h++) to[h] = scores[h].data();
    score_list(a, q.data(), slopes.data(), heads, odd.data(), int64_t(odd.size()), to.data());
    for (int h = 0; h < heads; h++) {
      if (!odd.empty()) states[h].max = *std::max_element(scores[h].begin(), scores[h].end());
      for (float& x : scores[h]) states[h].sum += x = std::exp(x - states[h].max);
      outs[h] = states[h].out;
    }
    add_values(a, odd.data(), to.data(), heads, int64_t(odd.size()), outs.data());
  });
  check(all, [&](SoftmaxState* states) {
    attend_range(a, q.data(), slopes.data(), heads, visible.data(), 0, blocks_of(tokens), states);
  });
  check(odd, [&](SoftmaxState* states) {
    attend_range(a, q.data(), slopes.data(), heads, odd_visible.data(), 0, blocks_of(tokens), states);
  });
}

TEST_P(AttendTest, EqualsTheReferenceWithinItsBound) {
  for (int head_dim : head_dims)
    for (DType dtype : testing::dtypes)
      for (int64_t tokens : {1, 3, 4, 5, 63, 64, 65, 127, 300}) {
        if (!testing::fits(dtype, head_dim)) continue;
        expect_reference({head_dim, dtype, DType::f16, 0, false, 1}, tokens, 1 + int(tokens % max_attend_heads));
        expect_reference({head_dim, DType::bf16, dtype, 0, false, 1}, tokens, 1 + int(tokens % max_attend_heads));
      }
}

TEST_P(AttendTest, TakesSoftcapBiasAndLargeLogits) {
  for (int heads = 1; heads <= max_attend_heads; heads++) {
    expect_reference({64, DType::f16, DType::bf16, 5, false, 3}, 200, heads);
    expect_reference({128, DType::bf16, DType::f32, 0, true, 1}, 200, heads);
    expect_reference({96, DType::f32, DType::f32, 30, true, 10}, 130, heads);
  }
}

TEST_P(AttendTest, StaysFiniteForHugeLogits) {
  std::mt19937 random(3);
  Matrix k(100, 64, DType::f32), v(100, 64, DType::f32);
  k.fill_normal(random, 1e4f);
  v.fill_normal(random);
  const Attention a{64, 1, 0, k.view(), v.view(), nullptr};
  const std::vector<float> query = testing::normal_vector(random, 64, 10);
  const float* q = query.data();
  const float slope = 1;
  std::vector<float> out(64);
  SoftmaxState state;
  state.out = out.data();
  state.clear(64);
  std::vector<int32_t> all(100);
  std::iota(all.begin(), all.end(), 0);
  attend_list(a, &q, &slope, 1, all.data(), 100, &state);
  EXPECT_GE(state.sum, 1.0f - 1e-6f);
  for (float x : out) EXPECT_TRUE(std::isfinite(x));
}

TEST(SoftmaxState, MergingPartsIsTheWhole) {
  float a_out[2] = {1, 2}, b_out[2] = {3, 4}, empty_out[2] = {0, 0};
  SoftmaxState a{5, 1.5f, a_out}, b{7, 2.0f, b_out};
  SoftmaxState empty;
  empty.out = empty_out;
  a.merge(empty, 2);
  EXPECT_EQ(a.max, 5);
  EXPECT_EQ(a.sum, 1.5f);
  a.merge(b, 2);
  EXPECT_NEAR(a.sum, 1.5 * std::exp(-2.0) + 2, 1e-6);
  EXPECT_NEAR(a.out[0], std::exp(-2.0) + 3, 1e-6);
  empty.merge(b, 2);
  EXPECT_EQ(empty.max, 7);
  EXPECT_EQ(empty.out[1], 4);
  empty.clear(2);
  empty.merge_logit(3, 2);
  EXPECT_EQ(empty.lse(), 3);
  EXPECT_EQ(empty.out[0], 0);
}

}  // namespace
}  // namespace adamas
