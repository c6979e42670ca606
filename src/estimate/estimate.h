// Stage 3. A score for every token from its codes, in integers, so that every device selects the same tokens.
//
// With y = the rotated query, m = max |y|, mu_b and sigma_b the centre and deviation of block b:
//
//   dot        q8 = round(21 y / m)               I = sum_d q8_d level(code_d)           |I| <= 63 head_dim
//              u  = (m / 21) 0.498 sigma_ref
//   manhattan  cq = codes of y, t = 0.98 RMS(y)   I = round(33.504 head_dim) - 32 L1(cq, code)
//              u  = 0.79 RMS(y) sigma_ref / 32                                           |I| <= 62.5 head_dim
//
//   q16 = round(32767 y / m)                      c_b = (q16 . mu_b) (m / 32767)         exact sum in 64 bits
//   A_b = min(32767, round(32767 sigma_b / sigma_ref))
//   C_b = max(-16639, round((c_b - c_max) / u))
//   S   = ((I A_b + 2^14) >> 15) + C_b            in [-32767, 16128], never wraps
//
// The estimate of q . k is u S + c_max. Where no block deviates, u is (c_max - c_min) / 16384, at least |y| times the
// largest centre_scale: below that, centres differ by rounding. 21: with the levels +-3, two dimensions fit a signed byte
// (21 * 3 * 2 = 126), so byte tables, int8 dot products and matrix units all give the same I. 33.504 = 32 * 1.047: mean
// distance of two independent Gaussian codes per dimension; 0.79: covariance of product and distance over the variance of
// the distance.
//
// sigma_ref is the largest sigma of the head, but at most 16 times the median (to a power of two): one block a thousand
// times as large as the rest must not take away the others' resolution. Its own A_b is cut then; it stays far ahead.
//
// Ties and order: nothing here; see select.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "codes/codes.h"

namespace adamas {

inline constexpr int query_levels = 21;
inline constexpr float smallest_query = 1e-30f;  // a query below this in every dimension counts as zero
inline constexpr int lowest_centre = -16639;     // so that S >= -16639 - 63 * 256 > -32768
inline constexpr double flat_unit = 1e-9;        // of a query of zeros: whatever the codes say, no score is above another
inline constexpr float distance_weight = 0.79f;
inline constexpr int distance_scale = 32;
inline constexpr double mean_distance = 1.047;

// Added and taken off again it rounds half to even: it leaves no bits for a fraction.
inline constexpr double round_shift = 0x1.8p52;

enum class Estimator { dot, manhattan };

// A query head's query, ready to be scored against codes.
struct alignas(64) Query {
  int8_t q8[max_head_dim];  // dot: byte 4 j + b of chunk c is dimension 32 c + 8 b + j: the order in which words are read
  uint32_t high[max_head_dim / chunk_dims];  // manhattan: codes, as planes
  uint32_t low[max_head_dim / chunk_dims];
  int16_t q16[max_head_dim];  // for centres
  int32_t q8_sum;             // dot: sum of q8
  int32_t max_abs_score;      // |I| is at most this
  float largest;              // m
  float rms;                  // of the rotated query
  double unit;                // u
  double highest_centre;      // c_max
  bool offset_clipped;        // some block's C_b is above (c_b - c_max) / u
};

// y: [head_dim], rotated, finite. threshold: of the query's codes, for the preset `paper`; 0 means 0.98 RMS(y).
void prepare_query(const float* y, int head_dim, Estimator estimator, float threshold, Query& query);

// What sigma_ref is made of. That of a context in parts has the largest of theirs, and the sums of their exponents.
struct Spread {
  float largest = 0;
  int64_t exponents[256] = {};  // blocks whose sigma, when it is not 0, has this exponent, as a float's bits have it
};
Spread spread_of(const Codes& codes, const int32_t* blocks, int64_t count);
float reference_sigma(const Spread& spread);
// sigma_ref over the given blocks. blocks: [count], ascending.
inline float reference_sigma(const Codes& codes, const int32_t* blocks, int64_t count) {
  return reference_sigma(spread_of(codes, blocks, count));
}

// A_b of the given blocks: weights [count]. All zero when sigma_ref is.
void block_weights(const Codes& codes, const int32_t* blocks, int64_t count, float reference, int16_t* weights);

// c_b of the given blocks: centres [count]. Their range; that of a context in parts is the hull of theirs.
struct CentreRange {
  double lowest = std::numeric_limits<double>::infinity(), highest = -std::numeric_limits<double>::infinity();
};
CentreRange block_centres(const Query& query, int head_dim, const Codes& codes, const int32_t* blocks, int64_t count,
                          double* centres);
// The largest unit of a centre.
float largest_rounding(const Codes& codes, const int32_t* blocks, int64_t count);
// u and c_max. rounding(): the largest unit of a centre, which is asked for when no block deviates.
template <class Rounding>
void set_unit(Query& query, int head_dim, Estimator estimator, float reference, CentreRange centres, Rounding&& rounding) {
  query.unit = estimator == Estimator::dot
                   ? double(query.largest) / query_levels * double(level_sigmas) * double(reference)
                   : double(distance_weight) * double(query.rms) * double(reference) / distance_scale;
  // No deviation in any block (or a query of zeros): the centres alone decide, as far as they are no rounding, or nothing
  // does.
  if (!(query.unit > 0))
    query.unit =
        std::max((centres.highest - centres.lowest) / 16384.0, double(query.rms) * std::sqrt(head_dim) * double(rounding()));
  if (!(query.unit > 0)) query.unit = flat_unit;
  query.highest_centre = centres.highest;
  query.offset_clipped = (centres.lowest - centres.highest) / query.unit < lowest_centre;
}
// C_b: offsets [count] of centres [count].
void centre_offsets(const Query& query, const double* centres, int64_t count, int16_t* offsets);

// The three of them, for a context that has these blocks alone; count is at least 1. centres: [count], scratch.
void block_offsets(Query& query, int head_dim, Estimator estimator, const Codes& codes, const int32_t* blocks, int64_t count,
                   float reference, double* centres, int16_t* offsets);

// S of the tokens of the given blocks for up to `max_scan_heads` query heads at once: scores[h] is [count, 64].
inline constexpr int max_scan_heads = 4;
void scan(const Query* const* queries, int heads, int head_dim, Estimator estimator, const Codes& codes,
          const int32_t* blocks, int64_t count, const int16_t* weights, const int16_t* const* offsets,
          int16_t* const* scores);

}  // namespace adamas
