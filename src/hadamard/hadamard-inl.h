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

// One block of N dimensions, kept in registers through all spans. A span below the vector's width pairs lanes i and i ^ span: the
// lower lane becomes a + b and the upper one a - b, which is swapped(v) + (v with the upper lanes negated).
template <int N>
HWY_INLINE void RotateBlock(float* HWY_RESTRICT block) {
  const hn::CappedTag<float, N> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr int lanes = static_cast<int>(hn::MaxLanes(d));
  constexpr int vectors = N / lanes;
  hn::Vec<decltype(d)> v[vectors];
  for (int i = 0; i < vectors; i++) v[i] = hn::LoadU(d, block + i * lanes);
  const auto lane = hn::Iota(du, 0);
  for (int span = 1; span < lanes; span *= 2) {
    const auto bit = hn::Set(du, static_cast<uint32_t>(span));
    const auto swap = hn::IndicesFromVec(d, hn::Xor(lane, bit));
    const auto upper = hn::Ne(hn::And(lane, bit), hn::Zero(du));
    const auto sign = hn::BitCast(d, hn::IfThenElseZero(upper, hn::Set(du, 0x80000000u)));
    for (int i = 0; i < vectors; i++) v[i] = hn::Add(hn::TableLookupLanes(v[i], swap), hn::Xor(v[i], sign));
  }
  for (int span = 1; span < vectors; span *= 2)
    for (int i = 0; i < vectors; i++) {
      if ((i & span) != 0) continue;
      const auto sum = hn::Add(v[i], v[i + span]);
      v[i + span] = hn::Sub(v[i], v[i + span]);
      v[i] = sum;
    }
  const auto scale = hn::Set(d, 1.0f / std::sqrt(static_cast<float>(N)));
  for (int i = 0; i < vectors; i++) hn::StoreU(hn::Mul(v[i], scale), d, block + i * lanes);
}

// row: [head_dim], in place.
HWY_INLINE void rotate_row(float* HWY_RESTRICT row, int head_dim) {
  const int n = rotation_block(head_dim);
  for (int start = 0; start < head_dim; start += n) {
    switch (n) {
      case 16: RotateBlock<16>(row + start); break;
      case 32: RotateBlock<32>(row + start); break;
      case 64: RotateBlock<64>(row + start); break;
      case 128: RotateBlock<128>(row + start); break;
      case 256: RotateBlock<256>(row + start); break;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#endif
