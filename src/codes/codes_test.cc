#include "codes/codes.h"

#include <limits>

#include "codes/codes_ref.h"
#include "core/testing.h"

namespace adamas {
namespace {

using testing::Matrix;

class CodesTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(CodesTest);

// A record of its own, filled with garbage first: encoding must set every byte.
struct OneBlock {
  explicit OneBlock(int head_dim) : layout{head_dim}, record(layout.head_bytes(1) / 8, 0xDEADBEEFDEADBEEFu) {}
  Block block() { return codes().block(0); }
  Codes codes() { return {reinterpret_cast<std::byte*>(record.data()), 1, &centre_scale, &sigma, layout}; }
  std::vector<std::byte> bytes() {
    const auto* first = reinterpret_cast<std::byte*>(record.data());
    return {first, first + layout.block_bytes()};
  }
  BlockLayout layout;
  std::vector<uint64_t> record;
  float centre_scale = -1, sigma = -1;
};

void encode(OneBlock& to, const Rows& rows, uint64_t live, bool first, Coding coding = Coding::by_block,
            bool rotated = false) {
  std::vector<float> scratch(block_tokens * to.layout.head_dim);
  encode_block(rows, to.layout.head_dim, live, first, coding, !rotated, to.block(), scratch.data());
}

void expect_reference(const Rows& rows, int head_dim, uint64_t live, bool first, Coding coding, bool rotated = false) {
  const ref::BlockCodes expected = ref::encode_block(rows, head_dim, live, first, coding, rotated);
  OneBlock got(head_dim);
  encode(got, rows, live, first, coding, rotated);
  const Block block = got.block();
  EXPECT_EQ(*block.centre_scale, expected.centre_scale);
  EXPECT_EQ(*block.sigma, expected.sigma);
  for (int d = 0; d < head_dim; d++) ASSERT_EQ(block.centre[d], expected.centre[d]) << "centre at " << d;
  for (int t = 0; t < block_tokens; t++) {
    ASSERT_EQ(block.hash[t], expected.hash[t]) << "hash of token " << t;
    for (int d = 0; d < head_dim; d++)
      ASSERT_EQ(ref::code_at(block, t, d), expected.code[t * head_dim + d]) << "token " << t << ", dimension " << d;
  }
  for (int t = 0; head_dim % chunk_dims != 0 && t < block_tokens; t++)
    ASSERT_EQ((block.high[block.word(t, chunks(head_dim) - 1)] | block.low[block.word(t, chunks(head_dim) - 1)]) >> 16, 0u);
}

constexpr uint64_t live_sets[] = {
    0, 1, 0b1000, 0b1111, 0b11111, ~uint64_t{0} >> 1, ~uint64_t{0}, 0x8000000000000001u, 0xF0F00FF012345678u};

TEST_P(CodesTest, EqualTheReference) {
  std::mt19937 random(1);
  for (int head_dim : head_dims)
    for (DType dtype : testing::dtypes)
      for (uint64_t live : live_sets)
        for (bool first : {false, true}) {
          if (!testing::fits(dtype, head_dim)) continue;
          SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim << ", dtype " << int(dtype) << ", live " << std::hex
                                            << live << ", first " << first);
          Matrix rows(block_tokens, head_dim, dtype, dtype == DType::f32 ? 12 : 6);
          std::normal_distribution<float> normal(0, 3);
          rows.fill([&](int64_t, int d) { return normal(random) + float(d % 7) * 20; });
          expect_reference(rows.view(), head_dim, live, first, Coding::by_block);
          expect_reference(rows.view(), head_dim, live, first, Coding::paper);
          expect_reference(rows.view(), head_dim, live, first, Coding::by_block, true);
          std::vector<int16_t> mean(head_dim, 0x5A5A);
          std::vector<float> scratch(block_tokens * head_dim),
              expected = ref::mean_value(rows.view(), head_dim, live, first);
          float scale = -1;
          encode_mean(rows.view(), head_dim, live, first, mean.data(), &scale, scratch.data());
          for (int d = 0; d < head_dim; d++) ASSERT_EQ(float(mean[d]) * scale, expected[d]) << "mean value at " << d;
        }
}

TEST_P(CodesTest, AreDefinedForRowsWithoutDeviation) {
  for (float value : {0.0f, 1.0f, -2.5f, 1e-38f, 60000.0f}) {
    Matrix rows(block_tokens, 64, DType::f32);
    for (int t = 0; t < block_tokens; t++)
      for (int d = 0; d < 64; d++) rows.set(t, d, value);
    expect_reference(rows.view(), 64, ~uint64_t{0}, false, Coding::by_block);
  }
}

TEST_P(CodesTest, ABadElementSpoilsOnlyItsRow) {
  std::mt19937 random(2);
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity(), 3e38f};
  for (DType dtype : testing::dtypes) {
    Matrix rows(block_tokens, 128, dtype);
    rows.fill_normal(random);
    for (int i = 0; i < 4; i++) rows.set(10 * i, i, bad[i]);
    expect_reference(rows.view(), 128, ~uint64_t{0}, false, Coding::by_block);
  }
}

TEST_P(CodesTest, DoNotDependOnRowsThatAreNotLive) {
  std::mt19937 random(3);
  Matrix rows(block_tokens, 64, DType::f16);
  rows.fill_normal(random);
  const uint64_t live = 0x00FF00FF00FF00FFu;
  OneBlock before(64), after(64);
  encode(before, rows.view(), live, false);
  for (int t = 0; t < block_tokens; t++)
    if (!(live >> t & 1))
      for (int d = 0; d < 64; d++) rows.set(t, d, d % 2 == 0 ? std::nanf("") : INFINITY);
  encode(after, rows.view(), live, false);
  EXPECT_EQ(before.bytes(), after.bytes());
  EXPECT_EQ(before.sigma, after.sigma);
}

TEST_P(CodesTest, ASingleChangedBitChangesTheHash) {
  std::mt19937 random(4);
  for (DType dtype : testing::dtypes) {
    Matrix rows(block_tokens, 96, dtype);
    rows.fill_normal(random);
    OneBlock made(96);
    encode(made, rows.view(), ~uint64_t{0}, false);
    const Codes codes = made.codes();
    std::vector<int32_t> all(block_tokens);
    for (int t = 0; t < block_tokens; t++) all[t] = t;
    EXPECT_EQ(count_stale(rows.view(), 96, codes, all.data(), block_tokens), 0);
    const int64_t bytes = row_bytes(dtype, 96);
    for (int32_t t : {0, 17, 63})
      for (int64_t at : {2 * t % bytes, bytes - 1}) {
        auto* byte = const_cast<std::byte*>(rows.view().row(t)) + at;
        *byte ^= std::byte{0x10};
        EXPECT_EQ(count_stale(rows.view(), 96, codes, all.data(), block_tokens), 1)
            << "dtype " << int(dtype) << ", token " << t;
        EXPECT_EQ(count_stale(rows.view(), 96, codes, &t, 1), 1);
        *byte ^= std::byte{0x10};
      }
  }
}

// A caller that rotates its rows itself gets the codes of the rows as they were before.
TEST_P(CodesTest, OfRotatedRowsAreThoseOfTheRows) {
  std::mt19937 random(6);
  for (int head_dim : head_dims) {
    Matrix rows(block_tokens, head_dim, DType::f32), turned(block_tokens, head_dim, DType::f32);
    rows.fill_normal(random, 2);
    for (int t = 0; t < block_tokens; t++) {
      std::vector<float> row(head_dim);
      for (int d = 0; d < head_dim; d++) row[d] = rows.at(t, d);
      rotate(row.data(), head_dim);
      for (int d = 0; d < head_dim; d++) turned.set(t, d, row[d]);
    }
    OneBlock ours(head_dim), callers(head_dim);
    encode(ours, rows.view(), ~uint64_t{0}, true);
    encode(callers, turned.view(), ~uint64_t{0}, true, Coding::by_block, true);
    const auto without_hashes = [](OneBlock& made) {  // the rows' bytes differ
      const std::vector<std::byte> all = made.bytes();
      return std::vector<std::byte>(all.begin(), all.end() - block_tokens * int64_t(sizeof(uint32_t)));
    };
    EXPECT_EQ(without_hashes(ours), without_hashes(callers));
    EXPECT_EQ(ours.sigma, callers.sigma);
  }
}

// The quantiser of a Gaussian: the distortion that the noise formula is built on.
TEST_P(CodesTest, LoseTheDistortionOfAFourLevelQuantiser) {
  std::mt19937 random(5);
  const int head_dim = 256;
  Matrix rows(block_tokens, head_dim, DType::f32);
  rows.fill_normal(random);
  OneBlock made(head_dim);
  encode(made, rows.view(), ~uint64_t{0}, false);
  double error = 0;
  for (int t = 0; t < block_tokens; t++) {
    std::vector<float> x(head_dim);
    for (int d = 0; d < head_dim; d++) x[d] = rows.at(t, d);
    rotate(x.data(), head_dim);
    for (int d = 0; d < head_dim; d++) {
      const float level = float(2 * ref::code_at(made.block(), t, d) - 3) * level_sigmas * made.sigma;
      const float read_back = level + float(made.block().centre[d]) * made.centre_scale;
      error += double(x[d] - read_back) * (x[d] - read_back);
    }
  }
  EXPECT_NEAR(error / (block_tokens * head_dim), distortion, 0.01);
}

}  // namespace
}  // namespace adamas
