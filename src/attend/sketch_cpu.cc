#include "attend/sketch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "codes/codes.h"
#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attend/sketch_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/load-inl.h"
#include "core/sum-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

constexpr float log2_e = 1.44269504f;

// 2^y to 5 digits, for y from -125 to 100, below as -125: 2^n times the Taylor polynomial of 2^f, |f| <= 1/2. Weights deserve no more.
// Adding 1.5 2^23 leaves no bits for a fraction: n stands in the lowest ones.
HWY_INLINE Floats FastExp2(F32 d, Floats y) {
  const I32 di;
  const auto shift = hn::Set(d, 12582912.0f);
  y = hn::Max(y, hn::Set(d, -125.0f));
  const auto shifted = hn::Add(y, shift);
  const auto f = hn::Sub(y, hn::Sub(shifted, shift));
  const auto n = hn::BitCast(di, shifted);
  auto p = hn::MulAdd(f, hn::Set(d, 0.00961813f), hn::Set(d, 0.05550411f));
  p = hn::MulAdd(f, p, hn::Set(d, 0.24022651f));
  p = hn::MulAdd(f, p, hn::Set(d, 0.69314718f));
  p = hn::MulAdd(f, p, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(n)));
}

// The lanes whose scores are estimates.
HWY_INLINE hn::Mask<F32> AreEstimates(F32 d, hn::Vec<I32> scores) {
  const I32 di;
  return hn::RebindMask(d, hn::And(hn::Gt(scores, hn::Set(di, hidden_score)), hn::Lt(scores, hn::Set(di, always_score))));
}

// The weights of one vector of scores, in f32.
struct Weights {
  Floats unit, shift, cap, inverse_cap, max;  // in powers of two, but for what a softcap needs before
  bool capped;

  explicit Weights(const Estimated& e) {
    const F32 d;
    capped = e.softcap > 0;
    // In double: a common centre can be thousands, of which only the difference to the maximum is left.
    const double scale = capped ? 1 : static_cast<double>(log2_e);
    unit = hn::Set(d, static_cast<float>(e.unit * scale));
    shift = hn::Set(d, static_cast<float>((capped ? e.highest : e.highest - static_cast<double>(e.max)) * scale));
    cap = hn::Set(d, e.softcap * log2_e);
    inverse_cap = hn::Set(d, capped ? 1 / e.softcap : 0.0f);
    max = hn::Set(d, e.max * log2_e);
  }

  HWY_INLINE Floats operator()(hn::Vec<I32> scores) const {
    const F32 d;
    auto y = hn::MulAdd(hn::ConvertTo(d, scores), unit, shift);
    if (capped) y = hn::Sub(hn::Mul(hn::Tanh(d, hn::Mul(y, inverse_cap)), cap), max);
    return hn::IfThenElseZero(AreEstimates(d, scores), FastExp2(d, y));
  }
};

HWY_INLINE hn::Vec<I32> LoadScores(const int16_t* scores) {
  return hn::PromoteTo(I32(), hn::LoadU(hn::Rebind<int16_t, F32>(), scores));
}

#if HWY_TARGET != HWY_SCALAR
// The same in 16 bits, within four percent: the upper half of a float. A score counts so many 128ths of an octave, and its distance from
// the reference is the float's exponent and mantissa: 2^(n + f) is read as 2^n (1 + f), less 0.043 octaves, which stands in the middle
// of its errors. This is the one loop over all tokens that every query head has to itself, and a vector holds twice as many of them.
struct SmallWeights {
  using U16 = hn::RebindToUnsigned<I16>;
  static constexpr int one = 127 << 7;       // the upper half of 1.0f
  static constexpr int below_zero = 256;     // taken off at last, saturated: what lies below zero is zero
  static constexpr double middle_of_errors = 0.043 * 128;

  bool fits = false;  // else scores are too fine or too coarse, or a softcap bends them
  int16_t reference = 0, lowest = 0, step = 0, at_reference = 0;
  int bits = 0;

  explicit SmallWeights(const Estimated& e) {
    const double steps = e.unit * static_cast<double>(log2_e) * 128;  // of a score
    const double middle = std::nearbyint((static_cast<double>(e.max) - e.highest) / e.unit);  // the score that weighs about 1
    fits = e.softcap == 0 && steps >= 0.25 && steps <= 64 && std::abs(middle) <= 32767;
    if (!fits) return;
    reference = static_cast<int16_t>(middle);
    // Weighs nothing, 48 steps being more than the rest below rounds to. As 2^bits <= 2 steps, it shifts to 2 (one + 48 + 64) at most, and
    // 64 above the reference, some 11820 steps, to 23640.
    lowest = static_cast<int16_t>(-std::min(32767.0, std::ceil((one + 48) / steps)));
    while (std::nearbyint(std::ldexp(steps, 15 - bits)) > 32767) bits++;
    step = static_cast<int16_t>(std::nearbyint(std::ldexp(steps, 15 - bits)));
    const double rest = (e.highest + e.unit * middle - static_cast<double>(e.max)) / e.unit * steps;
    at_reference = static_cast<int16_t>(one + below_zero + std::nearbyint(rest - middle_of_errors));
  }

  HWY_INLINE hn::Vec<U16> operator()(hn::Vec<I16> scores) const {
    const I16 d;
    const U16 du;
    const auto distance = hn::Max(hn::SaturatedSub(scores, hn::Set(d, reference)), hn::Set(d, lowest));
    const auto octaves = hn::MulFixedPoint15(hn::ShiftLeftSame(distance, bits), hn::Set(d, step));
    return hn::SaturatedSub(hn::BitCast(du, hn::Add(octaves, hn::Set(d, at_reference))), hn::Set(du, below_zero));
  }
};
#endif

void Weigh(const Estimated& e, const int16_t* scores, int64_t count, float* weights) {
  const F32 d;
#if HWY_TARGET != HWY_SCALAR
  if (const SmallWeights small(e); small.fits) {  // as WeighBlocks does, bit for bit
    const I16 d16;
    const hn::RebindToUnsigned<F32> du;
    HWY_ALIGN uint16_t halves[hn::MaxLanes(I16())];
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), lanes16 = static_cast<int64_t>(hn::Lanes(d16));
    for (int64_t i = 0; i < count; i += lanes16) {
      hn::Store(small(hn::LoadU(d16, scores + i)), SmallWeights::U16(), halves);
      for (int64_t j = 0; j < lanes16; j += lanes) {
        const auto weight = hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::Load(hn::Rebind<uint16_t, F32>(), halves + j))));
        hn::StoreU(hn::IfThenElseZero(AreEstimates(d, LoadScores(scores + i + j)), weight), d, weights + i + j);
      }
    }
    return;
  }
#endif
  const Weights of(e);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) hn::StoreU(of(LoadScores(scores + i)), d, weights + i);
}

float WeighBlocks(const Estimated& e, const int16_t* scores, int64_t blocks, float* weights) {
  const F32 d;
  auto total = hn::Zero(d);
  const auto four_at_a_time = [&](auto sum_of) HWY_ATTR {
    for (int64_t b = 0; b < blocks; b += 4) {
      Floats sums[4];
      for (int64_t i = 0; i < 4; i++) {
        sums[i] = b + i < blocks ? sum_of(scores + (b + i) * block_tokens) : hn::Zero(d);
        total = hn::Add(total, sums[i]);
      }
      float of_four[4];
      SumLanesOfFour(sums[0], sums[1], sums[2], sums[3], of_four);
      std::copy_n(of_four, std::min<int64_t>(4, blocks - b), weights + b);
    }
  };
#if HWY_TARGET != HWY_SCALAR
  if (const SmallWeights small(e); small.fits) {
    four_at_a_time([&](const int16_t* of_block) HWY_ATTR {
      const I16 d16;
      const hn::RebindToUnsigned<F32> du;
      auto even = hn::Zero(d), odd = hn::Zero(d);
      for (int t = 0; t < block_tokens; t += static_cast<int>(hn::Lanes(d16))) {
        const auto pairs = hn::BitCast(du, small(hn::LoadU(d16, of_block + t)));
        even = hn::Add(even, hn::BitCast(d, hn::ShiftLeft<16>(pairs)));
        odd = hn::Add(odd, hn::BitCast(d, hn::And(pairs, hn::Set(du, 0xFFFF0000u))));
      }
      return hn::Add(even, odd);
    });
    return hn::GetLane(hn::SumOfLanes(d, total));
  }
#endif
  const Weights of(e);
  four_at_a_time([&](const int16_t* of_block) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int t = 0; t < block_tokens; t += static_cast<int>(hn::Lanes(d))) sum = hn::Add(sum, of(LoadScores(of_block + t)));
    return sum;
  });
  return hn::GetLane(hn::SumOfLanes(d, total));
}

Listed ListOthers(const uint8_t* selected, const int32_t* tokens, const float* estimated, const float* exact, float gain, int64_t count,
                  float* changes, int32_t* listed, float* weights) {
  const F32 d;
  const I32 di;
  const hn::Rebind<uint8_t, F32> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  int64_t written = 0;
  for (int64_t i = 0; i < count; i += lanes) {
    const auto flags = hn::PromoteTo(di, hn::LoadU(d8, selected + i));
    auto others = hn::Eq(flags, hn::Zero(di));
    auto own = hn::Set(d, gain);
    if (i + lanes > count) {
      others = hn::And(others, hn::FirstN(di, static_cast<size_t>(count - i)));
      own = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(count - i)), own);
    }
    const auto weight = hn::IfThenElseZero(hn::RebindMask(d, others), hn::LoadU(d, exact + i));
    sum = hn::Add(sum, weight);
    hn::StoreU(hn::NegMulAdd(own, hn::LoadU(d, estimated + i), weight), d, changes + i);
    hn::StoreU(hn::Compress(hn::LoadU(di, tokens + i), others), di, listed + written);
    hn::StoreU(hn::Compress(weight, hn::RebindMask(d, others)), d, weights + written);
    written += static_cast<int64_t>(hn::CountTrue(di, others));
  }
  return {written, hn::GetLane(hn::SumOfLanes(d, sum))};
}

// Sums that fell below zero by rounding are zero. Returns the sum of all.
float Settle(float* sums, int64_t count) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto total = hn::Zero(d);
  for (int64_t i = 0; i < count; i += lanes) {
    auto sum = hn::Max(hn::LoadU(d, sums + i), hn::Zero(d));
    if (i + lanes > count) sum = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(count - i)), sum);
    hn::StoreU(sum, d, sums + i);
    total = hn::Add(total, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, total));
}

Kept KeepLarge(const int32_t* blocks, int64_t count, float least, float* sums, int32_t* kept) {
  const F32 d;
  const I32 di;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto total = hn::Zero(d);
  int64_t written = 0;
  for (int64_t i = 0; i < count; i += lanes) {
    const auto sum = hn::LoadU(d, sums + i);
    auto large = hn::Gt(sum, hn::Set(d, least));
    if (i + lanes > count) large = hn::And(large, hn::FirstN(d, static_cast<size_t>(count - i)));
    total = hn::Add(total, hn::IfThenElseZero(large, sum));
    hn::StoreU(hn::Compress(hn::LoadU(di, blocks + i), hn::RebindMask(di, large)), di, kept + written);
    hn::StoreU(hn::Compress(sum, large), d, sums + written);
    written += static_cast<int64_t>(hn::CountTrue(d, large));
  }
  return {written, hn::GetLane(hn::SumOfLanes(d, total))};
}

void WeighExact(const float* scores, float max, int64_t count, float* weights) {
  const F32 d;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d)))
    hn::StoreU(FastExp2(d, hn::Mul(hn::Sub(hn::LoadU(d, scores + i), hn::Set(d, max)), hn::Set(d, log2_e))), d, weights + i);
}

void RankExact(const float* scores, float max, int64_t count, int16_t* ranks) {
  const F32 d;
  const hn::Rebind<int16_t, F32> d16;
  const auto lowest = hn::Set(d, -32767.0f);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto below = hn::Mul(hn::Sub(hn::LoadU(d, scores + i), hn::Set(d, max)), hn::Set(d, 1000.0f));
    const auto known = hn::IfThenElse(hn::Gt(below, lowest), below, lowest);  // false for NaN
    hn::StoreU(hn::DemoteTo(d16, hn::NearestInt(hn::Min(known, hn::Zero(d)))), d16, ranks + i);
  }
}

KnownSums SumKnown(const int16_t* scores, const float* estimated, const float* exact, int64_t count) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto known_at = [&](int64_t i) HWY_ATTR {
    return hn::And(AreEstimates(d, LoadScores(scores + i)), hn::FirstN(d, static_cast<size_t>(std::min(lanes, count - i))));
  };
  const auto infinite = hn::Set(d, std::numeric_limits<float>::infinity());
  auto least = infinite;
  for (int64_t i = 0; i < count; i += lanes) least = hn::Min(least, hn::IfThenElse(known_at(i), hn::LoadU(d, estimated + i), infinite));
  const auto sums_up_to = [&](float most, KnownSums& sums) HWY_ATTR {  // answers with how many tokens these are
    auto sum_estimated = hn::Zero(d), sum_exact = hn::Zero(d);
    int64_t tokens = 0;
    for (int64_t i = 0; i < count; i += lanes) {
      const auto weight = hn::LoadU(d, estimated + i);
      const auto counted = hn::And(known_at(i), hn::Le(weight, hn::Set(d, most)));
      tokens += static_cast<int64_t>(hn::CountTrue(d, counted));
      sum_estimated = hn::Add(sum_estimated, hn::IfThenElseZero(counted, weight));
      sum_exact = hn::Add(sum_exact, hn::IfThenElseZero(counted, hn::LoadU(d, exact + i)));
    }
    sums = {hn::GetLane(hn::SumOfLanes(d, sum_estimated)), hn::GetLane(hn::SumOfLanes(d, sum_exact))};
    return tokens;
  };
  KnownSums sums;
  if (sums_up_to(2 * hn::GetLane(hn::MinOfLanes(d, least)), sums) < enough_known) sums_up_to(std::numeric_limits<float>::infinity(), sums);
  return sums;
}

// The lanes whose bits are set, of 32 bits from bit `first` on.
HWY_INLINE hn::Mask<F32> BitsFrom(F32 d, const uint32_t* word, int first) {
  if constexpr (hn::MaxLanes(F32()) >= 8) {
    return hn::LoadMaskBits(d, reinterpret_cast<const uint8_t*>(word) + first / 8);
  } else {
    const uint64_t bits = *word >> first;
    uint8_t bytes[8];
    std::memcpy(bytes, &bits, sizeof bytes);
    return hn::LoadMaskBits(d, bytes);
  }
}

// With code = 2 h + l, level = 2 code - 3 = 4 h + 2 l - 3: the bits of the planes choose which weights a dimension adds, and
// the 3 is taken off in the end. P vectors of dimensions from `start` on stay in registers over all tokens.
template <int P>
HWY_INLINE void AddLevelsOf(const Codes& values, int head_dim, const int32_t* tokens, const float* weights, int64_t count, int start,
                            float* out) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto words_of = [&](int64_t token) { return values.words + token * 2 * chunks(head_dim); };  // [chunks, 2]: high, low
  Floats sums[P];
  for (int p = 0; p < P; p++) sums[p] = hn::Zero(d);
  float total = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t* words = words_of(tokens[i]);
    const float step = weights[i] * level_sigmas * values.sigma[tokens[i] / block_tokens];
    const auto two = hn::Set(d, 2 * step), four = hn::Set(d, 4 * step);
    total += 3 * step;
    for (int p = 0; p < P; p++) {
      const int dim = start + p * lanes;
      const uint32_t* word = words + dim / chunk_dims * 2;
      const auto high = BitsFrom(d, word, dim % chunk_dims);
      const auto low = BitsFrom(d, word + 1, dim % chunk_dims);
      sums[p] = hn::IfThenElse(high, hn::Add(sums[p], four), sums[p]);
      sums[p] = hn::IfThenElse(low, hn::Add(sums[p], two), sums[p]);
    }
  }
  for (int p = 0; p < P; p++) {
    float* to = out + start + p * lanes;
    hn::StoreU(hn::Add(hn::LoadU(d, to), hn::Sub(sums[p], hn::Set(d, total))), d, to);
  }
}

template <int P>
HWY_INLINE void AddMeansOf(const Codes& values, const int32_t* blocks, const float* weights, int64_t count, float gain, int start,
                            float* out) {
  const F32 d;
  const I32 di;
  const hn::Rebind<int16_t, F32> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  Floats sums[P];
  for (int p = 0; p < P; p++) sums[p] = hn::LoadU(d, out + start + p * lanes);
  for (int64_t i = 0; i < count; i++) {
    const int16_t* centre = values.block(blocks[i]).centre + start;
    const auto weight = hn::Set(d, gain * weights[i] * values.centre_scale[blocks[i]]);
    for (int p = 0; p < P; p++) {
      const auto mean = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d16, centre + p * lanes)));
      sums[p] = hn::MulAdd(weight, mean, sums[p]);
    }
  }
  for (int p = 0; p < P; p++) hn::StoreU(sums[p], d, out + start + p * lanes);
}

void AddLevels(const Codes& values, int head_dim, const int32_t* tokens, const float* weights, int64_t count, float* out) {
  const int lanes = static_cast<int>(hn::Lanes(F32()));
  int start = 0;
  for (; start + 8 * lanes <= head_dim; start += 8 * lanes) AddLevelsOf<8>(values, head_dim, tokens, weights, count, start, out);
  for (; start + 4 * lanes <= head_dim; start += 4 * lanes) AddLevelsOf<4>(values, head_dim, tokens, weights, count, start, out);
  for (; start < head_dim; start += lanes) AddLevelsOf<1>(values, head_dim, tokens, weights, count, start, out);
}

void AddMeans(const Codes& values, int head_dim, const int32_t* blocks, const float* weights, int64_t count, float gain, float* out) {
  const int lanes = static_cast<int>(hn::Lanes(F32()));
  int start = 0;
  for (; start + 4 * lanes <= head_dim; start += 4 * lanes) AddMeansOf<4>(values, blocks, weights, count, gain, start, out);
  for (; start < head_dim; start += lanes) AddMeansOf<1>(values, blocks, weights, count, gain, start, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {

HWY_EXPORT(Weigh);
HWY_EXPORT(WeighBlocks);
HWY_EXPORT(WeighExact);
HWY_EXPORT(RankExact);
HWY_EXPORT(SumKnown);
HWY_EXPORT(ListOthers);
HWY_EXPORT(Settle);
HWY_EXPORT(KeepLarge);
HWY_EXPORT(AddLevels);
HWY_EXPORT(AddMeans);

void weigh(const Estimated& e, const int16_t* scores, int64_t count, float* weights) {
  HWY_DYNAMIC_DISPATCH(Weigh)(e, scores, count, weights);
}

float weigh_blocks(const Estimated& e, const int16_t* scores, int64_t blocks, float* weights) {
  return HWY_DYNAMIC_DISPATCH(WeighBlocks)(e, scores, blocks, weights);
}

Listed list_others(const uint8_t* selected, const int32_t* tokens, const float* estimated, const float* exact, float gain, int64_t count,
                   float* changes, int32_t* listed, float* weights) {
  return HWY_DYNAMIC_DISPATCH(ListOthers)(selected, tokens, estimated, exact, gain, count, changes, listed, weights);
}

void weigh_exact(const float* scores, float max, int64_t count, float* weights) {
  HWY_DYNAMIC_DISPATCH(WeighExact)(scores, max, count, weights);
}

void rank_exact(const float* scores, float max, int64_t count, int16_t* ranks) {
  HWY_DYNAMIC_DISPATCH(RankExact)(scores, max, count, ranks);
}

KnownSums sum_known(const int16_t* scores, const float* estimated, const float* exact, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SumKnown)(scores, estimated, exact, count);
}

float settle(float* sums, int64_t count) { return HWY_DYNAMIC_DISPATCH(Settle)(sums, count); }

Kept keep_large(const int32_t* blocks, int64_t count, float least, float* sums, int32_t* kept) {
  return HWY_DYNAMIC_DISPATCH(KeepLarge)(blocks, count, least, sums, kept);
}

void add_levels(const Codes& values, int head_dim, const int32_t* tokens, const float* weights, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(AddLevels)(values, head_dim, tokens, weights, count, out);
}

void add_means(const Codes& values, int head_dim, const int32_t* blocks, const float* weights, int64_t count, float gain, float* out) {
  HWY_DYNAMIC_DISPATCH(AddMeans)(values, head_dim, blocks, weights, count, gain, out);
}

}  // namespace adamas
#endif
