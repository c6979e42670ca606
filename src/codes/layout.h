// Every byte of the code cache.
//
// A block is 64 consecutive tokens of one sequence and KV head. What is kept of its keys:
//
//   high    u32 [chunks, 64]   bit d of word [c, t] = high bit of the code of token t in dimension 32 c + d
//   low     u32 [chunks, 64]   the low bit
//   centre  i16 [head_dim]     mean of the rotated rows, in units of centre_scale
//   hash    u32 [64]           of each key row's bytes, to notice keys that changed behind our back
//   centre_scale f32, sigma f32
//
// and of its values:
//
//   mean    i16 [head_dim]     of the rows, in units of mean_scale
//   mean_scale f32
//
// All blocks of one sequence and head lie together, each kind of theirs in an array of its own: the scan reads the planes of
// block after block as one stream, every step reads all centres, and hashes only of the rows that were read.
//
// chunks = ceil(head_dim / 32). At head_dim 128: 2560 + 8 bytes for the keys of 64 tokens, 256 + 4 for their values; 44 a
// token, 8.6% of K and V in f16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/shape.h"

namespace adamas {

struct BlockLayout {
  int head_dim;

  constexpr size_t code_words() const { return 2 * size_t(chunks(head_dim)) * block_tokens; }  // of both planes

  // Bytes of a block: of its codes, a multiple of 256; of its centre, or its values' mean; of all that is kept of its keys
  // but the two floats.
  constexpr size_t code_bytes() const { return code_words() * sizeof(uint32_t); }
  constexpr size_t centre_bytes() const { return size_t(head_dim) * sizeof(int16_t); }
  constexpr size_t block_bytes() const { return code_bytes() + centre_bytes() + block_tokens * sizeof(uint32_t); }
  // Of `blocks` blocks of one head, so that the next head's begin at a multiple of 64.
  constexpr int64_t head_bytes(int64_t blocks) const { return (blocks * int64_t(block_bytes()) + 63) / 64 * 64; }
};

// One block's codes, wherever they lie.
struct Block {
  BlockLayout layout;
  uint32_t* high;       // [chunks, 64]
  uint32_t* low;        // [chunks, 64]
  int16_t* centre;      // [head_dim]
  uint32_t* hash;       // [64]
  float* centre_scale;  // scalar
  float* sigma;         // scalar

  size_t word(int token, int chunk) const { return size_t(chunk) * block_tokens + size_t(token); }
};

// The codes of every block of one (sequence, kv head).
struct Codes {
  uint32_t* words = nullptr;      // [blocks, code_words]
  int16_t* centre = nullptr;      // [blocks, head_dim]
  uint32_t* hash = nullptr;       // [blocks, 64]
  float* centre_scale = nullptr;  // [blocks]
  float* sigma = nullptr;         // [blocks]
  BlockLayout layout{};

  // memory: [head_bytes(blocks)], aligned to 64
  Codes(std::byte* memory, int64_t blocks, float* centre_scale, float* sigma, BlockLayout layout)
      : words(reinterpret_cast<uint32_t*>(memory)),
        centre(reinterpret_cast<int16_t*>(memory + blocks * int64_t(layout.code_bytes()))),
        hash(reinterpret_cast<uint32_t*>(centre + blocks * layout.head_dim)),
        centre_scale(centre_scale),
        sigma(sigma),
        layout(layout) {}

  Block block(int64_t b) const {
    uint32_t* high = words + b * int64_t(layout.code_words());
    return {
        layout,           high,     high + layout.code_words() / 2, centre + b * layout.head_dim, hash + b * block_tokens,
        centre_scale + b, sigma + b};
  }
};

// The mean values of every block of one (sequence, kv head): mean[b, d] scale[b].
struct Means {
  int16_t* mean = nullptr;  // [blocks, head_dim]
  float* scale = nullptr;   // [blocks]
};

}  // namespace adamas
