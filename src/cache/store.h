// Where the codes of a cache's blocks lie: for each kind of what is kept (codes/layout.h), a base, and strides between
// places and between KV heads. In memory of ours, or in memory that the caller gives.
#pragma once

#include <array>

#include "baselines/quest.h"
#include "codes/layout.h"
#include "core/memory.h"

namespace adamas {

// What a cache keeps of a block, in the order of adamas_block_bytes: its array, and its bytes. 0 bytes: not kept.
struct Kind {
  const char* name;
  adamas_code_array adamas_code_memory::*array;
  int64_t bytes;
};
std::array<Kind, 8> kinds_of(const adamas_config& config, int head_dim);

// The places of a sequence's blocks: in line from `first` on, or in a table of places counted from there.
struct Where {
  Places places;
  int64_t first;
};

class Store {
 public:
  Store(const adamas_config& config, const adamas_cache_params& params, int64_t pool);

  Codes codes(int kv_head, Where where) const;
  Means means(int kv_head, Where where) const;
  QuestBounds bounds(int kv_head, Where where) const;
  // All that is kept at a place, kind after kind.
  void copy(int kv_head, int64_t place, std::byte* to) const;

 private:
  template <class T>
  PerBlock<T> of_head(const adamas_code_array& array, int kv_head, int64_t first = 0) const {
    auto* head = static_cast<std::byte*>(array.data) + kv_head * array.stride_head;
    return {reinterpret_cast<T*>(head + first * array.stride_block), array.stride_block};
  }

  const BlockLayout layout_;
  const std::array<Kind, 8> kinds_;
  adamas_code_memory memory_;
  Array<std::byte> ours_;  // [kv_heads, kinds, pool], each kind of a head at a multiple of 64
};

}  // namespace adamas
