// The numbers that every stage shares.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>

#include "adamas/adamas.h"

namespace adamas {

inline constexpr int block_tokens = ADAMAS_BLOCK_TOKENS;  // the unit of codes
inline constexpr int chunk_dims = 32;                     // dimensions in one word of a bit plane
inline constexpr int max_head_dim = 256;

// The one list of head_dims: it writes the error message and the test cases. Each is a multiple of 16, which is
// the widest vector of floats that a kernel uses.
inline constexpr std::array<int, 7> head_dims{64, 80, 96, 112, 128, 192, 256};

constexpr bool is_head_dim(int64_t head_dim) {
  for (int d : head_dims)
    if (d == head_dim) return true;
  return false;
}

inline std::string head_dim_list() {
  std::string list;
  for (int d : head_dims) list += (list.empty() ? "" : ", ") + std::to_string(d);
  return list;
}

constexpr int chunks(int head_dim) { return (head_dim + chunk_dims - 1) / chunk_dims; }
constexpr int64_t blocks_of(int64_t tokens) { return (tokens + block_tokens - 1) / block_tokens; }
constexpr int64_t padded(int64_t tokens) { return blocks_of(tokens) * block_tokens; }  // to whole blocks

// The bits of the tokens [first, last) that fall into a block; first and last count from the block's start.
constexpr uint64_t bits_between(int64_t first, int64_t last) {
  if (first < 0) first = 0;
  if (last > block_tokens) last = block_tokens;
  if (first >= last) return 0;
  return (~uint64_t{0} >> (block_tokens - (last - first))) << first;
}

// Calls visit(i) for every set bit, ascending.
template <class Visit>
void for_each_bit(uint64_t bits, Visit&& visit) {
  for (; bits != 0; bits &= bits - 1) visit(std::countr_zero(bits));
}

}  // namespace adamas
