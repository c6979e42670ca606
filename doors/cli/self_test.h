// The kernels against the library's device `reference`: the same steps on both, with every instruction set of this machine,
// on random K, V and q of one model's shapes.
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

// The largest error of an output or a log-sum-exp, of all instruction sets, and the bound where error / bound is largest.
struct Deviation {
  double error = 0;
  double bound = 0;  // 0: nothing was compared
  bool within() const { return error <= bound; }
};

struct SelfTest {
  AttentionShape shape;
  std::int64_t tokens = 0;
  std::int64_t budget = 0;
  Deviation dense;      // a budget of every token
  Deviation sparse;     // `budget` tokens alone
  Deviation list;       // a list and a rest; nothing where the setting is a fixed budget
  std::string failure;  // empty: passed
};

SelfTest self_test(const AttentionShape& shape, adamas::Config config);

}  // namespace cli
