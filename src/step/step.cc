#include "step/step.h"

#include <omp.h>

#include <algorithm>

#include "baselines/quest.h"
#include "device/device.h"
#include "select/select.h"
#include "step/heads.h"

namespace adamas {
namespace {

// Stages 1 and 2 of what changed since the last step in blocks of plan.seen. Returns blocks x kv_heads encoded.
int64_t encode_changed(const Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads;
  int64_t count = 0;
  Clock& first_clock = row.start_clock();
  const int64_t blocks = blocks_of(row.view.tokens);
  for (int64_t b = 0; b < blocks; b++)
    if (plan.seen[b] != 0) row.cache.blocks.mark_live(row.sequence, b, plan.seen[b]);
  for (int64_t b = 0; b < blocks; b++)
    if (plan.seen[b] != 0 && row.cache.marked(row.sequence, b)) plan.unencoded[count++] = int32_t(b);
  const int kinds = row.cache.has_means() ? 2 : 1;
  const int64_t work = count * kv_heads * kinds;
  first_clock.lap(&Times::encode);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && work > 1)
  for (int64_t i = 0; i < work; i++) {
    Clock& clock = row.start_clock(omp_get_thread_num());
    float* scratch = plan.encode_room.get() + int64_t(omp_get_thread_num()) * block_tokens * row.head_dim();
    const int32_t block = plan.unencoded[i / (kv_heads * kinds)];
    const int g = int(i / kinds % kv_heads);
    if (i % kinds == 0)
      row.cache.encode_keys(row.p.k, row.sequence, block, g, scratch);
    else
      row.cache.encode_values(row.p.v, row.sequence, block, g, scratch);
    clock.lap(&Times::encode);
  }
  for (int64_t i = 0; i < count; i++) row.cache.mark_encoded(row.sequence, plan.unencoded[i], true);
  return count * kv_heads;
}

// The next live rows in turn, `verify_rows` for every row of the step, whose hashes are to be checked: to plan.slice, which
// is empty.
void find_slice(const Row& row) {
  Plan& plan = row.plan;
  int64_t& next = row.cache.next_verified(row.sequence);
  if (!row.verify || is_prompt(plan.config, row.p.rows)) return;  // a prompt looks at no codes
  const int64_t tokens = row.view.tokens, wanted = std::min(row.p.verify_rows, tokens) * row.p.rows;
  for (int64_t i = 0; i < std::min(wanted, tokens); i++, next++) {
    if (next >= tokens) next = 0;
    const int64_t b = next / block_tokens;
    if (!row.cache.keys_marked(row.sequence, b) && row.cache.coded(row.sequence, b) >> next % block_tokens & 1)
      plan.slice.push_back(int32_t(next));
  }
}

// How many rows of plan.slice are not those that their codes were made from.
int64_t verify_slice(const Row& row) {
  const std::vector<int32_t>& slice = row.plan.slice;
  const int64_t parts = (int64_t(slice.size()) + block_tokens - 1) / block_tokens, kv_heads = row.plan.params.kv_heads;
  int64_t stale = 0;
#pragma omp parallel for num_threads(row.p.threads) schedule(static) reduction(+ : stale) if (row.p.threads > 1)
  for (int64_t i = 0; i < parts * kv_heads; i++) {
    Clock& clock = row.start_clock(omp_get_thread_num());
    const int64_t first = i / kv_heads * block_tokens;
    stale += row.count_stale(int(i % kv_heads), slice.data() + first,
                             std::min<int64_t>(block_tokens, int64_t(slice.size()) - first));
    clock.lap(&Times::check);
  }
  return stale;
}

void add(const adamas_step_stats& counted, adamas_step_stats& stats) {
  stats.rows_sparse += counted.rows_sparse;
  stats.rows_dense += counted.rows_dense;
  stats.tokens_visible += counted.tokens_visible;
  stats.tokens_selected += counted.tokens_selected;
  stats.rows_read += counted.rows_read;
  stats.heads_sparse += counted.heads_sparse;
  stats.heads_guarded += counted.heads_guarded;
  stats.heads_widened += counted.heads_widened;
  stats.mass += counted.mass;
  stats.blocks_encoded += counted.blocks_encoded;
  stats.rows_stale += counted.rows_stale;
}

// The row's heads in the totals of the step.
void count_heads(const Row& row, adamas_step_stats& stats) {
  const std::vector<HeadResult>& results = row.plan.results;
  const int q_heads = row.plan.params.q_heads;
  if (std::all_of(results.begin(), results.end(),
                  [](const HeadResult& result) { return result.reading == Reading::short_context; })) {
    stats.rows_dense++;
    return;
  }
  stats.rows_sparse++;
  stats.tokens_visible += row.view.visible * q_heads;
  stats.heads_sparse += q_heads;
  const bool lists = has_rest(row.plan.config);  // one for all heads of a KV head
  for (const HeadResult& result : results) {
    const bool widened = result.reading == Reading::widened;
    stats.tokens_selected += reads_all(result.reading) ? row.view.visible : result.selected;
    stats.rows_read += reads_all(result.reading) || (lists && !widened) ? 0 : result.selected;
    stats.heads_guarded += result.reading == Reading::noisy;
    stats.heads_widened += widened || result.reading == Reading::widened_to_all;
    stats.mass += double(result.mass);
  }
  for (int g = 0; g < row.plan.params.kv_heads; g++) {
    const auto first = results.begin() + g * row.group();
    if (lists) stats.rows_read += row.plan.listed[g];
    if (std::any_of(first, first + row.group(), [](const HeadResult& result) { return reads_all(result.reading); }))
      stats.rows_read += row.view.visible;
  }
}

bool is_dense(const Row& row) {
  const adamas_config& config = row.plan.config;
  return row.unplaced || is_prompt(config, row.p.rows) || config.policy == ADAMAS_POLICY_FULL ||
         row.cache.params.layer < config.dense_layers || row.view.visible <= budget_of(config) ||
         row.view.visible < config.min_context;
}

bool is_coded(const Plan& plan) {
  return plan.config.policy == ADAMAS_POLICY_ADAMAS || plan.config.policy == ADAMAS_POLICY_QUEST;
}

// Attention of one row, with the hashes of plan.slice. Returns how many stale rows it read.
int64_t attend(Row row, int threads) {
  Plan& plan = row.plan;
  const bool dense = is_dense(row);
  std::fill(plan.results.begin(), plan.results.end(),
            HeadResult{.reading = dense ? Reading::short_context : Reading::sparse});
  if (!dense && is_coded(plan)) {
    Clock& clock = row.start_clock();
    row.uncoded = find_uncoded(row.view, row.cache, row.sequence, plan.config, plan.uncoded);
    clock.lap(&Times::look);
  }
  return device_of(plan.params.device).attend(row, threads);
}

// Row r of the b-th sequence of a step.
Row see(Plan& plan, Cache& cache, const adamas_step_params& p, int64_t b, int64_t r, bool verify, bool unplaced) {
  Row row{plan, cache, p, b, r, sequence_of(p, b), verify, unplaced, {}, {}};
  Clock& clock = row.start_clock();
  row.view = find_visible(p, b, r, length_of(p, cache, b), plan.view);
  row.view.before = cache.params.origin;
  clock.lap(&Times::look);
  return row;
}

constexpr int64_t rows_of_a_thread = 4;  // from so many on, threads take whole rows; fewer share each row

// Every row of a sequence, the last one in the plan itself. Returns how many stale rows they read.
int64_t attend_rows(const Row& last, adamas_step_stats& stats) {
  Plan& plan = last.plan;
  const int64_t others = last.p.rows - 1;
  const int threads = last.p.threads;
  int64_t stale = 0;
  if (is_prompt(plan.config, last.p.rows) && device_of(plan.params.device).attend_prompt(last, threads)) {
    stats.rows_dense += last.p.rows;
    return stale;
  }
  const auto attend_row = [&](Plan& own, int64_t r, int sharing, adamas_step_stats& counted) {
    const Row row = others == 0 ? last : see(own, last.cache, last.p, last.batch, r, last.verify, last.unplaced);
    const int64_t found = attend(row, sharing);
    count_heads(row, counted);
    return found;
  };
  if (threads > 1 && others >= rows_of_a_thread * threads) {
    while (int(plan.row_plans.size()) < threads)
      plan.row_plans.push_back(std::make_unique<Plan>(plan.config, plan.for_one_thread()));
#pragma omp parallel num_threads(threads) reduction(+ : stale)
    {
      adamas_step_stats counted{};
#pragma omp for schedule(dynamic) nowait
      for (int64_t r = 0; r < others; r++) stale += attend_row(*plan.row_plans[omp_get_thread_num()], r, 1, counted);
#pragma omp critical
      add(counted, stats);
    }
  } else {
    for (int64_t r = 0; r < others; r++) stale += attend_row(plan, r, threads, stats);
  }
  return stale + attend_row(plan, others, threads, stats);
}

void step_rows(Plan& plan, Cache& cache, const adamas_step_params& params, int64_t b, adamas_step_stats& stats) {
  const int64_t sequence = sequence_of(params, b), length = length_of(params, cache, b);
  cache.place(sequence, params.k, length);
  const bool unplaced = is_coded(plan) && !cache.blocks.fits(sequence, 0, length, false);
  std::fill_n(plan.seen.get(), plan.blocks, uint64_t{0});
  const auto see_row = [&](int64_t r) {
    const Row row = see(plan, cache, params, b, r, params.verify != 0, unplaced);
    for (int64_t i = 0; i < row.view.active && !is_dense(row); i++)
      plan.seen[row.view.blocks[i]] |= row.view.bits[row.view.blocks[i]];
    return row;
  };
  for (int64_t r = 0; r + 1 < params.rows && !is_prompt(plan.config, params.rows); r++) see_row(r);
  Row last = see_row(params.rows - 1);
  plan.last_view = last.view;
  plan.slice.clear();
  if (is_coded(plan)) {
    stats.blocks_encoded += encode_changed(last, params.threads);
    Clock& clock = last.start_clock();
    find_slice(last);
    clock.lap(&Times::check);
  }
  const auto reencode_all = [&](int64_t stale) {  // keys changed behind our back
    cache.blocks.invalidate();
    stats.blocks_encoded += encode_changed(last, params.threads);
    stats.rows_stale += stale;
    plan.slice.clear();
  };
  if (!plan.slice.empty() &&
      (params.rows > 1 || is_dense(last))) {  // once, before the rows, whichever of them selects and whoever takes it
    const bool all = int64_t(plan.slice.size()) == last.view.tokens;
    if (const int64_t stale = verify_slice(last)) reencode_all(stale);
    plan.slice.clear();
    last.verify &= !all;  // nor again with each row
  }
  adamas_step_stats counted{};
  if (const int64_t stale = attend_rows(last, counted)) {  // once more
    reencode_all(stale);
    counted = {};
    attend_rows(last, counted);
  }
  add(counted, stats);
}

// What every thread's clock has shown since the last call.
void move_times(Plan& plan, Times& total) {
  for (HeadScratch& scratch : plan.scratch) scratch.clock.move_to(total);
  for (const auto& one : plan.row_plans) move_times(*one, total);
}

}  // namespace

HeadScratch::HeadScratch(int64_t blocks, int64_t list)
    : select(make_array<int16_t>(select_scratch(blocks * block_tokens))),
      positions(make_array<int32_t>(blocks * block_tokens)),
      estimates(make_array<float>(blocks * block_tokens)),
      exact(make_array<float>(blocks * block_tokens)),
      estimated(make_array<int16_t>(rest_room(list))),
      guesses(make_array<float>(rest_room(list))),
      low_positions(make_array<int32_t>(rest_room(list))),
      low_weights(make_array<float>(rest_room(list))) {}

Plan::Plan(const adamas_config& config, const adamas_plan_params& params)
    : config(config),
      params(params),
      blocks(std::max<int64_t>(1, blocks_of(params.max_tokens))),
      selection_capacity(list_room(config, params)),
      view(blocks),
      uncoded(blocks),
      stages(params.kv_heads, params.max_threads) {
  const int64_t q_heads = params.q_heads, threads = params.max_threads;
  seen = make_array<uint64_t>(blocks);
  unencoded = make_array<int32_t>(blocks);
  queries = make_array<Query>(q_heads);
  q = make_array<float>(product(q_heads, params.head_dim));
  rotated = make_array<float>(product(q_heads, params.head_dim));
  reference = make_array<float>(params.kv_heads);
  variance = make_array<double>(params.kv_heads);
  weights = make_array<int16_t>(product(params.kv_heads, blocks));
  centres = make_array<double>(product(q_heads, blocks));
  offsets = make_array<int16_t>(product(q_heads, blocks));
  scores = make_array<int16_t>(product(q_heads, blocks, block_tokens));
  sums = make_array<float>(product(q_heads, blocks));
  marked = make_array<uint64_t>(product(q_heads, blocks));
  on_list = make_array<uint64_t>(product(params.kv_heads, blocks));
  candidates.resize(q_heads);
  beside_hidden.resize(q_heads);
  const int64_t lists = !has_rest(config) ? q_heads : config.min_mass > 0 ? params.kv_heads + q_heads : params.kv_heads;
  tokens = make_array<int32_t>(product(lists, selection_capacity));
  positions = make_array<int32_t>(product(lists, selection_capacity));
  list_weights = make_array<float>(product(q_heads, selection_capacity));
  listed.resize(params.kv_heads);
  results.resize(q_heads);
  for (int64_t i = 0; i < threads; i++) scratch.emplace_back(blocks, selection_capacity);
  slice.reserve(blocks * block_tokens);
  if (config.policy == ADAMAS_POLICY_QUEST) {
    page_scores = make_array<float>(product(threads, blocks, block_tokens / quest_page));
    pages = make_array<int32_t>(product(threads, blocks, block_tokens / quest_page));
  }
  encode_room = make_array<float>(product(threads, block_tokens, params.head_dim));
  outs = make_array<float>(product(q_heads, splits, params.head_dim));
  states.resize(q_heads * splits);
  for (int64_t i = 0; i < q_heads * splits; i++) states[i].out = outs.get() + i * params.head_dim;
  if (is_prompt(config, prompt_rows) && params.device == ADAMAS_DEVICE_CPU)
    prompt = std::make_unique<PromptPlan>(params, blocks);
}

Status step(Plan& plan, Cache& cache, const adamas_step_params& params) {
  adamas_step_stats stats{};
  if (params.times != nullptr) move_times(plan, *params.times);  // of a step that failed; overwritten below
  const int64_t start = params.times != nullptr ? Clock::now() : 0;
  for (int64_t b = 0; b < params.batch && params.rows > 0; b++) step_rows(plan, cache, params, b, stats);
  if (params.stats != nullptr) *params.stats = stats;
  if (params.times != nullptr) {
    Times times{};
    times.struct_size = sizeof times;
    times.wall = Clock::now() - start;
    move_times(plan, times);
    *params.times = times;
  }
  return {};
}

void encode_marked(Cache& cache, const adamas_rows& k, const adamas_rows* v, int64_t sequence, int64_t first_block,
                   int64_t last_block, float* scratch) {
  for (int64_t b = first_block; b < last_block; b++) {
    if (!cache.marked(sequence, b)) continue;
    for (int g = 0; g < cache.params.kv_heads; g++) {
      cache.encode_keys(k, sequence, b, g, scratch);
      if (v != nullptr && cache.has_means()) cache.encode_values(*v, sequence, b, g, scratch);
    }
    cache.mark_encoded(sequence, b, v != nullptr);
  }
}

}  // namespace adamas
