// The rows of a prompt: so many of one sequence at once that none selects tokens, and all of them are read in one pass.
#pragma once

#include <memory>
#include <vector>

#include "core/memory.h"
#include "prompt/prompt.h"

namespace adamas {

struct Plan;
struct Row;

inline constexpr int64_t prompt_rows = ADAMAS_PROMPT_ROWS;

// Whether a step of so many rows of a sequence is a prompt that the settings leave to the prompt's kernel.
inline bool is_prompt(const adamas_config& config, int64_t rows) {
  return config.prompt != ADAMAS_PROMPT_ENGINE && config.rows != ADAMAS_ROWS_ALL && rows >= prompt_rows;
}

// The last rows of a step, dense also where the others are sparse: what comes after a prompt goes on from them.
inline constexpr int64_t dense_last_rows = 16;

// Queries of one KV head that a thread takes at a time, neighbours: [first, first + count) of row after row, head after
// head; where they are sparse, of head after head, row after row, since rows of one head leave out about the same.
struct PromptUnit {
  int kv_head;
  int64_t first;
  int count;
};

// What a step of a prompt writes besides its output, sized by a plan. Pages that nobody touches cost nothing.
struct PromptPlan {
  PromptPlan(const adamas_plan_params& params, int64_t blocks);

  static constexpr int64_t rows_at_once = 1024;

  Array<uint64_t> visible;      // [rows_at_once, blocks] what each row sees
  Array<uint64_t> live;         // [blocks] what any of them does
  std::vector<PromptRow> seen;  // [rows_at_once]
  std::vector<PromptUnit> units;

  struct Thread {
    explicit Thread(int head_dim);
    PromptRoom room;
    Array<float> outs;                 // [prompt_queries, head_dim]
    std::vector<SoftmaxState> states;  // [prompt_queries]
    std::vector<PromptQuery> queries;  // [prompt_queries]
  };
  std::vector<Thread> threads;
};

// Attention of every row of the sequence that `last` is the last row of, over all that it sees, or sparse (prompt/prompt.h).
// Rows that come together have the same bits whoever computes them. A dense row alone, or with others, differs by rounding
// only where tokens of its last block come later (`live`); a sparse one leaves out what its neighbours leave out with it.
void attend_prompt_rows(const Row& last, int threads);

}  // namespace adamas
