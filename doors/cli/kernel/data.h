// K, V and queries with the structure of a model's: what a step reads, where it lies, and how long it takes, depends on it.
// Keys of a head share a vector longer than what tells them apart, which turns slowly with the position; each belongs to a
// topic, strongly or weakly, as the tokens beside it do; the rest is noise. The query heads of a KV head ask for some topics
// together, and each for some of its own; the first tokens hold a part of the softmax. A list is 490 tokens at 8K for 9/3
// heads and 870 for 14/2 (SmolLM2 and Qwen2.5-Coder-0.5B: 420 and 940), and 840 and 1,590 at 32K (Qwen: 1,140).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <adamas/adamas.hpp>

#include "shape.h"

namespace cli::kernel {

class Layer {
 public:
  // The rows of all `tokens`; another seed gives other rows.
  Layer(const Shape& shape, std::int64_t tokens, std::uint64_t seed, int threads);

  const adamas::f16* k() const { return k_.get(); }   // [tokens, kv_heads, head_dim]
  const adamas::f16* v() const { return v_.get(); }   // the same
  std::vector<float> query(std::int64_t step) const;  // [q_heads, head_dim]

 private:
  const float* topic(std::int64_t topic, int kv_head) const;
  std::vector<std::int64_t> topics_of(std::int64_t first, std::int64_t last) const;  // tokens of one block
  void fill(std::int64_t first, std::int64_t last);                                  // the same

  Shape shape_;
  std::int64_t topics_;
  std::uint64_t seed_;
  std::unique_ptr<adamas::f16[]> k_, v_;
};

}  // namespace cli::kernel
