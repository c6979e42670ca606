// Vector loads of every dtype as f32, for kernels. Included once for each instruction set.
#if defined(ADAMAS_CORE_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADAMAS_CORE_LOAD_INL_H_
#undef ADAMAS_CORE_LOAD_INL_H_
#else
#define ADAMAS_CORE_LOAD_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Every head_dim is a multiple of 16, so no vector of floats is wider: loops over a row have no remainder.
using F32 = hn::CappedTag<float, 16>;

HWY_INLINE hn::Vec<F32> load(F32 d, const float* from) { return hn::LoadU(d, from); }

HWY_INLINE hn::Vec<F32> load(F32 d, const hwy::bfloat16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), from));
}

HWY_INLINE hn::Vec<F32> load(F32 d, const hwy::float16_t* from) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SSE4
  // Highway's own conversion reads infinities and NaN as numbers where the machine has no instruction for it. This is
  // f32_from_f16_bits of core/dtype.h, for a vector.
  const hn::RebindToUnsigned<F32> du;
  const auto bits = hn::PromoteTo(du, hn::LoadU(hn::Rebind<uint16_t, F32>(), reinterpret_cast<const uint16_t*>(from)));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFF));
  const auto scaled = hn::Mul(hn::BitCast(d, hn::ShiftLeft<13>(magnitude)), hn::BitCast(d, hn::Set(du, 0x77800000u)));
  const auto special = hn::Gt(hn::BitCast(hn::RebindToSigned<F32>(), magnitude), hn::Set(hn::RebindToSigned<F32>(), 0x7BFF));
  const auto exponent = hn::IfThenElseZero(hn::RebindMask(du, special), hn::Set(du, 0x7F800000u));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
  return hn::BitCast(d, hn::Or(hn::Or(hn::BitCast(du, scaled), exponent), sign));
#else
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), from));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#endif
