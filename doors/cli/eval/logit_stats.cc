#include "logit_stats.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "doors/cli/eval/logit_stats.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cli {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F64 = hn::ScalableTag<double>;

// Calls visit(d, logit, other, exp(logit - largest)) for all of `logits` in f64: vector by vector, then one by one.
template <class Visit>
HWY_INLINE void for_each_weight(const float* logits, const float* others, std::size_t count, float largest, Visit&& visit) {
  const auto from = [&](auto d, std::size_t i) HWY_ATTR {
    const hn::Rebind<float, decltype(d)> d32;
    const auto x = hn::LoadU(d32, logits + i);
    const auto weight = hn::Exp(d32, hn::Sub(x, hn::Set(d32, largest)));
    visit(d, hn::PromoteTo(d, x), hn::PromoteTo(d, hn::LoadU(d32, others + i)), hn::PromoteTo(d, weight));
  };
  const F64 d;
  std::size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) from(d, i);
  for (; i < count; i++) from(hn::CappedTag<double, 1>(), i);
}

template <class D>
HWY_INLINE double SumOf(D d, hn::Vec<D> lanes) {
  return hn::GetLane(hn::SumOfLanes(d, lanes));
}

double SumOfWeights(const float* logits, std::size_t count, float largest) {
  double sum = 0;
  for_each_weight(logits, logits, count, largest,
                  [&](auto d, auto, auto, auto weight) HWY_ATTR { sum += SumOf(d, weight); });
  return sum;
}

// Mean of logit - other, each weighed with exp(logit - largest).
double MeanDifference(const float* logits, const float* others, std::size_t count, float largest) {
  double sum = 0, total = 0;
  for_each_weight(logits, others, count, largest, [&](auto d, auto x, auto y, auto weight) HWY_ATTR {
    sum += SumOf(d, hn::Mul(weight, hn::Sub(x, y)));
    total += SumOf(d, weight);
  });
  return sum / total;
}

}  // namespace HWY_NAMESPACE
}  // namespace cli
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cli {

HWY_EXPORT(SumOfWeights);
HWY_EXPORT(MeanDifference);

Prediction prediction_of(std::span<const float> logits) {
  const auto top = std::max_element(logits.begin(), logits.end());
  return {.log_sum = std::log(HWY_DYNAMIC_DISPATCH(SumOfWeights)(logits.data(), logits.size(), *top)),
          .largest = *top,
          .top = static_cast<std::int32_t>(top - logits.begin())};
}

double divergence(std::span<const float> full, const Prediction& of_full, std::span<const float> other,
                  const Prediction& of_other) {
  // sum p (logit_full - logit_other) + the difference of their normalisers, which p weighs with 1 in all
  const double mean = HWY_DYNAMIC_DISPATCH(MeanDifference)(full.data(), other.data(), full.size(), of_full.largest);
  return std::max(0.0, mean - (of_full.largest + of_full.log_sum) + (of_other.largest + of_other.log_sum));
}

}  // namespace cli
#endif
