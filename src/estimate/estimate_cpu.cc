#include "estimate/estimate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "codes/codes.h"
#include "hwy/cache_control.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "estimate/estimate_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL
#pragma GCC target("avx512vnni")  // Highway 1.0 requires it of the machine for this set, but has no operation for it
#endif
namespace adamas {
namespace HWY_NAMESPACE {

using U32 = hn::CappedTag<uint32_t, 16>;
using I32 = hn::CappedTag<int32_t, 16>;
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

// I of one vector of tokens, for each head, from two bit planes. Bytes of both planes are zipped into 2-bit fields: `even`
// holds the codes of bits 0, 2, 4, 6 of every byte and `odd` those of bits 1, 3, 5, 7; field j of a word's four bytes is then
// four codes in four bytes, ready for one DotQuad.
template <int H>
struct Dot {
  static HWY_INLINE void Inner(const Query* const* queries, int head_dim, const uint32_t* high, const uint32_t* low,
                               Sums (&inner)[H]) {
    const U32 du;
    const I32 di;
    const auto evens = hn::Set(du, 0x55555555u);
    const auto field = hn::Set(du, 0x03030303u);
    for (int h = 0; h < H; h++) inner[h] = hn::Zero(di);
    for (int c = 0; c < chunks(head_dim); c++) {
      const auto hi = hn::Load(du, high + c * block_tokens);
      const auto lo = hn::Load(du, low + c * block_tokens);
      const auto even = hn::Or(hn::ShiftLeft<1>(hn::And(hi, evens)), hn::And(lo, evens));
      const auto odd = hn::Or(hn::AndNot(evens, hi), hn::And(hn::ShiftRight<1>(lo), evens));
      const auto step = [&](Words codes, int j) HWY_ATTR {
        for (int h = 0; h < H; h++) {
          int32_t four;
          std::memcpy(&four, queries[h]->q8 + c * chunk_dims + 4 * j, sizeof four);
          inner[h] = DotQuad(inner[h], codes, hn::Set(di, four));
        }
      };
      step(hn::And(even, field), 0);
      step(hn::And(odd, field), 1);
      step(hn::And(hn::ShiftRight<2>(even), field), 2);
      step(hn::And(hn::ShiftRight<2>(odd), field), 3);
      step(hn::And(hn::ShiftRight<4>(even), field), 4);
      step(hn::And(hn::ShiftRight<4>(odd), field), 5);
      step(hn::And(hn::ShiftRight<6>(even), field), 6);
      step(hn::And(hn::ShiftRight<6>(odd), field), 7);
    }
    // level = 2 code - 3
    for (int h = 0; h < H; h++)
      inner[h] = hn::Sub(hn::Add(inner[h], inner[h]), hn::Set(di, 3 * queries[h]->q8_sum));
  }
};

// In thermometer form the codes 0 to 3 are 000, 001, 011, 111, and the Manhattan distance is the Hamming distance of the
// bits (high or low), high, (high and low).
template <int H>
struct Manhattan {
  static HWY_INLINE void Inner(const Query* const* queries, int head_dim, const uint32_t* high, const uint32_t* low,
                               Sums (&inner)[H]) {
    const U32 du;
    const I32 di;
    Words distance[H];
    for (int h = 0; h < H; h++) distance[h] = hn::Zero(du);
    for (int c = 0; c < chunks(head_dim); c++) {
      const auto hi = hn::Load(du, high + c * block_tokens);
      const auto lo = hn::Load(du, low + c * block_tokens);
      const auto any = hn::Or(hi, lo);
      const auto all = hn::And(hi, lo);
      for (int h = 0; h < H; h++) {
        const uint32_t query_high = queries[h]->high[c], query_low = queries[h]->low[c];
        const auto first = hn::PopulationCount(hn::Xor(any, hn::Set(du, query_high | query_low)));
        const auto second = hn::PopulationCount(hn::Xor(hi, hn::Set(du, query_high)));
        const auto third = hn::PopulationCount(hn::Xor(all, hn::Set(du, query_high & query_low)));
        distance[h] = hn::Add(distance[h], hn::Add(first, hn::Add(second, third)));
      }
    }
    const auto mean = hn::Set(di, static_cast<int32_t>(std::nearbyint(mean_distance * distance_scale * head_dim)));
    for (int h = 0; h < H; h++) inner[h] = hn::Sub(mean, hn::ShiftLeft<5>(hn::BitCast(di, distance[h])));
  }
};

template <template <int> class Inner, int H>
void ScanHeads(const Query* const* queries, int head_dim, const Codes& codes, const int32_t* blocks, int64_t count,
               const int16_t* weights, const int16_t* const* offsets, int16_t* const* scores) {
  const I32 di;
  const hn::Rebind<int16_t, I32> d16;
  const int lanes = static_cast<int>(hn::Lanes(di));
  const auto half = hn::Set(di, 1 << 14);
  for (int64_t i = 0; i < count; i++) {
    const Block block = codes.block(blocks[i]);
    const auto weight = hn::Set(di, weights[i]);
    if (i + 2 < count) {
      const auto* next = reinterpret_cast<const std::byte*>(codes.block(blocks[i + 2]).high);
      for (size_t line = 0; line < codes.layout.code_bytes(); line += 64) hwy::Prefetch(next + line);
    }
    // Four vectors unrolled: the chains of dependent dot products of one vector would leave the units idle.
#pragma GCC unroll 4
    for (int t = 0; t < block_tokens; t += lanes) {
      Sums inner[H];
      Inner<H>::Inner(queries, head_dim, block.high + t, block.low + t, inner);
      for (int h = 0; h < H; h++) {
        const auto scaled = hn::ShiftRight<15>(hn::Add(hn::Mul(inner[h], weight), half));
        const auto score = hn::Add(scaled, hn::Set(di, offsets[h][i]));
        hn::StoreU(hn::DemoteTo(d16, score), d16, scores[h] + i * block_tokens + t);
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

// q16 . mu of one block, exact. A pair of products is at most 2 * 32767^2 < 2^31; pairs are widened before they are added.
int64_t CentreProduct(const int16_t* q16, const int16_t* centre, int head_dim) {
#if HWY_TARGET == HWY_SCALAR
  int64_t sum = 0;
  for (int i = 0; i < head_dim; i++) sum += int64_t{q16[i]} * centre[i];
  return sum;
#else
  const hn::CappedTag<int16_t, 16> d;
  const hn::RepartitionToWide<decltype(d)> d32;
  const hn::RepartitionToWide<decltype(d32)> d64;
  const hn::Half<decltype(d32)> half32;
  auto sum = hn::Zero(d64);
  for (int i = 0; i < head_dim; i += static_cast<int>(hn::Lanes(d))) {
    auto rest = hn::Zero(d32);
    const auto pairs =
        hn::ReorderWidenMulAccumulate(d32, hn::LoadU(d, q16 + i), hn::LoadU(d, centre + i), hn::Zero(d32), rest);
    for (const auto v : {pairs, rest}) {
      sum = hn::Add(sum, hn::PromoteTo(d64, hn::LowerHalf(half32, v)));
      sum = hn::Add(sum, hn::PromoteTo(d64, hn::UpperHalf(half32, v)));
    }
  }
  return hn::GetLane(hn::SumOfLanes(d64, sum));
#endif
}

void CentreProducts(const Query& query, int head_dim, const Codes& codes, const int32_t* blocks, int64_t count,
                    double* centres) {
  const double scale = static_cast<double>(query.largest) / 32767.0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t product = CentreProduct(query.q16, codes.block(blocks[i]).centre, head_dim);
    centres[i] = static_cast<double>(product) * (scale * static_cast<double>(codes.centre_scale[blocks[i]]));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {
namespace {

// Round half to even, for |x| < 2^51, without a call: adding 1.5 * 2^52 leaves no bits for a fraction.
inline double round_even(double x) {
  constexpr double shift = 6755399441055744.0;
  return (x + shift) - shift;
}

int exponent_of(float positive) { return static_cast<int>(std::bit_cast<uint32_t>(positive) >> 23) - 127; }

}  // namespace

HWY_EXPORT(Scan);
HWY_EXPORT(CentreProducts);

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
  if (estimator == Estimator::dot) {
    std::memset(query.q8, 0, sizeof query.q8);
    query.q8_sum = 0;
    for (int d = 0; d < head_dim; d++) {
      const int in_chunk = d % chunk_dims;
      const auto q8 = static_cast<int8_t>(round_even(y[d] * to8));
      query.q8[d - in_chunk + 4 * (in_chunk % 8) + in_chunk / 8] = q8;
      query.q8_sum += q8;
    }
  } else {
    const float t = threshold > 0 ? threshold : threshold_sigmas * query.rms;
    std::memset(query.high, 0, sizeof query.high);
    std::memset(query.low, 0, sizeof query.low);
    for (int d = 0; d < head_dim; d++) {
      const uint32_t code = (y[d] > -t) + (y[d] > 0) + (y[d] > t);
      query.high[d / chunk_dims] |= (code >> 1) << (d % chunk_dims);
      query.low[d / chunk_dims] |= (code & 1) << (d % chunk_dims);
    }
  }
}

float reference_sigma(const float* sigma, const int32_t* blocks, int64_t count) {
  float largest = 0;
  int32_t histogram[256] = {};
  int32_t positive = 0;
  for (int64_t i = 0; i < count; i++) {
    const float s = sigma[blocks[i]];
    if (s > 0) {
      largest = std::max(largest, s);
      histogram[exponent_of(s) + 127]++;
      positive++;
    }
  }
  if (positive == 0) return 0;
  int exponent = -1;
  for (int32_t below = 0; below < (positive + 1) / 2;) below += histogram[++exponent];
  return std::min(largest, std::ldexp(1.0f, std::min(exponent - 127 + 4, 127)));
}

void block_weights(const float* sigma, const int32_t* blocks, int64_t count, float reference, int16_t* weights) {
  for (int64_t i = 0; i < count; i++) {
    const double ratio = reference > 0 ? static_cast<double>(sigma[blocks[i]]) / static_cast<double>(reference) : 0.0;
    weights[i] = static_cast<int16_t>(round_even(std::min(32767.0, 32767.0 * ratio)));
  }
}

void block_offsets(Query& query, int head_dim, Estimator estimator, const Codes& codes, const int32_t* blocks,
                   int64_t count, float reference, double* centres, int16_t* offsets) {
  HWY_DYNAMIC_DISPATCH(CentreProducts)(query, head_dim, codes, blocks, count, centres);
  double lowest = centres[0], highest = centres[0];
  for (int64_t i = 1; i < count; i++) {
    lowest = std::min(lowest, centres[i]);
    highest = std::max(highest, centres[i]);
  }
  double unit = estimator == Estimator::dot
                    ? static_cast<double>(query.largest) / query_levels * static_cast<double>(level_sigmas) *
                          static_cast<double>(reference)
                    : static_cast<double>(distance_weight) * static_cast<double>(query.rms) *
                          static_cast<double>(reference) / distance_scale;
  // No deviation in any block (or a query of zeros): the centres alone decide, or nothing does.
  if (!(unit > 0)) unit = (highest - lowest) / 16384.0;
  if (!(unit > 0)) unit = 1;
  query.unit = unit;
  query.highest_centre = highest;
  for (int64_t i = 0; i < count; i++)
    offsets[i] = static_cast<int16_t>(
        round_even(std::max(static_cast<double>(lowest_centre), (centres[i] - highest) / unit)));
}

void scan(const Query* const* queries, int heads, int head_dim, Estimator estimator, const Codes& codes,
          const int32_t* blocks, int64_t count, const int16_t* weights, const int16_t* const* offsets,
          int16_t* const* scores) {
  HWY_DYNAMIC_DISPATCH(Scan)(queries, heads, head_dim, estimator, codes, blocks, count, weights, offsets, scores);
}

}  // namespace adamas
#endif
