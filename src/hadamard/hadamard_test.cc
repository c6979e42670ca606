#include "hadamard/hadamard.h"

#include "core/testing.h"
#include "hadamard/hadamard_ref.h"

namespace adamas {
namespace {

class Hadamard : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(Hadamard);

// Each of log2(n) additions and the scaling rounds once: |error| <= (log2(n) + 2) eps |row|.
TEST_P(Hadamard, IsTheMatrixProductWithinItsBound) {
  std::mt19937 random(1);
  for (int head_dim : head_dims) {
    std::vector<float> row = testing::normal_vector(random, head_dim);
    const std::vector<double> expected = ref::rotate(row.data(), head_dim);
    double norm = 0;
    for (float x : row) norm += double(x) * x;
    const double bound = (std::log2(rotation_block(head_dim)) + 2) * 0x1p-24 * std::sqrt(norm);
    rotate(row.data(), head_dim);
    for (int d = 0; d < head_dim; d++) EXPECT_NEAR(row[d], expected[d], bound) << "head_dim " << head_dim << ", at " << d;
  }
}

TEST_P(Hadamard, GivesTheSameBitsOnEveryInstructionSet) {
  std::mt19937 random(2);
  for (int head_dim : head_dims) {
    const std::vector<float> given = testing::normal_vector(random, head_dim, 100);
    std::vector<float> here = given, scalar = given;
    rotate(here.data(), head_dim);
    ASSERT_TRUE(force_isa(isa_names().back()).ok());
    rotate(scalar.data(), head_dim);
    ASSERT_TRUE(force_isa(GetParam()).ok());
    EXPECT_EQ(here, scalar) << "head_dim " << head_dim;
  }
}

TEST_P(Hadamard, KeepsDotProducts) {
  std::mt19937 random(3);
  for (int head_dim : head_dims) {
    std::vector<float> a = testing::normal_vector(random, head_dim), b = testing::normal_vector(random, head_dim);
    double before = 0, after = 0;
    for (int d = 0; d < head_dim; d++) before += double(a[d]) * b[d];
    rotate(a.data(), head_dim);
    rotate(b.data(), head_dim);
    for (int d = 0; d < head_dim; d++) after += double(a[d]) * b[d];
    EXPECT_NEAR(before, after, 1e-5 * head_dim) << "head_dim " << head_dim;
  }
}

}  // namespace
}  // namespace adamas
