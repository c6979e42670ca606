// 16-bit floats, as the engine's cache holds them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include <adamas/adamas.hpp>

namespace cli {

// The f32 nearest to zero whose f16 keeps every bit: 10 bits of mantissa, nothing below the normal range.
inline float cut_to_f16(float value) {
  if (std::abs(value) < 0x1p-14f) return 0;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & 0xFFFFE000u);
}

inline adamas::f16 to_f16(float cut) {
  const auto bits = std::bit_cast<std::uint32_t>(cut);
  const std::uint32_t magnitude = cut == 0 ? 0 : ((bits & 0x7FFFFFFFu) - 0x38000000u) >> 13;  // bias 127 becomes 15
  return {static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | magnitude)};
}

}  // namespace cli
