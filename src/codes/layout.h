// Every byte of the code cache.
//
// A block is 64 consecutive tokens of one sequence and KV head. Its record, a function of its own rows alone:
//
//   high    u32 [chunks, 64]   bit d of word [c, t] = high bit of the code of token t in dimension 32 c + d
//   low     u32 [chunks, 64]   the low bit
//   centre  i16 [head_dim]     mean of the rotated rows, in units of centre_scale
//   hash    u32 [64]           of each key row's bytes, to notice keys that changed behind our back
//   (padding to a multiple of 64 bytes)
//
// and, in arrays beside the records because every step reads them for all blocks at once:
//
//   centre_scale f32, sigma f32
//
// chunks = ceil(head_dim / 32). At head_dim 128: 2560 + 8 bytes for 64 tokens, 40 a token, 7.8% of K and V in f16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/shape.h"

namespace adamas {

struct BlockLayout {
  int head_dim;

  constexpr size_t plane_words() const { return size_t(chunks(head_dim)) * block_tokens; }
  constexpr size_t low_offset() const { return plane_words() * sizeof(uint32_t); }
  constexpr size_t centre_offset() const { return 2 * low_offset(); }
  constexpr size_t hash_offset() const { return centre_offset() + size_t(head_dim) * sizeof(int16_t); }
  constexpr size_t record_bytes() const {
    return (hash_offset() + block_tokens * sizeof(uint32_t) + 63) / 64 * 64;
  }
};

// One block's codes, wherever they lie.
struct Block {
  uint32_t* high;       // [chunks, 64]
  uint32_t* low;        // [chunks, 64]
  int16_t* centre;      // [head_dim]
  uint32_t* hash;       // [64]
  float* centre_scale;  // scalar
  float* sigma;         // scalar
};

// The codes of every block of one (sequence, kv head).
struct Codes {
  std::byte* records = nullptr;   // [blocks, record_bytes]
  float* centre_scale = nullptr;  // [blocks]
  float* sigma = nullptr;         // [blocks]
  BlockLayout layout{};

  Block block(int64_t b) const {
    std::byte* record = records + b * int64_t(layout.record_bytes());
    return {reinterpret_cast<uint32_t*>(record),
            reinterpret_cast<uint32_t*>(record + layout.low_offset()),
            reinterpret_cast<int16_t*>(record + layout.centre_offset()),
            reinterpret_cast<uint32_t*>(record + layout.hash_offset()),
            centre_scale + b, sigma + b};
  }
};

}  // namespace adamas
