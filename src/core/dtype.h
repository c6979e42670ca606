// The element types of K, V, q and masks: a name, a size, one load as f32. Kernels load vectors through
// core/load-inl.h; the references and the edges use the scalar load below.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "adamas/adamas.h"
#include "hwy/base.h"

namespace adamas {

enum class DType : int32_t { f32 = ADAMAS_F32, f16 = ADAMAS_F16, bf16 = ADAMAS_BF16 };

constexpr bool is_dtype(int32_t dtype) { return dtype >= ADAMAS_F32 && dtype <= ADAMAS_BF16; }
constexpr int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Calls visit with a value of the element type: with_dtype(dtype, [&]<class T>(T) { ... }).
template <class Visit>
decltype(auto) with_dtype(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f16: return visit(hwy::float16_t{});
    case DType::bf16: return visit(hwy::bfloat16_t{});
    default: return visit(float{});
  }
}

inline float f32_from_f16_bits(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00u)  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  // Scaling by 2^112 moves the exponent's bias from 15 to 127 and normalises denormals on the way.
  const float value = std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(0x77800000u);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

inline float load_f32(const void* data, DType dtype, int64_t index) {
  const auto* bytes = static_cast<const unsigned char*>(data) + index * size_of(dtype);
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return dtype == DType::f16 ? f32_from_f16_bits(bits) : std::bit_cast<float>(uint32_t{bits} << 16);
}

}  // namespace adamas
