// The stages of the policies that select.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "baselines/quest.h"
#include "baselines/streaming.h"
#include "codes/codes.h"
#include "list/list.h"
#include "step/heads.h"

namespace adamas {
namespace {

constexpr int64_t scan_blocks = 16;  // blocks of one piece of scanning work: 16 to 64 KB of codes

// What the query heads of a KV head share: sigma_ref, the weights of its blocks, and how noisy its codes are.
void prepare_keys(const Row& row, int g) {
  Plan& plan = row.plan;
  const Codes codes = row.cache.codes(row.sequence, g);
  plan.reference[g] = reference_sigma(codes, row.view.blocks, row.view.active);
  block_weights(codes, row.view.blocks, row.view.active, plan.reference[g], plan.weights.get() + g * plan.blocks);
  double squares = 0;  // one block far beyond the rest must not make the whole head look noisy
  for (int64_t i = 0; i < row.view.active; i++) {
    const double sigma = std::min(codes.sigma_of(row.view.blocks[i]), plan.reference[g]);
    squares += sigma * sigma;
  }
  plan.variance[g] = squares / double(std::max<int64_t>(1, row.view.active));
}

// Stage 1 and the query's half of stage 3, for one query head; whether it is too noisy to be estimated.
void prepare(const Row& row, int h) {
  Plan& plan = row.plan;
  load_query(row, h);
  if (plan.config.policy != ADAMAS_POLICY_ADAMAS) return;
  const int g = h / row.group();
  float* y = plan.rotated.get() + int64_t(h) * row.head_dim();
  rotate_query(row.q(h), row.cache, y);
  const float threshold = coding_of(plan.config) == Coding::paper ? paper_threshold : 0.0f;
  prepare_query(y, row.head_dim(), row.estimator(), threshold, plan.queries[h]);
  HeadResult& result = plan.results[h];
  result.noise = float(noise_of(plan.queries[h], row.head_dim(), plan.variance[g], row.scale(), row.estimator()));
  if (plan.config.max_noise > 0 && result.noise > plan.config.max_noise) {
    result.reading = Reading::noisy;
    return;
  }
  block_offsets(plan.queries[h], row.head_dim(), row.estimator(), row.cache.codes(row.sequence, g), row.view.blocks,
                row.view.active, plan.reference[g], plan.centres.get() + h * plan.blocks,
                plan.offsets.get() + h * plan.blocks);
}

// Stage 3: scores of the tokens of active blocks [first, last), for every query head of one KV head.
void estimate(const Row& row, int g, int64_t first, int64_t last) {
  Plan& plan = row.plan;
  for (int next = g * row.group(); next < (g + 1) * row.group();) {
    int heads = 0;
    const Query* queries[max_scan_heads];
    const int16_t* offsets[max_scan_heads];
    int16_t* scores[max_scan_heads];
    for (; next < (g + 1) * row.group() && heads < max_scan_heads; next++) {
      if (reads_all(plan.results[next].reading)) continue;
      queries[heads] = &plan.queries[next];
      offsets[heads] = plan.offsets.get() + next * plan.blocks + first;
      scores[heads++] = row.scores(next) + first * block_tokens;
    }
    if (heads == 0) return;
    scan(queries, heads, row.head_dim(), row.estimator(), row.cache.codes(row.sequence, g), row.view.blocks + first,
         last - first, plan.weights.get() + g * plan.blocks + first, offsets, scores);
  }
}

// Calls work(i) for every i below count: each thread goes through its own part in order, because heads of a group read many
// of the same rows, and then takes from what the others have left. parts: [threads], none taken at first.
template <class Work>
void share(int64_t count, Stages::Part* parts, int threads, Work&& work) {
  for (int turn = 0, part = omp_get_thread_num(); turn < threads; turn++, part = (part + 1) % threads) {
    const int64_t first = count * part / threads, last = count * (part + 1) / threads;
    for (int64_t i; (i = first + parts[part].taken.fetch_add(1, std::memory_order_relaxed)) < last;) work(i);
  }
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Where the others are: soon there, or without a processor.
void wait_for(const std::atomic<int64_t>& ready, int64_t row) {
  constexpr int patience = 2000;  // some 50 us
  for (int turn = 0; ready.load(std::memory_order_acquire) != row; turn++)
    turn < patience ? pause() : std::this_thread::yield();
}

// One thread's way through the stages: all work that is left in one, then in the next. Threads need not meet: a KV head's
// work in a stage waits for the stage before of that KV head only, which others have taken before they went on, and who
// takes what is nobody's business but the clock's. So a thread that has lost its processor holds up no more than the piece
// in its hands.
class Way {
 public:
  Way(const Row& row, int threads) : row_(row), stages_(row.plan.stages), threads_(threads), thread_(omp_get_thread_num()) {
    for (int stage = 0; stage < Stages::most; stage++)  // for the row after this one
      for (int part = thread_; part < row.plan.params.max_threads; part += threads)
        parts(stages_.row + 1, stage)[part].taken = 0;
  }

  // work(g, unit) for every unit below `units` of every KV head; after(g) when the last one of g has ended.
  template <class Work, class After>
  void stage(int64_t units, Work&& work, After&& after) {
    const int stage = stage_++;
    if (units == 0) return;
    Clock& clock = row_.start_clock(thread_);
    share(stages_.kv_heads * units, parts(stages_.row, stage), threads_, [&](int64_t i) {
      const int g = int(i / units);
      if (before_ >= 0 && head(before_, g).ready.load(std::memory_order_acquire) != stages_.row) {
        wait_for(head(before_, g).ready, stages_.row);
        clock.start(row_.p.times != nullptr);
      }
      work(g, i % units);
      Stages::Head& now = head(stage, g);
      if (now.ended.fetch_add(1, std::memory_order_acq_rel) + 1 < units) return;
      after(g);
      now.ended.store(0, std::memory_order_relaxed);
      now.ready.store(stages_.row, std::memory_order_release);
    });
    before_ = stage;
  }
  template <class Work>
  void stage(int64_t units, Work&& work) {
    stage(units, work, [](int) {});
  }

 private:
  Stages::Head& head(int stage, int g) { return stages_.heads[stage * stages_.kv_heads + g]; }
  Stages::Part* parts(int64_t row, int stage) {
    return &stages_.parts[(row % 2 * Stages::most + stage) * row_.plan.params.max_threads];
  }

  const Row& row_;
  Stages& stages_;
  const int threads_, thread_;
  int stage_ = 0, before_ = -1;
};

// A part of a list: whole tiles of 64 tokens, the same for any number of threads.
struct Part {
  int64_t first, count;
};
Part part_of(int64_t count, int64_t part) {
  const int64_t tokens = std::max<int64_t>(attend_tile, padded((count + list_parts - 1) / list_parts));
  const int64_t first = std::min(count, part * tokens);
  return {first, std::min(count - first, tokens)};
}

// Calls visit(heads, how many) for the query heads of a KV head that attend to its list, so many at a time.
template <class Visit>
void for_heads(const Row& row, int g, Visit&& visit) {
  int heads[max_attend_heads], count = 0;
  for (int h = g * row.group(); h < (g + 1) * row.group(); h++) {
    if (row.plan.results[h].reading == Reading::sparse) heads[count++] = h;
    if (count == max_attend_heads || (h + 1 == (g + 1) * row.group() && count > 0)) {
      visit(heads, count);
      count = 0;
    }
  }
}

// The keys of a part of a list: each row is read once, for all query heads. Returns stale ones.
int64_t read_keys(const Row& row, int g, Part part, Clock& clock) {
  if (part.count == 0) return 0;
  const int32_t* tokens = row.tokens_of(g) + part.first;
  const Codes codes = row.cache.codes(row.sequence, g);
  for (int64_t i = 0; i < part.count && row.verify; i++) __builtin_prefetch(codes.hash_of(tokens[i]), 0, 2);
  for_heads(row, g, [&](const int* heads, int count) {
    const float* queries[max_attend_heads];
    float* scores[max_attend_heads];
    float slopes[max_attend_heads];
    for (int j = 0; j < count; j++) {
      queries[j] = row.q(heads[j]);
      slopes[j] = row.slope(heads[j]);
      scores[j] = row.weights(heads[j]) + part.first;
    }
    score_list(row.attention(g), queries, slopes, count, tokens, part.count, scores);
  });
  clock.lap(&Times::exact);
  const int64_t stale = row.verify ? row.count_stale(g, tokens, part.count) : 0;
  clock.lap(&Times::check);
  return stale;
}

// The values of a part of a list, or the means of a part of the blocks: into states(h)[unit].
void read_values(const Row& row, int g, int64_t unit, Clock& clock) {
  const Plan& plan = row.plan;
  for_heads(row, g, [&](const int* heads, int count) {
    const float* weights[max_attend_heads];
    float* outs[max_attend_heads];
    for (int j = 0; j < count; j++) {
      outs[j] = row.states(heads[j])[unit].out;
      std::fill_n(outs[j], row.head_dim(), 0.0f);
    }
    if (unit < list_parts) {
      const Part part = part_of(plan.listed[g], unit);
      for (int j = 0; j < count; j++) weights[j] = row.weights(heads[j]) + part.first;
      if (part.count > 0) add_values(row.attention(g), row.tokens_of(g) + part.first, weights, count, part.count, outs);
      clock.lap(&Times::attend);
    } else {
      const int64_t first = row.view.active * (unit - list_parts) / mean_parts,
                    last = row.view.active * (unit - list_parts + 1) / mean_parts;
      for (int j = 0; j < count; j++) weights[j] = row.sums(heads[j]) + first;
      add_means(row.cache.means(row.sequence, g), row.head_dim(), row.view.blocks + first, weights, count, last - first,
                outs);
      clock.lap(&Times::rest);
    }
  });
}

// All parts are summed up, in their order.
void finish_heads(const Row& row, int g) {
  for_heads(row, g, [&](const int* heads, int count) {
    for (int j = 0; j < count; j++) {
      SoftmaxState* states = row.states(heads[j]);
      for (int part = 1; part < list_parts + mean_parts; part++)
        for (int d = 0; d < row.head_dim(); d++) states[0].out[d] += states[part].out[d];
      add_beside_hidden(row, heads[j]);
      finish(row, heads[j]);
    }
  });
}

// Stages 4 and 5 of a baseline that estimates no score, for one query head.
int64_t attend_unscored(const Row& row, int h, int thread) {
  Plan& plan = row.plan;
  HeadResult& result = plan.results[h];
  const int g = h / row.group();
  int32_t* tokens = row.tokens_of(h);
  result.tokens = tokens;
  int64_t stale = 0;
  if (plan.config.policy == ADAMAS_POLICY_STREAMING) {
    result.selected = select_streaming(row.view.bits, blocks_of(row.view.tokens), row.view.visible, budget_of(plan.config),
                                       plan.config.sinks, tokens);
    plan.scratch[thread].clock.lap(&Times::select);
  } else {
    const int64_t pages = plan.blocks * (block_tokens / quest_page);
    result.selected = select_quest(row.q(h), row.head_dim(), row.cache.quest_bounds(row.sequence, g), row.view.bits,
                                   blocks_of(row.view.tokens), budget_of(plan.config),
                                   plan.page_scores.get() + thread * pages, plan.pages.get() + thread * pages, tokens);
    plan.scratch[thread].clock.lap(&Times::select);
    if (row.verify) stale = row.count_stale(g, tokens, result.selected);
    plan.scratch[thread].clock.lap(&Times::check);
  }
  result.mass = std::numeric_limits<float>::quiet_NaN();
  const float* query = row.q(h);
  const float slope = row.slope(h);
  row.states(h)->clear(row.head_dim());
  attend_list(row.attention(g), &query, &slope, 1, tokens, result.selected, row.states(h));
  return stale;
}

}  // namespace

Stages::Stages(int kv_heads, int threads)
    : kv_heads(kv_heads), parts(2 * size_t(most) * threads), heads(size_t(most) * kv_heads) {}

int64_t attend_sparse(const Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads, group = row.group();
  const bool scored = plan.config.policy == ADAMAS_POLICY_ADAMAS, with_rest = has_rest(plan.config);
  const int64_t pieces = scored ? (row.view.active + scan_blocks - 1) / scan_blocks : 0;
  int64_t stale = 0;
  plan.stages.row++;
#pragma omp parallel num_threads(threads) reduction(+ : stale) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    HeadScratch& scratch = plan.scratch[thread];
    Clock& clock = scratch.clock;
    Way way(row, omp_get_num_threads());
    way.stage(scored ? 1 : 0, [&](int g, int64_t) {
      prepare_keys(row, g);
      clock.lap(&Times::prepare);
    });
    way.stage(group, [&](int g, int64_t j) {
      prepare(row, g * group + int(j));
      clock.lap(&Times::prepare);
    });
    way.stage(pieces, [&](int g, int64_t piece) {
      estimate(row, g, piece * scan_blocks, std::min(row.view.active, (piece + 1) * scan_blocks));
      clock.lap(&Times::estimate);
    });
    if (with_rest) {
      way.stage(
          group,
          [&](int g, int64_t j) {
            if (!reads_all(plan.results[g * group + j].reading)) choose(row, g * group + int(j), scratch);
          },
          [&](int g) {
            make_list(row, g);
            clock.lap(&Times::select);
          });
      way.stage(list_parts, [&](int g, int64_t part) { stale += read_keys(row, g, part_of(plan.listed[g], part), clock); });
      way.stage(group, [&](int g, int64_t j) {
        if (!reads_all(plan.results[g * group + j].reading)) stale += weigh_list(row, g * group + int(j), scratch);
      });
      way.stage(
          list_parts + mean_parts, [&](int g, int64_t unit) { read_values(row, g, unit, clock); },
          [&](int g) {
            finish_heads(row, g);
            clock.lap(&Times::attend);
          });
    } else {
      way.stage(group, [&](int g, int64_t j) {
        const int h = g * group + int(j);
        if (reads_all(plan.results[h].reading)) return;
        if (scored)
          stale += attend_budget(row, h, scratch);
        else if (plan.config.policy == ADAMAS_POLICY_ORACLE)
          attend_oracle(row, h, scratch);
        else
          stale += attend_unscored(row, h, thread);
        if (!reads_all(plan.results[h].reading)) finish(row, h);
        clock.lap(&Times::attend);
      });
    }
#pragma omp for schedule(dynamic) nowait  // small work comes last
    for (int g = 0; g < kv_heads; g++) {
      if (plan.slice.empty()) continue;
      stale += row.count_stale(g, plan.slice.data(), int64_t(plan.slice.size()));
      clock.lap(&Times::check);
    }
  }
  return stale;
}

}  // namespace adamas
