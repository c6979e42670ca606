// Where rows lie: a base pointer and strides in bytes, innermost contiguous.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace adamas {

// The rows of one (sequence, kv head): [tokens, head_dim].
struct Rows {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 0;  // bytes from a token to the next

  const std::byte* row(int64_t token) const { return data + token * stride; }
};

inline Rows rows_of(const adamas_rows& view, int64_t sequence, int64_t kv_head) {
  return {static_cast<const std::byte*>(view.data) + sequence * view.stride_sequence + kv_head * view.stride_head,
          static_cast<DType>(view.dtype), view.stride_token};
}

}  // namespace adamas
