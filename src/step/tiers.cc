#include "step/tiers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "attend/sketch.h"
#include "codes/codes.h"
#include "hadamard/hadamard.h"
#include "select/select.h"

namespace adamas {
namespace {

constexpr float highest_gain = 5;   // a measured factor beyond this is an accident of few tokens
constexpr float small_block = 8;    // a block that weighs so many times less than the average one is not read
constexpr double farthest_weight = 64;  // exponent of an estimate above the highest centre
constexpr double lightest = 100;  // exponent below the highest estimate at which a float is zero
constexpr double far_above = 1e3;  // all estimates over all weights: what is left of a sum is right to 1e-3 then
constexpr float highest_weight = 30;  // exponent of an estimate that far above all that was read: cut, not infinite

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

// How scores are read as weights, once that is told which codes do not say: biases move scores, hidden tokens are out. So are, until
// mark_always, those that must be in: sinks, recent and fresh ones, whose scores are no estimates.
Estimated adjust(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  const Query& query = plan.queries[h];
  int16_t* scores = row.scores(h);
  for (int64_t i = 0; i < row.special; i++) {
    const Special& block = plan.special[i];
    for_each_bit(~block.visible | block.always, [&](int t) { scores[block.index * block_tokens + t] = hidden_score; });
  }
  Estimated e{row.scale() * query.unit, row.scale() * query.highest_centre, row.p.softcap, 0};
  if (row.biased || query.cut) return rescale(row, h, e, room.exact.get());
  // Relative to the highest centre, unless estimates can stand so far above it that a float cannot hold them.
  const int16_t reference = e.unit * query.reach < farthest_weight ? int16_t{0} : highest_score(scores, row.active * block_tokens);
  if (reference == hidden_score) return e;
  e.max = float(capped(e.unit * reference + e.highest, e.softcap));
  return e;
}

void mark_always(Row& row, int h) {
  for (int64_t i = 0; i < row.special; i++) {
    const Special& block = row.plan.special[i];
    for_each_bit(block.always, [&](int t) { row.scores(h)[block.index * block_tokens + t] = always_score; });
  }
}

// Estimated weights, and the sum of all: the sums of blocks are in room.blocks.
struct Weighed {
  Estimated e;
  double sum = 0;
};

// The lowest score whose token is worth it.
int16_t worthwhile(const Weighed& weighed, double noise) {
  const Estimated& e = weighed.e;
  double score = double(e.max) + std::log(worthwhile_share * weighed.sum) - std::sqrt(noise);
  if (e.softcap > 0) score = score > -double(e.softcap) ? e.softcap * std::atanh(score / e.softcap) : -INFINITY;
  const double units = std::ceil((score - e.highest) / e.unit);
  return units > hidden_score + 1 ? int16_t(std::min(units, always_score - 1.0)) : int16_t(hidden_score + 1);
}

// The tokens of one head that are looked at one by one, in room: candidates, then the second tier of a head that is not re-ranked.
struct Picked {
  int64_t candidates, all;
  const int32_t* tokens;
  float max = 0;  // of the candidates' exact scores
};

Picked pick(Row& row, int h, int64_t budget, int64_t sketch, int16_t bound, HeadRoom& room) {
  const int16_t* scores = row.scores(h);
  int32_t* positions = room.positions.get();
  Picked picked{};
  picked.all = select_reaching(scores, row.active * block_tokens, bound, budget, budget + sketch, positions, room.estimated.get(), room.select.get());
  picked.candidates = picked.all;
  std::fill(room.estimated.get() + picked.all, room.estimated.get() + padded(picked.all), hidden_score);
  if (row.plan.config.rerank == ADAMAS_RERANK_OFF && picked.all > budget) {
    picked.candidates = select(room.estimated.get(), padded(picked.all), budget, room.listed.get(), room.select.get());
    std::fill_n(room.chosen.get(), picked.all, uint8_t{0});
    for (int64_t i = 0; i < picked.candidates; i++) room.chosen[room.listed[i]] = 1;
    std::copy_n(positions, picked.all, room.listed.get());
    for (int64_t i = 0, c = 0, s = picked.candidates; i < picked.all; i++) positions[room.chosen[i] ? c++ : s++] = room.listed[i];
    for (int64_t i = 0; i < picked.all; i++) room.estimated[i] = scores[positions[i]];
  }
  picked.tokens = positions;
  if (!row.whole()) {
    row.tokens_at(positions, picked.all, room.tokens.get());
    picked.tokens = room.tokens.get();
  }
  return picked;
}

// Reads the candidates' keys.
void score_exactly(Row& row, int h, Picked& picked, HeadRoom& room) {
  constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
  picked.max = score_list(row.attention(h / row.group()), row.q(h), row.slope(h), picked.tokens, picked.candidates, room.exact.get());
  std::fill(room.exact.get() + picked.candidates, room.exact.get() + padded(picked.candidates), minus_infinity);
}

// Of the candidates the top `budget` by exact score, and those that must be selected: into row.selected(h) and room.scores.
void choose_exactly(Row& row, int h, const Picked& picked, int64_t budget, HeadRoom& room) {
  int64_t& count = row.plan.heads[h].selected;
  int32_t* chosen = room.listed.get();
  if (picked.candidates <= budget) {
    count = picked.candidates;
    std::iota(chosen, chosen + count, 0);
  } else {
    int16_t* ranks = room.ranks.get();
    rank_exact(room.exact.get(), picked.max, padded(picked.candidates), ranks);
    for (int64_t i = 0; i < picked.candidates; i++) ranks[i] = room.estimated[i] == always_score ? always_score : ranks[i];
    std::fill(ranks + picked.candidates, ranks + padded(picked.candidates), hidden_score);
    count = select(ranks, padded(picked.candidates), budget, chosen, room.select.get());
  }
  std::fill_n(room.chosen.get(), picked.candidates, uint8_t{0});
  for (int64_t i = 0; i < count; i++) {
    room.chosen[chosen[i]] = 1;
    row.selected(h)[i] = picked.tokens[chosen[i]];
    room.scores[i] = room.exact[chosen[i]];
  }
}

// What turns estimated weights into those of the exact scores, relative to picked.max. The candidates' weights are in room.weights and
// room.scores.
float measured_factor(const Weighed& weighed, const Picked& picked, HeadRoom& room) {
  const auto [estimated, exact] = sum_known(room.estimated.get(), room.weights.get(), room.scores.get(), picked.candidates);
  const float expected = std::exp(std::min(weighed.e.max - picked.max, highest_weight));
  const float factor = exact / estimated;
  return std::isfinite(factor) ? std::min(factor, highest_gain * expected) : expected;
}

// Everything that was not selected: adds it to the head's state and answers with its sum of weights. This sum and `selected`, of those
// that were, are relative to the candidates' maximum.
double add_rest(Row& row, int h, const Weighed& weighed, const Picked& picked, double selected, HeadRoom& room) {
  Plan& plan = row.plan;
  const bool tail = plan.config.tail != 0;
  weigh(weighed.e, room.estimated.get(), padded(picked.all), room.weights.get());
  weigh_exact(room.exact.get(), picked.max, padded(picked.candidates), room.scores.get());
  const float factor = measured_factor(weighed, picked, room);

  // Of every block first all that was estimated; then the candidates take their estimates off, and add what they weigh themselves.
  float* means = room.means.get();
  const auto block_of = [&](int64_t i) { return uint32_t(room.positions[i]) / block_tokens; };
  const auto take_over = [&](float gain) {
    for (int64_t i = 0; i < row.active; i++) means[i] = gain * room.blocks[i];
    const Listed listed = list_others(room.chosen.get(), picked.tokens, room.weights.get(), room.scores.get(), gain, picked.candidates,
                                      room.changes.get(), room.listed.get(), room.listed_weights.get());
    // Neighbours are often of one block: four places at once, or each sum would wait for the one before it.
    const int64_t part = picked.candidates / 4;
    for (int64_t i = 0; i < part; i++)
      for (int64_t j = i; j < 4 * part; j += part) means[block_of(j)] += room.changes[j];
    for (int64_t i = 4 * part; i < picked.candidates; i++) means[block_of(i)] += room.changes[i];
    return listed;
  };
  // The estimated weights of one block, the candidates' left out.
  const auto weigh_others = [&](int64_t i, float (&weights)[block_tokens]) {
    weigh(weighed.e, row.scores(h) + i * block_tokens, block_tokens, weights);
    const int32_t* first = room.positions.get();
    const int32_t* last = first + picked.candidates;
    for (first = std::lower_bound(first, last, i * block_tokens); first < last && *first < (i + 1) * block_tokens; first++)
      weights[*first % block_tokens] = 0;
  };
  Listed listed = take_over(factor);
  double rest = double(settle(means, row.active));
  // Estimates so far above what was read leave nothing of a sum that they are taken off but its rounding: it is added up anew.
  if (double(factor) * weighed.sum > far_above * (selected + rest)) {
    for (int64_t i = 0; i < row.active; i++) {
      float weights[block_tokens];
      weigh_others(i, weights);
      means[i] = factor * std::accumulate(weights, weights + block_tokens, 0.0f);
    }
    for (int64_t i = 0; i < picked.candidates; i++)
      if (room.chosen[i] == 0) means[block_of(i)] += room.scores[i];
    rest = double(settle(means, row.active));
  }
  if (!row.cache.has_values()) return rest;
  double added = rest;
  if (!tail) {
    listed = take_over(0);
    added = double(listed.sum);
  }

  // Tokens whose levels are added: candidates that were not selected, then those whose weight is estimated.
  int64_t count = listed.count;
  const auto list = [&](int32_t token, float weight) {
    room.listed[count] = token;
    room.listed_weights[count++] = weight;
  };
  for (int64_t i = picked.candidates; i < picked.all; i++) {
    if (tail && plan.is_mixed[block_of(i)]) continue;
    const float weight = factor * room.weights[i];
    if (!tail) {  // else its block's mean has it already
      added += double(weight);
      means[block_of(i)] += weight;
    }
    list(picked.tokens[i], weight);
  }
  for (int64_t i = 0; i < row.active && tail && row.mixed > 0; i++) {
    if (!plan.is_mixed[i]) continue;
    float weights[block_tokens];
    weigh_others(i, weights);
    for (int t = 0; t < block_tokens; t++)
      if (weights[t] > 0) list(plan.active[i] * block_tokens + t, factor * weights[t]);
  }
  plan.heads[h].sketched = count;

  SoftmaxState state{picked.max, float(added), room.out.get()};
  std::fill_n(state.out, row.head_dim(), 0.0f);
  const Codes values = row.cache.values(row.sequence, h / row.group());
  fetch_levels(values, room.listed.get(), count);  // while the means are added
  const float least = tail ? float(added / double(row.active)) / small_block : 0;
  const Kept kept = keep_large(plan.active.get(), row.active, least, means, room.kept.get());
  add_means(values, row.head_dim(), room.kept.get(), means, kept.count, float(added) / kept.sum, state.out);
  add_levels(values, row.head_dim(), room.listed.get(), room.listed_weights.get(), count, state.out);
  if (!row.cache.rotated(Coded::values)) rotate(state.out, row.head_dim());
  row.states(h)->merge(state, row.head_dim());
  return rest;
}

}  // namespace

double noise_of(const Query& query, int head_dim, double mean_square_sigma, double scale, Estimator estimator) {
  const double squares = double(query.rms) * query.rms * head_dim;
  return (estimator == Estimator::dot ? distortion : manhattan_distortion) * squares * mean_square_sigma * scale * scale;
}

int64_t sketch_tokens(const adamas_config& config, int64_t visible) {
  return config.sketch == ADAMAS_SKETCH_AUTO ? std::max<int64_t>(1024, visible / 16) : config.sketch;
}

int64_t attend_tiers(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  const adamas_config& config = plan.config;
  HeadReport& head = plan.heads[h];
  const int g = h / row.group();
  Weighed weighed{adjust(row, h, room)};
  room.clock.lap(&Times::select);
  const bool rest_wanted = row.cache.has_values() || row.p.mass != nullptr || config.min_mass > 0;
  const int64_t sketch = row.cache.has_values() ? sketch_tokens(config, row.visible) : 0;
  int16_t bound = hidden_score + 1;
  if (rest_wanted) weighed.sum = double(weigh_blocks(weighed.e, row.scores(h), row.active, room.blocks.get()));
  mark_always(row, h);
  if (sketch > 0 && config.rerank != ADAMAS_RERANK_ON) bound = worthwhile(weighed, head.noise);
  room.clock.lap(&Times::sketch);
  int64_t stale = 0;
  for (int64_t budget = config.budget;; budget *= 2) {
    if (2 * budget >= row.visible && budget > config.budget) {  // half of the tokens and more: dense is cheaper, and exact
      head.dense = true;
      head.mass = 1;
      return stale;
    }
    Picked picked = pick(row, h, budget, sketch, bound, room);
    room.clock.lap(&Times::select);
    score_exactly(row, h, picked, room);
    room.clock.lap(&Times::exact);
    choose_exactly(row, h, picked, budget, room);
    fetch_rows(row.attention(g).v, row.head_dim(), row.selected(h), head.selected);  // while the hashes are checked
    room.clock.lap(&Times::select);
    if (row.p.verify != 0) stale += row.count_stale(g, row.selected(h), head.selected);
    room.clock.lap(&Times::check);
    head.keys_read += picked.candidates;
    head.reranked = picked.candidates > head.selected;
    SoftmaxState& state = *row.states(h);
    state.clear(row.head_dim());
    attend_scored(row.attention(g), row.selected(h), room.scores.get(), head.selected, state);
    room.clock.lap(&Times::attend);
    if (!rest_wanted) return stale;
    const double selected = state.sum == 0 ? 0 : double(state.sum) * std::exp(double(state.max) - double(picked.max));
    head.mass = float(selected / (selected + add_rest(row, h, weighed, picked, selected, room)));
    room.clock.lap(&Times::sketch);
    if (!(head.mass < config.min_mass)) return stale;
    head.widened = true;
  }
}

}  // namespace adamas
