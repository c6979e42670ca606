// The odd constants of the row hash, one for each 32-bit word of the longest row: splitmix64 of the place.
#pragma once

#include <array>
#include <cstdint>

#include "core/shape.h"

namespace adamas {

inline constexpr auto hash_constants = [] {
  std::array<uint32_t, max_head_dim> constants{};
  uint64_t state = 0;
  for (uint32_t& constant : constants) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    constant = static_cast<uint32_t>(z >> 32) | 1;
  }
  return constants;
}();

}  // namespace adamas
