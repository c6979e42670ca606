// The kernels against the library's device `reference`: the same steps on both, with every instruction set of this machine
// or on its GPU, on random K, V and q of one model's shapes.
#pragma once

#include <adamas/adamas.hpp>
#include <compare>
#include <cstdint>
#include <string>
#include <vector>

namespace cli {

struct AttentionShape {
  std::int64_t q_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  double softcap = 0;
  double alibi = 0;

  auto operator<=>(const AttentionShape&) const = default;
};

// Whose they are: an instruction set's of the CPU, or a GPU's.
struct Kernels {
  adamas_device device;
  std::string name;
};

// The largest error of an output or a log-sum-exp, of all kernels, and the bound where error / bound is largest.
struct Deviation {
  double error = 0;
  double bound = 0;  // 0: nothing was compared
  bool within() const { return error <= bound; }
};

struct SelfTest {
  AttentionShape shape;
  std::int64_t page_tokens = 0;  // of K and V and, by page, codes; 0: contiguous
  std::int64_t tokens = 0;
  std::int64_t budget = 0;
  Deviation dense;      // a budget of every token; on a GPU the policy full
  Deviation sparse;     // `budget` tokens alone
  Deviation list;       // a list and a rest; nothing where the setting is a fixed budget
  std::string failure;  // empty: passed
};

// `kernels`: of one device.
SelfTest self_test(const AttentionShape& shape, adamas::Config config, const std::vector<Kernels>& kernels,
                   std::int64_t page_tokens = 0);

}  // namespace cli
