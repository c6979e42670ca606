// What attention of a prompt means: attend_ref.h for each query, over the tokens that its row sees. In double precision, and
// without the 16-bit numbers that the kernel rounds to.
#pragma once

#include <vector>

#include "attend/attend_ref.h"
#include "prompt/prompt.h"

namespace adamas::ref {

inline float bias_of(const PromptRow& row, int64_t token) {
  if (!row.biased) return 0;
  return row.mask != nullptr ? load_f32(row.mask, row.mask_dtype, token) : float(token - row.newest);
}

inline Attended attend_prompt(const PromptContext& a, const PromptQuery& query) {
  std::vector<int32_t> tokens;
  std::vector<float> q(a.head_dim), bias(query.row->blocks * block_tokens);
  for (int64_t b = 0; b < query.row->blocks; b++)
    for_each_bit(query.row->visible[b], [&](int t) {
      tokens.push_back(int32_t(b * block_tokens + t));
      bias[tokens.back()] = bias_of(*query.row, tokens.back());
    });
  for (int d = 0; d < a.head_dim; d++) q[d] = load_f32(query.q, query.q_dtype, d);
  return attend({a.head_dim, a.scale, a.softcap, a.k, a.v, bias.data()}, q.data(), query.slope, tokens);
}

}  // namespace adamas::ref
