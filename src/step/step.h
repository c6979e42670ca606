// One attention step: queries in, attention over the selected tokens out.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "attend/softmax_state.h"
#include "cache/cache.h"
#include "core/memory.h"
#include "estimate/estimate.h"
#include "rest/rest.h"
#include "step/clock.h"
#include "step/prompt.h"
#include "step/view.h"

namespace adamas {

// What a thread writes while it works on one query head.
struct HeadScratch {
  HeadScratch(int64_t blocks, int64_t list);

  Array<int16_t> select;         // select_scratch
  Array<int32_t> positions;      // [blocks * 64] of a selection; the oracle's tokens
  Array<float> estimates;        // [blocks * 64] of a row with biases, before they become scores anew
  Array<float> exact;            // [blocks * 64] scores of tokens that are read in any case; the oracle's, of all
  Array<int16_t> estimated;      // [rest_room(list)] scores of listed tokens
  Array<float> guesses;          // the same: their weights
  Array<int32_t> low_positions;  // the same: of the lowest of them
  Array<float> low_weights;      // the same
  Clock clock;                   // of the thread
};

// How a query head was read, and why.
enum class Reading : uint8_t {
  sparse,          // a list and a rest, or so many tokens
  widened,         // more of them, for min_mass
  widened_to_all,  // all: more than half of the tokens did not reach min_mass
  noisy,           // all: its estimates are noisier than max_noise
  short_context,   // all: nobody has to choose
};
constexpr bool reads_all(Reading reading) { return reading >= Reading::widened_to_all; }

// What came of a query head.
struct HeadResult {
  Reading reading = Reading::sparse;
  float mass = 1;                   // share of the softmax that was read; NaN when nobody asked
  float noise = 0;                  // variance of its estimates
  const int32_t* tokens = nullptr;  // [selected] that it attended to, unless it read all
  int64_t selected = 0;
};

// What its candidates say of a query head, for its rest.
struct HeadCandidates {
  WeightScale scale;  // how its scores are read
  int16_t bound;      // from which score on it lists tokens
};

// The parts that a list is split into, and the blocks' means: threads share them, and a head's sums are added up in their
// order.
inline constexpr int list_parts = 8, mean_parts = 2;

// Work that threads share in stages. What a stage does for a KV head waits for the stage before, of that KV head alone.
struct Stages {
  static constexpr int most = 7;
  Stages(int kv_heads, int threads);

  // Each on a line of its own: a line that two cores write to travels between them with every unit.
  struct alignas(64) Part {
    std::atomic<int64_t> taken;  // units of a thread's own part
  };
  struct alignas(64) Head {
    std::atomic<int64_t> ended;  // units of a KV head
    std::atomic<int64_t> ready;  // the row in which all of them have ended, and what comes after
  };
  const int kv_heads;
  int64_t row = 0;          // counted, so that nothing needs to be taken back
  std::vector<Part> parts;  // [2, most, threads] of the rows in turn
  std::vector<Head> heads;  // [most, kv_heads]
};

// Everything that a step writes besides its output, sized once; the step itself allocates nothing, but for the first one of
// many rows.
struct Plan {
  Plan(const adamas_config& config, const adamas_plan_params& params);

  const adamas_config config;
  const adamas_plan_params params;
  const int64_t blocks;              // of the longest context
  const int64_t selection_capacity;  // tokens of a list, a multiple of 64
  static constexpr int splits = 32;  // parts that a dense step is split into, at most

  ViewRoom view;             // of the row at hand
  UncodedRoom uncoded;       // of the same
  Array<uint64_t> seen;      // [blocks] what any sparse row of the sequence sees
  Array<int32_t> unencoded;  // [blocks]

  Array<Query> queries;                    // [q_heads]
  Array<float> q;                          // [q_heads, head_dim] as given, f32
  Array<float> rotated;                    // [q_heads, head_dim]
  Array<float> reference;                  // [kv_heads] sigma_ref
  Array<double> variance;                  // [kv_heads] mean square sigma
  Array<int16_t> weights;                  // [kv_heads, blocks]
  Array<double> centres;                   // [q_heads, blocks]
  Array<int16_t> offsets;                  // [q_heads, blocks]
  Array<int16_t> scores;                   // [q_heads, blocks * 64]
  Array<float> sums;                       // [q_heads, blocks] estimated weights, at last weights of mean values
  Array<uint64_t> marked;                  // [q_heads, blocks] tokens that a head lists
  Array<uint64_t> on_list;                 // [kv_heads, blocks] tokens of a KV head's list
  std::vector<HeadCandidates> candidates;  // [q_heads]
  std::vector<float> beside_hidden;        // [q_heads] weight of the rest that has no mean value
  Array<int32_t> tokens;     // [lists, selection_capacity] with a rest a list a KV head, and for each widened query head its
                             // own behind them; else a query head
  Array<int32_t> positions;  // [lists, selection_capacity] of the same in the scores
  Array<float> list_weights;        // [q_heads, selection_capacity] exact scores, then weights
  std::vector<int64_t> listed;      // [kv_heads] tokens of a list
  std::vector<HeadResult> results;  // [q_heads] of the last row
  std::vector<int32_t> slice;  // tokens of the rotating check: rows that are verified in this step besides the selected ones
  std::vector<HeadScratch> scratch;  // [threads]
  Stages stages;
  Array<float> page_scores;          // [threads, pages], for the policy quest
  Array<int32_t> pages;              // [threads, pages]
  Array<float> encode_room;          // [threads, 64, head_dim]
  Array<float> outs;                 // [q_heads, splits, head_dim]
  std::vector<SoftmaxState> states;  // [q_heads, splits]

  std::vector<std::unique_ptr<Plan>>
      row_plans;  // [threads] of one thread each, which takes whole rows; made when there are many
  adamas_plan_params for_one_thread() const {
    adamas_plan_params one = params;
    one.max_threads = 1;
    return one;
  }

  std::unique_ptr<PromptPlan> prompt;  // where prompts are read densely

  View last_view;  // of the last row, for adamas_selection
};

// The b-th sequence of a step, and its tokens in view.
inline int64_t sequence_of(const adamas_step_params& p, int64_t b) { return p.sequences != nullptr ? p.sequences[b] : b; }
inline int64_t length_of(const adamas_step_params& p, const Cache& cache, int64_t b) {
  return p.lengths != nullptr ? p.lengths[b] : cache.length(sequence_of(p, b));
}

Status step(Plan& plan, Cache& cache, const adamas_step_params& params);

// Encodes the marked blocks of [first_block, last_block) of a sequence, with one thread. v may be NULL: values wait for a
// step.
void encode_marked(Cache& cache, const adamas_rows& k, const adamas_rows* v, int64_t sequence, int64_t first_block,
                   int64_t last_block, float* scratch);

}  // namespace adamas
