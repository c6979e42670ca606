// Stage 5, for the tokens that are not selected: their values from codes, and where their keys were not read, their weights from the
// estimate.
//
// With S the score of token t (estimate.h), u its unit and c_max its highest centre:
//
//   s^_t = softcap(scale (u S_t + c_max))              the estimate of s_t
//   w_t  = exp(s_t - max), or gain exp(s^_t - max)     max: of the scores s that were computed exactly
//
//   second tier   + w_t v^_t      v^ = mean of its block + 0.498 sigma level(code), as codes.h makes them of V
//   tail          + w_t mean      of its block, for every other token
//
// so both add w_t to the block's mean, and the second tier its levels besides. All of it in the rotated space: the caller
// rotates the sum back once (H H = I). Blocks that weigh little are not read: their weight goes to the others' mean (keep_large).
//
// gain = sum exp(s_t) / sum exp(s^_t) over tokens whose score is known both ways: of the best by estimate the lowest, up to twice the
// least weight, which are the most like all those below them. It needs no constant: the estimate's error moves exp(s^) up or down by a
// factor that depends on the model and layer (0.4 to 1.4 where we measured), and on the score; every step measures it anyway.
// docs/quality.md has what else was tried.
#pragma once

#include <cstdint>

#include "attend/softmax_state.h"
#include "codes/layout.h"

namespace adamas {

struct Estimated {
  double unit;     // scale u
  double highest;  // scale c_max
  float softcap;   // 0: none
  float max;       // the exponents' reference: no estimate is more than 64 above it
};

// exp(s^_t - max) of scores [count] within four percent; 0 where hidden or always, which are no estimates.
// count: a multiple of 64.
void weigh(const Estimated& e, const int16_t* scores, int64_t count, float* weights);
// The sums of the same weights over blocks of 64: scores [blocks, 64], none of them always; weights [blocks]. Returns the sum of all.
float weigh_blocks(const Estimated& e, const int16_t* scores, int64_t blocks, float* weights);

// exp(score - max) of scores that were computed exactly, to five digits, and their ranks for select(): in thousandths below
// the maximum, 32.767 at most, so that two tokens of one rank weigh the same within 0.1%. NaN is last. count: a multiple of 64.
void weigh_exact(const float* scores, float max, int64_t count, float* weights);
void rank_exact(const float* scores, float max, int64_t count, int16_t* ranks);

// Sums of two lists of weights over the tokens that have an estimate, whose score is neither hidden nor always: of those that weigh at
// most twice the least, or of all, when these are fewer than `enough_known`. All have room for `count` to a multiple of 64.
inline constexpr int64_t enough_known = 16;
struct KnownSums {
  float estimated, exact;
};
KnownSums sum_known(const int16_t* scores, const float* estimated, const float* exact, int64_t count);

// Of the tokens whose keys were read, [count], those that were not selected: listed, in order, with their exact weights. Returns how many
// and the sum of these weights. changes[i]: what token i changes in the weight of its block, whose estimate times gain has it
// already: less gain estimated[i], and more by exact[i] unless it is selected. All have room for `count` to a multiple of 64.
struct Listed {
  int64_t count;
  float sum;
};
Listed list_others(const uint8_t* selected, const int32_t* tokens, const float* estimated, const float* exact, float gain, int64_t count,
                   float* changes, int32_t* listed, float* weights);

// Sums of weights that fell below zero when others were taken off them, by rounding, become zero. Returns the sum of all. sums: [count],
// with room for a multiple of 16.
float settle(float* sums, int64_t count);
// Of blocks [count] those whose sum is above `least`, in order: kept, and their sums at the front. Returns how many, and the sum of theirs.
// Both have room for `count` to a multiple of 16.
struct Kept {
  int64_t count;
  float sum;
};
Kept keep_large(const int32_t* blocks, int64_t count, float least, float* sums, int32_t* kept);

// out [head_dim] += sum of weights[i] times the levels of tokens[i], [count]. fetch_levels asks the memory for these codes: they lie far
// apart, and the second cache holds those of all tokens that a head lists.
inline void fetch_levels(const Codes& values, const int32_t* tokens, int64_t count) {
  const int64_t words = 2 * chunks(values.layout.head_dim);
  for (int64_t i = 0; i < count; i++) __builtin_prefetch(values.words + tokens[i] * words, 0, 2);
}
void add_levels(const Codes& values, int head_dim, const int32_t* tokens, const float* weights, int64_t count, float* out);
// out [head_dim] += gain times the sum of weights[i] times the mean of blocks[i], [count].
void add_means(const Codes& values, int head_dim, const int32_t* blocks, const float* weights, int64_t count, float gain, float* out);

}  // namespace adamas
