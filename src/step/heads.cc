#include "step/heads.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "baselines/quest.h"
#include "list/list.h"
#include "list/rescale.h"
#include "select/select.h"

namespace adamas {
namespace {

constexpr double farthest_weight = 64;  // exponent of an estimate above the highest centre
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// How scores are read as weights, once that is told which codes do not say: biases move scores, hidden tokens are out. So
// are those that must be in: sinks, recent and fresh ones, whose scores are no estimates.
WeightScale adjust(const Row& row, int h, HeadScratch& scratch) {
  const Query& query = row.plan.queries[h];
  int16_t* scores = row.scores(h);
  for (int64_t i = 0; i < row.uncoded.partial_count; i++) {
    const PartialBlock& block = row.uncoded.partial[i];
    for_each_bit(~block.visible | block.always, [&](int t) { scores[block.index * block_tokens + t] = hidden_score; });
  }
  WeightScale e{row.scale() * query.unit, row.scale() * query.highest_centre, row.p.softcap, 0};
  if (row.view.bias != nullptr || query.offset_clipped) {
    const auto moved = [&, slope = double(row.slope(h))](double estimate, int64_t position) {
      return row.view.bias != nullptr ? estimate + slope * row.view.bias[row.view.token_at(position)] : estimate;
    };
    return rescale(e, double(row.scale()), row.plan.centres.get() + h * row.plan.blocks,
                   row.plan.offsets.get() + h * row.plan.blocks, row.view.active, moved, scratch.estimates.get(), scores);
  }
  // Relative to the highest centre, unless estimates can stand so far above it that a float cannot hold them.
  const int16_t reference =
      e.unit * query.max_abs_score < farthest_weight ? int16_t{0} : highest_score(scores, row.view.active * block_tokens);
  if (reference == hidden_score) return e;
  e.max = float(capped(e.unit * reference + e.highest, e.softcap));
  return e;
}

// The tokens that must be in get one score.
void set_always(const Row& row, int h, int16_t score) {
  for (int64_t i = 0; i < row.uncoded.partial_count; i++) {
    const PartialBlock& block = row.uncoded.partial[i];
    for_each_bit(block.always, [&](int t) { row.scores(h)[block.index * block_tokens + t] = score; });
  }
}

// Exact scores of one head.
void score_alone(const Row& row, int h, const int32_t* tokens, int64_t count, float* scores) {
  const float* query = row.q(h);
  const float slope = row.slope(h);
  score_list(row.attention(h / row.group()), &query, &slope, 1, tokens, count, &scores);
}

// Values of one head, with its weights, from nothing.
void attend_alone(const Row& row, int h, const int32_t* tokens, int64_t count) {
  SoftmaxState& state = *row.states(h);
  const float* weights = row.weights(h);
  std::fill_n(state.out, row.head_dim(), 0.0f);
  if (state.sum > 0) add_values(row.attention(h / row.group()), tokens, &weights, 1, count, &state.out);
}

// The log of the sum of exp(s) over the tokens that are read in any case; -inf when there are none, or one is no number,
// which shows when it is attended to.
double log_of_always(const Row& row, int h, HeadScratch& scratch) {
  const int64_t count = row.uncoded.always_count;
  if (count == 0) return -INFINITY;
  float* exact = scratch.exact.get();
  score_alone(row, h, row.uncoded.always, count, exact);
  const float highest = highest_exact(exact, count);
  if (!std::isfinite(highest)) return -INFINITY;
  return double(highest) + std::log(double(weigh_exact(exact, highest, count)));
}

// A query head, and the list of its KV head or its own.
HeadList head_list(const Row& row, int h, const uint64_t* listed, int64_t list, int64_t count) {
  const HeadCandidates& of = row.plan.candidates[h];
  return {of.scale, of.bound, listed, row.positions_of(list), count, row.uncoded.has_hidden_rows, row.view.active};
}

Measured measure(const Row& row, int h, const HeadList& list, HeadScratch& scratch) {
  return measure_rest(list, row.scores(h), row.sums(h), row.weights(h), scratch.estimated.get(), scratch.guesses.get());
}

void lean_towards(const Row& row, int h, const HeadList& list, const Measured& measured, HeadScratch& scratch) {
  lean_rest(list, measured, scratch.estimated.get(), row.weights(h), row.sums(h), scratch.low_positions.get(),
            scratch.low_weights.get());
}

// A head's sums: what was read, and where it is not NaN the rest.
void take(const Row& row, int h, const Measured& measured, bool rest) {
  SoftmaxState& state = *row.states(h);
  state.max = state.sum = measured.max;
  if (std::isnan(measured.max)) return;
  state.sum = measured.listed + (rest ? measured.rest : 0.0f);
}

// Those that must be in are marked, too, and all of it is listed. Returns how many.
int64_t make_list_of(const Row& row, int64_t list, uint64_t* marked) {
  for (int64_t i = 0; i < row.uncoded.partial_count; i++)
    marked[row.uncoded.partial[i].index] |= row.uncoded.partial[i].always;
  return list_marked(marked, row.view.blocks, row.view.active, row.positions_of(list), row.tokens_of(list));
}

// By itself, from half the share on, from a quarter, and so on, until the mass is reached or half of the tokens are read:
// dense is cheaper then, and exact.
int64_t widen(const Row& row, int h, HeadScratch& scratch) {
  Plan& plan = row.plan;
  HeadResult& result = plan.results[h];
  HeadCandidates& of = plan.candidates[h];
  const int64_t own = plan.params.kv_heads + h;
  const int octave = octave_of(of.scale);
  int64_t stale = 0;
  for (int bound = of.bound - octave;; bound -= octave) {
    of.bound = int16_t(std::max(bound, hidden_score + 1));
    uint64_t* marked = row.marked(h);
    mark_reaching(row.scores(h), row.view.active, of.bound, nullptr, 0, marked);
    const int64_t count = make_list_of(row, own, marked);
    if (2 * count >= row.view.visible) {
      result.reading = Reading::widened_to_all;
      result.mass = 1;
      return stale;
    }
    weigh_blocks(of.scale, row.scores(h), row.view.active, row.sums(h));
    scratch.clock.lap(&Times::select);
    score_alone(row, h, row.tokens_of(own), count, row.weights(h));
    scratch.clock.lap(&Times::exact);
    const HeadList list = head_list(row, h, marked, own, count);
    const Measured measured = measure(row, h, list, scratch);
    if (!std::isnan(measured.max) && measured.mass() < plan.config.min_mass) continue;
    if (row.verify) stale += row.count_stale(h / row.group(), row.tokens_of(own), count);
    scratch.clock.lap(&Times::check);
    result.reading = Reading::widened;
    result.tokens = row.tokens_of(own);
    result.selected = count;
    result.mass = float(measured.mass());
    take(row, h, measured, true);
    if (!std::isnan(measured.max)) lean_towards(row, h, list, measured, scratch);
    attend_alone(row, h, result.tokens, count);
    if (SoftmaxState& state = *row.states(h); !std::isnan(state.sum)) {
      const float* sums = row.sums(h);
      add_means(row.cache.means(row.sequence, h / row.group()), row.head_dim(), row.view.blocks, &sums, 1, row.view.active,
                &state.out);
      plan.beside_hidden[h] = measured.beside_hidden;
      add_beside_hidden(row, h);
    }
    finish(row, h);
    scratch.clock.lap(&Times::attend);
    return stale;
  }
}

}  // namespace

int64_t list_room(const adamas_config& config, const adamas_plan_params& params) {
  const int64_t all = padded(params.max_tokens);
  if (config.min_mass > 0 || has_rest(config)) return all;
  return std::min(padded(std::max<int64_t>(budget_of(config), quest_page)), all);
  return all;
}

void choose(const Row& row, int h, HeadScratch& scratch) {
  Plan& plan = row.plan;
  const WeightScale scale = adjust(row, h, scratch);
  scratch.clock.lap(&Times::select);
  const float estimated = weigh_blocks(scale, row.scores(h), row.view.active, row.sums(h));
  scratch.clock.lap(&Times::rest);
  const Threshold threshold{plan.config.share, plan.results[h].noise, estimated, log_of_always(row, h, scratch)};
  const HeadEstimates head{scale, row.scores(h), row.view.active, row.uncoded.has_hidden_rows};
  plan.candidates[h] = {scale, mark_candidates(head, threshold, row.marked(h))};
  scratch.clock.lap(&Times::select);
}

void make_list(const Row& row, int g) {
  Plan& plan = row.plan;
  const int first = g * row.group(), last = first + row.group();
  const auto lists = [&](int h) { return !reads_all(plan.results[h].reading); };
  uint64_t* on_list = row.on_list(g);
  std::fill_n(on_list, row.view.active, uint64_t{0});
  bool any = false;
  for (int h = first; h < last; h++) {
    any |= lists(h);
    for (int64_t i = 0; i < row.view.active && lists(h); i++) on_list[i] |= row.marked(h)[i];
  }
  plan.listed[g] = any ? make_list_of(row, g, on_list) : 0;
  for (int h = first; h < last; h++) {
    if (!lists(h)) continue;
    plan.results[h].tokens = row.tokens_of(g);
    plan.results[h].selected = plan.listed[g];
  }
}

int64_t weigh_list(const Row& row, int h, HeadScratch& scratch) {
  HeadResult& result = row.plan.results[h];
  const int g = h / row.group();
  const HeadList list = head_list(row, h, row.on_list(g), g, row.plan.listed[g]);
  const Measured measured = measure(row, h, list, scratch);
  take(row, h, measured, true);
  if (std::isnan(measured.max)) {
    result.mass = measured.max;
    return 0;
  }
  result.mass = float(measured.mass());
  if (result.mass < row.plan.config.min_mass) {
    scratch.clock.lap(&Times::rest);
    return widen(row, h, scratch);
  }
  lean_towards(row, h, list, measured, scratch);
  row.plan.beside_hidden[h] = measured.beside_hidden;
  scratch.clock.lap(&Times::rest);
  return 0;
}

void add_beside_hidden(const Row& row, int h) {
  SoftmaxState& state = *row.states(h);
  const float more = row.plan.beside_hidden[h];
  if (!(more > 0 && state.sum > 0)) return;
  const float factor = (state.sum + more) / state.sum;
  for (int d = 0; d < row.head_dim(); d++) state.out[d] *= factor;
  state.sum += more;
}

int64_t attend_budget(const Row& row, int h, HeadScratch& scratch) {
  Plan& plan = row.plan;
  const adamas_config& config = plan.config;
  HeadResult& result = plan.results[h];
  HeadCandidates& of = plan.candidates[h];
  const int g = h / row.group();
  const bool measuring = row.p.mass != nullptr || config.min_mass > 0;
  int16_t* scores = row.scores(h);
  int32_t *positions = row.positions_of(h), *tokens = row.tokens_of(h);
  of.scale = adjust(row, h, scratch);
  int64_t stale = 0;
  for (int64_t budget = config.budget;; budget *= 2) {
    if (budget > config.budget) {
      result.reading = Reading::widened;
      if (2 * budget >= row.view.visible) {  // half of the tokens and more: dense is cheaper, and exact
        result.reading = Reading::widened_to_all;
        result.mass = 1;
        return stale;
      }
    }
    set_always(row, h, always_score);
    const int64_t selected = select(scores, row.view.active * block_tokens, budget, positions, scratch.select.get());
    set_always(row, h, hidden_score);
    for (int64_t i = 0; i < selected; i++) tokens[i] = row.view.token_at(uint32_t(positions[i]));
    scratch.clock.lap(&Times::select);
    score_alone(row, h, tokens, selected, row.weights(h));
    scratch.clock.lap(&Times::exact);
    if (row.verify) stale += row.count_stale(g, tokens, selected);
    scratch.clock.lap(&Times::check);
    Measured measured{};
    result.mass = std::numeric_limits<float>::quiet_NaN();
    if (measuring) {
      of.bound = mark_positions(scores, row.view.active, positions, selected, row.marked(h));
      weigh_blocks(of.scale, scores, row.view.active, row.sums(h));
      measured = measure(row, h, head_list(row, h, row.marked(h), h, selected), scratch);
      result.mass = float(measured.mass());
      scratch.clock.lap(&Times::rest);
      if (result.mass < config.min_mass) continue;
    } else {
      measured.max = highest_exact(row.weights(h), selected);
      if (measured.max > minus_infinity) measured.listed = weigh_exact(row.weights(h), measured.max, selected);
    }
    result.tokens = tokens;
    result.selected = selected;
    take(row, h, measured, false);
    attend_alone(row, h, tokens, selected);
    scratch.clock.lap(&Times::attend);
    return stale;
  }
}

void attend_oracle(const Row& row, int h, HeadScratch& scratch) {
  HeadResult& result = row.plan.results[h];
  int32_t* all = scratch.positions.get();
  int64_t count = 0;
  for (int64_t i = 0; i < row.view.active; i++) {
    const int32_t b = row.view.blocks[i];
    for_each_bit(row.view.bits[b], [&](int t) { all[count++] = b * block_tokens + t; });
  }
  scratch.clock.lap(&Times::select);
  float* exact = scratch.exact.get();
  score_alone(row, h, all, count, exact);
  scratch.clock.lap(&Times::exact);
  int32_t* tokens = row.tokens_of(h);
  result.selected = std::min(budget_of(row.plan.config), count);
  result.tokens = tokens;
  auto* order = reinterpret_cast<int32_t*>(scratch.select.get());  // has room for three times as many
  const auto known = [&](int32_t i) { return std::isnan(exact[i]) ? minus_infinity : exact[i]; };
  std::iota(order, order + count, 0);
  std::nth_element(order, order + result.selected, order + count,
                   [&](int32_t a, int32_t b) { return known(a) != known(b) ? known(a) > known(b) : a > b; });
  std::sort(order, order + result.selected);
  float* weights = row.weights(h);
  for (int64_t i = 0; i < result.selected; i++) {
    tokens[i] = all[order[i]];
    weights[i] = exact[order[i]];
  }
  scratch.clock.lap(&Times::select);
  Measured measured{};
  measured.max = highest_exact(weights, result.selected);
  double everything = 0;
  if (!std::isnan(measured.max)) {
    for (int64_t i = 0; i < count; i++)
      if (!std::isnan(exact[i])) everything += std::exp(double(exact[i]) - double(measured.max));
    if (measured.max > minus_infinity) measured.listed = weigh_exact(weights, measured.max, result.selected);
    result.mass = float(double(measured.listed) / everything);
  }
  take(row, h, measured, false);
  attend_alone(row, h, tokens, result.selected);
}

}  // namespace adamas
