#include "estimate/estimate.h"

#include <numeric>

#include "codes/codes.h"
#include "core/testing.h"
#include "estimate/estimate_ref.h"

namespace adamas {
namespace {

using testing::Matrix;

class EstimateTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(EstimateTest);

struct Encoded {
  Encoded(const Rows& rows, int head_dim, int64_t blocks, Coding coding)
      : memory(BlockLayout{head_dim}.head_bytes(blocks) / 64),
        scale(blocks),
        sigma(blocks),
        codes{memory.data()->bytes, blocks, scale.data(), sigma.data(), {head_dim}} {
    std::vector<float> scratch(block_tokens * head_dim);
    for (int64_t b = 0; b < blocks; b++) {
      Rows of_block = rows;
      of_block.data += b * block_tokens * rows.stride;
      encode_block(of_block, head_dim, ~uint64_t{0}, b == 0, coding, true, codes.block(b), scratch.data());
    }
  }
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> memory;
  std::vector<float> scale, sigma;
  Codes codes;
};

// The kernels' scores of all blocks, scanned in two uneven pieces, `heads` identical queries at once.
std::vector<std::vector<int16_t>> scores_of(const float* y, int head_dim, Estimator estimator, float threshold,
                                            const Codes& codes, int64_t blocks, int heads) {
  std::vector<int32_t> all(blocks);
  std::iota(all.begin(), all.end(), 0);
  const float reference = reference_sigma(codes, all.data(), blocks);
  std::vector<int16_t> weights(blocks), offsets(blocks);
  std::vector<double> centres(blocks);
  block_weights(codes, all.data(), blocks, reference, weights.data());
  Query query;
  prepare_query(y, head_dim, estimator, threshold, query);
  block_offsets(query, head_dim, estimator, codes, all.data(), blocks, reference, centres.data(), offsets.data());
  std::vector<std::vector<int16_t>> scores(heads, std::vector<int16_t>(blocks * block_tokens));
  const int64_t cut = blocks / 3;
  for (auto [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, blocks}}) {
    const Query* queries[max_scan_heads];
    const int16_t* offsets_of[max_scan_heads];
    int16_t* scores_to[max_scan_heads];
    for (int h = 0; h < heads; h++) {
      queries[h] = &query;
      offsets_of[h] = offsets.data() + first;
      scores_to[h] = scores[h].data() + first * block_tokens;
    }
    scan(queries, heads, head_dim, estimator, codes, all.data() + first, last - first, weights.data() + first, offsets_of,
         scores_to);
  }
  return scores;
}

void expect_reference(const float* y, int head_dim, Estimator estimator, float threshold, const Codes& codes,
                      int64_t blocks) {
  const ref::Scores expected = ref::estimate(y, head_dim, estimator, threshold, codes, blocks);
  for (int heads = 1; heads <= max_scan_heads; heads++)
    for (const auto& got : scores_of(y, head_dim, estimator, threshold, codes, blocks, heads))
      for (size_t t = 0; t < got.size(); t++)
        ASSERT_EQ(got[t], expected.score[t]) << "token " << t << ", " << heads << " heads at once";
}

constexpr Estimator estimators[] = {Estimator::dot, Estimator::manhattan};

TEST_P(EstimateTest, EqualsTheReferenceBitForBit) {
  std::mt19937 random(1);
  const int64_t blocks = 5;
  for (int head_dim : head_dims) {
    Matrix rows(blocks * block_tokens, head_dim, DType::f16);
    rows.fill_normal(random, 2);
    for (int64_t t = 0; t < blocks * block_tokens; t++)
      for (int d = 0; d < head_dim; d += 5) rows.set(t, d, rows.at(t, d) * float(1 + t / 64) + 30);
    for (Coding coding : {Coding::by_block, Coding::paper}) {
      const Encoded encoded(rows.view(), head_dim, blocks, coding);
      for (Estimator estimator : estimators) {
        SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim << ", estimator " << int(estimator));
        std::vector<float> y = testing::normal_vector(random, head_dim, 4);
        expect_reference(y.data(), head_dim, estimator, coding == Coding::paper ? 10.0f : 0.0f, encoded.codes, blocks);
      }
    }
  }
}

TEST_P(EstimateTest, IsDefinedAtTheEdges) {
  std::mt19937 random(2);
  const int head_dim = 64;
  const int64_t blocks = 3;
  Matrix same(blocks * block_tokens, head_dim, DType::f32);
  for (int64_t t = 0; t < blocks * block_tokens; t++)
    for (int d = 0; d < head_dim; d++) same.set(t, d, float(t / block_tokens));  // sigma 0, centres differ
  Matrix zeros(blocks * block_tokens, head_dim, DType::f32);
  Matrix mixed(blocks * block_tokens, head_dim, DType::f32);
  mixed.fill_normal(random);
  for (int64_t t = 0; t < block_tokens; t++)
    for (int d = 0; d < head_dim; d++) mixed.set(t, d, mixed.at(t, d) * 1000);  // one block far above the others
  for (const Matrix* rows : {&same, &zeros, &mixed}) {
    const Encoded encoded(rows->view(), head_dim, blocks, Coding::by_block);
    for (Estimator estimator : estimators)
      for (float size : {0.0f, 1e-35f, 1.0f, 1e15f}) {
        SCOPED_TRACE(size);
        std::vector<float> y = testing::normal_vector(random, head_dim, size);
        for (float& x : y) x = std::clamp(x, -largest_key, largest_key);
        expect_reference(y.data(), head_dim, estimator, 0, encoded.codes, blocks);
      }
  }
}

// All codes 0 against all 3, the largest query: the ends of the range, which must not wrap.
TEST_P(EstimateTest, ReachesTheEndsOfItsRangeWithoutWrapping) {
  const int head_dim = 256;
  Encoded encoded(Matrix(2 * block_tokens, head_dim, DType::f32).view(), head_dim, 2, Coding::by_block);
  for (int b = 0; b < 2; b++) {
    const Block block = encoded.codes.block(b);
    std::fill_n(block.high, encoded.codes.layout.code_words() / 2, b == 0 ? 0u : ~0u);
    std::fill_n(block.low, encoded.codes.layout.code_words() / 2, b == 0 ? 0u : ~0u);
    *block.sigma = 1;
    *block.centre_scale = 1000;
    std::fill_n(block.centre, head_dim, int16_t(b == 0 ? -32767 : 32767));
  }
  std::vector<float> y(head_dim, 1.0f);
  expect_reference(y.data(), head_dim, Estimator::dot, 0, encoded.codes, 2);
  const auto scores = scores_of(y.data(), head_dim, Estimator::dot, 0, encoded.codes, 2, 1)[0];
  EXPECT_EQ(scores[0], -16128 + lowest_centre);
  EXPECT_EQ(scores[block_tokens], 16128);
  expect_reference(y.data(), head_dim, Estimator::manhattan, 0, encoded.codes, 2);
}

// The estimate is an estimate: u S + c_max is near q . k, and its error has the variance that the noise formula says.
TEST_P(EstimateTest, HasTheErrorThatIsPredicted) {
  std::mt19937 random(3);
  const int head_dim = 128;
  const int64_t blocks = 40;
  Matrix rows(blocks * block_tokens, head_dim, DType::f32);
  rows.fill_normal(random);
  const Encoded encoded(rows.view(), head_dim, blocks, Coding::by_block);
  std::vector<float> q = testing::normal_vector(random, head_dim), y = q;
  rotate(y.data(), head_dim);
  const ref::Scores scores = ref::estimate(y.data(), head_dim, Estimator::dot, 0, encoded.codes, blocks);
  double error = 0, norm = 0;
  for (float x : q) norm += double(x) * x;
  for (int64_t t = 0; t < blocks * block_tokens; t++) {
    double truth = 0;
    for (int d = 0; d < head_dim; d++) truth += double(q[d]) * rows.at(t, d);
    const double estimated = scores.unit * scores.score[t] + scores.highest_centre;
    error += (estimated - truth) * (estimated - truth);
  }
  const double predicted = 0.1188 * norm;  // times sigma^2 = 1
  EXPECT_NEAR(error / double(blocks * block_tokens) / predicted, 1, 0.1);
}

}  // namespace
}  // namespace adamas
