// The heads of one attention layer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cli::kernel {

struct Shape {
  int q_heads, kv_heads, head_dim;

  // Bytes of K, or of V, of one token: f16.
  std::int64_t row_bytes() const { return std::int64_t{kv_heads} * head_dim * 2; }
  std::string name() const;  // "9/3x64"
};

// "9/3x64": query heads, KV heads, head_dim. Throws a Failure that says what is wrong with it.
Shape parse_shape(const std::string& text);

}  // namespace cli::kernel
