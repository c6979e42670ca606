// One query row on its way through the stages. Internal to the step.
#pragma once

#include <cmath>
#include <cstddef>

#include "attend/attend.h"
#include "codes/codes.h"
#include "step/scale.h"
#include "step/step.h"

namespace adamas {

// One query row of one sequence, and what it sees.
struct Row {
  Plan& plan;
  Cache& cache;
  const adamas_step_params& p;
  int64_t batch, row;  // indices into q, out, mask
  int64_t sequence;
  bool verify;    // the hashes of the key rows that are read
  bool unplaced;  // the pool of codes has no place for some of its tokens: it is read densely
  View view;
  Uncoded uncoded;  // of a row that is not dense

  int head_dim() const { return plan.params.head_dim; }
  int group() const { return plan.params.q_heads / plan.params.kv_heads; }
  float* q(int h) const { return plan.q.get() + int64_t(h) * head_dim(); }
  float slope(int h) const { return p.slopes != nullptr ? p.slopes[h] : 1.0f; }
  float scale() const { return score_scale(p, head_dim()); }
  SoftmaxState* states(int h) const { return &plan.states[int64_t(h) * plan.splits]; }
  int16_t* scores(int h) const { return plan.scores.get() + int64_t(h) * plan.blocks * block_tokens; }
  Estimator estimator() const {
    return plan.config.estimator == ADAMAS_ESTIMATOR_DOT ? Estimator::dot : Estimator::manhattan;
  }
  float* sums(int h) const { return plan.sums.get() + h * plan.blocks; }
  uint64_t* marked(int h) const { return plan.marked.get() + h * plan.blocks; }
  uint64_t* on_list(int g) const { return plan.on_list.get() + g * plan.blocks; }
  // A list of tokens, their positions in the scores, and a head's weights of it.
  int32_t* tokens_of(int64_t list) const { return plan.tokens.get() + list * plan.selection_capacity; }
  int32_t* positions_of(int64_t list) const { return plan.positions.get() + list * plan.selection_capacity; }
  float* weights(int h) const { return plan.list_weights.get() + h * plan.selection_capacity; }
  Rows keys(int kv_head) const { return rows_of(p.k, sequence, kv_head, view.tokens); }
  Attention attention(int kv_head) const {
    return {head_dim(), scale(), p.softcap, keys(kv_head), rows_of(p.v, sequence, kv_head, view.tokens), view.bias};
  }
  // A thread's clock, started.
  Clock& start_clock(int thread = 0) const {
    Clock& clock = plan.scratch[thread].clock;
    clock.start(p.times != nullptr);
    return clock;
  }
  // How many of these key rows are not those that their codes were made from. Tokens: ascending; fresh ones, at the end,
  // have no codes.
  int64_t count_stale(int kv_head, const int32_t* tokens, int64_t count) const {
    const auto is_fresh = [&](int32_t token) {
      return (cache.coded(sequence, token / block_tokens) >> token % block_tokens & 1) == 0;
    };
    while (count > 0 && is_fresh(tokens[count - 1])) count--;
    return adamas::count_stale(keys(kv_head), head_dim(), cache.codes(sequence, kv_head), tokens, count);
  }
};

// Query head h as f32, to plan.q.
void load_query(const Row& row, int h);

// What codes are compared with: the query q [head_dim], tamed as keys are, and rotated unless the caller has: y [head_dim].
void rotate_query(const float* q, const Cache& cache, float* y);

// Attention over every visible token, for the heads whose result says so.
void attend_dense(const Row& row, int threads);

// The stages, for the policies that select. Returns how many of the key rows that were read are not those that their codes
// were made from.
int64_t attend_sparse(const Row& row, int threads);

// The state of a head becomes its output: that of the row's own, or another.
void finish(const Row& row, int h, SoftmaxState& state);
inline void finish(const Row& row, int h) { finish(row, h, *row.states(h)); }

}  // namespace adamas
