// Attention of many query rows at once, as a prompt has them: softmax attention over every visible token, as
// attend/attend.h defines it, with products of 16-bit integers.
//
//   q_i = round(q / s_q), k_i = round(k_t / s_k,t)        of norm 32,700 each: q . k_t = s_q s_k,t (q_i . k_i)
//   p_i = round(16383 exp(s_t - max of the block's s))     weights of a block of 64 tokens, relative to its largest
//   v_i = round(v_t,d / s_v,d)                              of norm 16,000 in each dimension over the block's 64 tokens
//   out = sum over blocks of exp(max of the block - max) sum_t p_i v_i s_v,d / 16383
//
// All sums of products are whole numbers that fit 32 bits, by Cauchy and Schwarz: |q_i . k_i| <= (32,700 + 8)^2 and
// |sum_t p_i v_i| <= 8 * 16,384 (16,000 + 4), both below 2^31. How far that is from exact: docs/numerics.md.
//
// Sparse: blocks are met in turn, the first and then back from the newest, and neighbouring queries, prompt_vector() of
// them, leave a block out together whose weight is next to nothing to each: w <= negligible_block * sum, of what it has read
// so far, and all that it left out <= negligible_in_all * sum. w is what the block's scores make of it, or first, without
// their exp, 64 exp(max of the block's s), which is more. Of the whole softmax that is less still, so
//
//   |out - dense out| <= 2 L max|v|,   L <= negligible_in_all the share that was left out
//
// The products with keys are made of every block: nothing is estimated.
#pragma once

#include <cstdint>

#include "attend/softmax_state.h"
#include "core/memory.h"
#include "core/rows.h"

namespace adamas {

inline constexpr float negligible_block = 0.003f, negligible_in_all = 0.1f;

// The keys and values of a KV head.
struct PromptContext {
  int head_dim;
  float scale;           // > 0
  float softcap;         // 0: none
  Rows k;                // [tokens, head_dim]
  Rows v;                // [tokens, head_dim]
  const uint64_t* live;  // [blocks] what any query of the step sees: rows that none does are not looked at
};

// What a query row sees.
struct PromptRow {
  const uint64_t* visible;  // [blocks] bit t of word b says that the row sees token 64 b + t
  int64_t blocks;           // the words that may have a bit

  bool biased;            // scores have a bias, times the slope of their head:
  const std::byte* mask;  // [tokens] of mask_dtype; NULL: the distance of a token to `newest`
  DType mask_dtype;
  int64_t newest;
};

// One query head of a row.
struct PromptQuery {
  const PromptRow* row;
  const std::byte* q;  // [head_dim] of q_dtype
  DType q_dtype;
  float slope;
  bool sparse;          // leaves out what is next to nothing, where its neighbours do
  SoftmaxState* state;  // set, and not added to
};

inline constexpr int prompt_tile = 48;  // queries, at most, that a kernel holds in one tile: 3 vectors of 16

// Queries that share one pass over K and V: so many that packing a block costs some hundredth of its products, and few
// enough for their queries and sums to stay in a second cache of 1 MB: 1,536 of head_dim 64, 768 of 128, 384 of 256.
constexpr int prompt_queries(int head_dim) { return 98304 / head_dim / prompt_tile * prompt_tile; }

// What a thread writes meanwhile.
struct PromptRoom {
  explicit PromptRoom(int head_dim);

  Array<int32_t> q;        // [tiles, head_dim / 2, tile] pairs of 16-bit numbers
  Array<float> out;        // [tiles, head_dim, tile]
  Array<float> of_query;   // [tiles, 6, tile] scale, largest score, sum, slope, left out, share
  Array<int32_t> k;        // [64, head_dim / 2] pairs of dimensions
  Array<int32_t> v;        // [32, head_dim] pairs of tokens
  Array<float> of_block;   // [64] s_k, [head_dim] s_v
  Array<float> scores;     // [64, tile]
  Array<float> biases;     // [64, tile]
  Array<int32_t> weights;  // [32, tile] pairs of tokens
};

// 1 to prompt_queries(head_dim) queries of one KV head, in any order; tiles are made of neighbours, so queries that see
// about the same belong together. A query's state does not depend on which others come with it, but for what `live` says
// and, of sparse ones, for those of its vector: [i, i + prompt_vector()), i a multiple of that.
// Rows of K and V with an element that is no finite number, or a squared norm that is none, make the queries NaN that see
// them; others do not notice.
void attend_prompt(const PromptContext& a, const PromptQuery* queries, int count, PromptRoom& room);

int prompt_vector();

}  // namespace adamas
