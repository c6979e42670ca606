#include "select/select.h"

#include "core/testing.h"
#include "select/select_ref.h"

namespace adamas {
namespace {

class SelectTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(SelectTest);

void expect_reference(const std::vector<int16_t>& scores, int64_t k) {
  const std::vector<int32_t> expected = ref::select(scores.data(), int64_t(scores.size()), k);
  std::vector<int32_t> got(std::min<int64_t>(k, int64_t(scores.size())) + 1, -7);
  std::vector<int32_t> scratch(select_scratch(int64_t(scores.size())) / 2 + 1);
  const int64_t count =
      select(scores.data(), int64_t(scores.size()), k, got.data(), reinterpret_cast<int16_t*>(scratch.data()));
  EXPECT_EQ(got.back(), -7) << "wrote past min(k, count)";
  got.resize(count);
  EXPECT_EQ(got, expected) << scores.size() << " scores, k " << k;
}

constexpr int64_t sizes[] = {64, 128, 320, 1024, 8192, 20032};

TEST_P(SelectTest, EqualsSortingForAnySpreadOfScores) {
  std::mt19937 random(1);
  for (int64_t n : sizes)
    for (int spread : {0, 1, 3, 40, 1000, 32766}) {
      std::uniform_int_distribution<int> score(-spread, spread);
      std::vector<int16_t> scores(n);
      for (int16_t& s : scores) s = int16_t(score(random));
      for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{63}, int64_t{64}, int64_t{128}, n - 1, n, n + 5, 10 * n})
        expect_reference(scores, k);
    }
}

TEST_P(SelectTest, NeverTakesHiddenAndAlwaysTakesAlways) {
  std::mt19937 random(2);
  std::uniform_int_distribution<int> percent(0, 99);
  std::normal_distribution<float> normal(0, 300);
  for (int64_t n : sizes)
    for (int hidden : {0, 50, 99, 100}) {
      std::vector<int16_t> scores(n);
      for (int16_t& s : scores)
        s = percent(random) < hidden ? hidden_score : percent(random) < 2 ? always_score : int16_t(normal(random));
      for (int64_t k : {1, 7, 64, 128, 1000}) expect_reference(scores, k);
    }
}

TEST_P(SelectTest, OfTwoHundredThousandEqualScoresTakesTheLast) {
  const std::vector<int16_t> scores(200000, -5);
  for (int64_t k : {1, 128, 199999}) expect_reference(scores, k);
}

TEST_P(SelectTest, MarksWhatReachesABound) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 300);
  std::uniform_int_distribution<int> percent(0, 99);
  for (int64_t n : sizes) {
    std::vector<int16_t> scores(n);
    for (int16_t& s : scores) s = percent(random) < 10 ? hidden_score : int16_t(normal(random));
    std::vector<uint8_t> lower(n / block_tokens);
    for (uint8_t& l : lower) l = percent(random) < 30;
    std::vector<uint64_t> marked(lower.size());
    for (int bound : {-32767, -500, 0, 300, 900, 32766})
      for (const uint8_t* of : {static_cast<const uint8_t*>(nullptr), static_cast<const uint8_t*>(lower.data())}) {
        const int16_t other = int16_t(std::max(bound - 200, -32767));
        int64_t total = 0;
        const int64_t count = mark_reaching(scores.data(), n / block_tokens, int16_t(bound), of, other, marked.data());
        for (int64_t i = 0; i < n; i++) {
          const bool reaches = scores[i] >= (of != nullptr && of[i / block_tokens] ? other : bound);
          ASSERT_EQ(marked[i / block_tokens] >> i % block_tokens & 1, reaches) << i << " of " << n << ", bound " << bound;
          total += reaches;
        }
        EXPECT_EQ(count, total);
      }
  }
}

TEST_P(SelectTest, FindsTheHighestScore) {
  std::vector<int16_t> scores(320, hidden_score);
  EXPECT_EQ(highest_score(scores.data(), 320), hidden_score);
  scores[319] = -32767;
  EXPECT_EQ(highest_score(scores.data(), 320), -32767);
  scores[5] = 32766;
  EXPECT_EQ(highest_score(scores.data(), 320), 32766);
}

TEST_P(SelectTest, TakesNothingForABudgetOfZero) { expect_reference(std::vector<int16_t>(64, 3), 0); }

}  // namespace
}  // namespace adamas
