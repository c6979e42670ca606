#include "step/stages.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "attend/attend.h"
#include "estimate/estimate.h"
#include "list/list.h"
#include "list/rescale.h"
#include "select/select.h"
#include "step/row.h"
#include "step/view.h"

namespace adamas {
namespace {

// What a KV head's blocks say of themselves, and what all blocks of the context say together.
struct Keys {
  Codes codes;
  Spread spread;
  float rounding;         // the largest unit of a centre
  double squares[256]{};  // of the sigmas with an exponent
  float reference;        // sigma_ref
  double variance;        // mean square of the sigmas, those beyond sigma_ref cut
};

// One query head.
struct Head {
  Query query;
  std::vector<double> centres;  // [blocks]
  CentreRange range;
  std::vector<int16_t> offsets;  // [blocks]
  WeightScale scale;
  std::vector<float> estimates;  // [blocks * 64] of a head whose scores are made anew
  float top;
};

struct Scoring {
  Scoring(const Cache& cache, const adamas_score_params& p)
      : cache(cache),
        p(p),
        head_dim(cache.params.head_dim),
        tokens(cache.length(p.sequence)),
        blocks(blocks_of(tokens)),
        scale(p.scale != 0 ? p.scale : 1.0f / std::sqrt(float(head_dim))),
        estimator(cache.config.estimator == ADAMAS_ESTIMATOR_DOT ? Estimator::dot : Estimator::manhattan),
        merge(p.merge, p.user),
        room(blocks),
        uncoded_room(blocks),
        keys(cache.params.kv_heads),
        heads(p.q_heads) {}

  Keys& keys_of(int h) { return keys[h / (p.q_heads / cache.params.kv_heads)]; }
  int16_t* scores(int h) const { return p.scores + h * blocks * block_tokens; }

  const Cache& cache;
  const adamas_score_params& p;
  const int head_dim;
  const int64_t tokens, blocks;
  const float scale;
  const Estimator estimator;
  const Merge merge;
  ViewRoom room;
  UncodedRoom uncoded_room;
  View view;
  Uncoded uncoded;
  std::vector<Keys> keys;   // [kv_heads]
  std::vector<Head> heads;  // [q_heads]
};

// Every token that the sequence has.
void see_all(Scoring& s) {
  s.view = {.tokens = s.tokens,
            .visible = s.tokens,
            .before = s.cache.params.origin,
            .bits = s.room.bits.get(),
            .blocks = s.room.blocks.get(),
            .active = s.blocks};
  for (int64_t b = 0; b < s.blocks; b++) {
    s.room.bits[b] = bits_between(0, s.tokens - b * block_tokens);
    s.room.blocks[b] = int32_t(b);
  }
}

// What this part says of its keys and queries.
void prepare(Scoring& s) {
  const int32_t* blocks = s.view.blocks;
  for (size_t g = 0; g < s.keys.size(); g++) {
    Keys& keys = s.keys[g];
    keys.codes = s.cache.codes(s.p.sequence, int(g));
    keys.spread = spread_of(keys.codes, blocks, s.blocks);
    keys.rounding = largest_rounding(keys.codes, blocks, s.blocks);
    for (int64_t b = 0; b < s.blocks; b++)
      if (const float sigma = keys.codes.sigma_of(b); sigma > 0)
        keys.squares[std::bit_cast<uint32_t>(sigma) >> 23] += double(sigma) * double(sigma);
  }
  std::vector<float> q(s.head_dim), y(s.head_dim);
  const float threshold = coding_of(s.cache.config) == Coding::paper ? paper_threshold : 0.0f;
  for (int h = 0; h < s.p.q_heads; h++) {
    Head& head = s.heads[h];
    for (int d = 0; d < s.head_dim; d++)
      q[d] = load_f32(at(s.p.q, h * s.p.q_stride_head), static_cast<DType>(s.p.q_dtype), d);
    rotate_query(q.data(), s.cache, y.data());
    prepare_query(y.data(), s.head_dim, s.estimator, threshold, head.query);
    head.centres.resize(s.blocks);
    head.offsets.resize(s.blocks);
    head.range = block_centres(head.query, s.head_dim, s.keys_of(h).codes, blocks, s.blocks, head.centres.data());
  }
}

// What all parts say together.
Status meet(Scoring& s) {
  std::vector<double> largest{s.tokens > 0 ? double(s.view.before + s.tokens) : 0.0};
  for (const Keys& keys : s.keys) largest.insert(largest.end(), {double(keys.spread.largest), double(keys.rounding)});
  for (const Head& head : s.heads) largest.insert(largest.end(), {head.range.highest, -head.range.lowest});
  if (Status met = s.merge.max(largest); !met.ok()) return met;

  std::vector<double> sums{double(s.tokens)};
  for (const Keys& keys : s.keys) {
    for (const int64_t count : keys.spread.exponents) sums.push_back(double(count));
    sums.insert(sums.end(), std::begin(keys.squares), std::end(keys.squares));
  }
  if (Status met = s.merge.sum(sums); !met.ok()) return met;

  const double* max = largest.data();
  const double* sum = sums.data();
  const double end = *max++, tokens = *sum++;
  if (!s.merge.alone() && end != tokens)
    return invalid("the parts of the context have " + std::to_string(int64_t(tokens)) + " tokens and end at " +
                   std::to_string(int64_t(end)) + ": each has to be full to the origin of the next");
  s.view.behind = int64_t(end) - s.view.before - s.tokens;
  if (s.p.tokens != nullptr) *s.p.tokens = int64_t(tokens);
  for (Keys& keys : s.keys) {
    keys.spread.largest = float(*max++);
    keys.rounding = float(*max++);
    for (int64_t& count : keys.spread.exponents) count = int64_t(*sum++);
    keys.reference = reference_sigma(keys.spread);
    const double cut = double(keys.reference) * double(keys.reference);
    double squares = 0;
    for (int e = 0; e < 256; e++, sum++)  // either all sigmas with an exponent are beyond sigma_ref, or none is
      squares += std::ldexp(1.0, e - 127) >= double(keys.reference) ? double(keys.spread.exponents[e]) * cut : *sum;
    keys.variance = squares / std::max(1.0, std::ceil(tokens / block_tokens));
  }
  for (int h = 0; h < s.p.q_heads; h++) {
    Head& head = s.heads[h];
    head.range.highest = *max++;
    head.range.lowest = -*max++;
    const Keys& keys = s.keys_of(h);
    set_unit(head.query, s.head_dim, s.estimator, keys.reference, head.range, [&] { return keys.rounding; });
    head.scale = {double(s.scale) * head.query.unit, double(s.scale) * head.query.highest_centre, 0, 0};
    centre_offsets(head.query, head.centres.data(), s.blocks, head.offsets.data());
  }
  return {};
}

void scan_all(const Scoring& s) {
  constexpr int64_t piece = 16;  // blocks
  const int kv_heads = s.cache.params.kv_heads, group = s.p.q_heads / kv_heads;
  const int64_t pieces = (s.blocks + piece - 1) / piece;
  std::vector<int16_t> weights(s.blocks * kv_heads);
  for (int g = 0; g < kv_heads; g++)
    block_weights(s.keys[g].codes, s.view.blocks, s.blocks, s.keys[g].reference, weights.data() + g * s.blocks);
#pragma omp parallel for num_threads(s.p.threads) schedule(static) if (s.p.threads > 1)
  for (int64_t i = 0; i < pieces * kv_heads; i++) {
    const int g = int(i / pieces);
    const int64_t first = i % pieces * piece, last = std::min(s.blocks, first + piece);
    for (int next = g * group; next < (g + 1) * group;) {
      int count = 0;
      const Query* queries[max_scan_heads];
      const int16_t* offsets[max_scan_heads];
      int16_t* scores[max_scan_heads];
      for (; next < (g + 1) * group && count < max_scan_heads; next++, count++) {
        queries[count] = &s.heads[next].query;
        offsets[count] = s.heads[next].offsets.data() + first;
        scores[count] = s.scores(next) + first * block_tokens;
      }
      scan(queries, count, s.head_dim, s.estimator, s.keys[g].codes, s.view.blocks + first, last - first,
           weights.data() + g * s.blocks + first, offsets, scores);
    }
  }
}

// The tokens that codes do not tell of get this score: those that are read in any case. And what is no token has none.
void set_uncoded(const Scoring& s, int16_t always) {
  for (int h = 0; h < s.p.q_heads; h++)
    for (int64_t i = 0; i < s.uncoded.partial_count; i++) {
      const PartialBlock& block = s.uncoded.partial[i];
      int16_t* scores = s.scores(h) + block.index * block_tokens;
      for_each_bit(~block.visible, [&](int t) { scores[t] = hidden_score; });
      for_each_bit(block.always, [&](int t) { scores[t] = always; });
    }
}

// Of heads whose centres lie too far apart for their own unit.
Status rescale_clipped(Scoring& s) {
  std::vector<double> tops;
  for (int h = 0; h < s.p.q_heads; h++) {
    Head& head = s.heads[h];
    if (!head.query.offset_clipped) continue;
    head.estimates.resize(s.blocks * block_tokens);
    tops.push_back(estimate_anew(
        head.scale, double(s.scale), head.centres.data(), head.offsets.data(), s.blocks,
        [](double estimate, int64_t) { return estimate; }, s.scores(h), head.estimates.data()));
  }
  if (tops.empty()) return {};
  if (Status met = s.merge.max(tops); !met.ok()) return met;
  const double* top = tops.data();
  for (int h = 0; h < s.p.q_heads; h++) {
    Head& head = s.heads[h];
    if (head.query.offset_clipped)
      head.scale = score_anew(head.scale, float(*top++), head.estimates.data(), s.blocks, s.scores(h));
  }
  return {};
}

}  // namespace

Status score(const Cache& cache, const adamas_score_params& p) {
  Scoring s(cache, p);
  see_all(s);
  prepare(s);
  if (Status met = meet(s); !met.ok()) return met;
  scan_all(s);
  s.uncoded = find_uncoded(s.view, cache, p.sequence, cache.config, s.uncoded_room);
  set_uncoded(s, hidden_score);
  if (Status met = rescale_clipped(s); !met.ok()) return met;
  set_uncoded(s, always_score);
  for (int h = 0; h < p.q_heads; h++) {
    const Head& head = s.heads[h];
    if (p.unit != nullptr) p.unit[h] = head.scale.unit;
    if (p.highest != nullptr) p.highest[h] = head.scale.highest;
    if (p.noise != nullptr)
      p.noise[h] = float(noise_of(head.query, s.head_dim, s.keys_of(h).variance, double(s.scale), s.estimator));
  }
  return {};
}

namespace {

// A head's selection, where only some of its tokens are here.
struct Window {
  int16_t lowest, highest;       // the budget-th best score of all lies between them, or is always_score
  std::vector<uint64_t> marked;  // [blocks] tokens here that reach `lowest`
  int64_t last = 0;              // bin of the last score that is selected
  double wanted = 0, equal = 0;  // tokens of that score that are selected, of all; that are here

  // A score's place in the histogram: what must be in comes last.
  int64_t bins() const { return std::max(0, highest - lowest + 1) + 1; }
  int64_t bin(int16_t score) const { return score == always_score ? bins() - 1 : score - lowest; }
};

class Selection {
 public:
  explicit Selection(const adamas_select_params& p)
      : p_(p),
        merge_(p.merge, p.user),
        blocks_(blocks_of(p.count)),
        room_(std::min(p.budget, p.count)),
        padded_(blocks_ * block_tokens),
        scratch_(select_scratch(blocks_ * block_tokens)),
        positions_(blocks_ * block_tokens) {}

  Status run() {
    if (merge_.alone()) {
      for (int h = 0; h < p_.heads; h++) {
        p_.counts[h] = top(scores_of(h));
        std::copy_n(positions_.data(), p_.counts[h], p_.indices + h * room_);
      }
      return {};
    }
    if (Status met = find_windows(); !met.ok()) return met;
    if (Status met = find_last(); !met.ok()) return met;
    return take();
  }

 private:
  // Scores of a head, to whole blocks.
  const int16_t* scores_of(int h) {
    const int16_t* scores = p_.scores + h * p_.count;
    if (int64_t(padded_.size()) == p_.count) return scores;
    std::copy_n(scores, p_.count, padded_.begin());
    std::fill(padded_.begin() + p_.count, padded_.end(), hidden_score);
    return padded_.data();
  }

  // The best of them, to positions_. Returns how many.
  int64_t top(const int16_t* scores) {
    if (blocks_ == 0) return 0;
    return select(scores, blocks_ * block_tokens, room_, positions_.data(), scratch_.data());
  }

  // Calls visit(position, bin) for the tokens of a head that reach its window.
  template <class Visit>
  void for_marked(int h, Visit&& visit) {
    const int16_t* scores = scores_of(h);
    for (int64_t b = 0; b < blocks_; b++)
      for_each_bit(windows_[h].marked[b], [&](int t) {
        const int64_t position = b * block_tokens + t;
        visit(position, windows_[h].bin(scores[position]));
      });
  }

  // The budget-th best of all is at least the budget-th best here. Who has fewer knows no bound but their lowest score.
  Status find_windows() {
    constexpr double none = -32769;
    std::vector<double> bounds;  // [heads, 3] such a bound; the highest score; minus the lowest
    for (int h = 0; h < p_.heads; h++) {
      const int16_t* scores = scores_of(h);
      const int64_t count = top(scores);
      double lowest = -none, highest = none;
      for (int64_t i = 0; i < count; i++) {
        const int16_t score = scores[positions_[i]];
        if (score == always_score) continue;
        lowest = std::min(lowest, double(score));
        highest = std::max(highest, double(score));
      }
      bounds.insert(bounds.end(), {count == p_.budget && highest > none ? lowest : none, highest, -lowest});
    }
    if (Status met = merge_.max(bounds); !met.ok()) return met;
    windows_.resize(p_.heads);
    for (int h = 0; h < p_.heads; h++) {
      Window& window = windows_[h];
      const double bound = bounds[3 * h], highest = bounds[3 * h + 1], lowest = -bounds[3 * h + 2];
      window.highest = int16_t(std::max(highest, double(hidden_score)));
      window.lowest = highest == none ? always_score : int16_t(bound > none ? bound : lowest);
      window.marked.resize(blocks_);
      if (blocks_ > 0) mark_reaching(scores_of(h), blocks_, window.lowest, nullptr, 0, window.marked.data());
    }
    return {};
  }

  // From the best score down, until the budget is full.
  Status find_last() {
    std::vector<double> histograms;  // a head's bins after another's
    for (int h = 0; h < p_.heads; h++) {
      const size_t first = histograms.size();
      histograms.resize(first + windows_[h].bins());
      for_marked(h, [&](int64_t, int64_t bin) { histograms[first + bin]++; });
    }
    const std::vector<double> here = histograms;
    if (Status met = merge_.sum(histograms); !met.ok()) return met;
    size_t first = 0;
    for (Window& window : windows_) {
      const double* all = histograms.data() + first;
      window.last = window.bins() - 1;
      window.wanted = double(p_.budget);
      for (; window.last > 0 && all[window.last] < window.wanted; window.last--) window.wanted -= all[window.last];
      window.equal = here[first + window.last];
      first += window.bins();
    }
    return {};
  }

  // Of equal ones those that come last are selected: whoever is behind comes first.
  Status take() {
    std::vector<double> behind;
    for (const Window& window : windows_) behind.push_back(window.equal);
    if (Status met = merge_.behind(behind); !met.ok()) return met;
    for (int h = 0; h < p_.heads; h++) {
      const Window& window = windows_[h];
      auto skipped = int64_t(window.equal - std::clamp(window.wanted - behind[h], 0.0, window.equal));
      int64_t* indices = p_.indices + h * room_;
      int64_t count = 0;
      for_marked(h, [&](int64_t position, int64_t bin) {
        if (bin > window.last || (bin == window.last && skipped-- <= 0)) indices[count++] = position;
      });
      p_.counts[h] = count;
    }
    return {};
  }

  const adamas_select_params& p_;
  const Merge merge_;
  const int64_t blocks_, room_;
  std::vector<int16_t> padded_, scratch_;
  std::vector<int32_t> positions_;
  std::vector<Window> windows_;  // [heads]
};

}  // namespace

Status select(const adamas_select_params& p) { return Selection(p).run(); }

void attend(const adamas_attend_params& p) {
  const float scale = p.scale != 0 ? p.scale : 1.0f / std::sqrt(float(p.head_dim));
  std::vector<float> queries(size_t(p.q_heads) * p.head_dim);
  std::vector<std::vector<int32_t>> lists(p.indices != nullptr ? p.q_heads : 1);
  if (p.indices == nullptr) {
    lists[0].resize(p.tokens);
    std::iota(lists[0].begin(), lists[0].end(), 0);
  }
  for (int h = 0; h < p.q_heads; h++) {
    if (p.indices != nullptr) {
      const int64_t* indices = p.indices + h * p.index_stride;
      lists[h].assign(indices, indices + p.counts[h]);
    }
    for (int d = 0; d < p.head_dim; d++)
      queries[h * p.head_dim + d] = load_f32(at(p.q, h * p.q_stride_head), static_cast<DType>(p.q_dtype), d);
  }
#pragma omp parallel for num_threads(p.threads) schedule(dynamic) if (p.threads > 1)
  for (int h = 0; h < p.q_heads; h++) {
    const std::vector<int32_t>& tokens = lists[p.indices != nullptr ? h : 0];
    const int g = h / (p.q_heads / p.kv_heads);
    const Attention attention{
        p.head_dim, scale, p.softcap, rows_of(p.k, p.sequence, g, p.tokens), rows_of(p.v, p.sequence, g, p.tokens), nullptr};
    const float* query = queries.data() + int64_t(h) * p.head_dim;
    const float slope = 1;
    SoftmaxState state{.out = p.out + int64_t(h) * p.head_dim};
    state.clear(p.head_dim);
    if (!tokens.empty()) attend_list(attention, &query, &slope, 1, tokens.data(), int64_t(tokens.size()), &state);
    const float inverse = state.sum > 0 ? 1.0f / state.sum : state.sum;  // 0 without tokens; NaN stays
    for (int d = 0; d < p.head_dim; d++) state.out[d] *= inverse;
    if (p.lse != nullptr) p.lse[h] = state.lse();
  }
}

}  // namespace adamas
