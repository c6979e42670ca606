// Codes as they lie on a GPU: the same codes as in codes/layout.h, in the order in which tensor cores take them.
//
// A block's codes are u32 [4, 2, 8, 4, words]: tile, half, row, lane, word. The token 16 tile + 2 row + half has its codes
// in the 4 x words words of that row, one after another. Byte y of word w of lane l holds four codes, in bits 2 f and 2 f +
// 1 for f from 0 to 3: that of dimension 64 w + 32 (f / 2) + 16 (f % 2) + 4 l + y. So a word masked with 0x03030303 << 2 f
// is a lane's part of an operand of mma.m16n8k32, and the scores of a token and the next one come out in one thread.
//
// words = ceil(head_dim / 64): head_dim 80, 96 and 112 take the room of 128; codes past head_dim are 0.
#pragma once

#include <cstdint>

#include "core/shape.h"

namespace adamas::cuda {

constexpr int words_of(int head_dim) { return (head_dim + 63) / 64; }
constexpr int code_bytes(int head_dim) { return block_tokens * 16 * words_of(head_dim); }

// Where the code of a token and dimension stands: its word of the block, and its lowest bit.
struct CodePlace {
  int word, bit;
};
constexpr CodePlace code_place(int head_dim, int token, int dim) {
  const int words = words_of(head_dim), row = (token / 16 * 2 + token % 2) * 8 + token % 16 / 2;
  const int lane = dim % 16 / 4, field = dim % 64 / 16;
  return {(row * 4 + lane) * words + dim / 64, 8 * (dim % 4) + 2 * field};
}

}  // namespace adamas::cuda
