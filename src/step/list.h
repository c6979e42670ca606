// The policy adamas for one query row whose scores are estimated: which tokens are read.
//
// With `budget = auto` the query heads of a KV head share a list, and what is not listed counts as the rest (rest/rest.h):
//
//   candidates   of each query head: the tokens whose share of its softmax may reach `share`, at least fewest_listed, at most
//                most_listed(visible)
//   always       sinks, recent tokens, and the newest rows, which have no codes yet
//   list         all of these, of every query head: its K and V are read once, and every head attends to all of it with exact scores
//
// "May reach" means with an estimate one standard deviation too low. The softmax is all estimated weights and the exact ones of the tokens
// that are always read: with attention sinks these are most of it. A mixed block has no mean value of its own (rest/rest.h), so its tokens
// are listed from a smaller share on.
//
// With `budget = N` each query head attends to its own top N by estimate, and nothing else counts.
#pragma once

#include "step/row.h"

namespace adamas {

// Variance of a head's estimated scores: distortion |q|^2 sigma^2 scale^2, with the mean square sigma of its blocks. The
// estimator `manhattan` quantises the query as well and keeps only the distance: of a product of two Gaussians it explains
// distance_weight^2 Var(L1 of a dimension) = 0.79^2 0.712 = 0.444.
inline constexpr double manhattan_distortion = 0.556;
double noise_of(const Query& query, int head_dim, double mean_square_sigma, double scale, Estimator estimator);

// Of a head with few important tokens; the factor and the lean are measured at the lowest of them. 32 make program code a third worse on
// SmolLM2, 128 read a tenth more tokens (docs/quality.md).
inline constexpr int64_t fewest_listed = 64;
// Of a flat head: at 8,192 tokens 512 double the divergence of Gemma, 1,024 make it a sixth worse; no head of the three models asks for more.
constexpr int64_t most_listed(int64_t visible) { return std::max<int64_t>(2048, visible / 16); }
// Of `share`, in mixed blocks: what stays below is left out, not estimated.
inline constexpr double mixed_share = 0.125;

// Tokens of a list, at most.
int64_t list_room(const adamas_config& config, const adamas_plan_params& params);

// Candidates of a query head.
void choose(Row& row, int h, HeadRoom& room);
// The list of a KV head, from the candidates of its query heads.
void make_list(Row& row, int g);
// Weights of the list and the rest for one head, from its exact scores. A head that does not reach min_mass goes on by itself: it reads more,
// attends, and is finished; or it is marked dense. Returns stale rows among those that it read by itself.
int64_t weigh_list(Row& row, int h, HeadRoom& room);
// What the rest of mixed blocks counts as: what was attended to.
void add_mixed(Row& row, int h);
// Selects and attends with a fixed budget. Returns stale rows among those that it read.
int64_t attend_budget(Row& row, int h, HeadRoom& room);

}  // namespace adamas
