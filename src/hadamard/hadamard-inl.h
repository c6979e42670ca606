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

// Lanes i and i ^ span change places.
template <int span, class D, class V>
HWY_INLINE V SwapLanes(D d, V v) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (span == 1) return hn::Shuffle2301(v);
  if constexpr (span == 2) return hn::Shuffle1032(v);
#endif
  const hn::RebindToUnsigned<D> du;
  return hn::TableLookupLanes(v, hn::IndicesFromVec(d, hn::Xor(hn::Iota(du, 0), hn::Set(du, static_cast<uint32_t>(span)))));
}

// A span below the vector's width pairs lanes i and i ^ span: the lower lane becomes a + b and the upper one a - b, which is
// v times 1 or -1, exactly, plus the other lane.
template <int span, int vectors, class D, class V>
HWY_INLINE void PairLanes(D d, V (&v)[vectors]) {
  if constexpr (span < static_cast<int>(hn::MaxLanes(D()))) {
    const hn::RebindToUnsigned<D> du;
    const auto upper = hn::Ne(hn::And(hn::Iota(du, 0), hn::Set(du, static_cast<uint32_t>(span))), hn::Zero(du));
    const auto sign = hn::IfThenElse(hn::RebindMask(d, upper), hn::Set(d, -1.0f), hn::Set(d, 1.0f));
    for (int i = 0; i < vectors; i++) v[i] = hn::MulAdd(v[i], sign, SwapLanes<span>(d, v[i]));
    PairLanes<2 * span>(d, v);
  }
}

// One block of N dimensions, kept in registers through all spans.
template <int N>
HWY_INLINE void RotateBlock(float* HWY_RESTRICT block) {
  const hn::CappedTag<float, N> d;
  constexpr int lanes = static_cast<int>(hn::MaxLanes(d));
  constexpr int vectors = N / lanes;
  hn::Vec<decltype(d)> v[vectors];
  for (int i = 0; i < vectors; i++) v[i] = hn::LoadU(d, block + i * lanes);
  PairLanes<1>(d, v);
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
