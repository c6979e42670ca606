// One attention step: queries in, attention over the selected tokens out.
#pragma once

#include <vector>

#include "attend/softmax_state.h"
#include "core/memory.h"
#include "estimate/estimate.h"
#include "step/cache.h"

namespace adamas {

// Everything that a step writes besides its output, sized once; the step itself allocates nothing.
struct Plan {
  Plan(const adamas_config& config, const adamas_plan_params& params);

  const adamas_config config;
  const adamas_plan_params params;
  const int64_t blocks;   // of the longest context
  const int64_t budget;   // room for a selection
  const int splits;       // parts that a dense step is split into, at most

  // What the row at hand sees.
  Array<uint64_t> visible;   // [blocks]
  Array<int32_t> active;     // [blocks] blocks with a visible token, ascending
  Array<int32_t> unencoded;  // [blocks]
  Array<float> bias;         // [blocks * 64]

  Array<Query> queries;      // [q_heads]
  Array<float> q;            // [q_heads, head_dim] as given, f32
  Array<float> rotated;      // [q_heads, head_dim]
  Array<int16_t> weights;    // [kv_heads, blocks]
  Array<double> centres;     // [q_heads, blocks]
  Array<int16_t> offsets;    // [q_heads, blocks]
  Array<int16_t> scores;     // [q_heads, blocks * 64]
  Array<int32_t> selected;   // [q_heads, budget] tokens
  std::vector<int64_t> counts;  // [q_heads]
  Array<int16_t> select_room;   // [threads, select_scratch]
  Array<float> page_scores;     // [threads, pages], for the policy quest
  Array<int32_t> pages;         // [threads, pages]
  Array<float> encode_room;     // [threads, 64, head_dim]
  Array<float> outs;            // [q_heads, splits, head_dim]
  std::vector<SoftmaxState> states;  // [q_heads, splits]

  // Of the last row, for adamas_selection.
  bool last_dense = false;
  int64_t last_tokens = 0;
};

Status step(Plan& plan, Cache& cache, const adamas_step_params& params);

// Encodes the marked blocks of [first_block, last_block) of a sequence, with one thread.
void encode_marked(Cache& cache, const adamas_rows& k, int64_t sequence, int64_t first_block, int64_t last_block,
                   float* scratch);

}  // namespace adamas
