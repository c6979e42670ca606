#include "step/prompt.h"

#include <omp.h>

#include <algorithm>

#include "step/row.h"

namespace adamas {
namespace {

// How the queries of a pass are shared: large units first, so that their blocks are packed seldom, small ones at the end, so
// that no thread is left with much to do alone. Of two threads and 3 x 1536 queries of head_dim 64: 1152, 384, 768, 576,
// 192, 384, 288, 192, 144, 96, ...
void share(int kv_heads, int64_t queries, int head_dim, int threads, std::vector<PromptUnit>& units) {
  units.clear();
  constexpr int least = 2 * prompt_tile;
  int64_t left = kv_heads * queries;
  for (int g = 0; g < kv_heads; g++)
    for (int64_t end = queries; end > 0;) {  // the last rows see most
      const int64_t fair = left / (2 * threads) / prompt_tile * prompt_tile;
      const int64_t count = std::min(end, std::clamp<int64_t>(fair, least, prompt_queries(head_dim)));
      end -= count;
      left -= count;
      units.push_back({g, end, int(count)});
    }
}

// Rows [first, first + count) of the sequence, which all fit into the plan.
void attend_pass(const Row& last, int64_t first, int64_t count, int threads) {
  Plan& plan = last.plan;
  PromptPlan& prompt = *plan.prompt;
  const adamas_step_params& p = last.p;
  const int head_dim = last.head_dim(), group = last.group();
  const bool sparse = plan.config.prompt == ADAMAS_PROMPT_SPARSE;
  const int64_t length = length_of(p, last.cache, last.batch), blocks = blocks_of(length);
  share(plan.params.kv_heads, count * group, head_dim, threads, prompt.units);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    Clock& clock = last.start_clock(thread);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; r++)
      prompt.seen[r] = find_seen(p, last.batch, first + r, length, prompt.visible.get() + r * plan.blocks);
    clock.lap(&Times::look);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      uint64_t live = 0;
      for (int64_t r = 0; r < count; r++)
        if (b < prompt.seen[r].blocks) live |= prompt.seen[r].visible[b];
      prompt.live[b] = live;
    }
    clock.lap(&Times::look);
    PromptPlan::Thread& own = prompt.threads[thread];
#pragma omp for schedule(dynamic)
    for (size_t u = 0; u < prompt.units.size(); u++) {
      last.start_clock(thread);
      const PromptUnit& unit = prompt.units[u];
      const auto row_of = [&](int i) { return sparse ? (unit.first + i) % count : (unit.first + i) / group; };
      const auto head_of = [&](int i) {
        return unit.kv_head * group + int(sparse ? (unit.first + i) / count : (unit.first + i) % group);
      };
      for (int i = 0; i < unit.count; i++) {
        const int64_t r = row_of(i);
        const int h = head_of(i);
        own.queries[i] = {&prompt.seen[r],
                          at(p.q, last.batch * p.q_stride_batch + (first + r) * p.q_stride_row + h * p.q_stride_head),
                          static_cast<DType>(p.q_dtype),
                          last.slope(h),
                          sparse && first + r + dense_last_rows < p.rows,
                          &own.states[i]};
      }
      const PromptContext context{head_dim,
                                  last.scale(),
                                  p.softcap,
                                  rows_of(p.k, last.sequence, unit.kv_head, length),
                                  rows_of(p.v, last.sequence, unit.kv_head, length),
                                  prompt.live.get()};
      attend_prompt(context, own.queries.data(), unit.count, own.room);
      for (int i = 0; i < unit.count; i++) {
        Row row = last;
        row.row = first + row_of(i);
        finish(row, head_of(i), own.states[i]);
      }
      clock.lap(&Times::dense);
    }
  }
}

}  // namespace

PromptPlan::Thread::Thread(int head_dim)
    : room(head_dim),
      outs(make_array<float>(int64_t{prompt_queries(head_dim)} * head_dim)),
      states(prompt_queries(head_dim)),
      queries(prompt_queries(head_dim)) {
  for (size_t i = 0; i < states.size(); i++) states[i].out = outs.get() + int64_t(i) * head_dim;
}

PromptPlan::PromptPlan(const adamas_plan_params& params, int64_t blocks)
    : visible(make_array<uint64_t>(product(rows_at_once, blocks))), live(make_array<uint64_t>(blocks)), seen(rows_at_once) {
  const int64_t queries = rows_at_once * params.q_heads;
  units.reserve(size_t(queries / (2 * prompt_tile) + params.kv_heads));
  for (int i = 0; i < params.max_threads; i++) threads.emplace_back(params.head_dim);
}

void attend_prompt_rows(const Row& last, int threads) {
  for (int64_t first = 0; first < last.p.rows; first += PromptPlan::rows_at_once)
    attend_pass(last, first, std::min(PromptPlan::rows_at_once, last.p.rows - first), threads);
}

}  // namespace adamas
