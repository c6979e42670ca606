// Stage 5. Softmax attention of full-precision queries over the full-precision K and V of given tokens.
//
//   s_t = softcap(scale q . k_t) + slope bias_t,   softcap(x) = cap tanh(x / cap), or x when cap = 0
//   state += exp(s_t - max), exp(s_t - max) v_t     flash-decoding: states of disjoint token sets merge
//
// The tokens are a list, or a range of which a bit per token says whether it is visible.
#pragma once

#include <cstdint>

#include "attend/softmax_state.h"
#include "core/rows.h"

namespace adamas {

struct Attention {
  int head_dim;
  float scale;
  float softcap;      // 0: none
  Rows k;             // [tokens, head_dim]
  Rows v;             // [tokens, head_dim]
  const float* bias;  // [tokens], or NULL
};

inline constexpr int attend_tile = 64;      // tokens whose scores are kept at a time
inline constexpr int max_attend_heads = 4;  // query heads that share a pass over K and V

// queries[h]: [head_dim]; slopes[h] multiplies the bias; states[h] is added to. 1 to max_attend_heads heads.
// tokens: [count], any order.
void attend_list(const Attention& a, const float* const* queries, const float* slopes, int heads, const int32_t* tokens,
                 int64_t count, SoftmaxState* states);

// Every visible token of the blocks [first_block, last_block); visible: [blocks], bit t of word b is token 64 b + t.
void attend_range(const Attention& a, const float* const* queries, const float* slopes, int heads, const uint64_t* visible,
                  int64_t first_block, int64_t last_block, SoftmaxState* states);

// In two halves, for what is decided in between. First s_t of the listed tokens: scores[h] [count]. Then, with any weights
// [count] of each head, the sum of weighted rows of V: outs[h] [head_dim] += sum_i weights[h][i] v[tokens[i]]. 1 to
// max_attend_heads heads.
void score_list(const Attention& a, const float* const* queries, const float* slopes, int heads, const int32_t* tokens,
                int64_t count, float* const* scores);
void add_values(const Attention& a, const int32_t* tokens, const float* const* weights, int heads, int64_t count,
                float* const* outs);

}  // namespace adamas
