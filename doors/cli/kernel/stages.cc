#include "stages.h"

#include <algorithm>

namespace cli::kernel {

StageBytes bytes_of(const StepDone& step) {
  const auto& [shape, config, tokens, verify_rows, stats] = step;
  constexpr std::int64_t block = ADAMAS_BLOCK_TOKENS;
  const std::int64_t blocks = (tokens + block - 1) / block;
  const std::int64_t words = (shape.head_dim + 31) / 32;  // of a code: two bits a dimension (docs/codes.md)
  const double row = shape.head_dim * 2.0;                // a row of K or V: f16
  const double code = static_cast<double>(words) * 8;
  const double centre = shape.head_dim * 2.0 + 4 + 4;  // of a block: i16, its scale, sigma
  const double hash = 4;                               // of a key row
  const double score = 2;                              // i16
  const auto tokens_of_kv_heads = static_cast<double>(tokens * shape.kv_heads);
  const auto tokens_of_q_heads = static_cast<double>(tokens * shape.q_heads);
  const auto blocks_of_kv_heads = static_cast<double>(blocks * shape.kv_heads);

  StageBytes bytes{};
  const auto set = [&](std::int64_t adamas_step_times::*stage, double value) {
    for (std::size_t i = 0; i < stages.size(); i++)
      if (stages[i].time == stage) bytes[i] = value;
  };
  if (stats.rows_dense > 0) {  // K and V, whole
    set(&adamas_step_times::dense, tokens_of_kv_heads * 2 * row);
    return bytes;
  }
  const bool lists = config.budget == ADAMAS_BUDGET_AUTO;
  const double mean = shape.head_dim * 2.0 + 4;  // of a block: i16, its scale
  // Heads that were too noisy are read densely: K and V of their KV head once, for as many of them as share it.
  const double dense_rows = static_cast<double>(std::min<std::int64_t>(stats.heads_guarded, shape.kv_heads) * tokens);
  const double rows = static_cast<double>(stats.rows_read) - dense_rows;

  // No mask here: the step knows from the length what a row sees.
  set(&adamas_step_times::look, 0);
  // The rows of the blocks that changed: of the open one those that are there.
  const std::int64_t open = (tokens - 1) % block + 1;
  set(&adamas_step_times::encode, static_cast<double>(stats.blocks_encoded * open) * row * (lists ? 2 : 1));
  // The queries, f32, and every block's centre, scale and sigma.
  set(&adamas_step_times::prepare, shape.q_heads * shape.head_dim * 4.0 + blocks_of_kv_heads * centre);
  // The codes of all keys.
  set(&adamas_step_times::estimate, tokens_of_kv_heads * code);
  // The scores of all tokens, for every query head.
  set(&adamas_step_times::select, tokens_of_q_heads * score);
  // The keys of the tokens that are read.
  set(&adamas_step_times::exact, rows * row);
  // Their hashes, whose keys were just read, and the rows that have their turn, with their hashes.
  set(&adamas_step_times::check,
      rows * hash + static_cast<double>(std::min(verify_rows, tokens) * shape.kv_heads) * (row + hash));
  // Their values.
  set(&adamas_step_times::attend, rows * row);
  // The scores again, for their weights, and each block's mean value.
  set(&adamas_step_times::rest, lists ? tokens_of_q_heads * score + blocks_of_kv_heads * mean : 0);
  // K and V of the KV heads of noisy heads.
  set(&adamas_step_times::dense, dense_rows * 2 * row);
  return bytes;
}

}  // namespace cli::kernel
