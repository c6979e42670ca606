#include "rest/rest.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "rest/rest_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/load-inl.h"
#include "core/sum-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

constexpr float log2_e = 1.44269504f;

// 2^y to 5 digits, for y from -125 to 100, below as -125: 2^n times the Taylor polynomial of 2^f, |f| <= 1/2. Weights
// deserve no more. Adding 1.5 2^23 leaves no bits for a fraction: n stands in the lowest ones.
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
  return hn::RebindMask(d, hn::Gt(scores, hn::Set(I32(), hidden_score)));
}

// The weights of one vector of scores, in f32.
struct Weights {
  Floats unit, shift, cap, inverse_cap, max;  // in powers of two, but for what a softcap needs before
  bool capped;

  explicit Weights(const WeightScale& e) {
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
// The same in 16 bits, within four percent: the upper half of a float. A score counts so many 128ths of an octave, and its
// distance from the reference is the float's exponent and mantissa: 2^(n + f) is read as 2^n (1 + f), less 0.043 octaves,
// which stands in the middle of its errors. This is the one loop over all tokens that every query head has to itself, and a
// vector holds twice as many of them.
struct SmallWeights {
  using U16 = hn::RebindToUnsigned<I16>;
  static constexpr int one = 127 << 7;    // the upper half of 1.0f
  static constexpr int below_zero = 256;  // taken off at last, saturated: what lies below zero is zero
  static constexpr double middle_of_errors = 0.043 * 128;

  bool fits = false;  // else scores are too fine or too coarse, or a softcap bends them
  int16_t reference = 0, lowest = 0, step = 0, at_reference = 0;
  int bits = 0;

  explicit SmallWeights(const WeightScale& e) {
    const double steps = e.unit * static_cast<double>(log2_e) * 128;  // of a score
    const double middle =
        std::nearbyint((static_cast<double>(e.max) - e.highest) / e.unit);  // the score that weighs about 1
    fits = e.softcap == 0 && steps >= 0.25 && steps <= 64 && std::abs(middle) <= 32767;
    if (!fits) return;
    reference = static_cast<int16_t>(middle);
    // Weighs nothing, 48 steps being more than the rest below rounds to. As 2^bits <= 2 steps, it shifts to 2 (one + 48 +
    // 64) at most, and 64 above the reference, some 11820 steps, to 23640.
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

void Weigh(const WeightScale& e, const int16_t* scores, int64_t count, float* weights) {
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
        const auto weight =
            hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::Load(hn::Rebind<uint16_t, F32>(), halves + j))));
        hn::StoreU(hn::IfThenElseZero(AreEstimates(d, LoadScores(scores + i + j)), weight), d, weights + i + j);
      }
    }
    return;
  }
#endif
  const Weights of(e);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d)))
    hn::StoreU(of(LoadScores(scores + i)), d, weights + i);
}

float WeighBlocks(const WeightScale& e, const int16_t* scores, int64_t blocks, float* weights) {
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

// The sums of blocks that the list leaves, made anew of their other tokens: to take weights off a sum would leave its
// rounding, where estimates stand far above what they stand for. The list's scores are gathered on the way. Returns how
// many.
int64_t LeaveOut(const WeightScale& e, const uint64_t* listed, int64_t blocks, const int16_t* scores, float* sums,
                 int16_t* estimated) {
  int64_t count = 0;
#if HWY_TARGET != HWY_SCALAR
  const I16 d;
  const F32 df;
  const hn::RebindToUnsigned<F32> du;
  constexpr int lanes = static_cast<int>(hn::MaxLanes(I16()));
  const SmallWeights small(e);
  const Weights of(e);
  int64_t waiting[4], held = 0;  // blocks whose sums are added up across lanes, four at a time
  Floats lane_sums[4] = {hn::Zero(df), hn::Zero(df), hn::Zero(df), hn::Zero(df)};
  const auto sum_lanes = [&]() HWY_ATTR {
    float of_four[4];
    SumLanesOfFour(lane_sums[0], lane_sums[1], lane_sums[2], lane_sums[3], of_four);
    for (int64_t i = 0; i < held; i++) sums[waiting[i]] = of_four[i];
    held = 0;
  };
  for (int64_t b = 0; b < blocks; b++) {
    if (listed[b] == 0) continue;
    auto even = hn::Zero(df), odd = hn::Zero(df);
    for (int t = 0; t < block_tokens; t += lanes) {
      const uint64_t bits = listed[b] >> t;
      uint8_t bytes[8];
      std::memcpy(bytes, &bits, sizeof bytes);
      const auto mask = hn::LoadMaskBits(d, bytes);
      const auto of_tokens = hn::LoadU(d, scores + b * block_tokens + t);
      hn::StoreU(hn::Compress(of_tokens, mask), d, estimated + count);
      count += static_cast<int64_t>(hn::CountTrue(d, mask));
      const auto others = hn::IfThenElse(mask, hn::Set(d, hidden_score), of_tokens);
      if (small.fits) {
        const auto pairs = hn::BitCast(du, small(others));
        even = hn::Add(even, hn::BitCast(df, hn::ShiftLeft<16>(pairs)));
        odd = hn::Add(odd, hn::BitCast(df, hn::And(pairs, hn::Set(du, 0xFFFF0000u))));
      } else {
        HWY_ALIGN int16_t buffer[lanes];
        hn::Store(others, d, buffer);
        for (int i = 0; i < lanes; i += static_cast<int>(hn::Lanes(df))) even = hn::Add(even, of(LoadScores(buffer + i)));
      }
    }
    lane_sums[held] = hn::Add(even, odd);
    waiting[held++] = b;
    if (held == 4) sum_lanes();
  }
  if (held > 0) sum_lanes();
#else
  const Weights of(e);
  for (int64_t b = 0; b < blocks; b++) {
    if (listed[b] == 0) continue;
    sums[b] = 0;
    for (int t = 0; t < block_tokens; t++) {
      const int16_t score = scores[b * block_tokens + t];
      if (listed[b] >> t & 1)
        estimated[count++] = score;
      else
        sums[b] += hn::GetLane(of(LoadScores(&score)));
    }
  }
#endif
  return count;
}

float HighestExact(const float* scores, int64_t count) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto infinite = hn::Set(d, std::numeric_limits<float>::infinity());
  auto most = hn::Neg(infinite);
  auto bad = hn::Ne(most, most);
  const auto see = [&](hn::Vec<F32> s) HWY_ATTR {
    bad = hn::Or(bad, hn::Not(hn::Lt(s, infinite)));  // true for NaN
    most = hn::Max(most, s);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) see(hn::LoadU(d, scores + i));
  float highest = hn::GetLane(hn::MaxOfLanes(d, most));
  bool any_bad = !hn::AllFalse(d, bad);
  for (; i < count; i++) {
    any_bad |= !(scores[i] < std::numeric_limits<float>::infinity());
    highest = std::max(highest, scores[i]);
  }
  return any_bad ? std::numeric_limits<float>::quiet_NaN() : highest;
}

float WeighExact(float* scores, float max, int64_t count) {
  const F32 d;
  auto sum = hn::Zero(d);
  std::fill(scores + count, scores + padded(count), -std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < padded(count); i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto s = hn::LoadU(d, scores + i);
    const auto weight = hn::IfThenElseZero(hn::Gt(s, hn::Set(d, -std::numeric_limits<float>::infinity())),
                                           hn::Exp(d, hn::Sub(s, hn::Set(d, max))));
    hn::StoreU(weight, d, scores + i);
    sum = hn::Add(sum, weight);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// The tokens of a vector that are low: with scores of [bound, top].
HWY_INLINE hn::Mask<F32> AreLow(F32 d, const int16_t* estimated, int16_t bound, int16_t top) {
  const auto scores = LoadScores(estimated);
  return hn::RebindMask(d, hn::And(hn::Gt(scores, hn::Set(I32(), bound - 1)), hn::Lt(scores, hn::Set(I32(), top + 1))));
}

// The sums of the weights and of the guesses of the low tokens.
void SumLow(const int16_t* estimated, int16_t bound, int16_t top, const float* guesses, const float* weights, int64_t count,
            float& exact_sum, float& guessed_sum) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto guessed = hn::Zero(d), exact = hn::Zero(d);
  for (int64_t i = 0; i < padded(count); i += lanes) {
    const auto low = AreLow(d, estimated + i, bound, top);
    guessed = hn::Add(guessed, hn::IfThenElseZero(low, hn::LoadU(d, guesses + i)));
    exact = hn::Add(exact, hn::IfThenElseZero(low, hn::LoadU(d, weights + i)));
  }
  exact_sum = hn::GetLane(hn::SumOfLanes(d, exact));
  guessed_sum = hn::GetLane(hn::SumOfLanes(d, guessed));
}

// The low tokens' weights grow by a factor; their positions, and by how much, are gathered. Returns how many.
int64_t GrowLow(const int16_t* estimated, int16_t bound, int16_t top, float factor, const int32_t* positions, int64_t count,
                float* weights, int32_t* low_positions, float* low_weights) {
  const F32 d;
  const I32 di;
  int64_t written = 0;
  for (int64_t i = 0; i < padded(count); i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto low = AreLow(d, estimated + i, bound, top);
    const auto weight = hn::LoadU(d, weights + i);
    const auto more = hn::IfThenElseZero(low, hn::Mul(weight, hn::Set(d, factor)));
    hn::StoreU(hn::Add(weight, more), d, weights + i);
    hn::StoreU(hn::Compress(more, low), d, low_weights + written);
    hn::StoreU(hn::Compress(hn::LoadU(di, positions + i), hn::RebindMask(di, low)), di, low_positions + written);
    written += static_cast<int64_t>(hn::CountTrue(d, low));
  }
  return written;
}

// The sums times a factor; those of blocks with hidden rows become 0 and are counted apart. Returns the sum of the others.
float ScaleSums(float* sums, const uint8_t* has_hidden_rows, int64_t blocks, float factor, float& beside_hidden) {
  const F32 d;
  const I32 di;
  const hn::Rebind<uint8_t, F32> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto clean_sum = hn::Zero(d), hidden_sum = hn::Zero(d);
  const auto scale = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + lanes <= blocks; i += lanes) {
    const auto sum = hn::Mul(hn::LoadU(d, sums + i), scale);
    const auto flags = has_hidden_rows != nullptr ? hn::PromoteTo(di, hn::LoadU(d8, has_hidden_rows + i)) : hn::Zero(di);
    const auto is_clean = hn::RebindMask(d, hn::Eq(flags, hn::Zero(di)));
    const auto clean = hn::IfThenElseZero(is_clean, sum);
    hn::StoreU(clean, d, sums + i);
    clean_sum = hn::Add(clean_sum, clean);
    hidden_sum = hn::Add(hidden_sum, hn::IfThenZeroElse(is_clean, sum));
  }
  float of_clean = hn::GetLane(hn::SumOfLanes(d, clean_sum));
  beside_hidden = hn::GetLane(hn::SumOfLanes(d, hidden_sum));
  for (; i < blocks; i++) {
    const float sum = sums[i] * factor;
    const bool has_hidden = has_hidden_rows != nullptr && has_hidden_rows[i] != 0;
    (has_hidden ? beside_hidden : of_clean) += sum;
    sums[i] = has_hidden ? 0.0f : sum;
  }
  return of_clean;
}

// H heads at once: a mean is read once. P vectors of dimensions from `start` on stay in registers over all blocks.
template <int H, int P>
HWY_INLINE void AddMeansOf(const Means& means, const int32_t* blocks, const float* const* weights, int64_t count, int start,
                           float* const* outs) {
  const F32 d;
  const I32 di;
  const hn::Rebind<int16_t, F32> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  Floats sums[H][P];
  for (int h = 0; h < H; h++)
    for (int p = 0; p < P; p++) sums[h][p] = hn::LoadU(d, outs[h] + start + p * lanes);
  for (int64_t i = 0; i < count; i++) {
    const int16_t* mean = means.mean_of(blocks[i]) + start;
    const float scale = *means.scale_of(blocks[i]);
    Floats x[P];
    for (int p = 0; p < P; p++) x[p] = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d16, mean + p * lanes)));
    for (int h = 0; h < H; h++) {
      const auto weight = hn::Set(d, weights[h][i] * scale);
      for (int p = 0; p < P; p++) sums[h][p] = hn::MulAdd(weight, x[p], sums[h][p]);
    }
  }
  for (int h = 0; h < H; h++)
    for (int p = 0; p < P; p++) hn::StoreU(sums[h][p], d, outs[h] + start + p * lanes);
}

template <int H>
void AddMeansOfHeads(const Means& means, int head_dim, const int32_t* blocks, const float* const* weights, int64_t count,
                     float* const* outs) {
  const int lanes = static_cast<int>(hn::Lanes(F32()));
  int start = 0;
  for (; start + 4 * lanes <= head_dim; start += 4 * lanes) AddMeansOf<H, 4>(means, blocks, weights, count, start, outs);
  for (; start < head_dim; start += lanes) AddMeansOf<H, 1>(means, blocks, weights, count, start, outs);
}

void AddMeans(const Means& means, int head_dim, const int32_t* blocks, const float* const* weights, int heads, int64_t count,
              float* const* outs) {
  switch (heads) {
    case 1: return AddMeansOfHeads<1>(means, head_dim, blocks, weights, count, outs);
    case 2: return AddMeansOfHeads<2>(means, head_dim, blocks, weights, count, outs);
    case 3: return AddMeansOfHeads<3>(means, head_dim, blocks, weights, count, outs);
    default: return AddMeansOfHeads<4>(means, head_dim, blocks, weights, count, outs);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {
namespace {

// Low, and in a block that has a mean value.
bool is_low(const HeadList& list, const Measured& measured, int16_t estimated, int64_t block) {
  return estimated >= list.bound && estimated <= measured.low_top &&
         (list.has_hidden_rows == nullptr || list.has_hidden_rows[block] == 0);
}

}  // namespace

HWY_EXPORT(Weigh);
HWY_EXPORT(WeighBlocks);
HWY_EXPORT(WeighExact);
HWY_EXPORT(HighestExact);
HWY_EXPORT(LeaveOut);
HWY_EXPORT(GrowLow);
HWY_EXPORT(SumLow);
HWY_EXPORT(ScaleSums);
HWY_EXPORT(AddMeans);

void weigh(const WeightScale& e, const int16_t* scores, int64_t count, float* weights) {
  HWY_DYNAMIC_DISPATCH(Weigh)(e, scores, count, weights);
}

float weigh_blocks(const WeightScale& e, const int16_t* scores, int64_t blocks, float* weights) {
  return HWY_DYNAMIC_DISPATCH(WeighBlocks)(e, scores, blocks, weights);
}

float weigh_exact(float* scores, float max, int64_t count) { return HWY_DYNAMIC_DISPATCH(WeighExact)(scores, max, count); }

float highest_exact(const float* scores, int64_t count) { return HWY_DYNAMIC_DISPATCH(HighestExact)(scores, count); }

int16_t low_top_of(const WeightScale& e, int16_t score) {
  const double limit = estimate_of(e, score) + std::numbers::ln2;
  if (e.softcap > 0 && limit >= e.softcap) return always_score;
  const double units = ((e.softcap > 0 ? e.softcap * std::atanh(limit / e.softcap) : limit) - e.highest) / e.unit;
  return int16_t(std::clamp(std::floor(units + 1e-6), double(hidden_score), double(always_score)));
}

Measured measure_rest(const HeadList& list, const int16_t* scores, float* sums, float* weights, int16_t* estimated,
                      float* guesses) {
  Measured measured{};
  measured.max = highest_exact(weights, list.count);
  if (std::isnan(measured.max)) return measured;
  if (std::isinf(measured.max)) measured.max = list.e.max;  // -inf: the list weighs nothing, or is empty
  HWY_DYNAMIC_DISPATCH(LeaveOut)(list.e, list.listed, list.blocks, scores, sums, estimated);
  std::fill(estimated + list.count, estimated + padded(list.count), hidden_score);
  weigh(list.e, estimated, padded(list.count), guesses);
  measured.listed = weigh_exact(weights, measured.max, list.count);
  float low, guessed;
  measured.low_top = low_top_of(list.e, list.bound);
  HWY_DYNAMIC_DISPATCH(SumLow)(estimated, list.bound, measured.low_top, guesses, weights, list.count, low, guessed);
  const float expected = std::exp(std::min(list.e.max - measured.max, highest_weight));
  const float factor = low / guessed;
  measured.rest = HWY_DYNAMIC_DISPATCH(ScaleSums)(
      sums, list.has_hidden_rows, list.blocks,
      std::isfinite(factor) ? std::min(factor, highest_factor * expected) : expected, measured.beside_hidden);
  if (list.has_hidden_rows == nullptr) measured.low = low;
  for (int64_t i = 0; i < list.count && list.has_hidden_rows != nullptr; i++)
    if (is_low(list, measured, estimated[i], list.positions[i] / block_tokens)) measured.low += weights[i];
  return measured;
}

void lean_rest(const HeadList& list, const Measured& measured, const int16_t* estimated, float* weights, float* sums,
               int32_t* low_positions, float* low_weights) {
  if (!(measured.low > 0)) return;
  const float beta = lean * measured.rest / measured.low;
  if (list.has_hidden_rows == nullptr) {
    const int64_t low = HWY_DYNAMIC_DISPATCH(GrowLow)(estimated, list.bound, measured.low_top, beta, list.positions,
                                                      list.count, weights, low_positions, low_weights);
    for (int64_t i = 0; i < low; i++) sums[uint32_t(low_positions[i]) / block_tokens] -= low_weights[i];
    return;
  }
  for (int64_t i = 0; i < list.count; i++) {
    const int64_t block = list.positions[i] / block_tokens;
    if (!is_low(list, measured, estimated[i], block)) continue;
    const float more = beta * weights[i];
    weights[i] += more;
    sums[block] -= more;
  }
}

void add_means(const Means& means, int head_dim, const int32_t* blocks, const float* const* weights, int heads,
               int64_t count, float* const* outs) {
  HWY_DYNAMIC_DISPATCH(AddMeans)(means, head_dim, blocks, weights, heads, count, outs);
}

}  // namespace adamas
#endif
