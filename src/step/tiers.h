// The policy adamas for one query head whose scores are estimated: budget, second tier and tail.
//
//   candidates   the top `budget` tokens by estimate, and when the head is re-ranked some more; their keys are read
//   selected     of these the top `budget` by exact score: attention over K and V
//   the others   exact weights, values through codes
//   second tier  the next tokens by estimate: weights and values through codes
//   tail         the rest of every block: weights by estimate, at the block's mean value
//
// `sketch` counts the candidates that are not selected and the second tier together. In a block that also holds rows which this
// row does not see (another sequence's, or later ones of its batch) every token is of the second tier: the mean is not its own.
#pragma once

#include "step/row.h"

namespace adamas {

// Variance of a head's estimated scores: distortion |q|^2 sigma^2 scale^2, with the mean square sigma of its blocks. The
// estimator `manhattan` quantises the query as well and keeps only the distance: of a product of two Gaussians it explains
// distance_weight^2 Var(L1 of a dimension) = 0.79^2 0.712 = 0.444.
inline constexpr double manhattan_distortion = 0.556;
double noise_of(const float* rotated, int head_dim, double mean_square_sigma, double scale, Estimator estimator);

// How many tokens `sketch` is, in a context of `visible`.
int64_t sketch_tokens(const adamas_config& config, int64_t visible);
// How many candidates a head reads beyond its budget. `auto`: 256 for every unit of noise, at least 256. A token's estimate is
// off by sqrt(noise), so the noisier it is the farther down the true top tokens lie.
int64_t candidates_beyond(const adamas_config& config, double noise, int64_t sketch);

// Selects, attends and writes the head's state and plan.heads[h]; returns stale rows among those that it read. Marks the head
// dense instead when min_mass cannot be reached with less than half of the tokens.
int64_t attend_tiers(Row& row, int h, HeadRoom& room);

}  // namespace adamas
