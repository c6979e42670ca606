// f32 rows stored as f32, f16 or bf16, bit for bit as the engine's CPU back end stores them: to the nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "adamas/adamas.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adamas_ggml {

inline uint16_t f16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u)
    half = 0x7E00u | (magnitude >> 13 & 0x3FFu);  // NaN, made quiet
  else if (magnitude >= 0x477FF000u)
    half = 0x7C00u;  // from 65520 on
  else if (magnitude < 0x38800000u)
    // Below the smallest normal number: beside 0.5 the last bit of a float is worth 2^-24, as in a denormal half.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  else
    half = (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  return static_cast<uint16_t>(sign | half);
}

inline uint16_t bf16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) inline int64_t store_f16_f16c(const float *from, unsigned char *to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  return i;
}
#endif

inline void store_row(const float *from, void *to, adamas_dtype dtype, int64_t count) {
  auto *bytes = static_cast<unsigned char *>(to);
  if (dtype == ADAMAS_F32) {
    std::memcpy(bytes, from, static_cast<size_t>(count) * 4);
    return;
  }
  int64_t i = 0;
#if defined(__x86_64__)
  static const bool f16c = __builtin_cpu_supports("f16c");
  if (dtype == ADAMAS_F16 && f16c) i = store_f16_f16c(from, bytes, count);
#endif
  for (; i < count; ++i) {
    const uint16_t half = dtype == ADAMAS_F16 ? f16_bits(from[i]) : bf16_bits(from[i]);
    std::memcpy(bytes + 2 * i, &half, 2);
  }
}

}  // namespace adamas_ggml
