// Where rows lie: a base pointer and strides in bytes, innermost contiguous; paged or not.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "core/dtype.h"

namespace adamas {

// The rows of one (sequence, kv head): [tokens, head_dim].
struct Rows {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 0;  // bytes from a token to the next, of a page

  const int32_t* pages = nullptr;  // page i has the tokens from i << page_bits on; NULL: one page has all
  int page_bits = 0;
  int64_t page_stride = 0;                            // bytes from a page to the next
  int64_t begin = 0;                                  // token 0 of these rows is this one of the pages
  int64_t end = std::numeric_limits<int64_t>::max();  // tokens; what lies behind has no page

  const std::byte* row(int64_t token) const {
    if (pages == nullptr) return data + token * stride;
    const int64_t t = begin + token;
    return data + pages[t >> page_bits] * page_stride + (t & ((int64_t{1} << page_bits) - 1)) * stride;
  }
  // The rows from a token on.
  Rows from(int64_t token) const {
    Rows rest = *this;
    if (pages == nullptr) {
      rest.data = row(token);
    } else {
      rest.begin += token;
      rest.end -= token;
    }
    return rest;
  }
};

// Asks the memory for a row that will be read soon. To the second cache: a core waits for many more lines there than it can
// for the first one (rows that lie anywhere, 64 ahead: a third of the time).
inline void fetch_row(const std::byte* row, int64_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(row);
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

// Of the first `tokens` tokens of a sequence.
inline Rows rows_of(const adamas_rows& view, int64_t sequence, int64_t kv_head, int64_t tokens) {
  Rows rows;
  rows.data = static_cast<const std::byte*>(view.data) + kv_head * view.stride_head;
  rows.dtype = static_cast<DType>(view.dtype);
  rows.stride = view.stride_token;
  if (view.pages == nullptr) {
    rows.data += sequence * view.stride_sequence;
    return rows;
  }
  rows.pages = view.pages->table + sequence * view.pages->stride;
  rows.page_bits = std::countr_zero(uint32_t(view.pages->page_tokens));
  rows.page_stride = view.stride_page;
  rows.end = tokens;
  return rows;
}

}  // namespace adamas
