#include "step/tiers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "attend/sketch.h"
#include "codes/codes.h"
#include "hadamard/hadamard.h"
#include "select/exact.h"
#include "select/select.h"

namespace adamas {
namespace {

constexpr int64_t beyond_step = 128;
constexpr float highest_gain = 5;        // a measured factor beyond this is an accident of few tokens

int64_t padded(int64_t count) { return (count + block_tokens - 1) / block_tokens * block_tokens; }

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

// The candidates of one head while it is worked on: positions, tokens, scores both ways; which are selected.
struct Candidates {
  int64_t count;
  const int32_t* positions;
  const int16_t* estimated;  // the scores that they had
  const float* exact;
  const uint8_t* selected;
  float max;                 // of exact
};

// Reads the keys of the top `count` tokens and takes them out of the scores.
Candidates read_candidates(Row& row, int h, int64_t count, HeadRoom& room, int64_t& stale) {
  const int g = h / row.group();
  int16_t* scores = row.scores(h);
  const int64_t n = select(scores, row.active * block_tokens, count, room.positions.get(), room.select.get());
  for (int64_t i = 0; i < n; i++) {
    const int32_t position = room.positions[i];
    room.tokens[i] = row.token_at(position);
    room.estimated[i] = scores[position];
    scores[position] = hidden_score;
  }
  std::fill(room.estimated.get() + n, room.estimated.get() + padded(n), hidden_score);
  if (row.p.verify != 0)
    stale += count_stale(rows_of(row.p.k, row.sequence, g), row.head_dim(), row.cache.codes(row.sequence, g),
                         room.tokens.get(), n);
  score_list(row.attention(g), row.q(h), row.slope(h), room.tokens.get(), n, room.exact.get());
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; i++) max = std::max(max, room.exact[i]);
  return {n, room.positions.get(), room.estimated.get(), room.exact.get(), room.chosen.get(), max};
}

// Of the candidates the top `budget` by exact score, those that must be selected first: into row.selected(h) and room.scores.
void choose_exactly(Row& row, int h, const Candidates& c, int64_t budget, HeadRoom& room) {
  int64_t& count = row.plan.heads[h].selected;
  int32_t* chosen = room.second.get();
  if (c.count <= budget) {
    count = c.count;
    for (int64_t i = 0; i < count; i++) chosen[i] = int32_t(i);
  } else {
    int16_t* ranks = room.ranks.get();
    for (int64_t i = 0; i < c.count; i++)
      ranks[i] = c.estimated[i] == always_score ? always_score : rank_of(c.exact[i], c.max);
    std::fill(ranks + c.count, ranks + padded(c.count), hidden_score);
    count = select(ranks, padded(c.count), budget, chosen, room.select.get());
  }
  std::fill_n(room.chosen.get(), c.count, uint8_t{0});
  for (int64_t i = 0; i < count; i++) {
    room.chosen[chosen[i]] = 1;
    row.selected(h)[i] = room.tokens[chosen[i]];
    room.scores[i] = c.exact[chosen[i]];
  }
}

// Sum of the exact weights over that of the estimated ones, of the candidates that were chosen by their estimate.
float measured_gain(const Candidates& c, const Estimated& e, HeadRoom& room) {
  float* weights = room.weights.get();
  weigh(e, c.estimated, padded(c.count), weights);
  double exact = 0, estimated = 0;
  for (int64_t i = 0; i < c.count; i++) {
    if (c.estimated[i] == always_score) continue;
    exact += std::exp(c.exact[i] - c.max);
    estimated += weights[i];
  }
  const double gain = exact / estimated;
  return std::isfinite(gain) ? std::min(float(gain), highest_gain) : 1.0f;
}

// Everything that was not selected: adds it to the head's state and answers with its share of the weights, relative to the
// candidates' maximum.
double add_rest(Row& row, int h, const Candidates& c, int64_t sketch, HeadRoom& room) {
  Plan& plan = row.plan;
  const Query& query = plan.queries[h];
  const double scale = row.scale();
  const Estimated e{scale * query.unit, scale * query.highest_centre, row.p.softcap, c.max};
  const float gain = measured_gain(c, e, room);
  const bool tail = plan.config.tail != 0;
  const bool add = row.cache.has_values() && !(row.biased && row.p.softcap > 0);  // a softcap stands before the bias, not after

  float* blocks = room.blocks.get();
  weigh_blocks(e, row.scores(h), row.active, blocks);
  double rest = 0;
  for (int64_t i = 0; i < row.active; i++) {
    blocks[i] *= gain;
    rest += blocks[i];
    if (!tail) blocks[i] = 0;
  }
  double added = tail ? rest : 0;

  // Tokens whose levels are added: candidates that were not selected, then the second tier.
  int64_t count = 0;
  const auto add_token = [&](int64_t position, float weight) {
    room.second[count] = row.token_at(position);
    room.weights[count++] = weight;
  };
  for (int64_t i = 0; i < c.count; i++) {
    if (c.selected[i]) continue;
    const float weight = std::exp(c.exact[i] - c.max);
    rest += weight;
    added += weight;
    blocks[c.positions[i] / block_tokens] += weight;
    add_token(c.positions[i], weight);
  }
  plan.heads[h].sketched = 0;
  if (!add) return rest;

  const int16_t* scores = row.scores(h);
  const int64_t wanted = sketch - count;
  const int64_t found = wanted > 0 ? select(scores, row.active * block_tokens, wanted, room.next.get(), room.select.get()) : 0;
  const int64_t first = count;
  const auto add_estimated = [&](int64_t position) {
    room.ranks[count - first] = scores[position];
    add_token(position, 0);
  };
  const bool whole_blocks = tail && row.mixed > 0;
  for (int64_t i = 0; i < found; i++)
    if (!whole_blocks || !plan.is_mixed[room.next[i] / block_tokens]) add_estimated(room.next[i]);
  for (int64_t i = 0; whole_blocks && i < row.active; i++) {
    if (!plan.is_mixed[i]) continue;
    for (int64_t position = i * block_tokens; position < (i + 1) * block_tokens; position++)
      if (scores[position] != hidden_score) add_estimated(position);
  }
  std::fill(room.ranks.get() + (count - first), room.ranks.get() + padded(count - first), hidden_score);
  weigh(e, room.ranks.get(), padded(count - first), room.exact.get());
  for (int64_t i = first; i < count; i++) {
    room.weights[i] = gain * room.exact[i - first];
    if (tail) continue;  // its block's mean has it already
    added += room.weights[i];
    blocks[std::lower_bound(plan.active.get(), plan.active.get() + row.active, room.second[i] / block_tokens) -
           plan.active.get()] += room.weights[i];
  }
  plan.heads[h].sketched = count;

  SoftmaxState state{c.max, float(added), room.out.get()};
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
  return config.sketch == ADAMAS_SKETCH_AUTO ? std::max<int64_t>(512, visible / 16) : config.sketch;
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
    const Candidates c = read_candidates(row, h, budget + beyond, room, stale);
    choose_exactly(row, h, c, budget, room);
    head.reranked = c.count > head.selected;
    SoftmaxState& state = *row.states(h);
    state.clear(row.head_dim());
    attend_scored(row.attention(h / row.group()), row.selected(h), room.scores.get(), head.selected, state);
    if (!rest_wanted) return stale;
    const double selected = state.sum;
    head.mass = float(selected / (selected + add_rest(row, h, c, sketch, room)));
    if (!(head.mass < config.min_mass)) return stale;
    head.widened = true;
    for (int64_t i = 0; i < c.count; i++) row.scores(h)[c.positions[i]] = c.estimated[i];
  }
}

}  // namespace adamas
