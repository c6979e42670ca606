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
// All blocks of one head lie together, each kind of theirs in an array of its own: the scan reads the planes of block after
// block as one stream, every step reads all centres, and hashes only of the rows that were read. In memory that the caller
// gives they lie as it says: a base and a stride for each kind.
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

// One kind of what is kept of blocks: an element, or a few, for each place.
template <class T>
struct PerBlock {
  T* first = nullptr;
  int64_t stride = 0;  // bytes from a place to the next

  T* at(int64_t place) const { return reinterpret_cast<T*>(reinterpret_cast<std::byte*>(first) + place * stride); }
};

// Where a sequence's blocks lie: block b at places[b]; NULL: at b. What is kept of blocks is found through it, and nothing
// else has to know of places.
using Places = const int32_t*;
inline int64_t place_of(Places places, int64_t block) { return places != nullptr ? places[block] : block; }

// The codes of every block of one (sequence, kv head).
struct Codes {
  BlockLayout layout{};
  PerBlock<uint32_t> words;      // [code_words]
  PerBlock<int16_t> centre;      // [head_dim]
  PerBlock<uint32_t> hash;       // [64]
  PerBlock<float> centre_scale;  // scalar
  PerBlock<float> sigma;         // scalar
  Places places = nullptr;
  const uint32_t* hashes = nullptr;  // [blocks, 64] when they lie one after another; NULL: when not

  Codes() = default;
  // Of `blocks` places, each kind after the other. memory: [head_bytes(blocks)], aligned to 64.
  Codes(std::byte* memory, int64_t blocks, float* centre_scale, float* sigma, BlockLayout layout)
      : layout(layout),
        words{reinterpret_cast<uint32_t*>(memory), int64_t(layout.code_bytes())},
        centre{reinterpret_cast<int16_t*>(memory + blocks * words.stride), int64_t(layout.centre_bytes())},
        hash{reinterpret_cast<uint32_t*>(centre.at(blocks)), block_tokens * int64_t(sizeof(uint32_t))},
        centre_scale{centre_scale, sizeof(float)},
        sigma{sigma, sizeof(float)},
        hashes(hash.first) {}

  Block block(int64_t b) const {
    const int64_t place = place_of(places, b);
    uint32_t* high = words.at(place);
    return {layout,         high, high + layout.code_words() / 2, centre.at(place), hash.at(place), centre_scale.at(place),
            sigma.at(place)};
  }
  float sigma_of(int64_t b) const { return *sigma.at(place_of(places, b)); }
  float centre_scale_of(int64_t b) const { return *centre_scale.at(place_of(places, b)); }
  const int16_t* centre_of(int64_t b) const { return centre.at(place_of(places, b)); }
  const uint32_t* hash_of(int32_t token) const {
    if (hashes != nullptr) return hashes + token;
    return hash.at(place_of(places, token / block_tokens)) + token % block_tokens;
  }
};

// The mean values of every block of one (sequence, kv head): mean_of(b)[d] scale_of(b).
struct Means {
  PerBlock<int16_t> mean;  // [head_dim]
  PerBlock<float> scale;   // scalar
  Places places = nullptr;

  int16_t* mean_of(int64_t b) const { return mean.at(place_of(places, b)); }
  float* scale_of(int64_t b) const { return scale.at(place_of(places, b)); }
};

}  // namespace adamas
