// K, V and queries with the structure of a model's: what a step reads, and how long it takes, depends on it. Keys of a head
// share a vector longer than what tells them apart, which turns slowly with the position; each belongs to a topic, strongly
// or weakly; the rest is noise. A query asks for a topic. A budget of 128 tokens then holds 0.9 of the softmax at 8K tokens
// and 0.8 at 32K, and 300 to 650 keys are worth reading; the models of docs/quality.md read 300 to 550.
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
  void fill(std::int64_t first, std::int64_t last);  // tokens of one block

  Shape shape_;
  std::int64_t topics_;
  std::uint64_t seed_;
  std::unique_ptr<adamas::f16[]> k_, v_;
};

}  // namespace cli::kernel
