#include "estimate/estimate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>
#include <utility>

#include "codes/codes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "estimate/estimate_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/sum-inl.h"

#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR
                    ",avx512vnni")  // Highway 1.0 requires it of the machine for this set, but has no operation for it
#else
HWY_BEFORE_NAMESPACE();
#endif
namespace adamas {
namespace HWY_NAMESPACE {

using U32 = hn::CappedTag<uint32_t, 16>;
using Words = hn::Vec<U32>;
using Sums = hn::Vec<I32>;

// sum += the dot product of four bytes of codes (0 to 3) with four signed bytes of the query, in each 32-bit lane.
HWY_INLINE Sums DotQuad(Sums sum, Words codes, Sums query) {
#if HWY_TARGET == HWY_AVX3_DL
  return Sums{_mm512_dpbusd_epi32(sum.raw, codes.raw, query.raw)};
#elif HWY_TARGET == HWY_AVX3
  return hn::Add(sum, Sums{_mm512_madd_epi16(_mm512_maddubs_epi16(codes.raw, query.raw), _mm512_set1_epi16(1))});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(sum, Sums{_mm256_madd_epi16(_mm256_maddubs_epi16(codes.raw, query.raw), _mm256_set1_epi16(1))});
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  return hn::Add(sum, Sums{_mm_madd_epi16(_mm_maddubs_epi16(codes.raw, query.raw), _mm_set1_epi16(1))});
#else
  const I32 d;
  const auto c = hn::BitCast(d, codes);
  const auto byte = hn::Set(d, 3);
  sum = hn::Add(sum, hn::Mul(hn::And(c, byte), hn::ShiftRight<24>(hn::ShiftLeft<24>(query))));
  sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<8>(c), byte), hn::ShiftRight<24>(hn::ShiftLeft<16>(query))));
  sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<16>(c), byte), hn::ShiftRight<24>(hn::ShiftLeft<8>(query))));
  return hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<24>(c), byte), hn::ShiftRight<24>(query)));
#endif
}

// Scores are made a vector at a time, of whose tokens the sums fill two.
using Scores = hn::Vec<I16>;
#if HWY_TARGET == HWY_SCALAR
constexpr int parts = 1;
HWY_INLINE Scores Narrow(const Sums (&sums)[parts]) { return hn::DemoteTo(I16(), sums[0]); }
#else
constexpr int parts = 2;
HWY_INLINE Scores Narrow(const Sums (&sums)[parts]) {
  const hn::Half<I16> half;
  return hn::Combine(I16(), hn::DemoteTo(half, sums[1]), hn::DemoteTo(half, sums[0]));
}
#endif

// I of one vector of tokens, for each head, from two bit planes. Bytes of both planes are zipped into 2-bit fields: `even`
// holds the codes of bits 0, 2, 4, 6 of every byte and `odd` those of bits 1, 3, 5, 7; field j of a word's four bytes is
// then four codes in four bytes, ready for one DotQuad. Each four bytes of a query serve both parts.
template <int H>
struct Dot {
  static HWY_INLINE void Inner(const Query* const* queries, int head_dim, const uint32_t* high, const uint32_t* low,
                               Scores (&inner)[H]) {
    const U32 du;
    const I32 di;
    const I16 d16;
    const int lanes = static_cast<int>(hn::Lanes(du));
    const auto evens = hn::Set(du, 0x55555555u);
    Sums sums[H][parts];
    for (int h = 0; h < H; h++)
      for (int p = 0; p < parts; p++) sums[h][p] = hn::Zero(di);
    for (int c = 0; c < chunks(head_dim); c++) {
      Words even[parts], odd[parts];
      for (int p = 0; p < parts; p++) {
        const auto hi = hn::LoadU(du, high + c * block_tokens + p * lanes);
        const auto lo = hn::LoadU(du, low + c * block_tokens + p * lanes);
        even[p] = hn::OrAnd(hn::AndNot(evens, hn::Add(hi, hi)), lo, evens);
        odd[p] = hn::OrAnd(hn::AndNot(evens, hi), hn::ShiftRight<1>(lo), evens);
      }
      AddField<0>(queries, 8 * c, even, sums);
      AddField<0>(queries, 8 * c + 1, odd, sums);
      AddField<1>(queries, 8 * c + 2, even, sums);
      AddField<1>(queries, 8 * c + 3, odd, sums);
      AddField<2>(queries, 8 * c + 4, even, sums);
      AddField<2>(queries, 8 * c + 5, odd, sums);
      AddField<3>(queries, 8 * c + 6, even, sums);
      AddField<3>(queries, 8 * c + 7, odd, sums);
    }
    // level = 2 code - 3
    for (int h = 0; h < H; h++) {
      const auto sum = Narrow(sums[h]);
      inner[h] = hn::Sub(hn::Add(sum, sum), hn::Set(d16, static_cast<int16_t>(3 * queries[h]->q8_sum)));
    }
  }

 private:
  // One field of every byte with four bytes of the queries.
  template <int Field>
  static HWY_INLINE void AddField(const Query* const* queries, int four, const Words (&fields)[parts],
                                  Sums (&sums)[H][parts]) {
    const U32 du;
    const I32 di;
    Words codes[parts];
    for (int p = 0; p < parts; p++) codes[p] = hn::And(hn::ShiftRight<2 * Field>(fields[p]), hn::Set(du, 0x03030303u));
    for (int h = 0; h < H; h++) {
      int32_t bytes;
      std::memcpy(&bytes, queries[h]->q8 + 4 * four, sizeof bytes);
      for (int p = 0; p < parts; p++) sums[h][p] = DotQuad(sums[h][p], codes[p], hn::Set(di, bytes));
    }
  }
};

// In thermometer form the codes 0 to 3 are 000, 001, 011, 111, and the Manhattan distance is the Hamming distance of the
// bits (high or low), high, (high and low).
template <int H>
struct Manhattan {
  static HWY_INLINE void Inner(const Query* const* queries, int head_dim, const uint32_t* high, const uint32_t* low,
                               Scores (&inner)[H]) {
    const U32 du;
    const I32 di;
    const I16 d16;
    const int lanes = static_cast<int>(hn::Lanes(du));
    Sums distance[H][parts];
    for (int h = 0; h < H; h++)
      for (int p = 0; p < parts; p++) distance[h][p] = hn::Zero(di);
    for (int c = 0; c < chunks(head_dim); c++)
      for (int p = 0; p < parts; p++) {
        const auto hi = hn::LoadU(du, high + c * block_tokens + p * lanes);
        const auto lo = hn::LoadU(du, low + c * block_tokens + p * lanes);
        const auto any = hn::Or(hi, lo);
        const auto all = hn::And(hi, lo);
        for (int h = 0; h < H; h++) {
          const uint32_t query_high = queries[h]->high[c], query_low = queries[h]->low[c];
          const auto first = hn::PopulationCount(hn::Xor(any, hn::Set(du, query_high | query_low)));
          const auto second = hn::PopulationCount(hn::Xor(hi, hn::Set(du, query_high)));
          const auto third = hn::PopulationCount(hn::Xor(all, hn::Set(du, query_high & query_low)));
          distance[h][p] = hn::Add(distance[h][p], hn::BitCast(di, hn::Add(first, hn::Add(second, third))));
        }
      }
    const auto mean = hn::Set(d16, static_cast<int16_t>(std::nearbyint(mean_distance * distance_scale * head_dim)));
    for (int h = 0; h < H; h++) inner[h] = hn::Sub(mean, hn::ShiftLeft<5>(Narrow(distance[h])));
  }
};

template <template <int> class Inner, int H>
void ScanHeads(const Query* const* queries, int head_dim, const Codes& codes, const int32_t* blocks, int64_t count,
               const int16_t* weights, const int16_t* const* offsets, int16_t* const* scores) {
  const I16 d16;
  const int lanes = static_cast<int>(hn::Lanes(d16));
  const size_t code_words = codes.layout.code_words();
  for (int64_t i = 0; i < count; i++) {
    const Block block = codes.block(blocks[i]);
    const auto weight = hn::Set(d16, weights[i]);
    for (int t = 0; t < block_tokens; t += lanes) {
      fetch_ahead(block.high + size_t(t) * code_words / block_tokens, sizeof(uint32_t) * code_words * lanes / block_tokens);
      Scores inner[H];
      Inner<H>::Inner(queries, head_dim, block.high + t, block.low + t, inner);
      for (int h = 0; h < H; h++) {
        const auto score = hn::Add(hn::MulFixedPoint15(inner[h], weight), hn::Set(d16, offsets[h][i]));
        hn::StoreU(score, d16, scores[h] + i * block_tokens + t);
      }
    }
  }
}

template <template <int> class Inner>
void ScanAny(const Query* const* queries, int heads, int head_dim, const Codes& codes, const int32_t* blocks, int64_t count,
             const int16_t* weights, const int16_t* const* offsets, int16_t* const* scores) {
  switch (heads) {
    case 1: return ScanHeads<Inner, 1>(queries, head_dim, codes, blocks, count, weights, offsets, scores);
    case 2: return ScanHeads<Inner, 2>(queries, head_dim, codes, blocks, count, weights, offsets, scores);
    case 3: return ScanHeads<Inner, 3>(queries, head_dim, codes, blocks, count, weights, offsets, scores);
    default: return ScanHeads<Inner, 4>(queries, head_dim, codes, blocks, count, weights, offsets, scores);
  }
}

void Scan(const Query* const* queries, int heads, int head_dim, Estimator estimator, const Codes& codes,
          const int32_t* blocks, int64_t count, const int16_t* weights, const int16_t* const* offsets,
          int16_t* const* scores) {
  if (estimator == Estimator::dot)
    ScanAny<Dot>(queries, heads, head_dim, codes, blocks, count, weights, offsets, scores);
  else
    ScanAny<Manhattan>(queries, heads, head_dim, codes, blocks, count, weights, offsets, scores);
}

// q16 . mu of the given blocks, exact, times the scales. A pair of products is at most 2 * 32767^2 < 2^31; its upper and its
// lower 16 bits are added apart, each to less than 2^24, so that f32 holds every sum.
void CentreProducts(const Query& query, int head_dim, const Codes& codes, const int32_t* blocks, int64_t count,
                    double* centres) {
  const double scale = static_cast<double>(query.largest) / 32767.0;
  const auto centre_of = [&](double product, int32_t block) {
    return product * (scale * static_cast<double>(codes.centre_scale_of(block)));
  };
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < count; i++) {
    int64_t sum = 0;
    for (int k = 0; k < head_dim; k++) sum += int64_t{query.q16[k]} * codes.centre_of(blocks[i])[k];
    centres[i] = centre_of(static_cast<double>(sum), blocks[i]);
  }
#else
  const F32 d;
  const I32 d32;
  const I16 d16;
  const int lanes = static_cast<int>(hn::Lanes(d16));
  for (int64_t i = 0; i < count; i += 4) {
    Floats upper[4], lower[4];
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; j++) {
      const int16_t* centre = codes.centre_of(blocks[std::min(i + j, count - 1)]);
      fetch_ahead(centre, codes.layout.centre_bytes());
      auto up = hn::Zero(d32), low = hn::Zero(d32);
      const auto add = [&](auto some, int k) HWY_ATTR {
        auto rest = hn::Zero(d32);
        const auto pairs = hn::ReorderWidenMulAccumulate(d32, hn::LoadU(d16, query.q16 + k), some, hn::Zero(d32), rest);
        for (const auto v : {pairs, rest}) {
          up = hn::Add(up, hn::ShiftRight<16>(v));
          low = hn::Add(low, hn::And(v, hn::Set(d32, 0xFFFF)));
        }
      };
      int k = 0;
      for (; k + lanes <= head_dim; k += lanes) add(hn::LoadU(d16, centre + k), k);
      if (k < head_dim)
        add(hn::MaskedLoad(hn::FirstN(d16, head_dim - k), d16, centre + k), k);  // half a vector, of 80 or 112
      upper[j] = hn::ConvertTo(d, up);
      lower[j] = hn::ConvertTo(d, low);
    }
    float up[4], low[4];
    SumLanesOfFour(upper[0], upper[1], upper[2], upper[3], up);
    SumLanesOfFour(lower[0], lower[1], lower[2], lower[3], low);
    for (int64_t j = 0; j < std::min<int64_t>(4, count - i); j++)
      centres[i + j] = centre_of(static_cast<double>(up[j]) * 65536.0 + static_cast<double>(low[j]), blocks[i + j]);
  }
#endif
}

using F64 = hn::CappedTag<double, 8>;

// The lowest and the highest value.
std::pair<double, double> RangeOf(const double* values, int64_t count) {
  const F64 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  double least = values[0], most = values[0];
  auto lowest = hn::Set(d, values[0]), highest = lowest;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    lowest = hn::Min(lowest, hn::LoadU(d, values + i));
    highest = hn::Max(highest, hn::LoadU(d, values + i));
  }
  for (; i < count; i++) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  return {std::min(least, hn::GetLane(hn::MinOfLanes(d, lowest))), std::max(most, hn::GetLane(hn::MaxOfLanes(d, highest)))};
}

// C_b
void OffsetsOf(const double* centres, int64_t count, double highest, double unit, int16_t* offsets) {
  const auto some = [&](auto d, int64_t i) HWY_ATTR {
    const hn::Rebind<int32_t, decltype(d)> d32;
    const hn::Rebind<int16_t, decltype(d)> d16;
    const auto units = hn::Div(hn::Sub(hn::LoadU(d, centres + i), hn::Set(d, highest)), hn::Set(d, unit));
    const auto kept = hn::Max(units, hn::Set(d, static_cast<double>(lowest_centre)));
    const auto rounded = hn::Sub(hn::Add(kept, hn::Set(d, round_shift)), hn::Set(d, round_shift));
    hn::StoreU(hn::DemoteTo(d16, hn::DemoteTo(d32, rounded)), d16, offsets + i);
  };
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(F64()));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) some(F64(), i);
  for (; i < count; i++) some(hn::CappedTag<double, 1>(), i);
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {
namespace {

// Round half to even, for |x| < 2^51, without a call.
inline double round_even(double x) { return (x + round_shift) - round_shift; }

int exponent_of(float positive) { return static_cast<int>(std::bit_cast<uint32_t>(positive) >> 23) - 127; }

}  // namespace

HWY_EXPORT(Scan);
HWY_EXPORT(CentreProducts);
HWY_EXPORT(RangeOf);
HWY_EXPORT(OffsetsOf);

void prepare_query(const float* y, int head_dim, Estimator estimator, float threshold, Query& query) {
  float m = 0;
  double squares = 0;
  for (int d = 0; d < head_dim; d++) {
    m = std::max(m, std::abs(y[d]));
    squares += static_cast<double>(y[d]) * y[d];
  }
  if (!(m > smallest_query)) m = 0;
  query.largest = m;
  query.rms = static_cast<float>(std::sqrt(squares / head_dim));
  const float to8 = m > 0 ? query_levels / m : 0.0f;
  const float to16 = m > 0 ? 32767.0f / m : 0.0f;
  for (int d = 0; d < head_dim; d++) query.q16[d] = static_cast<int16_t>(round_even(y[d] * to16));
  std::fill(query.q16 + head_dim, std::end(query.q16), int16_t{0});
  if (estimator == Estimator::dot) {
    std::memset(query.q8, 0, sizeof query.q8);
    query.q8_sum = query.max_abs_score = 0;
    for (int d = 0; d < head_dim; d++) {
      const int in_chunk = d % chunk_dims;
      const auto q8 = static_cast<int8_t>(round_even(y[d] * to8));
      query.q8[d - in_chunk + 4 * (in_chunk % 8) + in_chunk / 8] = q8;
      query.q8_sum += q8;
      query.max_abs_score += 3 * std::abs(q8);
    }
  } else {
    const float t = threshold > 0 ? threshold : threshold_sigmas * query.rms;
    query.max_abs_score = 63 * head_dim;
    std::memset(query.high, 0, sizeof query.high);
    std::memset(query.low, 0, sizeof query.low);
    for (int d = 0; d < head_dim; d++) {
      const uint32_t code = (y[d] > -t) + (y[d] > 0) + (y[d] > t);
      query.high[d / chunk_dims] |= (code >> 1) << (d % chunk_dims);
      query.low[d / chunk_dims] |= (code & 1) << (d % chunk_dims);
    }
  }
}

Spread spread_of(const Codes& codes, const int32_t* blocks, int64_t count) {
  Spread spread;
  for (int64_t i = 0; i < count; i++) {
    const float s = codes.sigma_of(blocks[i]);
    if (s > 0) {
      spread.largest = std::max(spread.largest, s);
      spread.exponents[exponent_of(s) + 127]++;
    }
  }
  return spread;
}

float reference_sigma(const Spread& spread) {
  const int64_t positive = std::accumulate(std::begin(spread.exponents), std::end(spread.exponents), int64_t{0});
  if (positive == 0) return 0;
  int exponent = -1;
  for (int64_t below = 0; below < (positive + 1) / 2;) below += spread.exponents[++exponent];
  return std::min(spread.largest, std::ldexp(1.0f, std::min(exponent - 127 + 4, 127)));
}

void block_weights(const Codes& codes, const int32_t* blocks, int64_t count, float reference, int16_t* weights) {
  for (int64_t i = 0; i < count; i++) {
    const double ratio =
        reference > 0 ? static_cast<double>(codes.sigma_of(blocks[i])) / static_cast<double>(reference) : 0.0;
    weights[i] = static_cast<int16_t>(round_even(std::min(32767.0, 32767.0 * ratio)));
  }
}

CentreRange block_centres(const Query& query, int head_dim, const Codes& codes, const int32_t* blocks, int64_t count,
                          double* centres) {
  if (count == 0) return {};
  HWY_DYNAMIC_DISPATCH(CentreProducts)(query, head_dim, codes, blocks, count, centres);
  const auto [lowest, highest] = HWY_DYNAMIC_DISPATCH(RangeOf)(centres, count);
  return {lowest, highest};
}

float largest_rounding(const Codes& codes, const int32_t* blocks, int64_t count) {
  float rounding = 0;
  for (int64_t i = 0; i < count; i++) rounding = std::max(rounding, codes.centre_scale_of(blocks[i]));
  return rounding;
}

void centre_offsets(const Query& query, const double* centres, int64_t count, int16_t* offsets) {
  HWY_DYNAMIC_DISPATCH(OffsetsOf)(centres, count, query.highest_centre, query.unit, offsets);
}

void block_offsets(Query& query, int head_dim, Estimator estimator, const Codes& codes, const int32_t* blocks, int64_t count,
                   float reference, double* centres, int16_t* offsets) {
  const CentreRange range = block_centres(query, head_dim, codes, blocks, count, centres);
  set_unit(query, head_dim, estimator, reference, range, [&] { return largest_rounding(codes, blocks, count); });
  centre_offsets(query, centres, count, offsets);
}

void scan(const Query* const* queries, int heads, int head_dim, Estimator estimator, const Codes& codes,
          const int32_t* blocks, int64_t count, const int16_t* weights, const int16_t* const* offsets,
          int16_t* const* scores) {
  HWY_DYNAMIC_DISPATCH(Scan)(queries, heads, head_dim, estimator, codes, blocks, count, weights, offsets, scores);
}

}  // namespace adamas
#endif
