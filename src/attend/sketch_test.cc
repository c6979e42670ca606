#include "attend/sketch.h"

#include <numeric>

#include "attend/sketch_ref.h"
#include "codes/codes.h"
#include "core/testing.h"

namespace adamas {
namespace {

class SketchTest : public testing::OnEveryDevice {};
ADAMAS_ON_EVERY_DEVICE(SketchTest);

TEST_P(SketchTest, WeighsAsTheReferenceDoes) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> score(-32767, 16128);
  std::vector<int16_t> scores(64 * 9);
  for (int16_t& s : scores) s = int16_t(score(random));
  for (size_t i = 0; i < scores.size(); i += 7) scores[i] = hidden_score;
  for (size_t i = 3; i < scores.size(); i += 100) scores[i] = always_score;  // stands for no estimate
  // A common centre of thousands, a softcap, units from nearly flat to steep, and estimates a little and far above the reference.
  for (const Estimated& e : {Estimated{1e-4, 0, 0, 0}, {1e-3, 5000, 0, 5004}, {3e-3, -20, 30, 5}, {0.01, 0, 0, 100}, {1e-3, 50, 0, 60}, {1e-3, 47, 0, 0}}) {
    std::vector<float> weights(scores.size()), blocks(9);
    weigh(e, scores.data(), int64_t(scores.size()), weights.data());
    std::vector<int16_t> estimates = scores;
    std::replace(estimates.begin(), estimates.end(), always_score, hidden_score);
    const float all = weigh_blocks(e, estimates.data(), 9, blocks.data());
    double total = 0;
    for (int b = 0; b < 9; b++) {
      double sum = 0;
      for (int t = 0; t < 64; t++) {
        const double expected = ref::weight(e, scores[b * 64 + t]);
        ASSERT_NEAR(weights[b * 64 + t], expected, 4e-2 * expected + 1e-33) << "score " << scores[b * 64 + t];
        sum += double(weights[b * 64 + t]);
      }
      ASSERT_NEAR(blocks[b], sum, 1e-5 * sum + 1e-33);
      total += sum;
    }
    EXPECT_NEAR(all, total, 1e-5 * total + 1e-33);
    EXPECT_EQ(weights[7], 0);
    EXPECT_EQ(weights[3], 0);
  }
}

TEST_P(SketchTest, SumsTheWeightsOfTokensWithAnEstimate) {
  for (int enough : {int(enough_known) - 1, int(enough_known)}) {  // tokens that weigh at most twice the least
    std::vector<int16_t> scores(128, 5);
    std::vector<float> estimated(128), exact(128);
    double low = 0, low_exact = 0, all = 0, all_exact = 0;
    int lows = 0;
    for (int i = 0; i < 128; i++) {
      scores[i] = i % 5 == 0 ? hidden_score : i % 7 == 0 ? always_score : int16_t(i);
      const bool known = i < 77 && scores[i] != hidden_score && scores[i] != always_score;
      const bool is_low = known && lows < enough;
      estimated[i] = is_low ? 0.5f + float(i) / 1000 : !known ? 0.001f : 2.0f + float(i);
      exact[i] = float(i);
      lows += is_low;
      if (is_low) low += double(estimated[i]), low_exact += double(exact[i]);
      if (known) all += double(estimated[i]), all_exact += double(exact[i]);
    }
    const KnownSums sums = sum_known(scores.data(), estimated.data(), exact.data(), 77);
    const bool few = enough < enough_known;
    EXPECT_NEAR(sums.estimated, few ? all : low, 1e-3);
    EXPECT_NEAR(sums.exact, few ? all_exact : low_exact, 1e-3);
  }
}

TEST_P(SketchTest, ListsTheTokensThatWereNotSelected) {
  std::mt19937 random(3);
  for (int count : {0, 1, 15, 16, 17, 128, 433}) {
    const int room = (count + 63) / 64 * 64;
    std::vector<uint8_t> selected(room, 0);
    std::vector<int32_t> tokens(room), listed(room);
    std::vector<float> changes(room), weights(room);
    const std::vector<float> estimated = testing::normal_vector(random, room), exact = testing::normal_vector(random, room);
    for (int i = 0; i < count; i++) selected[i] = random() % 3 == 0, tokens[i] = 5 * i;
    const Listed others = list_others(selected.data(), tokens.data(), estimated.data(), exact.data(), 0.5f, count, changes.data(), listed.data(), weights.data());
    int64_t n = 0;
    double sum = 0;
    for (int i = 0; i < count; i++) {
      ASSERT_NEAR(changes[i], (selected[i] ? 0 : exact[i]) - 0.5f * estimated[i], 1e-6);
      if (selected[i]) continue;
      sum += double(exact[i]);
      ASSERT_EQ(listed[n], tokens[i]);
      ASSERT_EQ(weights[n++], exact[i]);
    }
    EXPECT_EQ(others.count, n);
    EXPECT_NEAR(others.sum, sum, 1e-4);
  }
}

TEST_P(SketchTest, SettlesSumsAndKeepsTheLargeOnes) {
  std::mt19937 random(4);
  for (int count : {1, 15, 16, 17, 255}) {
    std::vector<float> sums = testing::normal_vector(random, (count + 15) / 16 * 16), expected(sums.begin(), sums.begin() + count);
    std::vector<int32_t> blocks(sums.size()), kept(sums.size());
    double total = 0, large = 0;
    for (int i = 0; i < count; i++) {
      blocks[i] = 3 * i;
      expected[i] = std::max(0.0f, expected[i]);
      total += double(expected[i]);
    }
    EXPECT_NEAR(settle(sums.data(), count), total, 1e-3);
    for (int i = 0; i < count; i++) ASSERT_EQ(sums[i], expected[i]);
    const Kept of = keep_large(blocks.data(), count, 0.5f, sums.data(), kept.data());
    int64_t n = 0;
    for (int i = 0; i < count; i++) {
      if (!(expected[i] > 0.5f)) continue;
      ASSERT_EQ(kept[n], blocks[i]);
      ASSERT_EQ(sums[n++], expected[i]);
      large += double(expected[i]);
    }
    EXPECT_EQ(of.count, n);
    EXPECT_NEAR(of.sum, large, 1e-3);
  }
}

TEST_P(SketchTest, WeighsAndRanksExactScores) {
  std::vector<float> scores{5, 4.9994f, 4.9996f, 0, -27.7f, -27.8f, -1000, -INFINITY, NAN, 4.5f};
  scores.resize(64, -INFINITY);
  std::vector<float> weights(64);
  std::vector<int16_t> ranks(64);
  weigh_exact(scores.data(), 5, 64, weights.data());
  rank_exact(scores.data(), 5, 64, ranks.data());
  const std::vector<int16_t> expected{0, -1, 0, -5000, -32700, -32767, -32767, -32767, -32767, -500};
  for (size_t i = 0; i < expected.size(); i++) EXPECT_EQ(ranks[i], expected[i]) << scores[i];
  for (int i : {0, 1, 2, 3, 4, 5, 9}) EXPECT_NEAR(weights[i], std::exp(double(scores[i]) - 5), 2e-5 * std::exp(double(scores[i]) - 5));
  for (int i : {6, 7, 63}) EXPECT_LT(weights[i], 1e-34f);
}

TEST_P(SketchTest, AddsLevelsAndMeansOfTheCodes) {
  std::mt19937 random(2);
  for (int head_dim : head_dims) {
    const int64_t blocks = 5, tokens = blocks * block_tokens;
    const BlockLayout layout{head_dim, Coded::values};
    std::vector<uint64_t> memory(layout.head_bytes(blocks) / 8);
    std::vector<float> scale(blocks), sigma(blocks), scratch(block_tokens * head_dim);
    const Codes values{reinterpret_cast<std::byte*>(memory.data()), blocks, scale.data(), sigma.data(), layout};
    testing::Matrix rows(tokens, head_dim, DType::f16, 6);
    rows.fill_normal(random, 2);
    for (int64_t b = 0; b < blocks; b++) {
      Rows block = rows.view();
      block.data += b * block_tokens * block.stride;
      encode_block(block, head_dim, ~uint64_t{0} >> (b == 4 ? 20 : 0), b == 0, Coding::by_block, true, values.block(b), scratch.data());
    }
    for (int count : {0, 1, 3, 64, 200}) {
      std::vector<int32_t> chosen(count), all(blocks);
      for (int32_t& t : chosen) t = int32_t(random() % (tokens - 20));
      std::iota(all.begin(), all.end(), 0);
      const std::vector<float> weights = testing::normal_vector(random, count + int(blocks));
      std::vector<float> levels(head_dim, 0.5f), means(head_dim, -0.25f);
      add_levels(values, head_dim, chosen.data(), weights.data(), count, levels.data());
      add_means(values, head_dim, all.data(), weights.data() + count, blocks, 1.5f, means.data());
      for (int d = 0; d < head_dim; d++) {
        double level = 0.5, mean = -0.25, size = 1;
        for (int i = 0; i < count; i++) {
          level += double(weights[i]) * ref::level_value(values, chosen[i], d);
          size += std::abs(weights[i]) * 9 * sigma[chosen[i] / 64];  // 4 + 2 + 3 steps
        }
        for (int64_t b = 0; b < blocks; b++) mean += 1.5 * double(weights[count + b]) * ref::mean_value(values, b, d);
        ASSERT_NEAR(levels[d], level, size * (count + 4) * 0x1p-24) << "head_dim " << head_dim << ", " << count << " tokens, dimension " << d;
        ASSERT_NEAR(means[d], mean, 1e-5) << "head_dim " << head_dim << ", dimension " << d;
      }
    }
  }
}

}  // namespace
}  // namespace adamas
