// The element types of K, V, q and masks: a name, a size, one load as f32. Kernels load vectors through
// core/load-inl.h; the references and the edges use the scalar load below.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "adamas/adamas.h"
#include "hwy/base.h"

namespace adamas {

enum class DType : int32_t {
  f32 = ADAMAS_F32,
  f16 = ADAMAS_F16,
  bf16 = ADAMAS_BF16,
  q8_0 = ADAMAS_Q8_0,
  q5_0 = ADAMAS_Q5_0,
  q5_1 = ADAMAS_Q5_1,
  q4_0 = ADAMAS_Q4_0,
  q4_1 = ADAMAS_Q4_1,
  iq4_nl = ADAMAS_IQ4_NL,
  f8_e4m3 = ADAMAS_F8_E4M3
};

inline constexpr const char* dtype_names[] = {"f32",  "f16",  "bf16", "q8_0",   "q5_0",
                                              "q5_1", "q4_0", "q4_1", "iq4_nl", "f8_e4m3"};
inline constexpr int32_t dtype_count = std::size(dtype_names);

constexpr bool is_dtype(int32_t dtype) { return dtype >= 0 && dtype < dtype_count; }
constexpr bool is_quantised(int32_t dtype) { return dtype >= ADAMAS_Q8_0 && dtype <= ADAMAS_IQ4_NL; }

struct F8E4M3 {
  uint8_t bits;
};

// Blocks of the quantised types, as adamas.h describes them. Bytes all through: a row may lie at any address.
inline constexpr int quantised_block = 32;
using F16Bytes = uint8_t[2];
struct Q8_0 {
  F16Bytes scale;
  int8_t quants[32];
};
struct Q5_0 {
  F16Bytes scale;
  uint8_t fifth[4];
  uint8_t nibbles[16];
};
struct Q5_1 {
  F16Bytes scale, min;
  uint8_t fifth[4];
  uint8_t nibbles[16];
};
struct Q4_0 {
  F16Bytes scale;
  uint8_t nibbles[16];
};
struct Q4_1 {
  F16Bytes scale, min;
  uint8_t nibbles[16];
};
struct Iq4Nl {
  F16Bytes scale;
  uint8_t nibbles[16];
};
alignas(16) inline constexpr int8_t iq4_nl_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                         1,    13,   25,  38,  53,  69,  89,  113};

// Calls visit with a value of the element type, or of the block type: with_dtype(dtype, [&]<class T>(T) { ... }).
template <class Visit>
decltype(auto) with_dtype(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f16: return visit(hwy::float16_t{});
    case DType::bf16: return visit(hwy::bfloat16_t{});
    case DType::q8_0: return visit(Q8_0{});
    case DType::q5_0: return visit(Q5_0{});
    case DType::q5_1: return visit(Q5_1{});
    case DType::q4_0: return visit(Q4_0{});
    case DType::q4_1: return visit(Q4_1{});
    case DType::iq4_nl: return visit(Iq4Nl{});
    case DType::f8_e4m3: return visit(F8E4M3{});
    default: return visit(float{});
  }
}

// Of a row of so many elements: whole blocks. No switch, because kernels ask for it with every four tokens.
inline constexpr uint8_t unit_bytes[] = {
    4, 2, 2, sizeof(Q8_0), sizeof(Q5_0), sizeof(Q5_1), sizeof(Q4_0), sizeof(Q4_1), sizeof(Iq4Nl), sizeof(F8E4M3)};
static_assert(std::size(unit_bytes) == dtype_count);
constexpr int64_t row_bytes(DType dtype, int64_t elements) {
  return (is_quantised(int32_t(dtype)) ? elements / quantised_block : elements) * unit_bytes[int32_t(dtype)];
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

template <class Bits>
Bits bits_at(const void* from) {
  Bits bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// Element i of a row.
inline float element(const float* row, int64_t i) { return bits_at<float>(row + i); }
inline float element(const hwy::float16_t* row, int64_t i) { return f32_from_f16_bits(bits_at<uint16_t>(row + i)); }
inline float element(const hwy::bfloat16_t* row, int64_t i) {
  return std::bit_cast<float>(uint32_t{bits_at<uint16_t>(row + i)} << 16);
}

// Scaling by 2^120 moves the exponent's bias from 7 to 127.
inline float element(const F8E4M3* row, int64_t i) {
  const uint32_t bits = row[i].bits, sign = (bits & 0x80) << 24, magnitude = bits & 0x7F;
  if (magnitude == 0x7F) return std::bit_cast<float>(sign | 0x7FC00000u);
  const float value = std::bit_cast<float>(magnitude << 20) * std::bit_cast<float>(0x7B800000u);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

inline float f16_at(const F16Bytes& from) { return f32_from_f16_bits(bits_at<uint16_t>(from)); }
inline int nibble_at(const uint8_t (&nibbles)[16], int64_t i) { return nibbles[i % 16] >> (i < 16 ? 0 : 4) & 15; }
inline int fifth_at(const uint8_t (&fifth)[4], int64_t i) { return fifth[i / 8] >> i % 8 & 1; }

// Element i of a block.
inline float of_block(const Q8_0& b, int64_t i) { return f16_at(b.scale) * float(b.quants[i]); }
inline float of_block(const Q5_0& b, int64_t i) {
  return f16_at(b.scale) * float(nibble_at(b.nibbles, i) + 16 * fifth_at(b.fifth, i) - 16);
}
inline float of_block(const Q5_1& b, int64_t i) {
  return f16_at(b.scale) * float(nibble_at(b.nibbles, i) + 16 * fifth_at(b.fifth, i)) + f16_at(b.min);
}
inline float of_block(const Q4_0& b, int64_t i) { return f16_at(b.scale) * float(nibble_at(b.nibbles, i) - 8); }
inline float of_block(const Q4_1& b, int64_t i) { return f16_at(b.scale) * float(nibble_at(b.nibbles, i)) + f16_at(b.min); }
inline float of_block(const Iq4Nl& b, int64_t i) { return f16_at(b.scale) * float(iq4_nl_levels[nibble_at(b.nibbles, i)]); }

template <class Block>
float element(const Block* row, int64_t i) {
  return of_block(row[i / quantised_block], i % quantised_block);
}

inline float load_f32(const void* row, DType dtype, int64_t index) {
  return with_dtype(dtype, [&]<class T>(T) { return element(static_cast<const T*>(row), index); });
}

}  // namespace adamas
