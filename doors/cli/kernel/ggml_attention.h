// The engine's own attention over the same rows: a graph of one node, FLASH_ATTN_EXT, on its CPU back end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <adamas/adamas.hpp>

#include "shape.h"

namespace cli::kernel {

class GgmlAttention {
 public:
  virtual ~GgmlAttention() = default;

  // q: [rows, q_heads, head_dim]; k, v: [tokens, kv_heads, head_dim]; out: as q. The last `rows` tokens are those that ask:
  // each sees what comes before it, and itself. Returns the seconds that the node took: making the graph is not among them.
  virtual double step(const float* q, const adamas::f16* k, const adamas::f16* v, std::int64_t tokens, std::int64_t rows,
                      float* out) = 0;
};

// Nothing, and the reason in `why_not`, when there is no engine.
std::unique_ptr<GgmlAttention> load_ggml_attention(const Shape& shape, int threads, std::string& why_not);

}  // namespace cli::kernel
