#include "step/step.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "attend/attend.h"
#include "baselines/quest.h"
#include "baselines/streaming.h"
#include "codes/codes.h"
#include "hadamard/hadamard.h"
#include "select/select.h"

namespace adamas {
namespace {

constexpr int64_t scan_blocks = 16;  // blocks of one piece of scanning work: 16 to 64 KB of codes

// One query row of one sequence, and what it sees.
struct Row {
  Plan& plan;
  Cache& cache;
  const adamas_step_params& p;
  int64_t batch, row;       // indices into q, out, mask
  int64_t sequence;
  int64_t tokens = 0;       // in view, before the mask
  int64_t visible = 0;      // after it
  int64_t active = 0;       // blocks with a visible token
  bool biased = false;      // some visible token has a bias other than 0

  int head_dim() const { return plan.params.head_dim; }
  int group() const { return plan.params.q_heads / plan.params.kv_heads; }
  float* q(int h) const { return plan.q.get() + int64_t(h) * head_dim(); }
  float slope(int h) const { return p.slopes != nullptr ? p.slopes[h] : 1.0f; }
  SoftmaxState* states(int h) const { return &plan.states[int64_t(h) * plan.splits]; }
  int32_t* selected(int h) const { return plan.selected.get() + h * plan.budget; }
  int16_t* scores(int h) const { return plan.scores.get() + int64_t(h) * plan.blocks * block_tokens; }
  Estimator estimator() const {
    return plan.config.estimator == ADAMAS_ESTIMATOR_DOT ? Estimator::dot : Estimator::manhattan;
  }
  Attention attention(int kv_head) const {
    const float scale = p.scale != 0 ? p.scale : 1.0f / std::sqrt(float(head_dim()));
    return {head_dim(), scale, p.softcap, rows_of(p.k, sequence, kv_head), rows_of(p.v, sequence, kv_head),
            biased ? plan.bias.get() : nullptr};
  }
};

template <class T>
const std::byte* at(const T* base, int64_t offset) {
  return reinterpret_cast<const std::byte*>(base) + offset;
}

// What a block of 64 mask values says, when they are all 0 or all -inf: most blocks are. Bits is the type of a value's bits.
enum class Sight { all, none, some };
template <class Bits>
Sight sight(const std::byte* mask, Bits minus_infinity) {
  Bits nonzero = 0, other = 0;
  for (int t = 0; t < block_tokens; t++) {
    Bits bits;
    std::memcpy(&bits, mask + t * sizeof(Bits), sizeof(Bits));
    nonzero |= bits;
    other |= bits ^ minus_infinity;
  }
  return nonzero == 0 ? Sight::all : other == 0 ? Sight::none : Sight::some;
}

Sight sight(const std::byte* mask, DType dtype) {
  switch (dtype) {
    case DType::f16: return sight<uint16_t>(mask, 0xFC00);
    case DType::bf16: return sight<uint16_t>(mask, 0xFF80);
    default: return sight<uint32_t>(mask, 0xFF800000);
  }
}

// Which tokens the row sees: plan.visible, plan.active, plan.bias.
void look(Row& row) {
  Plan& plan = row.plan;
  const adamas_step_params& p = row.p;
  const int64_t length = p.lengths != nullptr ? p.lengths[row.batch] : row.cache.length(row.sequence);
  row.tokens = p.causal != 0 ? std::max<int64_t>(0, length - p.rows + row.row + 1) : length;
  row.visible = row.active = 0;
  row.biased = false;
  const std::byte* mask =
      p.mask != nullptr ? at(p.mask, row.batch * p.mask_stride_batch + row.row * p.mask_stride_row) : nullptr;
  const auto dtype = static_cast<DType>(p.mask_dtype);
  for (int64_t b = 0; b < blocks_of(row.tokens); b++) {
    const int64_t first = b * block_tokens;
    const int in_block = int(std::min<int64_t>(block_tokens, row.tokens - first));
    uint64_t bits = bits_between(0, in_block);
    float* bias = plan.bias.get() + first;
    if (mask != nullptr) {
      const Sight seen = in_block == block_tokens ? sight(mask + first * size_of(dtype), dtype) : Sight::some;
      if (seen == Sight::none) bits = 0;
      if (seen == Sight::all) std::fill_n(bias, block_tokens, 0.0f);
      if (seen == Sight::some) {
        bits = 0;
        for (int t = 0; t < in_block; t++) {
          bias[t] = load_f32(mask, dtype, first + t);
          const bool shown = bias[t] != -std::numeric_limits<float>::infinity();
          bits |= uint64_t(shown) << t;
          row.biased |= shown && bias[t] != 0;
        }
      }
    } else if (p.slopes != nullptr) {
      for (int t = 0; t < in_block; t++) bias[t] = float(first + t - (row.tokens - 1));
      row.biased = true;
    }
    plan.visible[b] = bits;
    row.visible += std::popcount(bits);
    if (bits != 0) plan.active[row.active++] = int32_t(b);
  }
}

// Stages 1 and 2 of what changed since the last step. Returns blocks x kv_heads encoded.
int64_t encode_changed(Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads;
  int64_t count = 0;
  for (int64_t i = 0; i < row.active; i++) {
    const int32_t b = plan.active[i];
    if (row.cache.needs_codes(row.sequence, b, plan.visible[b])) plan.unencoded[count++] = b;
  }
  const int64_t work = count * kv_heads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && work > 1)
  for (int64_t i = 0; i < work; i++) {
    float* scratch = plan.encode_room.get() + int64_t(omp_get_thread_num()) * block_tokens * row.head_dim();
    row.cache.encode(row.p.k, row.sequence, plan.unencoded[i / kv_heads], int(i % kv_heads), scratch);
  }
  for (int64_t i = 0; i < count; i++) row.cache.encoded(row.sequence, plan.unencoded[i]);
  return work;
}

void load_query(Row& row, int h) {
  const std::byte* from =
      at(row.p.q, row.batch * row.p.q_stride_batch + row.row * row.p.q_stride_row + h * row.p.q_stride_head);
  for (int d = 0; d < row.head_dim(); d++) row.q(h)[d] = load_f32(from, static_cast<DType>(row.p.q_dtype), d);
}

void finish(Row& row, int h) {
  SoftmaxState& state = *row.states(h);
  if (row.p.sink_logits != nullptr) state.merge_logit(row.p.sink_logits[h], row.head_dim());
  float* out = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(row.p.out) + row.batch * row.p.out_stride_batch +
                                        row.row * row.p.out_stride_row + h * row.p.out_stride_head);
  const float inverse = state.sum > 0 ? 1.0f / state.sum : 0.0f;
  for (int d = 0; d < row.head_dim(); d++) {
    const float value = state.sum == 0 ? 0.0f : state.out[d] * (std::isnan(state.sum) ? state.sum : inverse);
    std::memcpy(reinterpret_cast<std::byte*>(out) + d * sizeof(float), &value, sizeof value);
  }
  const int64_t index = (row.batch * row.p.rows + row.row) * row.plan.params.q_heads + h;
  if (row.p.mass != nullptr) row.p.mass[index] = 1;
  if (row.p.noise != nullptr) row.p.noise[index] = 0;
  if (row.p.lse != nullptr) row.p.lse[index] = state.lse();
}

// Heads [first, last) of a KV head's group, at most `most` at a time.
template <class Visit>
void for_each_tile(int group, int most, Visit&& visit) {
  for (int first = 0; first < group; first += most) visit(first, std::min(most, group - first));
}

void attend_dense(Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads, q_heads = plan.params.q_heads, group = row.group();
  const int64_t blocks = blocks_of(row.tokens);
  // Flash-decoding: enough parts that all threads have work, none shorter than four blocks.
  const int64_t wanted = (2 * threads + kv_heads - 1) / kv_heads;
  const int parts = int(std::clamp<int64_t>(std::min(wanted, blocks / 4), 1, plan.splits));
  const int64_t per_part = (blocks + parts - 1) / parts;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int h = 0; h < q_heads; h++) load_query(row, h);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < int64_t(kv_heads) * parts; i++) {
      const int g = int(i / parts), part = int(i % parts);
      for_each_tile(group, max_attend_heads, [&](int first, int heads) {
        const float* queries[max_attend_heads];
        float slopes[max_attend_heads];
        SoftmaxState states[max_attend_heads];
        for (int j = 0; j < heads; j++) {
          const int h = g * group + first + j;
          queries[j] = row.q(h);
          slopes[j] = row.slope(h);
          states[j] = row.states(h)[part];
          states[j].clear(row.head_dim());
        }
        attend_range(row.attention(g), queries, slopes, heads, plan.visible.get(), std::min(blocks, part * per_part),
                     std::min(blocks, (part + 1) * per_part), states);
        for (int j = 0; j < heads; j++) row.states(g * group + first + j)[part] = states[j];
      });
    }
#pragma omp for schedule(static)
    for (int h = 0; h < q_heads; h++) {
      for (int part = 1; part < parts; part++) row.states(h)->merge(row.states(h)[part], row.head_dim());
      finish(row, h);
    }
  }
}

// Stage 1 and the query's half of stage 3, for one query head.
void prepare(Row& row, int h) {
  Plan& plan = row.plan;
  load_query(row, h);
  if (plan.config.policy != ADAMAS_POLICY_ADAMAS) return;
  float* y = plan.rotated.get() + int64_t(h) * row.head_dim();
  for (int d = 0; d < row.head_dim(); d++) {
    const float x = row.q(h)[d];
    y[d] = std::isnan(x) ? 0.0f : std::clamp(x, -largest_key, largest_key);
  }
  rotate(y, row.head_dim());
  const float threshold = coding_of(plan.config) == Coding::paper ? paper_threshold : 0.0f;
  prepare_query(y, row.head_dim(), row.estimator(), threshold, plan.queries[h]);

  const int g = h / row.group();
  const Codes codes = row.cache.codes(row.sequence, g);
  const float reference = reference_sigma(codes.sigma, plan.active.get(), row.active);
  if (h % row.group() == 0)
    block_weights(codes.sigma, plan.active.get(), row.active, reference, plan.weights.get() + g * plan.blocks);
  block_offsets(plan.queries[h], row.head_dim(), row.estimator(), codes, plan.active.get(), row.active, reference,
                plan.centres.get() + h * plan.blocks, plan.offsets.get() + h * plan.blocks);
}

// Stage 3: scores of the tokens of active blocks [first, last), for every query head of one KV head.
void estimate(Row& row, int g, int64_t first, int64_t last) {
  Plan& plan = row.plan;
  for_each_tile(row.group(), max_scan_heads, [&](int first_head, int heads) {
    const Query* queries[max_scan_heads];
    const int16_t* offsets[max_scan_heads];
    int16_t* scores[max_scan_heads];
    for (int j = 0; j < heads; j++) {
      const int h = g * row.group() + first_head + j;
      queries[j] = &plan.queries[h];
      offsets[j] = plan.offsets.get() + h * plan.blocks + first;
      scores[j] = row.scores(h) + first * block_tokens;
    }
    scan(queries, heads, row.head_dim(), row.estimator(), row.cache.codes(row.sequence, g), plan.active.get() + first,
         last - first, plan.weights.get() + g * plan.blocks + first, offsets, scores);
  });
}

// What codes do not say: biases move scores, hidden tokens are out, sinks and recent ones are in.
void adjust(Row& row, int h) {
  Plan& plan = row.plan;
  int16_t* scores = row.scores(h);
  if (row.biased) {
    const double unit = plan.queries[h].unit * double(row.attention(0).scale);
    for (int64_t i = 0; i < row.active; i++)
      for (int t = 0; t < block_tokens; t++) {
        const double bias = double(row.slope(h)) * plan.bias[plan.active[i] * block_tokens + t] / unit;
        const double moved = std::clamp(scores[i * block_tokens + t] + std::nearbyint(bias), -32767.0, 32766.0);
        scores[i * block_tokens + t] = int16_t(std::isnan(moved) ? -32767.0 : moved);
      }
  }
  int64_t rank = 0;
  const int64_t first_recent = row.visible - plan.config.recent;
  for (int64_t i = 0; i < row.active; i++) {
    const uint64_t visible = plan.visible[plan.active[i]];
    const int64_t next = rank + std::popcount(visible);
    for_each_bit(~visible, [&](int t) { scores[i * block_tokens + t] = hidden_score; });
    if (rank < plan.config.sinks || next > first_recent)
      for_each_bit(visible, [&, r = rank](int t) mutable {
        if (r < plan.config.sinks || r >= first_recent) scores[i * block_tokens + t] = always_score;
        r++;
      });
    rank = next;
  }
}

// Stage 4: the tokens of one query head, ascending.
void choose(Row& row, int h, int thread) {
  Plan& plan = row.plan;
  int32_t* tokens = row.selected(h);
  int64_t& count = plan.counts[h];
  switch (plan.config.policy) {
    case ADAMAS_POLICY_STREAMING:
      count = select_streaming(plan.visible.get(), blocks_of(row.tokens), row.visible, plan.config.budget,
                               plan.config.sinks, tokens);
      return;
    case ADAMAS_POLICY_QUEST: {
      const int64_t pages = plan.blocks * (block_tokens / quest_page);
      count = select_quest(row.q(h), row.head_dim(), row.cache.quest_bounds(row.sequence, h / row.group()),
                           plan.visible.get(), blocks_of(row.tokens), plan.config.budget,
                           plan.page_scores.get() + thread * pages, plan.pages.get() + thread * pages, tokens);
      return;
    }
    default:
      adjust(row, h);
      count = select(row.scores(h), row.active * block_tokens, plan.config.budget, tokens,
                     plan.select_room.get() + thread * select_scratch(plan.blocks * block_tokens));
      // Scores lie active block after active block; so did the positions.
      for (int64_t i = 0; i < count; i++)
        tokens[i] = plan.active[tokens[i] / block_tokens] * block_tokens + tokens[i] % block_tokens;
  }
}

// Stage 5, for one query head.
void attend(Row& row, int h) {
  SoftmaxState& state = *row.states(h);
  state.clear(row.head_dim());
  const float* query = row.q(h);
  const float slope = row.slope(h);
  attend_list(row.attention(h / row.group()), &query, &slope, 1, row.selected(h), row.plan.counts[h], &state);
  finish(row, h);
}

// The step. Returns how many of the key rows that it read are not those that their codes were made from.
int64_t attend_sparse(Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads, q_heads = plan.params.q_heads;
  const bool scored = plan.config.policy == ADAMAS_POLICY_ADAMAS;
  const int64_t pieces = scored ? (row.active + scan_blocks - 1) / scan_blocks : 0;
  int64_t stale = 0;
#pragma omp parallel num_threads(threads) reduction(+ : stale) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int h = 0; h < q_heads; h++) prepare(row, h);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < kv_heads * pieces; i++)
      estimate(row, int(i / pieces), i % pieces * scan_blocks, std::min(row.active, (i % pieces + 1) * scan_blocks));
#pragma omp for schedule(dynamic)
    for (int h = 0; h < q_heads; h++) {
      choose(row, h, omp_get_thread_num());
      if (row.p.verify != 0 && plan.config.policy != ADAMAS_POLICY_STREAMING)
        stale += count_stale(rows_of(row.p.k, row.sequence, h / row.group()), row.head_dim(),
                             row.cache.codes(row.sequence, h / row.group()), row.selected(h), plan.counts[h]);
      attend(row, h);
    }
  }
  return stale;
}

// The hashes of the next `verify_rows` live rows in turn, of every KV head.
int64_t check_slice(Row& row) {
  int64_t stale = 0;
  int64_t& next = row.cache.next_checked;
  for (int64_t i = 0; i < std::min(row.p.verify_rows, row.tokens); i++, next++) {
    if (next >= row.tokens) next = 0;
    const int64_t b = next / block_tokens;
    if (row.cache.marked(row.sequence, b) || !(row.cache.live(row.sequence, b) >> next % block_tokens & 1)) continue;
    const int32_t token = int32_t(next);
    for (int g = 0; g < row.plan.params.kv_heads; g++)
      stale += count_stale(rows_of(row.p.k, row.sequence, g), row.head_dim(), row.cache.codes(row.sequence, g), &token, 1);
  }
  return stale;
}

}  // namespace

Plan::Plan(const adamas_config& config, const adamas_plan_params& params)
    : config(config), params(params), blocks(std::max<int64_t>(1, blocks_of(params.max_tokens))),
      budget(std::min(std::max<int64_t>(config.budget, quest_page), blocks * block_tokens)),
      splits(2 * params.max_threads) {
  const int64_t q_heads = params.q_heads, threads = params.max_threads;
  visible = make_array<uint64_t>(blocks);
  active = make_array<int32_t>(blocks);
  unencoded = make_array<int32_t>(blocks);
  bias = make_array<float>(blocks * block_tokens);
  queries = make_array<Query>(q_heads);
  q = make_array<float>(product(q_heads, params.head_dim));
  rotated = make_array<float>(product(q_heads, params.head_dim));
  weights = make_array<int16_t>(product(params.kv_heads, blocks));
  centres = make_array<double>(product(q_heads, blocks));
  offsets = make_array<int16_t>(product(q_heads, blocks));
  scores = make_array<int16_t>(product(q_heads, blocks, block_tokens));
  selected = make_array<int32_t>(product(q_heads, budget));
  counts.assign(q_heads, 0);
  select_room = make_array<int16_t>(product(threads, select_scratch(blocks * block_tokens)));
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
  const bool coded = plan.config.policy != ADAMAS_POLICY_STREAMING;  // which reads no key to choose
  for (int64_t b = 0; b < params.batch; b++) {
    for (int64_t r = 0; r < params.rows; r++) {
      Row row{plan, cache, params, b, r, params.sequences != nullptr ? params.sequences[b] : b};
      look(row);
      const bool dense = always_dense || row.visible <= plan.config.budget || row.visible < plan.config.min_context;
      stats.tokens_visible += row.visible * plan.params.q_heads;
      plan.last_dense = dense;
      plan.last_tokens = row.tokens;
      if (dense) {
        attend_dense(row, params.threads);
        stats.rows_dense++;
        stats.tokens_selected += row.visible * plan.params.q_heads;
        continue;
      }
      if (coded) stats.blocks_encoded += encode_changed(row, params.threads);
      int64_t stale = attend_sparse(row, params.threads);
      if (coded && params.verify != 0) stale += check_slice(row);
      if (stale > 0) {  // keys changed behind our back: codes anew, and once more
        cache.invalidate();
        stats.blocks_encoded += encode_changed(row, params.threads);
        attend_sparse(row, params.threads);
        stats.rows_stale += stale;
      }
      stats.rows_sparse++;
      for (int64_t count : plan.counts) stats.tokens_selected += count;
    }
  }
  if (params.stats != nullptr) *params.stats = stats;
  return {};
}

void encode_marked(Cache& cache, const adamas_rows& k, int64_t sequence, int64_t first_block, int64_t last_block,
                   float* scratch) {
  for (int64_t b = first_block; b < last_block; b++) {
    if (!cache.marked(sequence, b)) continue;
    for (int g = 0; g < cache.params.kv_heads; g++) cache.encode(k, sequence, b, g, scratch);
    cache.encoded(sequence, b);
  }
}

}  // namespace adamas
