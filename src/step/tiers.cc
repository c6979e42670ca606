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

constexpr int64_t beyond_step = 256;
constexpr double negligible = 1e-5;      // share of the softmax: below it a token keeps its block's mean value
constexpr float highest_gain = 5;        // a measured factor beyond this is an accident of few tokens

// What codes do not say: biases move scores, hidden tokens are out, sinks and recent ones are in.
void adjust(Row& row, int h) {
  Plan& plan = row.plan;
  int16_t* scores = row.scores(h);
  if (row.biased) {
    const double unit = plan.queries[h].unit * double(row.scale());
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
    const int64_t next = rank + (~visible == 0 ? block_tokens : std::popcount(visible));  // most blocks are whole
    for_each_bit(~visible, [&](int t) { scores[i * block_tokens + t] = hidden_score; });
    if (rank < plan.config.sinks || next > first_recent)
      for_each_bit(visible, [&, r = rank](int t) mutable {
        if (r < plan.config.sinks || r >= first_recent) scores[i * block_tokens + t] = always_score;
        r++;
      });
    rank = next;
  }
}

// The best tokens of one head by estimate: candidates, and the second tier behind them.
struct Best {
  int64_t candidates;        // room.positions, room.tokens, room.estimated, padded with hidden scores
  int64_t second;            // room.next: positions
  float max = 0;             // of the candidates' exact scores, room.exact, padded with -inf
};

// Takes the candidates out of the scores. One look at all scores for both tiers, then one at those that it found.
Best pick(Row& row, int h, int64_t candidates, int64_t second, HeadRoom& room) {
  int16_t* scores = row.scores(h);
  const int64_t all = select(scores, row.active * block_tokens, candidates + second, room.best.get(), room.select.get());
  int64_t chosen = all, next = 0;
  if (candidates < all) {
    for (int64_t i = 0; i < all; i++) room.ranks[i] = scores[room.best[i]];
    std::fill(room.ranks.get() + all, room.ranks.get() + padded(all), hidden_score);
    chosen = select(room.ranks.get(), padded(all), candidates, room.second.get(), room.select.get());
    std::fill_n(room.chosen.get(), all, uint8_t{0});
    for (int64_t i = 0; i < chosen; i++) room.chosen[room.second[i]] = 1;
    for (int64_t i = 0, c = 0; i < all; i++) {  // both written, one kept: which it is, is a coin toss
      room.positions[c] = room.next[next] = room.best[i];
      c += room.chosen[i];
      next += 1 - room.chosen[i];
    }
  } else {
    std::copy_n(room.best.get(), all, room.positions.get());
  }
  for (int64_t i = 0; i < chosen; i++) {
    const int32_t position = room.positions[i];
    room.tokens[i] = row.token_at(position);
    room.estimated[i] = scores[position];
    scores[position] = hidden_score;
  }
  std::fill(room.estimated.get() + chosen, room.estimated.get() + padded(chosen), hidden_score);
  return {chosen, next};
}

// Reads the candidates' keys.
void score_exactly(Row& row, int h, Best& best, HeadRoom& room) {
  constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
  score_list(row.attention(h / row.group()), row.q(h), row.slope(h), room.tokens.get(), best.candidates, room.exact.get());
  best.max = minus_infinity;
  for (int64_t i = 0; i < best.candidates; i++) best.max = std::max(best.max, room.exact[i]);
  std::fill(room.exact.get() + best.candidates, room.exact.get() + padded(best.candidates), minus_infinity);
}

// Of the candidates the top `budget` by exact score, and those that must be selected: into row.selected(h) and room.scores.
void choose_exactly(Row& row, int h, const Best& best, int64_t budget, HeadRoom& room) {
  int64_t& count = row.plan.heads[h].selected;
  int32_t* chosen = room.second.get();
  if (best.candidates <= budget) {
    count = best.candidates;
    std::iota(chosen, chosen + count, 0);
  } else {
    int16_t* ranks = room.ranks.get();
    rank_exact(room.exact.get(), best.max, padded(best.candidates), ranks);
    for (int64_t i = 0; i < best.candidates; i++) ranks[i] = room.estimated[i] == always_score ? always_score : ranks[i];
    std::fill(ranks + best.candidates, ranks + padded(best.candidates), hidden_score);
    count = select(ranks, padded(best.candidates), budget, chosen, room.select.get());
  }
  std::fill_n(room.chosen.get(), best.candidates, uint8_t{0});
  for (int64_t i = 0; i < count; i++) {
    room.chosen[chosen[i]] = 1;
    row.selected(h)[i] = room.tokens[chosen[i]];
    room.scores[i] = room.exact[chosen[i]];
  }
}

// Sum of the exact weights, which go to room.scores, over that of the estimated ones, of the candidates that were chosen by their
// estimate.
float measured_gain(const Best& best, const Estimated& e, HeadRoom& room) {
  weigh(e, room.estimated.get(), padded(best.candidates), room.weights.get());
  weigh_exact(room.exact.get(), best.max, padded(best.candidates), room.scores.get());
  float exact = 0, estimated = 0;
  for (int64_t i = 0; i < best.candidates; i++) {
    const bool counts = room.estimated[i] != always_score;
    exact += counts ? room.scores[i] : 0;
    estimated += counts ? room.weights[i] : 0;
  }
  const float gain = exact / estimated;
  return std::isfinite(gain) ? std::min(gain, highest_gain) : 1.0f;
}

// Everything that was not selected: adds it to the head's state and answers with its share of the weights, relative to the
// candidates' maximum.
double add_rest(Row& row, int h, const Best& best, HeadRoom& room) {
  Plan& plan = row.plan;
  const Query& query = plan.queries[h];
  const double scale = row.scale();
  const Estimated e{scale * query.unit, scale * query.highest_centre, row.p.softcap, best.max};
  const float gain = measured_gain(best, e, room);
  const bool tail = plan.config.tail != 0;
  const bool add = row.cache.has_values() && !(row.biased && row.p.softcap > 0);  // a softcap stands before the bias, not after

  float* blocks = room.blocks.get();
  weigh_blocks(e, row.scores(h), row.active, blocks);
  double rest = 0;
  for (int64_t i = 0; i < row.active; i++) {
    blocks[i] *= gain;
    rest += double(blocks[i]);
    if (!tail) blocks[i] = 0;
  }
  double added = tail ? rest : 0;

  // Tokens whose levels are added: candidates that were not selected, then the second tier.
  int64_t count = 0;
  float others = 0;
  for (int64_t i = 0; i < best.candidates; i++) {
    const float weight = room.chosen[i] ? 0.0f : room.scores[i];
    others += weight;
    blocks[uint32_t(room.positions[i]) / block_tokens] += weight;
    room.second[count] = room.tokens[i];
    room.weights[count] = weight;
    count += 1 - room.chosen[i];
  }
  rest += double(others);
  added += double(others);
  if (!add) return rest;

  const int16_t* scores = row.scores(h);
  int32_t* positions = room.next.get();
  int64_t second = best.second;
  if (tail && row.mixed > 0) {  // every token of a mixed block is of the second tier
    second = std::copy_if(positions, positions + second, positions,
                          [&](int32_t position) { return !plan.is_mixed[position / block_tokens]; }) - positions;
    for (int64_t i = 0; i < row.active; i++) {
      if (!plan.is_mixed[i]) continue;
      for (int64_t position = i * block_tokens; position < (i + 1) * block_tokens; position++)
        if (scores[position] != hidden_score) positions[second++] = int32_t(position);
    }
  }
  for (int64_t i = 0; i < second; i++) room.ranks[i] = scores[positions[i]];
  std::fill(room.ranks.get() + second, room.ranks.get() + padded(second), hidden_score);
  weigh(e, room.ranks.get(), padded(second), room.exact.get());
  plan.heads[h].sketched = count + second;
  for (int64_t i = 0; i < second && !tail; i++) {  // else its block's mean has it already
    added += double(gain * room.exact[i]);
    blocks[positions[i] / block_tokens] += gain * room.exact[i];
  }
  const float floor = float(negligible * (double(row.states(h)->sum) + rest));
  for (int64_t i = 0; i < second; i++) {
    room.second[count] = row.token_at(positions[i]);
    room.weights[count] = gain * room.exact[i];
    count += room.weights[count] > floor;
  }

  SoftmaxState state{best.max, float(added), room.out.get()};
  std::fill_n(state.out, row.head_dim(), 0.0f);
  const Codes values = row.cache.values(row.sequence, h / row.group());
  add_means(values, row.head_dim(), plan.active.get(), blocks, row.active, state.out);
  add_levels(values, row.head_dim(), room.second.get(), room.weights.get(), count, state.out);
  rotate(state.out, row.head_dim());
  row.states(h)->merge(state, row.head_dim());
  return rest;
}

}  // namespace

double noise_of(const float* rotated, int head_dim, double mean_square_sigma, double scale, Estimator estimator) {
  double squares = 0;
  for (int d = 0; d < head_dim; d++) squares += double(rotated[d]) * rotated[d];
  return (estimator == Estimator::dot ? distortion : manhattan_distortion) * squares * mean_square_sigma * scale * scale;
}

int64_t sketch_tokens(const adamas_config& config, int64_t visible) {
  return config.sketch == ADAMAS_SKETCH_AUTO ? std::max<int64_t>(1024, visible / 16) : config.sketch;
}

int64_t candidates_beyond(const adamas_config& config, double noise, int64_t sketch) {
  if (config.rerank == ADAMAS_RERANK_OFF) return 0;
  if (config.rerank == ADAMAS_RERANK_ON) return sketch;
  const double wanted = double(beyond_step) * std::max(1.0, std::ceil(noise));
  return wanted < double(sketch) ? int64_t(wanted) : sketch;
}

int64_t attend_tiers(Row& row, int h, HeadRoom& room) {
  Plan& plan = row.plan;
  const adamas_config& config = plan.config;
  HeadReport& head = plan.heads[h];
  const int g = h / row.group();
  adjust(row, h);
  const int64_t sketch = sketch_tokens(config, row.visible);
  const int64_t beyond = candidates_beyond(config, head.noise, sketch);
  const bool rest_wanted = row.cache.has_values() || row.p.mass != nullptr || config.min_mass > 0;
  int64_t stale = 0;
  for (int64_t budget = config.budget;; budget *= 2) {
    if (2 * budget >= row.visible && budget > config.budget) {  // half of the tokens and more: dense is cheaper, and exact
      head.dense = true;
      head.mass = 1;
      return stale;
    }
    Best best = pick(row, h, budget + beyond, row.cache.has_values() ? sketch - beyond : 0, room);
    score_exactly(row, h, best, room);
    choose_exactly(row, h, best, budget, room);
    if (row.p.verify != 0) stale += row.count_stale(g, row.selected(h), head.selected);
    head.reranked = best.candidates > head.selected;
    SoftmaxState& state = *row.states(h);
    state.clear(row.head_dim());
    attend_scored(row.attention(g), row.selected(h), room.scores.get(), head.selected, state);
    if (!rest_wanted) return stale;
    const double selected = double(state.sum);
    head.mass = float(selected / (selected + add_rest(row, h, best, room)));
    if (!(head.mass < config.min_mass)) return stale;
    head.widened = true;
    for (int64_t i = 0; i < best.candidates; i++) row.scores(h)[room.positions[i]] = room.estimated[i];
  }
}

}  // namespace adamas
