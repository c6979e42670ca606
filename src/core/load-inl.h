// Vector loads of every dtype as f32, for kernels. Included once for each instruction set.
#if defined(ADAMAS_CORE_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADAMAS_CORE_LOAD_INL_H_
#undef ADAMAS_CORE_LOAD_INL_H_
#else
#define ADAMAS_CORE_LOAD_INL_H_
#endif

#include "core/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Every head_dim is a multiple of 16, so no vector of floats is wider: loops over a row have no remainder.
using F32 = hn::CappedTag<float, 16>;

using I32 = hn::RebindToSigned<F32>;
using I16 = hn::CappedTag<int16_t, 32>;  // scores

using F16Bits = hn::Vec<hn::Rebind<uint16_t, F32>>;

HWY_INLINE hn::Vec<F32> from_f16(F32 d, F16Bits bits) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SSE4
  // Highway's own conversion reads infinities and NaN as numbers where the machine has no instruction for it. This is
  // f32_from_f16_bits of core/dtype.h, for a vector.
  const hn::RebindToUnsigned<F32> du;
  const auto wide = hn::PromoteTo(du, bits);
  const auto magnitude = hn::And(wide, hn::Set(du, 0x7FFF));
  const auto scaled = hn::Mul(hn::BitCast(d, hn::ShiftLeft<13>(magnitude)), hn::BitCast(d, hn::Set(du, 0x77800000u)));
  const auto special = hn::Gt(hn::BitCast(hn::RebindToSigned<F32>(), magnitude), hn::Set(hn::RebindToSigned<F32>(), 0x7BFF));
  const auto exponent = hn::IfThenElseZero(hn::RebindMask(du, special), hn::Set(du, 0x7F800000u));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(wide, magnitude));
  return hn::BitCast(d, hn::Or(hn::Or(hn::BitCast(du, scaled), exponent), sign));
#else
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, F32>(), bits));
#endif
}

// load(d, row, i): elements i, i + 1, ... of a row, as many as the vector has lanes; i is a multiple of that.
HWY_INLINE hn::Vec<F32> load(F32 d, const float* row, int i) { return hn::LoadU(d, row + i); }
HWY_INLINE hn::Vec<F32> load(F32 d, const hwy::bfloat16_t* row, int i) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), row + i));
}
HWY_INLINE hn::Vec<F32> load(F32 d, const hwy::float16_t* row, int i) {
  return from_f16(d, hn::LoadU(hn::Rebind<uint16_t, F32>(), reinterpret_cast<const uint16_t*>(row) + i));
}

// core/dtype.h, for a vector.
HWY_INLINE hn::Vec<F32> load(F32 d, const F8E4M3* row, int i) {
  const hn::RebindToUnsigned<F32> du;
  const auto bits = hn::PromoteTo(du, hn::LoadU(hn::Rebind<uint8_t, F32>(), &row[i].bits));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7F));
  const auto scaled = hn::Mul(hn::BitCast(d, hn::ShiftLeft<20>(magnitude)), hn::BitCast(d, hn::Set(du, 0x7B800000u)));
  const auto none = hn::IfThenElseZero(hn::Eq(magnitude, hn::Set(du, 0x7F)), hn::Set(du, 0x7FC00000u));
  const auto sign = hn::ShiftLeft<24>(hn::Xor(bits, magnitude));
  return hn::BitCast(d, hn::Or(hn::Or(hn::BitCast(du, scaled), none), sign));
}

// The quantised types. A vector has at most 16 elements, so it lies within one half of one block.

HWY_INLINE hn::Vec<F32> scale(F32 d, const F16Bytes& from) {
  return from_f16(d, hn::Set(hn::Rebind<uint16_t, F32>(), bits_at<uint16_t>(from)));
}
HWY_INLINE hn::Vec<hn::Rebind<uint8_t, F32>> nibbles(const uint8_t (&from)[16], int i) {
  const hn::Rebind<uint8_t, F32> d8;
  const auto bytes = hn::LoadU(d8, from + i % 16);
  return i % quantised_block < 16 ? hn::And(bytes, hn::Set(d8, 15)) : hn::ShiftRight<4>(bytes);
}
HWY_INLINE hn::Vec<I32> five_bits(const uint8_t (&fifth)[4], const uint8_t (&lower)[16], int i) {
  const hn::RebindToUnsigned<F32> du;
  const auto bits = hn::Shr(hn::Set(du, bits_at<uint32_t>(fifth)), hn::Iota(du, static_cast<uint32_t>(i % quantised_block)));
  const auto upper = hn::ShiftLeft<4>(hn::And(bits, hn::Set(du, 1)));
  return hn::Or(hn::PromoteTo(I32(), nibbles(lower, i)), hn::BitCast(I32(), upper));
}

HWY_INLINE hn::Vec<F32> load(F32 d, const Q8_0* row, int i) {
  const Q8_0& b = row[i / quantised_block];
  const auto quants = hn::PromoteTo(I32(), hn::LoadU(hn::Rebind<int8_t, F32>(), b.quants + i % quantised_block));
  return hn::Mul(scale(d, b.scale), hn::ConvertTo(d, quants));
}
HWY_INLINE hn::Vec<F32> load(F32 d, const Q5_0* row, int i) {
  const Q5_0& b = row[i / quantised_block];
  return hn::Mul(scale(d, b.scale), hn::ConvertTo(d, hn::Sub(five_bits(b.fifth, b.nibbles, i), hn::Set(I32(), 16))));
}
HWY_INLINE hn::Vec<F32> load(F32 d, const Q5_1* row, int i) {
  const Q5_1& b = row[i / quantised_block];
  return hn::Add(hn::Mul(scale(d, b.scale), hn::ConvertTo(d, five_bits(b.fifth, b.nibbles, i))), scale(d, b.min));
}
HWY_INLINE hn::Vec<F32> load(F32 d, const Q4_0* row, int i) {
  const Q4_0& b = row[i / quantised_block];
  const auto quants = hn::Sub(hn::PromoteTo(I32(), nibbles(b.nibbles, i)), hn::Set(I32(), 8));
  return hn::Mul(scale(d, b.scale), hn::ConvertTo(d, quants));
}
HWY_INLINE hn::Vec<F32> load(F32 d, const Q4_1* row, int i) {
  const Q4_1& b = row[i / quantised_block];
  const auto quants = hn::PromoteTo(I32(), nibbles(b.nibbles, i));
  return hn::Add(hn::Mul(scale(d, b.scale), hn::ConvertTo(d, quants)), scale(d, b.min));
}
HWY_INLINE hn::Vec<F32> load(F32 d, const Iq4Nl* row, int i) {
  const Iq4Nl& b = row[i / quantised_block];
  const hn::Rebind<int8_t, F32> d8;
#if HWY_TARGET == HWY_SCALAR
  const auto levels = hn::Set(d8, iq4_nl_levels[hn::GetLane(nibbles(b.nibbles, i))]);
#else
  const auto table = hn::Load(hn::Full128<int8_t>(), iq4_nl_levels);
  const auto levels = hn::TableLookupBytes(table, hn::BitCast(d8, nibbles(b.nibbles, i)));
#endif
  return hn::Mul(scale(d, b.scale), hn::ConvertTo(d, hn::PromoteTo(I32(), levels)));
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#endif
