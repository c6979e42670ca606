// The butterfly, for kernels that rotate rows on their way (codes) and for the stage's own entry.
#if defined(ADAMAS_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADAMAS_HADAMARD_INL_H_
#undef ADAMAS_HADAMARD_INL_H_
#else
#define ADAMAS_HADAMARD_INL_H_
#endif

#include <cmath>

#include "core/load-inl.h"
#include "hadamard/hadamard.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

// row: [head_dim], in place. A span below the vector's width pairs lanes i and i ^ span: the lower lane becomes
// a + b and the upper one a - b, which is swapped(v) + (v with the upper lanes negated).
HWY_INLINE void rotate_row(float* HWY_RESTRICT row, int head_dim) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int n = rotation_block(head_dim);
  const auto lane = hn::Iota(du, 0);
  for (int span = 1; span < n && span < lanes; span *= 2) {
    const auto swap = hn::IndicesFromVec(d, hn::Xor(lane, hn::Set(du, static_cast<uint32_t>(span))));
    const auto upper = hn::And(lane, hn::Set(du, static_cast<uint32_t>(span)));
    const auto sign = hn::BitCast(d, hn::IfThenElseZero(hn::Ne(upper, hn::Zero(du)), hn::Set(du, 0x80000000u)));
    for (int i = 0; i < head_dim; i += lanes) {
      const auto v = hn::LoadU(d, row + i);
      hn::StoreU(hn::Add(hn::TableLookupLanes(v, swap), hn::Xor(v, sign)), d, row + i);
    }
  }
  for (int span = lanes; span < n; span *= 2) {
    for (int start = 0; start < head_dim; start += 2 * span) {
      for (int i = start; i < start + span; i += lanes) {
        const auto a = hn::LoadU(d, row + i);
        const auto b = hn::LoadU(d, row + i + span);
        hn::StoreU(hn::Add(a, b), d, row + i);
        hn::StoreU(hn::Sub(a, b), d, row + i + span);
      }
    }
  }
  const auto scale = hn::Set(d, 1.0f / std::sqrt(static_cast<float>(n)));
  for (int i = 0; i < head_dim; i += lanes) hn::StoreU(hn::Mul(hn::LoadU(d, row + i), scale), d, row + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#endif
