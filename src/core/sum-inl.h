// Sums across the lanes of vectors, for kernels. Included once for each instruction set.
#if defined(ADAMAS_CORE_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADAMAS_CORE_SUM_INL_H_
#undef ADAMAS_CORE_SUM_INL_H_
#else
#define ADAMAS_CORE_SUM_INL_H_
#endif

#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

using Floats = hn::Vec<F32>;

// The sums of the lanes of four vectors, to out[0..3]: pairs of lanes are added while the four are interleaved, so that each
// 128-bit block holds four partial sums; then the blocks are added.
template <class V, class T>
HWY_INLINE void SumLanesOfFour(V a, V b, V c, V e, T* out) {
  const hn::DFromV<V> d;
#if HWY_TARGET == HWY_SCALAR
  (void)d;
  out[0] = hn::GetLane(a);
  out[1] = hn::GetLane(b);
  out[2] = hn::GetLane(c);
  out[3] = hn::GetLane(e);
#else
  const hn::RepartitionToWide<hn::DFromV<V> > pairs;
  const auto ab = hn::BitCast(pairs, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce = hn::BitCast(pairs, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  const auto sums =
      hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, ab, ce)), hn::BitCast(d, hn::InterleaveUpper(pairs, ab, ce)));
  const auto fold = [&](auto self, auto tag, auto v) HWY_ATTR -> void {
    if constexpr (hn::MaxLanes(tag) == 4) {
      hn::StoreU(v, tag, out);
    } else {
      const hn::Half<decltype(tag)> half;
      self(self, half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
    }
  };
  fold(fold, d, sums);
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#endif
