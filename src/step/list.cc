#include "step/list.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "baselines/quest.h"
#include "codes/codes.h"
#include "select/select.h"

namespace adamas {
namespace {

constexpr double farthest_weight = 64;  // exponent of an estimate above the highest centre
constexpr double lightest = 100;  // exponent below the highest estimate at which a float is zero
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

double capped(double score, float softcap) { return softcap > 0 ? softcap * std::tanh(score / softcap) : score; }

// Scores anew, for a row with biases or a head whose centres lie too far apart for 16 bits in its own unit: relative to the highest estimate,
// in a unit that lets `lightest` below it be told apart. estimates: [active, 64], scratch.
Estimated rescale(Row& row, int h, Estimated e, float* estimates) {
  Plan& plan = row.plan;
  const double* centres = plan.centres.get() + h * plan.blocks;
  const int16_t* offsets = plan.offsets.get() + h * plan.blocks;
  int16_t* scores = row.scores(h);
  const double origin = capped(e.highest, e.softcap);
  constexpr float farthest = 1e30f;  // and NaN stands there, below
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < row.active; i++) {
    const double centre = double(row.scale()) * centres[i] - e.unit * offsets[i];
    for (int64_t t = i * block_tokens; t < (i + 1) * block_tokens; t++) {
      estimates[t] = -farthest;
      if (scores[t] == hidden_score) continue;
      double estimate = capped(e.unit * scores[t] + centre, e.softcap) - origin;
      if (row.biased) estimate += double(row.slope(h)) * plan.bias[plan.active[i] * block_tokens + t % block_tokens];
      if (estimate > -double(farthest)) estimates[t] = float(std::min(estimate, double(farthest)));
      top = std::max(top, estimates[t]);
    }
  }
  const double unit = std::max(e.unit, lightest / always_score);
  for (int64_t t = 0; t < row.active * block_tokens; t++) {
    const double units = std::max((double(estimates[t]) - double(top)) / unit, -32767.0);
    scores[t] = scores[t] == hidden_score ? hidden_score : int16_t((units + round_shift) - round_shift);
  }
  const double highest = std::isfinite(top) ? origin + double(top) : origin;
  return {unit, highest, 0, float(highest)};
}

// How scores are read as weights, once that is told which codes do not say: biases move scores, hidden tokens are out. So are those that
// must be in: sinks, recent and fresh ones, whose scores are no estimates.
Estimated adjust(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  const Query& query = plan.queries[h];
  int16_t* scores = row.scores(h);
  for (int64_t i = 0; i < row.special; i++) {
    const Special& block = plan.special[i];
    for_each_bit(~block.visible | block.always, [&](int t) { scores[block.index * block_tokens + t] = hidden_score; });
  }
  Estimated e{row.scale() * query.unit, row.scale() * query.highest_centre, row.p.softcap, 0};
  if (row.biased || query.cut) return rescale(row, h, e, room.scores.get());
  // Relative to the highest centre, unless estimates can stand so far above it that a float cannot hold them.
  const int16_t reference = e.unit * query.reach < farthest_weight ? int16_t{0} : highest_score(scores, row.active * block_tokens);
  if (reference == hidden_score) return e;
  e.max = float(capped(e.unit * reference + e.highest, e.softcap));
  return e;
}

// The tokens that must be in get one score.
void set_always(Row& row, int h, int16_t score) {
  for (int64_t i = 0; i < row.special; i++) {
    const Special& block = row.plan.special[i];
    for_each_bit(block.always, [&](int t) { row.scores(h)[block.index * block_tokens + t] = score; });
  }
}

// Exact scores of one head.
void score_one(const Row& row, int h, const int32_t* tokens, int64_t count, float* scores) {
  const float* query = row.q(h);
  const float slope = row.slope(h);
  score_list(row.attention(h / row.group()), &query, &slope, 1, tokens, count, &scores);
}

// log(exp(a) + exp(b))
double log_add(double a, double b) { return std::max(a, b) + std::log1p(std::exp(-std::abs(a - b))); }

// The log of the sum of the exponents of all scores, those that are estimated and those that are read anyway.
double log_total(Row& row, int h, const Estimated& e, float estimated, HeadRoom& room) {
  double total = estimated > 0 ? double(e.max) + std::log(double(estimated)) : -INFINITY;
  const int64_t count = row.plan.always_count;
  if (count == 0) return total;
  float* exact = room.scores.get();
  score_one(row, h, row.plan.always.get(), count, exact);
  const float highest = highest_exact(exact, count);
  if (!std::isfinite(highest)) return total;  // a NaN shows when it is attended to
  const double always = double(highest) + std::log(double(weigh_exact(exact, highest, count)));
  return total > -INFINITY ? log_add(total, always) : always;
}

// The lowest score whose estimate reaches a logit.
int16_t score_reaching(const Estimated& e, double logit) {
  if (e.softcap > 0) logit = logit > -double(e.softcap) ? e.softcap * std::atanh(std::min(logit / e.softcap, 1 - 1e-9)) : -INFINITY;
  const double units = std::ceil((logit - e.highest) / e.unit);
  return units > hidden_score + 1 ? int16_t(std::min(units, always_score - 1.0)) : int16_t(hidden_score + 1);
}

// A query head, and the list of its KV head or its own.
HeadList head_list(const Row& row, int h, const uint64_t* listed, int64_t list, int64_t count) {
  const HeadScores& of = row.plan.head_scores[h];
  return {of.e, of.bound, listed, row.positions_of(list), count, row.mixed_blocks(), row.active};
}

Measured measure(Row& row, int h, const HeadList& list, HeadRoom& room) {
  return measure_rest(list, row.scores(h), row.sums(h), row.weights(h), room.estimated.get(), room.guesses.get());
}

void lean_towards(Row& row, int h, const HeadList& list, const Measured& measured, HeadRoom& room) {
  lean_rest(list, measured, room.estimated.get(), room.guesses.get(), row.weights(h), row.sums(h), room.low_positions.get(),
            room.low_weights.get());
}

// A head's sums: what was read, and where it is not NaN the rest.
void take(Row& row, int h, const Measured& measured, bool rest) {
  SoftmaxState& state = *row.states(h);
  state.max = state.sum = measured.max;
  if (std::isnan(measured.max)) return;
  state.sum = measured.listed + (rest ? measured.rest : 0.0f);
}

// The marked tokens, and those that must be in: marked, too, and listed. Returns how many.
int64_t list_marked(Row& row, int64_t list, uint64_t* marked) {
  int32_t* positions = row.positions_of(list);
  int32_t* tokens = row.tokens_of(list);
  int64_t count = 0, special = 0;
  for (int64_t i = 0; i < row.active; i++) {
    if (special < row.special && row.plan.special[special].index == i) marked[i] |= row.plan.special[special++].always;
    const int32_t first = row.plan.active[i] * block_tokens;
    for_each_bit(marked[i], [&](int t) {
      positions[count] = int32_t(i * block_tokens + t);
      tokens[count++] = first + t;
    });
  }
  return count;
}

// A selection as marks and the lowest of its estimates as the bound.
void mark_selected(Row& row, int h, const int32_t* positions, int64_t count) {
  uint64_t* marked = row.marked(h);
  int16_t& bound = row.plan.head_scores[h].bound = always_score;
  std::fill_n(marked, row.active, uint64_t{0});
  for (int64_t i = 0; i < count; i++) {
    const auto position = uint32_t(positions[i]);
    marked[position / block_tokens] |= uint64_t{1} << position % block_tokens;
    if (const int16_t score = row.scores(h)[position]; score != hidden_score) bound = std::min(bound, score);
  }
}

// By itself, from half the share on, from a quarter, and so on, until the mass is reached or half of the tokens are read: dense is cheaper
// then, and exact.
int64_t widen(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  HeadReport& head = plan.heads[h];
  HeadScores& of = plan.head_scores[h];
  const int64_t own = plan.params.kv_heads + h;
  const int octave = int(std::clamp(std::log(2.0) / of.e.unit, 1.0, 65536.0));
  int64_t stale = 0;
  head.widened = true;
  for (int bound = of.bound - octave;; bound -= octave) {
    of.bound = int16_t(std::max(bound, hidden_score + 1));
    uint64_t* marked = row.marked(h);
    mark_reaching(row.scores(h), row.active, of.bound, nullptr, 0, marked);
    const int64_t count = list_marked(row, own, marked);
    if (2 * count >= row.visible) {
      head.dense = true;
      head.mass = 1;
      return stale;
    }
    weigh_blocks(of.e, row.scores(h), row.active, row.sums(h));
    room.clock.lap(&Times::select);
    score_one(row, h, row.tokens_of(own), count, row.weights(h));
    room.clock.lap(&Times::exact);
    const HeadList list = head_list(row, h, marked, own, count);
    const Measured measured = measure(row, h, list, room);
    if (!std::isnan(measured.max) && measured.mass() < plan.config.min_mass) continue;
    if (row.p.verify != 0) stale += row.count_stale(h / row.group(), row.tokens_of(own), count);
    room.clock.lap(&Times::check);
    head.tokens = row.tokens_of(own);
    head.selected = count;
    head.mass = float(measured.mass());
    take(row, h, measured, true);
    SoftmaxState& state = *row.states(h);
    std::fill_n(state.out, row.head_dim(), 0.0f);
    if (!std::isnan(state.sum)) {
      lean_towards(row, h, list, measured, room);
      const float *weights = row.weights(h), *sums = row.sums(h);
      add_values(row.attention(h / row.group()), head.tokens, &weights, 1, count, &state.out);
      add_means(row.cache.means(row.sequence, h / row.group()), row.head_dim(), plan.active.get(), &sums, 1, row.active, &state.out);
      of.mixed = measured.mixed;
      add_mixed(row, h);
    }
    finish(row, h);
    room.clock.lap(&Times::attend);
    return stale;
  }
}

}  // namespace

double noise_of(const Query& query, int head_dim, double mean_square_sigma, double scale, Estimator estimator) {
  const double squares = double(query.rms) * query.rms * head_dim;
  return (estimator == Estimator::dot ? distortion : manhattan_distortion) * squares * mean_square_sigma * scale * scale;
}

int64_t list_room(const adamas_config& config, const adamas_plan_params& params) {
  const int64_t all = padded(params.max_tokens);
  if (config.min_mass > 0) return all;
  if (!has_rest(config)) return std::min(padded(std::max<int64_t>(budget_of(config), quest_page)), all);
  const int64_t candidates = product(params.q_heads / params.kv_heads, most_listed(params.max_tokens));
  return std::min(padded(candidates + config.sinks + config.recent + block_tokens), all);
}

void choose(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  HeadScores& of = plan.head_scores[h];
  of.e = adjust(row, h, room);
  room.clock.lap(&Times::select);
  const float estimated = weigh_blocks(of.e, row.scores(h), row.active, row.sums(h));
  room.clock.lap(&Times::rest);
  const double threshold = std::log(plan.config.share) + log_total(row, h, of.e, estimated, room) - std::sqrt(double(plan.heads[h].noise));
  of.bound = score_reaching(of.e, threshold);
  uint64_t* marked = row.marked(h);
  const int64_t most = most_listed(row.visible);
  const int64_t count = mark_reaching(row.scores(h), row.active, of.bound, row.mixed_blocks(),
                                      score_reaching(of.e, threshold + std::log(mixed_share)), marked);
  if (count < fewest_listed || count > most) {
    const int64_t kept = select(row.scores(h), row.active * block_tokens, count > most ? most : fewest_listed, room.positions.get(), room.select.get());
    mark_selected(row, h, room.positions.get(), kept);
  }
  room.clock.lap(&Times::select);
}

void make_list(Row& row, int g) {
  Plan& plan = row.plan;
  const int first = g * row.group(), last = first + row.group();
  plan.listed[g] = 0;
  if (std::all_of(&plan.heads[first], &plan.heads[last - 1] + 1, [](const HeadReport& head) { return head.dense; })) return;
  uint64_t* on_list = row.on_list(g);
  std::fill_n(on_list, row.active, uint64_t{0});
  for (int h = first; h < last; h++)
    for (int64_t i = 0; i < row.active && !plan.heads[h].dense; i++) on_list[i] |= row.marked(h)[i];
  plan.listed[g] = list_marked(row, g, on_list);
  for (int h = first; h < last; h++) {
    if (plan.heads[h].dense) continue;
    plan.heads[h].tokens = row.tokens_of(g);
    plan.heads[h].selected = plan.listed[g];
  }
}

int64_t weigh_list(Row& row, int h, HeadRoom& room) {
  HeadReport& head = row.plan.heads[h];
  const int g = h / row.group();
  const HeadList list = head_list(row, h, row.on_list(g), g, row.plan.listed[g]);
  const Measured measured = measure(row, h, list, room);
  take(row, h, measured, true);
  if (std::isnan(measured.max)) {
    head.mass = measured.max;
    return 0;
  }
  head.mass = float(measured.mass());
  if (head.mass < row.plan.config.min_mass) {
    room.clock.lap(&Times::rest);
    return widen(row, h, room);
  }
  lean_towards(row, h, list, measured, room);
  row.plan.head_scores[h].mixed = measured.mixed;
  room.clock.lap(&Times::rest);
  return 0;
}

void add_mixed(Row& row, int h) {
  SoftmaxState& state = *row.states(h);
  const float mixed = row.plan.head_scores[h].mixed;
  if (!(mixed > 0 && state.sum > 0)) return;
  const float factor = (state.sum + mixed) / state.sum;
  for (int d = 0; d < row.head_dim(); d++) state.out[d] *= factor;
  state.sum += mixed;
}

int64_t attend_budget(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  const adamas_config& config = plan.config;
  HeadReport& head = plan.heads[h];
  HeadScores& of = plan.head_scores[h];
  const int g = h / row.group();
  const bool measuring = row.p.mass != nullptr || config.min_mass > 0;
  of.e = adjust(row, h, room);
  head.tokens = row.tokens_of(h);
  int64_t stale = 0;
  for (int64_t budget = config.budget;; budget *= 2) {
    if (2 * budget >= row.visible && budget > config.budget) {  // half of the tokens and more: dense is cheaper, and exact
      head.dense = true;
      head.mass = 1;
      return stale;
    }
    int16_t* scores = row.scores(h);
    set_always(row, h, always_score);
    head.selected = select(scores, row.active * block_tokens, budget, row.positions_of(h), room.select.get());
    set_always(row, h, hidden_score);
    row.tokens_at(row.positions_of(h), head.selected, row.tokens_of(h));
    room.clock.lap(&Times::select);
    score_one(row, h, head.tokens, head.selected, row.weights(h));
    room.clock.lap(&Times::exact);
    if (row.p.verify != 0) stale += row.count_stale(g, head.tokens, head.selected);
    room.clock.lap(&Times::check);
    Measured measured{};
    if (measuring) {
      mark_selected(row, h, row.positions_of(h), head.selected);
      weigh_blocks(of.e, scores, row.active, row.sums(h));
      measured = measure(row, h, head_list(row, h, row.marked(h), h, head.selected), room);
      head.mass = float(measured.mass());
      room.clock.lap(&Times::rest);
      if (head.mass < config.min_mass) {
        head.widened = true;
        continue;
      }
    } else {
      head.mass = std::numeric_limits<float>::quiet_NaN();
      measured.max = highest_exact(row.weights(h), head.selected);
      if (measured.max > minus_infinity) measured.listed = weigh_exact(row.weights(h), measured.max, head.selected);
    }
    take(row, h, measured, false);
    SoftmaxState& state = *row.states(h);
    std::fill_n(state.out, row.head_dim(), 0.0f);
    const float* weights = row.weights(h);
    if (state.sum > 0) add_values(row.attention(g), head.tokens, &weights, 1, head.selected, &state.out);
    room.clock.lap(&Times::attend);
    return stale;
  }
}

}  // namespace adamas
