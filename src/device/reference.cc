#include "device/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <numeric>

#include "attend/attend_ref.h"
#include "baselines/quest.h"
#include "codes/codes_ref.h"
#include "estimate/estimate_ref.h"
#include "list/list_ref.h"
#include "list/rescale.h"
#include "rest/rest_ref.h"
#include "select/select_ref.h"
#include "step/row.h"

namespace adamas {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

using Tokens = std::vector<int32_t>;

Tokens visible_tokens(const Row& row) {
  Tokens all;
  for (int64_t i = 0; i < row.view.active; i++)
    for_each_bit(row.view.bits[row.view.blocks[i]], [&](int t) { all.push_back(row.view.blocks[i] * block_tokens + t); });
  return all;
}

double exact_score(const Row& row, int h, int32_t token) {
  const Attention a = row.attention(h / row.group());
  double s = 0;
  for (int d = 0; d < a.head_dim; d++) s += double(row.q(h)[d]) * load_f32(a.k.row(token), a.k.dtype, d);
  s *= double(a.scale);
  if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
  return a.bias != nullptr ? s + double(row.slope(h)) * a.bias[token] : s;
}

std::vector<double> exact_scores(const Row& row, int h, const Tokens& tokens) {
  std::vector<double> scores;
  for (int32_t t : tokens) scores.push_back(exact_score(row, h, t));
  return scores;
}

bool any_bad(const std::vector<double>& scores) {
  return std::any_of(scores.begin(), scores.end(), [](double s) { return !(s < infinity); });
}

// An output of a head, normalised, and its log-sum-exp; a learned sink takes its share.
void write(const Row& row, int h, std::vector<double> out, double lse) {
  const adamas_step_params& p = row.p;
  if (p.sink_logits != nullptr) {
    const double logit = double(p.sink_logits[h]), top = std::max(lse, logit);
    const double with = top == -infinity ? top : top + std::log(std::exp(lse - top) + std::exp(logit - top));
    for (double& x : out) x *= lse == -infinity ? 0 : std::exp(lse - with);
    lse = with;
  }
  auto* to = reinterpret_cast<std::byte*>(p.out) + row.batch * p.out_stride_batch + row.row * p.out_stride_row +
             h * p.out_stride_head;
  for (int d = 0; d < row.head_dim(); d++) {
    const float value = float(out[d] * double(value_scale(p)));
    std::memcpy(to + d * sizeof value, &value, sizeof value);
  }
  const HeadResult& result = row.plan.results[h];
  const int64_t index = (row.batch * p.rows + row.row) * row.plan.params.q_heads + h;
  if (p.lse != nullptr) p.lse[index] = float(lse);
  if (p.mass != nullptr) p.mass[index] = result.mass;
  if (p.noise != nullptr) p.noise[index] = result.noise;
}

void attend_to(const Row& row, int h, const Tokens& tokens) {
  if (any_bad(exact_scores(row, h, tokens))) return write(row, h, std::vector<double>(row.head_dim(), NAN), NAN);
  const ref::Attended attended = ref::attend(row.attention(h / row.group()), row.q(h), row.slope(h), tokens);
  write(row, h, attended.out, attended.lse);
}

// What a head attended to, for adamas_selection: in the plan, as the list `list`.
void keep(const Row& row, int h, int64_t list, const Tokens& tokens) {
  std::copy(tokens.begin(), tokens.end(), row.tokens_of(list));
  row.plan.results[h].tokens = row.tokens_of(list);
  row.plan.results[h].selected = int64_t(tokens.size());
}

// Rows whose bytes are not those that their codes were made from; what has no code has no hash.
int64_t count_changed(const Row& row, int g, const Tokens& tokens) {
  if (!row.verify) return 0;
  const Rows keys = row.keys(g);
  int64_t changed = 0;
  for (int32_t t : tokens) {
    const int32_t block = t / block_tokens;
    if (row.cache.coded(row.sequence, block) >> t % block_tokens & 1)
      changed += ref::hash(keys.row(t), row_bytes(keys.dtype, row.head_dim())) !=
                 row.cache.codes(row.sequence, g).block(block).hash[t % block_tokens];
  }
  return changed;
}

// A query head with its estimates, or marked as too noisy.
struct Head {
  std::vector<int16_t> scores;  // [active, 64]
  WeightScale scale;
};

Head estimate_head(const Row& row, int h) {
  Plan& plan = row.plan;
  const int g = h / row.group();
  std::vector<float> y(row.q(h), row.q(h) + row.head_dim());
  for (float& x : y) x = ref::tame(x);
  if (row.cache.params.rotated == 0) rotate(y.data(), row.head_dim());
  const Codes codes = row.cache.codes(row.sequence, g);
  const std::vector<int32_t> ids(row.view.blocks, row.view.blocks + row.view.active);
  const float threshold = coding_of(plan.config) == Coding::paper ? paper_threshold : 0.0f;
  ref::Scores scores = ref::estimate(y.data(), row.head_dim(), row.estimator(), threshold, codes, ids);
  double squares = 0;
  for (int32_t b : ids) squares += std::pow(double(std::min(codes.sigma_of(b), scores.reference)), 2);
  Query query{};
  query.rms = scores.rms;
  HeadResult& result = plan.results[h];
  result.noise = float(noise_of(query, row.head_dim(), squares / double(ids.size()), row.scale(), row.estimator()));
  if (plan.config.max_noise > 0 && double(result.noise) > plan.config.max_noise) result.reading = Reading::noisy;
  for (int64_t i = 0; i < row.uncoded.partial_count; i++) {
    const PartialBlock& block = row.uncoded.partial[i];
    for_each_bit(~block.visible | block.always, [&](int t) { scores.score[block.index * block_tokens + t] = hidden_score; });
  }
  Head head{scores.score, {row.scale() * scores.unit, row.scale() * scores.highest_centre, row.p.softcap, 0}};
  if (row.view.bias != nullptr || scores.offset_clipped) {
    std::vector<float> scratch(scores.score.size());
    const auto moved = [&](double estimate, int64_t position) {
      return row.view.bias != nullptr ? estimate + double(row.slope(h)) * row.view.bias[row.view.token_at(position)]
                                      : estimate;
    };
    head.scale = rescale(head.scale, double(row.scale()), scores.centre.data(), scores.offset.data(), row.view.active, moved,
                         scratch.data(), head.scores.data());
    return head;
  }
  double highest = -infinity;
  for (int16_t s : head.scores)
    if (s != hidden_score) highest = std::max(highest, ref::estimate(head.scale, s));
  if (highest > -infinity) head.scale.max = float(highest);
  return head;
}

double log_of_always(const Row& row, int h) {
  const Tokens always(row.uncoded.always, row.uncoded.always + row.uncoded.always_count);
  const std::vector<double> scores = exact_scores(row, h, always);
  if (always.empty() || any_bad(scores)) return -infinity;
  const double highest = *std::max_element(scores.begin(), scores.end());
  if (highest == -infinity) return -infinity;
  double sum = 0;
  for (double s : scores) sum += std::exp(s - highest);
  return highest + std::log(sum);
}

// A list: positions in the scores, and tokens.
struct List {
  Tokens positions, tokens;
};
List list_of(const Row& row, std::vector<char> listed) {
  for (int64_t i = 0; i < row.uncoded.partial_count; i++)
    for_each_bit(row.uncoded.partial[i].always, [&](int t) { listed[row.uncoded.partial[i].index * block_tokens + t] = 1; });
  List list;
  for (size_t i = 0; i < listed.size(); i++)
    if (listed[i]) {
      list.positions.push_back(int32_t(i));
      list.tokens.push_back(row.view.token_at(int64_t(i)));
    }
  return list;
}

ref::Rest rest_of(const Row& row, const Head& head, int16_t bound, const List& list, const std::vector<double>& exact) {
  const HeadList of{
      head.scale,     bound, nullptr, list.positions.data(), int64_t(list.positions.size()), row.uncoded.has_hidden_rows,
      row.view.active};
  return ref::rest(of, head.scores, exact);
}

void write_rest(const Row& row, int h, const List& list, const ref::Rest& rest) {
  const int g = h / row.group();
  const Attention a = row.attention(g);
  const Means means = row.cache.means(row.sequence, g);
  std::vector<double> out(row.head_dim(), 0.0);
  for (int d = 0; d < row.head_dim(); d++) {
    for (size_t i = 0; i < list.tokens.size(); i++)
      out[d] += rest.weights[i] * load_f32(a.v.row(list.tokens[i]), a.v.dtype, d);
    for (int64_t b = 0; b < row.view.active; b++) {
      const int64_t block = row.view.blocks[b];
      out[d] += rest.means[b] * (double(means.mean_of(block)[d]) * double(*means.scale_of(block)));
    }
  }
  const double sum = rest.listed + rest.rest;
  for (double& x : out) x = sum > 0 ? x / sum : 0;  // what is beside hidden rows counts as what was attended to
  const double all = sum > 0 ? sum + rest.beside_hidden : sum;
  write(row, h, out, all > 0 ? rest.max + std::log(all) : -infinity);
}

// A head that did not reach min_mass: from half the share on, and so on.
int64_t widen(const Row& row, int h, const Head& head, int16_t first_bound) {
  HeadResult& result = row.plan.results[h];
  const int octave = octave_of(head.scale);
  for (int next = first_bound - octave;; next -= octave) {
    const auto bound = int16_t(std::max(next, hidden_score + 1));
    std::vector<char> own(head.scores.size());
    for (size_t i = 0; i < own.size(); i++) own[i] = head.scores[i] >= bound;
    const List list = list_of(row, own);
    if (2 * int64_t(list.tokens.size()) >= row.view.visible) {
      result.reading = Reading::widened_to_all;
      result.mass = 1;
      attend_to(row, h, visible_tokens(row));
      return 0;
    }
    const ref::Rest rest = rest_of(row, head, bound, list, exact_scores(row, h, list.tokens));
    if (rest.mass() < row.plan.config.min_mass) continue;
    result.reading = Reading::widened;
    result.mass = float(rest.mass());
    keep(row, h, row.plan.params.kv_heads + h, list.tokens);
    write_rest(row, h, list, rest);
    return count_changed(row, h / row.group(), list.tokens);
  }
}

// The query heads of a KV head, with a list and a rest.
int64_t attend_list_of(const Row& row, int g) {
  Plan& plan = row.plan;
  const int first = g * row.group(), last = first + row.group();
  std::vector<Head> heads;
  std::vector<int16_t> bounds(row.group(), always_score);
  std::vector<char> listed(row.view.active * block_tokens);
  plan.listed[g] = 0;
  for (int h = first; h < last; h++) {
    heads.push_back(estimate_head(row, h));
    const Head& head = heads.back();
    if (reads_all(plan.results[h].reading)) continue;
    const HeadEstimates estimates{head.scale, head.scores.data(), row.view.active, row.uncoded.has_hidden_rows};
    const double noise = double(plan.results[h].noise), always = log_of_always(row, h);
    const std::vector<char> own = ref::candidates(estimates, plan.config.share, noise, always);
    bounds[h - first] = ref::bound(estimates, plan.config.share, noise, always);
    for (size_t i = 0; i < own.size(); i++) listed[i] |= own[i];
  }
  const List list = list_of(row, listed);
  int64_t stale = 0;
  bool any = false;
  for (int h = first; h < last; h++) {
    HeadResult& result = plan.results[h];
    if (reads_all(result.reading)) {
      attend_to(row, h, visible_tokens(row));
      continue;
    }
    any = true;
    keep(row, h, g, list.tokens);
    const std::vector<double> exact = exact_scores(row, h, list.tokens);
    if (any_bad(exact)) {
      result.mass = NAN;
      write(row, h, std::vector<double>(row.head_dim(), NAN), NAN);
      continue;
    }
    const ref::Rest rest = rest_of(row, heads[h - first], bounds[h - first], list, exact);
    result.mass = float(rest.mass());
    if (result.mass < plan.config.min_mass)
      stale += widen(row, h, heads[h - first], bounds[h - first]);
    else
      write_rest(row, h, list, rest);
  }
  if (!any) return stale;
  plan.listed[g] = int64_t(list.tokens.size());
  return stale + count_changed(row, g, list.tokens);
}

// A fixed budget: the top tokens by estimate, and nothing else.
int64_t attend_top(const Row& row, int h) {
  const adamas_config& config = row.plan.config;
  HeadResult& result = row.plan.results[h];
  const Head head = estimate_head(row, h);
  int64_t stale = 0;
  for (int64_t budget = config.budget; !reads_all(result.reading); budget *= 2) {
    if (budget > config.budget) result.reading = 2 * budget >= row.view.visible ? Reading::widened_to_all : Reading::widened;
    if (reads_all(result.reading)) break;
    std::vector<int16_t> scores = head.scores;
    for (int64_t i = 0; i < row.uncoded.partial_count; i++)
      for_each_bit(row.uncoded.partial[i].always,
                   [&](int t) { scores[row.uncoded.partial[i].index * block_tokens + t] = always_score; });
    List list;
    list.positions = ref::select(scores.data(), int64_t(scores.size()), budget);
    int16_t bound = always_score;
    for (int32_t position : list.positions) {
      list.tokens.push_back(row.view.token_at(position));
      if (head.scores[position] != hidden_score) bound = std::min(bound, head.scores[position]);
    }
    stale += count_changed(row, h / row.group(), list.tokens);
    result.mass = NAN;
    if (row.p.mass != nullptr || config.min_mass > 0) {
      const std::vector<double> exact = exact_scores(row, h, list.tokens);
      if (!any_bad(exact)) result.mass = float(rest_of(row, head, bound, list, exact).mass());
      if (result.mass < config.min_mass) continue;
    }
    keep(row, h, h, list.tokens);
    attend_to(row, h, list.tokens);
    return stale;
  }
  result.mass = 1;
  attend_to(row, h, visible_tokens(row));
  return stale;
}

// Quest's bound on the scores of a page, from the minimum and maximum of each channel. Its order of sums is quest.cc's.
float bound_of_page(const Row& row, int h, int64_t page) {
  constexpr int64_t pages_of_block = block_tokens / quest_page;
  const float* low = row.cache.quest_bounds(row.sequence, h / row.group()).of(page / pages_of_block) +
                     page % pages_of_block * 2 * row.head_dim();
  const float* high = low + row.head_dim();
  float sums[16] = {};
  for (int d = 0; d < row.head_dim(); d++) sums[d % 16] += std::max(row.q(h)[d] * low[d], row.q(h)[d] * high[d]);
  return std::accumulate(std::begin(sums), std::end(sums), 0.0f);
}

// The top pages, the newest always, ties to the newer one; their visible tokens.
Tokens select_pages(const Row& row, int h) {
  const Tokens all = visible_tokens(row);
  std::vector<std::pair<float, int64_t>> pages;
  for (int32_t t : all)
    if (pages.empty() || pages.back().second != t / quest_page)
      pages.emplace_back(bound_of_page(row, h, t / quest_page), t / quest_page);
  const int64_t newest = pages.back().second;
  std::sort(pages.begin(), pages.end(), [&](const auto& a, const auto& b) {
    if ((a.second == newest) != (b.second == newest)) return a.second == newest;
    return a.first != b.first ? a.first > b.first : a.second > b.second;
  });
  pages.resize(std::min<size_t>(pages.size(), size_t(std::max<int64_t>(1, budget_of(row.plan.config) / quest_page))));
  Tokens tokens;
  std::copy_if(all.begin(), all.end(), std::back_inserter(tokens), [&](int32_t t) {
    return std::any_of(pages.begin(), pages.end(), [&](const auto& page) { return page.second == t / quest_page; });
  });
  return tokens;
}

// The other policies.
Tokens select_unscored(const Row& row, int h) {
  const Plan& plan = row.plan;
  if (plan.config.policy == ADAMAS_POLICY_QUEST) return select_pages(row, h);
  const Tokens all = visible_tokens(row);
  const auto budget = std::min<int64_t>(budget_of(plan.config), int64_t(all.size()));
  if (plan.config.policy == ADAMAS_POLICY_STREAMING) {  // the first and the last
    const auto sinks = std::min(plan.config.sinks, budget);
    Tokens tokens(all.begin(), all.begin() + sinks);
    tokens.insert(tokens.end(), all.end() - (budget - sinks), all.end());
    return tokens;
  }
  std::vector<double> exact = exact_scores(row, h, all);
  for (double& s : exact) s = std::isnan(s) ? -infinity : double(float(s));
  std::vector<size_t> order(all.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return exact[a] != exact[b] ? exact[a] > exact[b] : a > b; });
  order.resize(size_t(budget));
  std::sort(order.begin(), order.end());
  Tokens top;
  double everything = 0, selected = 0;
  for (double s : exact) everything += std::exp(s - exact[order.empty() ? 0 : order[0]]);
  for (size_t i : order) {
    top.push_back(all[i]);
    selected += std::exp(exact[i] - exact[order[0]]);
  }
  row.plan.results[h].mass = float(selected / everything);
  return top;
}

class Reference : public Device {
 public:
  void encode_block(const Rows& rows, int head_dim, uint64_t live, bool first_block, Coding coding, bool rotate,
                    const Block& block, float*) const override {
    ref::pack(ref::encode_block(rows, head_dim, live, first_block, coding, !rotate), block);
  }
  void encode_mean(const Rows& rows, int head_dim, uint64_t live, bool first_block, int16_t* mean, float* scale,
                   float*) const override {
    const ref::BlockCodes made = ref::encode_block(rows, head_dim, live, first_block, Coding::by_block, true);
    std::copy(made.centre.begin(), made.centre.end(), mean);
    *scale = made.centre_scale;
  }
  int64_t attend(const Row& row, int) const override {
    Plan& plan = row.plan;
    int64_t stale = 0;
    for (int h = 0; h < plan.params.q_heads; h++) load_query(row, h);
    if (plan.results.front().reading == Reading::short_context) {
      for (int h = 0; h < plan.params.q_heads; h++) attend_to(row, h, visible_tokens(row));
      return 0;
    }
    for (int g = 0; g < plan.params.kv_heads && has_rest(plan.config); g++) stale += attend_list_of(row, g);
    for (int h = 0; h < plan.params.q_heads && !has_rest(plan.config); h++) {
      if (plan.config.policy == ADAMAS_POLICY_ADAMAS) {
        stale += attend_top(row, h);
        continue;
      }
      plan.results[h].mass = NAN;
      const Tokens tokens = select_unscored(row, h);
      if (plan.config.policy == ADAMAS_POLICY_QUEST) stale += count_changed(row, h / row.group(), tokens);
      keep(row, h, h, tokens);
      attend_to(row, h, tokens);
    }
    for (int g = 0; g < plan.params.kv_heads; g++) stale += count_changed(row, g, {plan.slice.begin(), plan.slice.end()});
    return stale;
  }
};

}  // namespace

const Device& reference_device() {
  static const Reference reference;
  return reference;
}

}  // namespace adamas
