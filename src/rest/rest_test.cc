#include "rest/rest.h"

#include <numeric>

#include "core/testing.h"
#include "rest/rest_ref.h"

namespace adamas {
namespace {

class RestTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(RestTest);

TEST_P(RestTest, WeighsAsTheReferenceDoes) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> score(-32767, 16128);
  std::vector<int16_t> scores(64 * 9);
  for (int16_t& s : scores) s = int16_t(score(random));
  for (size_t i = 0; i < scores.size(); i += 7) scores[i] = hidden_score;
  // A common centre of thousands, a softcap, units from nearly flat to steep, and estimates a little and far above the
  // reference.
  for (const WeightScale& e : {WeightScale{1e-4, 0, 0, 0},
                               {1e-3, 5000, 0, 5004},
                               {3e-3, -20, 30, 5},
                               {0.01, 0, 0, 100},
                               {1e-3, 50, 0, 60},
                               {1e-3, 47, 0, 0}}) {
    std::vector<float> weights(scores.size()), blocks(9);
    weigh(e, scores.data(), int64_t(scores.size()), weights.data());
    const float all = weigh_blocks(e, scores.data(), 9, blocks.data());
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
  }
}

TEST_P(RestTest, WeighsExactScoresWithinRounding) {
  std::mt19937 random(2);
  for (int64_t count : {0, 1, 15, 64, 65, 200}) {
    std::vector<float> scores = testing::normal_vector(random, int(padded(count)) + 1, 20), given = scores;
    const float max = highest_exact(scores.data(), count);
    EXPECT_EQ(max, count == 0 ? -INFINITY : *std::max_element(given.begin(), given.begin() + count));
    const float sum = weigh_exact(scores.data(), max, count);
    double expected = 0;
    for (int64_t i = 0; i < count; i++) {
      const double weight = std::exp(double(given[i]) - double(max));
      ASSERT_NEAR(scores[i], weight, 1e-5 * weight + 1e-37);  // differences of 70 are rounded to 4e-6
      expected += weight;
    }
    for (int64_t i = count; i < padded(count); i++) EXPECT_EQ(scores[i], 0);
    EXPECT_EQ(scores.back(), given.back()) << "wrote past the padding";
    EXPECT_NEAR(sum, expected, 1e-5 * expected);
  }
}

TEST_P(RestTest, SaysWhatIsNoNumber) {
  for (int64_t count : {3, 70})
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
      for (int64_t at = 0; at < count; at++) {
        std::vector<float> scores(count, 1.0f);
        scores[at] = bad;
        EXPECT_TRUE(std::isnan(highest_exact(scores.data(), count))) << "at " << at << " of " << count;
      }
  std::vector<float> none(5, -INFINITY);
  EXPECT_EQ(highest_exact(none.data(), 5), -INFINITY);
  EXPECT_EQ(weigh_exact((none.resize(64), none.data()), 0, 5), 0);
}

// Scores of `blocks` blocks and a list of some of their tokens, whose exact scores are what the estimates say and a good
// deal of noise.
struct Head {
  Head(uint32_t seed, int64_t blocks, int64_t count, WeightScale e, bool with_hidden)
      : random(seed), scores(blocks * block_tokens), has_hidden_rows(blocks) {
    std::normal_distribution<float> normal(0, 900);
    std::uniform_int_distribution<int> percent(0, 99);
    for (int16_t& s : scores) s = int16_t(std::clamp(normal(random), -30000.0f, 16000.0f));
    for (int16_t& s : scores) s = percent(random) < 3 ? hidden_score : s;  // sinks, fresh and hidden ones
    for (uint8_t& m : has_hidden_rows) m = with_hidden && percent(random) < 40;
    std::vector<int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] / 700 > scores[b] / 700; });
    positions.assign(order.begin(), order.begin() + count);
    for (int64_t i = 0; i < count / 4; i++) positions[i] = order[random() % order.size()];  // and others, of other heads
    std::sort(positions.begin(), positions.end());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    std::normal_distribution<float> noise(0, 0.7f);
    for (int32_t p : positions) {
      double s = e.unit * (scores[p] == hidden_score ? -1000 : scores[p]) + e.highest;
      if (e.softcap > 0) s = e.softcap * std::tanh(s / e.softcap);
      exact.push_back(float(s) + noise(random));
    }
    listed.assign(blocks, 0);
    for (int32_t p : positions) listed[p / block_tokens] |= uint64_t{1} << p % block_tokens;
    list = {
        e,     0, listed.data(), positions.data(), int64_t(positions.size()), with_hidden ? has_hidden_rows.data() : nullptr,
        blocks};
    std::vector<int16_t> own;
    for (int32_t p : positions)
      if (scores[p] != hidden_score) own.push_back(scores[p]);
    std::sort(own.begin(), own.end());
    list.bound = own.empty() ? int16_t(0) : own[own.size() / 3];
  }
  std::mt19937 random;
  std::vector<int16_t> scores;
  std::vector<uint8_t> has_hidden_rows;
  std::vector<uint64_t> listed;
  std::vector<int32_t> positions;
  std::vector<float> exact;
  HeadList list;
};

// Weights of estimates are within four percent, so which tokens weigh at most twice the least is, too: the factor and the
// low tokens' share move by what the few in question weigh. The bounds below hold for sums; single weights are told by what
// they add up to.
TEST_P(RestTest, ListAndRestAreWhatTheReferenceSays) {
  for (const WeightScale& e :
       {WeightScale{2e-3, 3, 0, 3}, {2e-3, 40, 0, 38}, {4e-3, 10, 30, 9}, {1e-3, 900, 0, 925}, {2e-3, 3, 0, -20}})
    for (int64_t count : {1, 20, 300, 900})
      for (bool with_hidden : {false, true}) {
        SCOPED_TRACE(::testing::Message() << "unit " << e.unit << ", highest " << e.highest << ", softcap " << e.softcap
                                          << ", max " << e.max << ", " << count << " listed, hidden rows " << with_hidden);
        Head head(uint32_t(count), 40, count, e, with_hidden);
        const ref::Rest expected = ref::rest(head.list, head.scores, {head.exact.begin(), head.exact.end()});
        const std::vector<int16_t>& scores = head.scores;
        std::vector<int16_t> estimated(rest_room(head.list.count));
        std::vector<int32_t> low_positions(estimated.size());
        std::vector<float> sums(40), weights = head.exact, guesses(estimated.size()), low_weights(estimated.size());
        weights.resize(estimated.size());
        head.positions.resize(estimated.size());
        head.list.positions = head.positions.data();
        weigh_blocks(e, scores.data(), 40, sums.data());
        const Measured measured =
            measure_rest(head.list, scores.data(), sums.data(), weights.data(), estimated.data(), guesses.data());
        EXPECT_EQ(measured.max, float(expected.max));
        EXPECT_NEAR(measured.listed, expected.listed, 1e-5 * expected.listed);
        const double off = 0.12 * (expected.rest + expected.beside_hidden);
        EXPECT_NEAR(measured.rest, expected.rest, off + 1e-30);
        EXPECT_NEAR(measured.beside_hidden, expected.beside_hidden, off + 1e-30);
        EXPECT_NEAR(measured.mass(), expected.mass(), 0.03);
        for (int64_t i = 0; i < head.list.count; i++) EXPECT_EQ(estimated[i], scores[head.list.positions[i]]);
        lean_rest(head.list, measured, estimated.data(), weights.data(), sums.data(), low_positions.data(),
                  low_weights.data());
        double total = 0, expected_total = 0, leaned = 0;
        for (int64_t i = 0; i < head.list.count; i++) {
          total += double(weights[i]);
          const double own = std::exp(double(head.exact[i]) - expected.max);
          leaned += double(weights[i]) - own;
          const double grown = double(lean) * double(measured.rest) / double(measured.low);
          const bool is_low = estimated[i] >= head.list.bound && estimated[i] <= measured.low_top &&
                              !(with_hidden && head.has_hidden_rows[head.list.positions[i] / block_tokens]);
          ASSERT_NEAR(weights[i], is_low ? own * (1 + grown) : own, 2e-5 * own * (1 + (is_low ? grown : 0)))
              << "token " << i;
          expected_total += expected.weights[i];
        }
        for (int64_t b = 0; b < 40; b++) {
          total += double(sums[b]);
          expected_total += expected.means[b];
          if (head.has_hidden_rows[b] && with_hidden) {
            EXPECT_EQ(sums[b], 0) << "block " << b;
          }
        }
        EXPECT_NEAR(total, double(measured.listed) + double(measured.rest), 1e-4 * total)
            << "the lean takes from means what it gives to values";
        EXPECT_NEAR(total, expected_total, off + 1e-4 * total);
        if (measured.low > 0) {
          EXPECT_NEAR(leaned, double(lean) * double(measured.rest), 1e-3 * leaned + 1e-5 * total)
              << "half of the rest leans";
        }
      }
}

// What a sum over all tokens would leave of itself when the list's weights are taken off it is rounding where the list
// outweighs everything.
TEST_P(RestTest, TheRestIsNotWhatRoundingLeaves) {
  std::vector<int16_t> scores(128, -9000), estimated(128);
  std::vector<float> sums(2), weights(128), guesses(128);
  const uint64_t listed[] = {bits_between(0, 20), 0};
  std::vector<int32_t> positions(20);
  std::iota(positions.begin(), positions.end(), 0);
  for (int32_t p : positions) scores[p] = 9000;
  const WeightScale e{2e-3, 0, 0, 0};  // e^36 between them
  weigh_blocks(e, scores.data(), 2, sums.data());
  const HeadList list{e, 9000, listed, positions.data(), 20, nullptr, 2};
  const Measured measured = measure_rest(list, scores.data(), sums.data(), weights.data(), estimated.data(), guesses.data());
  EXPECT_NEAR(double(measured.rest), 108 * std::exp(-36.0), 0.1 * 108 * std::exp(-36.0));
}

TEST_P(RestTest, AddsMeansForManyHeads) {
  std::mt19937 random(3);
  for (int head_dim : {64, 80, 112, 128, 256})
    for (int heads = 1; heads <= max_mean_heads; heads++) {
      std::vector<int16_t> mean(20 * head_dim);
      std::vector<float> scale = testing::normal_vector(random, 20);
      for (int16_t& m : mean) m = int16_t(random());
      const std::vector<int32_t> blocks{1, 2, 3, 7, 19};
      std::vector<std::vector<float>> weights, outs;
      std::vector<const float*> weight;
      std::vector<float*> out;
      for (int h = 0; h < heads; h++) {
        weights.push_back(testing::normal_vector(random, 5));
        outs.push_back(std::vector<float>(head_dim, 1.0f));
      }
      for (int h = 0; h < heads; h++) weight.push_back(weights[h].data()), out.push_back(outs[h].data());
      add_means({{mean.data(), head_dim * 2}, {scale.data(), 4}}, head_dim, blocks.data(), weight.data(), heads, 5,
                out.data());
      for (int h = 0; h < heads; h++)
        for (int d = 0; d < head_dim; d++) {
          double expected = 1, size = 1;
          for (int i = 0; i < 5; i++) {
            const double x = double(weights[h][i]) * double(scale[blocks[i]]) * mean[blocks[i] * head_dim + d];
            expected += x;
            size += std::abs(x);
          }
          ASSERT_NEAR(outs[h][d], expected, 1e-6 * size) << "head " << h << ", dimension " << d;
        }
    }
}

}  // namespace
}  // namespace adamas
