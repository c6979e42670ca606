// The rest: what the tokens that are not read count for, and so what each value and each block's mean value weighs.
//
// A query head knows the estimated score S of every token (estimate.h), and the exact scores s of the tokens of its KV
// head's list. With u the unit of S, c_max its highest centre and max the largest exact score of the list:
//
//   s^_t = softcap(scale (u S_t + c_max))             the estimate of s_t
//   w_t  = exp(s_t - max)                             of a listed token
//   w^_t = exp(s^_t - max)                            of any
//   own  = the listed tokens whose score reaches the head's own bound; low = of these those of at most twice what the bound
//          stands for
//   f    = sum_low w / sum_low w^                     the measured factor
//   T_b  = f sum of w^_t over the tokens of block b that are not listed;  R = sum_b T_b
//   t    = sum_b T_b vbar_b / R                       vbar_b: the mean value of block b
//   l - t_l = sum_low w (v - vbar_block) / sum_low w  how the values lean at the boundary
//
//   out  = (sum_listed w v + R (t + lean (l - t_l))) / (sum_listed w + R),   lean = 1/2
//
// The factor: estimates are off by a factor that depends on model, layer and text; the lowest tokens that were read show it.
// The lean: of a block the tokens with the larger weights have values that lean towards what is attended to. Just below the
// bound the rest leans as the lowest listed tokens do, far below it not at all: one half serves (best in hindsight: 0.46,
// 0.49 and 0.55 on three models; docs/quality.md). All of it is linear in the values, so weights say it:
//
//   weight of listed value i   w_i (1 + beta [i low]),  beta = lean R / sum_low w
//   weight of mean value b     T_b - beta sum of w over the low tokens of b
//
// A block with hidden rows has a mean that is also of rows that this query does not see (another sequence's, or later ones
// of its batch): what is not read of it counts as what was attended to, and its tokens say nothing of the lean.
#pragma once

#include <cmath>
#include <cstdint>

#include "codes/layout.h"

namespace adamas {

struct WeightScale {
  double unit;     // scale u
  double highest;  // scale c_max
  float softcap;   // 0: none
  float max;       // the exponents' reference: no estimate is more than 64 above it
};

inline double capped(double score, float softcap) { return softcap > 0 ? softcap * std::tanh(score / softcap) : score; }
inline double estimate_of(const WeightScale& e, int16_t score) { return capped(e.unit * score + e.highest, e.softcap); }

// exp(s^_t - max) of scores [count] within four percent; 0 where hidden, which is no estimate. count: a multiple of 64.
void weigh(const WeightScale& e, const int16_t* scores, int64_t count, float* weights);
// The sums of the same weights over blocks of 64: scores [blocks, 64], weights [blocks]. Returns the sum of all.
float weigh_blocks(const WeightScale& e, const int16_t* scores, int64_t blocks, float* weights);

// exp(score - max), in place. Room for count to a multiple of 64; what lies beyond becomes 0. Returns their sum.
float weigh_exact(float* scores, float max, int64_t count);
// The largest score, -inf of none; NaN when one is NaN or +inf.
float highest_exact(const float* scores, int64_t count);

inline constexpr float lean = 0.5f;
inline constexpr float highest_factor = 5;   // a measured factor beyond this is an accident of few tokens
inline constexpr float highest_weight = 30;  // exponent of an estimate that far above all that was read: cut, not infinite

// A query head, and the list of its KV head.
struct HeadList {
  WeightScale e;
  int16_t bound;             // from which score on the head lists tokens itself
  const uint64_t* listed;    // [blocks] bit t of word b: score 64 b + t is of a listed token
  const int32_t* positions;  // [count] the same, ascending
  int64_t count;
  const uint8_t* has_hidden_rows;  // [blocks]; NULL: no block has
  int64_t blocks;                  // of its scores
};

// Sums of weights, relative to the largest exact score.
struct Measured {
  float max;            // NaN: so is the head
  float listed;         // sum of w
  float rest;           // R, without the blocks that have hidden rows
  float beside_hidden;  // what R would be of these
  float low;            // sum of w over the low tokens that have a mean value
  int16_t low_top;      // the highest score of a low token

  // The share of the softmax that was read.
  double mass() const { return double(listed) / (double(listed) + double(rest) + double(beside_hidden)); }
};

// In:          scores [blocks, 64] of all tokens, with an estimate or hidden
// In and out:  sums [blocks] of estimated weights, as weigh_blocks made them of these scores: T_b
//              weights [count] exact scores: w
// Out:         estimated [count] the list's scores
// scratch:     guesses [count]
// Arrays of the list have room for count to a multiple of 64, and for 64 more.
Measured measure_rest(const HeadList& list, const int16_t* scores, float* sums, float* weights, int16_t* estimated,
                      float* guesses);
// The highest score of at most twice what a score stands for.
int16_t low_top_of(const WeightScale& e, int16_t score);
inline constexpr int64_t rest_room(int64_t count) { return (count + 63) / 64 * 64 + 64; }

// Weights w become those of the values, sums T_b those of the means. scratch: [rest_room(count)] of each.
void lean_rest(const HeadList& list, const Measured& measured, const int16_t* estimated, float* weights, float* sums,
               int32_t* low_positions, float* low_weights);

// outs[h] [head_dim] += sum of weights[h][i] times the mean value of blocks[i], [count], for 1 to 4 heads.
inline constexpr int max_mean_heads = 4;
void add_means(const Means& means, int head_dim, const int32_t* blocks, const float* const* weights, int heads,
               int64_t count, float* const* outs);

}  // namespace adamas
