// The five stages of the policies that select.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "attend/sketch.h"
#include "baselines/quest.h"
#include "baselines/streaming.h"
#include "codes/codes.h"
#include "hadamard/hadamard.h"
#include "select/select.h"
#include "step/row.h"
#include "step/tiers.h"

namespace adamas {
namespace {

constexpr int64_t scan_blocks = 16;  // blocks of one piece of scanning work: 16 to 64 KB of codes

// What the query heads of a KV head share: sigma_ref, the weights of its blocks, and how noisy its codes are.
void prepare_keys(Row& row, int g) {
  Plan& plan = row.plan;
  const Codes codes = row.cache.codes(row.sequence, g);
  plan.reference[g] = reference_sigma(codes.sigma, plan.active.get(), row.active);
  block_weights(codes.sigma, plan.active.get(), row.active, plan.reference[g], plan.weights.get() + g * plan.blocks);
  double squares = 0;  // one block far beyond the rest must not make the whole head look noisy
  for (int64_t i = 0; i < row.active; i++) {
    const double sigma = std::min(codes.sigma[plan.active[i]], plan.reference[g]);
    squares += sigma * sigma;
  }
  plan.variance[g] = squares / double(std::max<int64_t>(1, row.active));
}

// Stage 1 and the query's half of stage 3, for one query head; whether it is too noisy to be estimated.
void prepare(Row& row, int h) {
  Plan& plan = row.plan;
  load_query(row, h);
  if (plan.config.policy != ADAMAS_POLICY_ADAMAS) return;
  const int g = h / row.group();
  float* y = plan.rotated.get() + int64_t(h) * row.head_dim();
  for (int d = 0; d < row.head_dim(); d++) {
    const float x = row.q(h)[d];
    y[d] = std::isnan(x) ? 0.0f : std::clamp(x, -largest_key, largest_key);
  }
  if (!row.cache.rotated(Coded::keys)) rotate(y, row.head_dim());
  const float threshold = coding_of(plan.config) == Coding::paper ? paper_threshold : 0.0f;
  prepare_query(y, row.head_dim(), row.estimator(), threshold, plan.queries[h]);
  HeadReport& head = plan.heads[h];
  head.noise = float(noise_of(plan.queries[h], row.head_dim(), plan.variance[g], row.scale(), row.estimator()));
  if (plan.config.max_noise > 0 && head.noise > plan.config.max_noise) {
    head.dense = head.guarded = true;
    return;
  }
  block_offsets(plan.queries[h], row.head_dim(), row.estimator(), row.cache.codes(row.sequence, g), plan.active.get(),
                row.active, plan.reference[g], plan.centres.get() + h * plan.blocks, plan.offsets.get() + h * plan.blocks);
}

// Stage 3: scores of the tokens of active blocks [first, last), for every query head of one KV head.
void estimate(Row& row, int g, int64_t first, int64_t last) {
  Plan& plan = row.plan;
  for (int next = g * row.group(); next < (g + 1) * row.group();) {
    int heads = 0;
    const Query* queries[max_scan_heads];
    const int16_t* offsets[max_scan_heads];
    int16_t* scores[max_scan_heads];
    for (; next < (g + 1) * row.group() && heads < max_scan_heads; next++) {
      if (plan.heads[next].dense) continue;
      queries[heads] = &plan.queries[next];
      offsets[heads] = plan.offsets.get() + next * plan.blocks + first;
      scores[heads++] = row.scores(next) + first * block_tokens;
    }
    if (heads == 0) return;
    scan(queries, heads, row.head_dim(), row.estimator(), row.cache.codes(row.sequence, g), plan.active.get() + first,
         last - first, plan.weights.get() + g * plan.blocks + first, offsets, scores);
  }
}

// Calls work(i) for every i below count: each thread goes through its own part in order, because heads of a group read many of the same
// rows, and then takes from what the others have left. next: [threads], 0 at first.
template <class Work>
void share(int64_t count, std::vector<std::atomic<int64_t>>& next, int threads, Work&& work) {
  for (int turn = 0, part = omp_get_thread_num(); turn < threads; turn++, part = (part + 1) % threads) {
    const int64_t first = count * part / threads, last = count * (part + 1) / threads;
    for (int64_t i; (i = first + next[part].fetch_add(1, std::memory_order_relaxed)) < last;) work(i);
  }
}

// The top tokens by their true scores: every key is read.
void attend_oracle(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  HeadReport& head = plan.heads[h];
  int64_t count = 0;
  for (int64_t i = 0; i < row.active; i++)
    for_each_bit(plan.visible[plan.active[i]],
                 [&](int t) { room.tokens[count++] = int32_t(plan.active[i] * block_tokens + t); });
  room.clock.lap(&Times::select);
  const Attention attention = row.attention(h / row.group());
  const float max = score_list(attention, row.q(h), row.slope(h), room.tokens.get(), count, room.exact.get());
  head.keys_read = count;
  room.clock.lap(&Times::exact);
  std::fill(room.exact.get() + count, room.exact.get() + padded(count), -std::numeric_limits<float>::infinity());
  rank_exact(room.exact.get(), max, padded(count), room.ranks.get());
  std::fill(room.ranks.get() + count, room.ranks.get() + padded(count), hidden_score);
  weigh_exact(room.exact.get(), max, padded(count), room.weights.get());
  double all = 0;
  for (int64_t i = 0; i < count; i++) all += double(room.weights[i]);
  head.selected = select(room.ranks.get(), padded(count), plan.config.budget, room.positions.get(), room.select.get());
  for (int64_t i = 0; i < head.selected; i++) {
    row.selected(h)[i] = room.tokens[room.positions[i]];
    room.scores[i] = room.exact[room.positions[i]];
  }
  room.clock.lap(&Times::select);
  SoftmaxState& state = *row.states(h);
  attend_scored(attention, row.selected(h), room.scores.get(), head.selected, state);
  head.mass = float(double(state.sum) * std::exp(double(state.max) - double(max)) / all);
}

// Stages 4 and 5 of a baseline that estimates no score, for one query head.
int64_t attend_unscored(Row& row, int h, int thread) {
  Plan& plan = row.plan;
  HeadReport& head = plan.heads[h];
  const int g = h / row.group();
  int32_t* tokens = row.selected(h);
  int64_t stale = 0;
  if (plan.config.policy == ADAMAS_POLICY_STREAMING) {
    head.selected = select_streaming(plan.visible.get(), blocks_of(row.tokens), row.visible, plan.config.budget,
                                     plan.config.sinks, tokens);
    plan.rooms[thread].clock.lap(&Times::select);
  } else {
    const int64_t pages = plan.blocks * (block_tokens / quest_page);
    head.selected = select_quest(row.q(h), row.head_dim(), row.cache.quest_bounds(row.sequence, g), plan.visible.get(),
                                 blocks_of(row.tokens), plan.config.budget, plan.page_scores.get() + thread * pages,
                                 plan.pages.get() + thread * pages, tokens);
    plan.rooms[thread].clock.lap(&Times::select);
    if (row.p.verify != 0) stale = row.count_stale(g, tokens, head.selected);
    plan.rooms[thread].clock.lap(&Times::check);
  }
  head.keys_read = head.selected;
  head.mass = std::numeric_limits<float>::quiet_NaN();
  const float* query = row.q(h);
  const float slope = row.slope(h);
  attend_list(row.attention(g), &query, &slope, 1, tokens, head.selected, row.states(h));
  return stale;
}

}  // namespace

int64_t attend_sparse(Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads, q_heads = plan.params.q_heads;
  const bool scored = plan.config.policy == ADAMAS_POLICY_ADAMAS;
  const int64_t pieces = scored ? (row.active + scan_blocks - 1) / scan_blocks : 0;
  std::fill(plan.heads.begin(), plan.heads.end(), HeadReport{});
  int64_t stale = 0;
  for (auto& next : plan.next_head) next.store(0, std::memory_order_relaxed);
  Clock& first_clock = row.start_clock();
  for (int g = 0; scored && g < kv_heads; g++) prepare_keys(row, g);  // less work than a barrier
  first_clock.lap(&Times::prepare);
#pragma omp parallel num_threads(threads) reduction(+ : stale) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    Clock& clock = row.start_clock(thread);
#pragma omp for schedule(static)
    for (int h = 0; h < q_heads; h++) {
      prepare(row, h);
      clock.lap(&Times::prepare);
    }
    row.start_clock(thread);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < kv_heads * pieces; i++) {
      estimate(row, int(i / pieces), i % pieces * scan_blocks, std::min(row.active, (i % pieces + 1) * scan_blocks));
      clock.lap(&Times::estimate);
    }
    row.start_clock(thread);
    share(q_heads, plan.next_head, omp_get_num_threads(), [&](int64_t h) {
      if (plan.heads[h].dense) return;
      row.states(int(h))->clear(row.head_dim());
      if (scored) stale += attend_tiers(row, int(h), plan.rooms[thread]);
      else if (plan.config.policy == ADAMAS_POLICY_ORACLE) attend_oracle(row, int(h), plan.rooms[thread]);
      else stale += attend_unscored(row, int(h), thread);
      if (!plan.heads[h].dense) finish(row, int(h));
      clock.lap(&Times::attend);
    });
#pragma omp for schedule(dynamic) nowait  // small work comes last
    for (int g = 0; g < kv_heads; g++) {
      if (plan.checked.empty()) continue;
      stale += row.count_stale(g, plan.checked.data(), int64_t(plan.checked.size()));
      clock.lap(&Times::check);
    }
  }
  return stale;
}

}  // namespace adamas
