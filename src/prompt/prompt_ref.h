// What attention of a prompt means: attend_ref.h for each query, over the tokens that its row sees. In double precision, and
// without the 16-bit numbers that the kernel rounds to.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "attend/attend_ref.h"
#include "prompt/prompt.h"

namespace adamas::ref {

inline float bias_of(const PromptRow& row, int64_t token) {
  if (!row.biased) return 0;
  return row.mask != nullptr ? load_f32(row.mask, row.mask_dtype, token) : float(token - row.newest);
}

// Over the tokens that its row sees in these blocks.
inline Attended attend_blocks(const PromptContext& a, const PromptQuery& query, const std::vector<int64_t>& blocks) {
  std::vector<int32_t> tokens;
  std::vector<float> q(a.head_dim), bias(query.row->blocks * block_tokens);
  for (int64_t b : blocks) {
    if (b >= query.row->blocks) continue;
    for_each_bit(query.row->visible[b], [&](int t) {
      tokens.push_back(int32_t(b * block_tokens + t));
      bias[tokens.back()] = bias_of(*query.row, tokens.back());
    });
  }
  for (int d = 0; d < a.head_dim; d++) q[d] = load_f32(query.q, query.q_dtype, d);
  return attend({a.head_dim, a.scale, a.softcap, a.k, a.v, bias.data()}, q.data(), query.slope, tokens);
}

inline Attended attend_prompt(const PromptContext& a, const PromptQuery& query) {
  std::vector<int64_t> blocks;
  for (int64_t b = 0; b < query.row->blocks; b++) blocks.push_back(b);
  return attend_blocks(a, query, blocks);
}

struct SparseAttended {
  std::vector<Attended> queries;
  std::vector<int64_t> read;  // blocks
  double closest;             // a weight that is wrong by this factor turns a decision
};

// The queries of a vector, all sparse, over the blocks that they do not leave out together. Of a block's weight alone, not
// of 64 times its largest score's, which is more: where all that was left out stays far below its limit that is the same.
inline SparseAttended attend_sparse(const PromptContext& a, std::span<const PromptQuery> queries, int64_t blocks) {
  SparseAttended result{{}, {}, std::numeric_limits<double>::infinity()};
  std::vector<double> sum(queries.size()), left_out(queries.size()), weight(queries.size());
  for (int64_t i = 0; i < blocks; i++) {
    const int64_t b = i == 0 ? 0 : blocks - i;
    double most = 0;  // of what each may leave out
    for (size_t j = 0; j < queries.size(); j++) {
      weight[j] = std::exp(attend_blocks(a, queries[j], {b}).lse);
      if (weight[j] == 0) continue;
      most = std::max(
          {most, weight[j] / (negligible_block * sum[j]), (left_out[j] + weight[j]) / (negligible_in_all * sum[j])});
    }
    if (most > 0) result.closest = std::min(result.closest, std::max(most, 1 / most));
    if (most > 1) result.read.push_back(b);
    for (size_t j = 0; j < queries.size(); j++) (most > 1 ? sum : left_out)[j] += weight[j];
  }
  for (const PromptQuery& query : queries) result.queries.push_back(attend_blocks(a, query, result.read));
  return result;
}

}  // namespace adamas::ref
