// Every byte of the code cache.
//
// A block is 64 consecutive tokens of one sequence and KV head. What is kept of its keys, a function of its own rows alone:
//
//   high    u32 [chunks, 64]   bit d of word [c, t] = high bit of the code of token t in dimension 32 c + d
//   low     u32 [chunks, 64]   the low bit
//   centre  i16 [head_dim]     mean of the rotated rows, in units of centre_scale
//   hash    u32 [64]           of each key row's bytes, to notice keys that changed behind our back
//   centre_scale f32, sigma f32
//
// Keys are scanned 16 tokens at a time, so a plane's words of neighbouring tokens lie side by side. Values are read token by
// token, here and there, so all of a token lies together:
//
//   codes   u32 [64, chunks, 2]   the same words; high bit, low bit
//   centre, centre_scale, sigma
//
// All blocks of one sequence and head lie together, each kind of theirs in an array of its own: the scan reads the planes of block after
// block as one stream, every step reads all centres, and hashes only of the rows that were read.
//
// chunks = ceil(head_dim / 32). At head_dim 128: 2560 + 8 bytes for the keys of 64 tokens, 2304 + 8 for their values; 76 a token,
// 14.9% of K and V in f16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/shape.h"

namespace adamas {

enum class Coded { keys, values };

struct BlockLayout {
  int head_dim;
  Coded coded = Coded::keys;

  constexpr size_t code_words() const { return 2 * size_t(chunks(head_dim)) * block_tokens; }
  // From one word of a plane to that of the next token, of the next chunk, and from the high plane to the low one.
  constexpr int token_stride() const { return coded == Coded::keys ? 1 : 2 * chunks(head_dim); }
  constexpr int chunk_stride() const { return coded == Coded::keys ? block_tokens : 2; }
  constexpr size_t low_word() const { return coded == Coded::keys ? code_words() / 2 : 1; }

  // Bytes of a block: of its codes, a multiple of 256; of its centre; of all but the two floats.
  constexpr size_t code_bytes() const { return code_words() * sizeof(uint32_t); }
  constexpr size_t centre_bytes() const { return size_t(head_dim) * sizeof(int16_t); }
  constexpr size_t block_bytes() const {
    return code_bytes() + centre_bytes() + (coded == Coded::keys ? block_tokens * sizeof(uint32_t) : 0);
  }
  // Of `blocks` blocks of one head, so that the next head's begin at a multiple of 64.
  constexpr int64_t head_bytes(int64_t blocks) const { return (blocks * int64_t(block_bytes()) + 63) / 64 * 64; }
};

// One block's codes, wherever they lie.
struct Block {
  BlockLayout layout;
  uint32_t* high;       // word(t, c) is that of token t and chunk c
  uint32_t* low;
  int16_t* centre;      // [head_dim]
  uint32_t* hash;       // [64] of keys; NULL
  float* centre_scale;  // scalar
  float* sigma;         // scalar

  size_t word(int token, int chunk) const {
    return size_t(token) * layout.token_stride() + size_t(chunk) * layout.chunk_stride();
  }
};

// The codes of every block of one (sequence, kv head).
struct Codes {
  uint32_t* words = nullptr;      // [blocks, code_words]
  int16_t* centre = nullptr;      // [blocks, head_dim]
  uint32_t* hash = nullptr;       // [blocks, 64] of keys; NULL
  float* centre_scale = nullptr;  // [blocks]
  float* sigma = nullptr;         // [blocks]
  BlockLayout layout{};

  // memory: [head_bytes(blocks)], aligned to 64
  Codes(std::byte* memory, int64_t blocks, float* centre_scale, float* sigma, BlockLayout layout)
      : words(reinterpret_cast<uint32_t*>(memory)),
        centre(reinterpret_cast<int16_t*>(memory + blocks * int64_t(layout.code_bytes()))),
        centre_scale(centre_scale), sigma(sigma), layout(layout) {
    if (layout.coded == Coded::keys) hash = reinterpret_cast<uint32_t*>(centre + blocks * layout.head_dim);
  }

  Block block(int64_t b) const {
    uint32_t* high = words + b * int64_t(layout.code_words());
    return {layout,
            high,
            high + layout.low_word(),
            centre + b * layout.head_dim,
            hash != nullptr ? hash + b * block_tokens : nullptr,
            centre_scale + b,
            sigma + b};
  }
};

}  // namespace adamas
