// One attention step: queries in, attention over the selected tokens out.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "attend/softmax_state.h"
#include "core/memory.h"
#include "estimate/estimate.h"
#include "step/cache.h"
#include "step/clock.h"

namespace adamas {

// What a thread writes while it works on one query head; positions are those of scores. Room for every token of the context.
struct HeadRoom {
  HeadRoom(int64_t blocks, int head_dim);

  Array<int16_t> select;      // select_scratch
  Array<float> blocks;        // [blocks] sums of estimated weights
  Array<float> means;         // [blocks] weights of the mean values
  Array<int32_t> kept;        // [blocks] those whose mean is added
  Array<int32_t> positions;   // of the tokens that are looked at one by one: candidates, second tier
  Array<int32_t> tokens;      // the same
  Array<int16_t> estimated;   // their scores
  Array<float> weights;
  Array<float> exact;         // scores of the candidates
  Array<int16_t> ranks;
  Array<uint8_t> chosen;      // of the candidates
  Array<float> scores;        // of the selected tokens
  Array<float> changes;       // of the candidates, in the weights of their blocks
  Array<int32_t> listed;      // tokens whose levels are added
  Array<float> listed_weights;
  Array<float> out;           // [head_dim], rotated
  Clock clock;                // of the thread
};

// An active block whose scores codes do not tell alone.
struct Special {
  int64_t index;     // into active
  uint64_t visible;  // the other tokens are hidden
  uint64_t always;   // must be attended to
};

// How the last row of a query head went.
struct HeadReport {
  float mass = 1, noise = 0;
  int64_t selected = 0, sketched = 0;
  int64_t keys_read = 0;
  bool dense = false;     // every visible token
  bool guarded = false;   // because of its noise
  bool widened = false;   // because of its mass
  bool reranked = false;
};

// Everything that a step writes besides its output, sized once; the step itself allocates nothing, but for the first one of many rows.
struct Plan {
  Plan(const adamas_config& config, const adamas_plan_params& params);

  const adamas_config config;
  const adamas_plan_params params;
  const int64_t blocks;   // of the longest context
  const int64_t room;     // of a selection
  static constexpr int splits = 32;  // parts that a dense step is split into, at most

  // What the row at hand sees.
  Array<uint64_t> visible;   // [blocks]
  Array<int32_t> active;     // [blocks] blocks with a visible token, ascending
  Array<uint8_t> is_mixed;   // [blocks] of the active ones: its codes are of rows, too, that are not visible
  Array<Special> special;    // [blocks]
  Array<uint64_t> seen;      // [blocks] what any sparse row of the sequence sees
  Array<int32_t> unencoded;  // [blocks]
  Array<float> bias;         // [blocks * 64]

  Array<Query> queries;      // [q_heads]
  Array<float> q;            // [q_heads, head_dim] as given, f32
  Array<float> rotated;      // [q_heads, head_dim]
  Array<float> reference;    // [kv_heads] sigma_ref
  Array<double> variance;    // [kv_heads] mean square sigma
  Array<int16_t> weights;    // [kv_heads, blocks]
  Array<double> centres;     // [q_heads, blocks]
  Array<int16_t> offsets;    // [q_heads, blocks]
  Array<int16_t> scores;     // [q_heads, blocks * 64]
  Array<int32_t> selected;   // [q_heads, room] tokens
  std::vector<HeadReport> heads;   // [q_heads]
  std::vector<int32_t> checked;    // tokens whose rows are checked in this step besides the selected ones
  std::vector<HeadRoom> rooms;     // [threads]
  std::vector<std::atomic<int64_t>> next_head;  // [threads]
  Array<float> page_scores;     // [threads, pages], for the policy quest
  Array<int32_t> pages;         // [threads, pages]
  Array<float> encode_room;     // [threads, 64, head_dim]
  Array<float> outs;            // [q_heads, splits, head_dim]
  std::vector<SoftmaxState> states;  // [q_heads, splits]

  std::vector<std::unique_ptr<Plan>> row_plans;  // [threads] of one thread each, which takes whole rows; made when there are many
  adamas_plan_params for_one_thread() const {
    adamas_plan_params one = params;
    one.max_threads = 1;
    return one;
  }

  int64_t last_tokens = 0;   // of the last row, for adamas_selection
};

Status step(Plan& plan, Cache& cache, const adamas_step_params& params);

// Encodes the marked blocks of [first_block, last_block) of a sequence, with one thread. v may be NULL: values wait for a step.
void encode_marked(Cache& cache, const adamas_rows& k, const adamas_rows* v, int64_t sequence, int64_t first_block,
                   int64_t last_block, float* scratch);

}  // namespace adamas
