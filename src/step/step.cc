#include "step/step.h"

#include <omp.h>

#include <algorithm>

#include "baselines/quest.h"
#include "select/select.h"
#include "step/row.h"

namespace adamas {
namespace {

// Stages 1 and 2 of what changed since the last step. Returns blocks x kv_heads encoded.
int64_t encode_changed(Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads;
  int64_t count = 0;
  row.mixed = 0;
  for (int64_t i = 0; i < row.active; i++) {
    const int32_t b = plan.active[i];
    if (row.cache.needs_codes(row.sequence, b, plan.visible[b])) plan.unencoded[count++] = b;
    plan.is_mixed[i] = row.cache.live(row.sequence, b) != plan.visible[b];
    row.mixed += plan.is_mixed[i];
  }
  const int kinds = row.cache.has_values() ? 2 : 1;
  const int64_t work = count * kv_heads * kinds;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && work > 1)
  for (int64_t i = 0; i < work; i++) {
    float* scratch = plan.encode_room.get() + int64_t(omp_get_thread_num()) * block_tokens * row.head_dim();
    const int32_t block = plan.unencoded[i / (kv_heads * kinds)];
    const Coded coded = i % kinds == 0 ? Coded::keys : Coded::values;
    row.cache.encode(coded, coded == Coded::keys ? row.p.k : row.p.v, row.sequence, block, int(i / kinds % kv_heads), scratch);
  }
  for (int64_t i = 0; i < count; i++) row.cache.encoded(row.sequence, plan.unencoded[i], true);
  return count * kv_heads;
}

// The next `verify_rows` live rows in turn, whose hashes are to be checked: plan.checked.
void turn_to_check(Row& row) {
  Plan& plan = row.plan;
  int64_t& next = row.cache.next_checked;
  plan.checked.clear();
  if (row.p.verify == 0) return;
  for (int64_t i = 0; i < std::min(row.p.verify_rows, row.tokens); i++, next++) {
    if (next >= row.tokens) next = 0;
    const int64_t b = next / block_tokens;
    if (!row.cache.keys_marked(row.sequence, b) && row.cache.live(row.sequence, b) >> next % block_tokens & 1)
      plan.checked.push_back(int32_t(next));
  }
}

// The row's heads in the totals of the step.
void count_heads(const Row& row, adamas_step_stats& stats) {
  const int64_t q_heads = row.plan.params.q_heads;
  bool all_dense = true;
  for (const HeadReport& head : row.plan.heads) all_dense &= head.dense && !head.guarded && !head.widened;
  if (all_dense) {
    stats.rows_dense++;
    return;
  }
  stats.rows_sparse++;
  stats.tokens_visible += row.visible * q_heads;
  stats.heads_sparse += q_heads;
  for (const HeadReport& head : row.plan.heads) {
    stats.tokens_selected += head.dense ? row.visible : head.selected;
    stats.tokens_sketched += head.dense ? 0 : head.sketched;
    stats.heads_guarded += head.guarded;
    stats.heads_widened += head.widened;
    stats.heads_reranked += head.reranked;
    stats.mass += double(head.mass);
  }
}

}  // namespace

HeadRoom::HeadRoom(int64_t blocks, int head_dim)
    : select(make_array<int16_t>(select_scratch(blocks * block_tokens))), blocks(make_array<float>(blocks)),
      means(make_array<float>(blocks)), positions(make_array<int32_t>(blocks * block_tokens)),
      tokens(make_array<int32_t>(blocks * block_tokens)), estimated(make_array<int16_t>(blocks * block_tokens)),
      weights(make_array<float>(blocks * block_tokens)), exact(make_array<float>(blocks * block_tokens)),
      ranks(make_array<int16_t>(blocks * block_tokens)), chosen(make_array<uint8_t>(blocks * block_tokens)),
      scores(make_array<float>(blocks * block_tokens)), listed(make_array<int32_t>(blocks * block_tokens)),
      out(make_array<float>(head_dim)) {}

Plan::Plan(const adamas_config& config, const adamas_plan_params& params)
    : config(config), params(params), blocks(std::max<int64_t>(1, blocks_of(params.max_tokens))),
      room(config.min_mass > 0 ? blocks * block_tokens
                               : std::min(std::max<int64_t>(config.budget, quest_page), blocks * block_tokens)),
      splits(2 * params.max_threads) {
  const int64_t q_heads = params.q_heads, threads = params.max_threads;
  visible = make_array<uint64_t>(blocks);
  active = make_array<int32_t>(blocks);
  is_mixed = make_array<uint8_t>(blocks);
  unencoded = make_array<int32_t>(blocks);
  bias = make_array<float>(blocks * block_tokens);
  queries = make_array<Query>(q_heads);
  q = make_array<float>(product(q_heads, params.head_dim));
  rotated = make_array<float>(product(q_heads, params.head_dim));
  reference = make_array<float>(params.kv_heads);
  variance = make_array<double>(params.kv_heads);
  weights = make_array<int16_t>(product(params.kv_heads, blocks));
  centres = make_array<double>(product(q_heads, blocks));
  offsets = make_array<int16_t>(product(q_heads, blocks));
  scores = make_array<int16_t>(product(q_heads, blocks, block_tokens));
  selected = make_array<int32_t>(product(q_heads, room));
  heads.resize(q_heads);
  for (int64_t i = 0; i < threads; i++) rooms.emplace_back(blocks, params.head_dim);
  checked.reserve(blocks * block_tokens);
  if (config.policy == ADAMAS_POLICY_QUEST) {
    page_scores = make_array<float>(product(threads, blocks, block_tokens / quest_page));
    pages = make_array<int32_t>(product(threads, blocks, block_tokens / quest_page));
  }
  encode_room = make_array<float>(product(threads, block_tokens, params.head_dim));
  outs = make_array<float>(product(q_heads, splits, params.head_dim));
  states.resize(q_heads * splits);
  for (int64_t i = 0; i < q_heads * splits; i++) states[i].out = outs.get() + i * params.head_dim;
}

Status step(Plan& plan, Cache& cache, const adamas_step_params& params) {
  adamas_step_stats stats{};
  const bool always_dense =
      plan.config.policy == ADAMAS_POLICY_FULL || cache.params.layer < plan.config.dense_layers;
  const bool coded = plan.config.policy == ADAMAS_POLICY_ADAMAS || plan.config.policy == ADAMAS_POLICY_QUEST;
  for (int64_t b = 0; b < params.batch; b++) {
    for (int64_t r = 0; r < params.rows; r++) {
      Row row{plan, cache, params, b, r, params.sequences != nullptr ? params.sequences[b] : b};
      look(row);
      plan.last_tokens = row.tokens;
      const bool dense = always_dense || row.visible <= plan.config.budget || row.visible < plan.config.min_context;
      std::fill(plan.heads.begin(), plan.heads.end(), HeadReport{.dense = dense});
      if (!dense) {
        if (coded) {
          stats.blocks_encoded += encode_changed(row, params.threads);
          turn_to_check(row);
        }
        const int64_t stale = attend_sparse(row, params.threads);
        if (stale > 0) {  // keys changed behind our back: codes anew, and once more
          cache.invalidate();
          stats.blocks_encoded += encode_changed(row, params.threads);
          attend_sparse(row, params.threads);
          stats.rows_stale += stale;
        }
      }
      const auto is_dense = [](const HeadReport& head) { return head.dense; };
      if (std::any_of(plan.heads.begin(), plan.heads.end(), is_dense)) attend_dense(row, params.threads);
      count_heads(row, stats);
    }
  }
  if (params.stats != nullptr) *params.stats = stats;
  return {};
}

void encode_marked(Cache& cache, const adamas_rows& k, const adamas_rows* v, int64_t sequence, int64_t first_block,
                   int64_t last_block, float* scratch) {
  for (int64_t b = first_block; b < last_block; b++) {
    if (!cache.marked(sequence, b)) continue;
    for (int g = 0; g < cache.params.kv_heads; g++) {
      cache.encode(Coded::keys, k, sequence, b, g, scratch);
      if (v != nullptr && cache.has_values()) cache.encode(Coded::values, *v, sequence, b, g, scratch);
    }
    cache.encoded(sequence, b, v != nullptr);
  }
}

}  // namespace adamas
