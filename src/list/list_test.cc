#include "list/list.h"

#include <bit>

#include "core/testing.h"
#include "list/list_ref.h"

namespace adamas {
namespace {

class ListTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(ListTest);

struct Marked {
  int16_t bound;
  std::vector<uint64_t> bits;
  bool operator[](int64_t position) const { return bits[position / block_tokens] >> position % block_tokens & 1; }
  int64_t count() const {
    int64_t sum = 0;
    for (uint64_t b : bits) sum += std::popcount(b);
    return sum;
  }
};

Marked mark(const HeadEstimates& head, double share, double noise, double always) {
  std::vector<float> sums(head.blocks);
  Marked marked{0, std::vector<uint64_t>(head.blocks)};
  const float estimated = weigh_blocks(head.scale, head.scores, head.blocks, sums.data());
  marked.bound = mark_candidates(head, {share, noise, estimated, always}, marked.bits.data());
  return marked;
}

std::vector<int16_t> bell(std::mt19937& random, int64_t blocks, float deviation) {
  std::normal_distribution<float> normal(-4000, deviation);
  std::vector<int16_t> scores(blocks * block_tokens);
  for (int16_t& s : scores) s = int16_t(std::clamp(normal(random), -30000.0f, 16000.0f));
  for (size_t i = 3; i < scores.size(); i += 41) scores[i] = hidden_score;
  return scores;
}

// The weights' sum is right within four percent (rest.h), so the threshold is within 0.04 and a score's unit of the
// reference's: what lies further off is marked, or is not, as the reference says.
TEST_P(ListTest, MarksWhatMayHaveTheShare) {
  std::mt19937 random(1);
  const int64_t blocks = 40;
  std::vector<uint8_t> hidden_rows(blocks);
  for (int64_t b = 1; b < blocks; b += 3) hidden_rows[b] = 1;
  int by_share = 0, by_blocks = 0;
  for (const WeightScale& e : {WeightScale{1e-3, 0, 0, 0}, {2e-3, 5000, 0, 4992}, {1e-3, 3, 20, 2}, {5e-4, -7, 0, -9}})
    for (float deviation : {1500.0f, 3000.0f})
      for (double share : {1e-4, 4e-4, 3e-3})
        for (double noise : {0.0, 0.3, 4.0})
          for (double above : {-double(INFINITY), -2.0, 3.0})  // what is read in any case, against the highest estimate
            for (const uint8_t* has_hidden_rows :
                 {static_cast<const uint8_t*>(nullptr), static_cast<const uint8_t*>(hidden_rows.data())}) {
              const std::vector<int16_t> scores = bell(random, blocks, deviation);
              const HeadEstimates head{e, scores.data(), blocks, has_hidden_rows};
              const double always = above + ref::estimate(e, *std::max_element(scores.begin(), scores.end()));
              const Marked marked = mark(head, share, noise, always);
              const double slack = 0.04 + 2 * e.unit;
              const std::vector<char> surely = ref::candidates(head, share, noise, always, slack),
                                      perhaps = ref::candidates(head, share, noise, always, -slack);
              (ref::least(head, share, noise, always) < ref::edge(head, fewest_blocks(blocks)) ? by_share : by_blocks)++;
              for (int64_t i = 0; i < blocks * block_tokens; i++) {
                // A unit beside an edge is rounding.
                if (std::abs(scores[i] - marked.bound) <= 1) continue;
                ASSERT_LE(surely[i], char(marked[i])) << "score " << scores[i] << " at " << i << ", bound " << marked.bound;
                ASSERT_LE(char(marked[i]), perhaps[i]) << "score " << scores[i] << " at " << i << ", bound " << marked.bound;
                if (marked[i] && !(has_hidden_rows != nullptr && hidden_rows[i / block_tokens])) {
                  ASSERT_GE(scores[i], marked.bound);
                }
              }
            }
  EXPECT_GT(by_share, 50);
  EXPECT_GT(by_blocks, 20);
}

int64_t blocks_of(const Marked& marked) {
  return int64_t(marked.bits.size()) - std::count(marked.bits.begin(), marked.bits.end(), uint64_t{0});
}

TEST_P(ListTest, HasAFloorAndACapOfBlocks) {
  std::mt19937 random(2);
  const WeightScale e{1e-3, 0, 0, 0};
  for (int64_t blocks : {1, 2, 33, 70, 1100, 5000}) {
    const std::vector<int16_t> scores = bell(random, blocks, 300);
    const HeadEstimates head{e, scores.data(), blocks, nullptr};
    for (double share : {1.0, 1e-9}) {  // none reaches it, all do
      const Marked marked = mark(head, share, 0, -INFINITY);
      const std::vector<char> expected = ref::candidates(head, share, 0, -INFINITY);
      int64_t beside = 0;
      for (int64_t i = 0; i < blocks * block_tokens; i++) beside += char(marked[i]) != expected[i];
      EXPECT_LE(beside, 3 + blocks / 100) << "a unit beside the edge, of " << blocks << " blocks";
      if (share == 1) {
        EXPECT_GE(blocks_of(marked), fewest_blocks(blocks));
        EXPECT_LE(blocks_of(marked), 2 * fewest_blocks(blocks) + 8) << blocks;
      } else {
        EXPECT_GE(blocks_of(marked), std::min(blocks, most_blocks(blocks)));
        EXPECT_LE(blocks_of(marked), std::min(blocks, 2 * most_blocks(blocks))) << blocks;
      }
    }
  }
}

// Of scores that are far above each other the lowest edge decides.
TEST_P(ListTest, ListsNothingThatWeighsNothing) {
  std::vector<int16_t> scores(80 * block_tokens, -30000);
  for (int64_t b = 0; b < 5; b++) scores[b * block_tokens + 7] = int16_t(1000 * b);
  const Marked marked = mark({{3e-2, 0, 0, 0}, scores.data(), 80, nullptr}, 4e-4, 0.1, -INFINITY);
  EXPECT_EQ(marked.count(), 2) << "4000, and 3000, which is 30 nats below it";
}

TEST_P(ListTest, OfNothingVisibleMarksNothing) {
  const std::vector<int16_t> scores(2 * block_tokens, hidden_score);
  const Marked marked = mark({{1e-3, 0, 0, 0}, scores.data(), 2, nullptr}, 4e-4, 0.1, 2.0);
  EXPECT_EQ(marked.count(), 0);
}

TEST(List, GivesPositionsAndTokensInOrder) {
  const uint64_t marked[] = {uint64_t{1} << 63 | 1, 0, 0b1010};
  const int32_t ids[] = {0, 4, 9};
  int32_t positions[8], tokens[8];
  ASSERT_EQ(list_marked(marked, ids, 3, positions, tokens), 4);
  EXPECT_EQ(std::vector<int32_t>(positions, positions + 4), (std::vector<int32_t>{0, 63, 129, 131}));
  EXPECT_EQ(std::vector<int32_t>(tokens, tokens + 4), (std::vector<int32_t>{0, 63, 577, 579}));
}

}  // namespace
}  // namespace adamas
