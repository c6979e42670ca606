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
  Rows from(int64_t token) const { return {row(token), dtype, stride}; }
};

// Asks the memory for a row that will be read soon. To the second cache: a core waits for many more lines there than it can
// for the first one (rows that lie anywhere, 64 ahead: a third of the time).
inline void fetch_row(const Rows& rows, int64_t token, int64_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(rows.row(token));
  for (uintptr_t line = first & ~uintptr_t{63}; line < first + uintptr_t(bytes); line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
}

// Where memory is read from end to end: asks for what lies 4 KB after these bytes, a page that the machine does not guess.
// At the end it asks for what is not needed, or for nothing: no address is bad.
inline void fetch_ahead(const void* from, size_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(from) + 4096;
  for (uintptr_t line = first; line < first + bytes; line += 64) __builtin_prefetch(reinterpret_cast<const void*>(line));
}

template <class T>
const std::byte* at(const T* base, int64_t offset) {
  return reinterpret_cast<const std::byte*>(base) + offset;
}

inline Rows rows_of(const adamas_rows& view, int64_t sequence, int64_t kv_head) {
  return {static_cast<const std::byte*>(view.data) + sequence * view.stride_sequence + kv_head * view.stride_head,
          static_cast<DType>(view.dtype), view.stride_token};
}

}  // namespace adamas
