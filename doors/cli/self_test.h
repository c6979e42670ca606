// The kernels against plain attention in double precision, on random K, V and q of one model's shapes.
#pragma once

#include <adamas/adamas.hpp>
#include <compare>
#include <cstdint>
#include <string>

namespace cli {

struct AttentionShape {
  std::int64_t q_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  double softcap = 0;
  double alibi = 0;

  auto operator<=>(const AttentionShape&) const = default;
};

// The largest error of an output, and the bound at the output where error / bound is largest.
struct Deviation {
  double error = 0;
  double bound = 0;
  bool within() const { return error <= bound; }
};

struct SelfTest {
  AttentionShape shape;
  std::int64_t tokens = 0;
  std::int64_t budget = 0;
  Deviation dense;   // a budget of every token, against attention over every token
  Deviation sparse;  // `budget` tokens alone, against attention over the tokens that adamas_selection names
  double rest =
      1;  // how far from full attention a list and a rest stay, over how far these `budget` tokens do; 1: a fixed budget
  std::string failure;  // empty: passed
};

SelfTest self_test(const AttentionShape& shape, adamas::Config config);

}  // namespace cli
