// The policy adamas for one query head whose scores are estimated: budget, second tier and tail.
//
//   candidates   the tokens whose share of the softmax may be worth it, at least `budget` and at most `budget + sketch`: the top
//                ones by estimate; their keys are read
//   selected     of these the top `budget` by exact score: attention over K and V
//   second tier  the other candidates: exact weights, values through codes
//   tail         the rest of every block: weights by estimate, at the block's mean value
//
// A token is worth it when its share reaches worthwhile_share with its estimate one standard deviation too low. Without
// re-ranking the candidates are the top `budget` by estimate alone, and the weights of the second tier are estimates as well.
// In a block that also holds rows which this row does not see (another sequence's, or later ones of its batch) every token is of
// the second tier: the mean is not its own.
#pragma once

#include "step/row.h"

namespace adamas {

// Variance of a head's estimated scores: distortion |q|^2 sigma^2 scale^2, with the mean square sigma of its blocks. The
// estimator `manhattan` quantises the query as well and keeps only the distance: of a product of two Gaussians it explains
// distance_weight^2 Var(L1 of a dimension) = 0.79^2 0.712 = 0.444.
inline constexpr double manhattan_distortion = 0.556;
double noise_of(const Query& query, int head_dim, double mean_square_sigma, double scale, Estimator estimator);

// How many tokens `sketch` is, in a context of `visible`.
int64_t sketch_tokens(const adamas_config& config, int64_t visible);
// What a token must weigh to be looked at. What is left out, each token below this share p and at its block's mean value, moves the
// output by at most about sqrt(p) = 1.7% of the values' deviation, whatever the context's length.
inline constexpr double worthwhile_share = 3e-4;

// Selects, attends and writes the head's state and plan.heads[h]; returns stale rows among those that it read. Marks the head
// dense instead when min_mass cannot be reached with less than half of the tokens.
int64_t attend_tiers(Row& row, int h, HeadRoom& room);

}  // namespace adamas
