// The list: which tokens a KV head's query heads read in full.
//
// A query head knows the estimated score S of every token (estimate.h), what a score stands for (WeightScale in rest.h), and
// the exact scores s of the tokens that are read in any case: sinks, recent tokens, and the newest rows, which have no codes
// yet.
//
//   total       log( sum_t exp(s^_t) + sum_always exp(s_t) )  s^_t: what S_t stands for
//   least       total + log(share) - sqrt(noise)              of the estimates of tokens that may have a share of `share`
//   edge(k)     the highest of the edges that k blocks have an estimate at, or the lowest edge. They lie below the highest
//               estimate by distances of 2^-10 to 2^6 octaves, 32 of them for each doubling
//   bound       the lowest score S whose s^ is at least `least`, but no less than edge(most_blocks) and no more than
//               edge(fewest_blocks)
//   candidates  S_t >= bound; in blocks with hidden rows s^_t >= least + log(hidden_rows_share) is enough
//   list        the candidates of all query heads of the KV head and what is read in any case: K and V of these tokens
//               are read once
//
// "May have": with an estimate that is one standard deviation too low. The noise is known before anything is scanned
// (noise_of). The total has the exact scores in it, because with attention sinks they are most of the softmax. A block with
// rows that this query does not see has no mean value of its own (rest.h), so its tokens are listed from a smaller share on.
#pragma once

#include <bit>
#include <cstdint>

#include "estimate/estimate.h"
#include "rest/rest.h"

namespace adamas {

// How many of a row's blocks have a candidate, at least and at most. Of tokens a GPU would know the number only after it had
// looked through all scores; of blocks it knows the highest estimates. At least: of a head with few important tokens, since
// the factor and the lean are measured at the lowest of them.
constexpr int64_t fewest_blocks(int64_t blocks) { return blocks < 64 ? (blocks + 3) / 4 : 16; }
// At most: of a flat head. No head of the three models asks for that many (docs/quality.md).
constexpr int64_t most_blocks(int64_t blocks) { return blocks / 4 > 1024 ? blocks / 4 : 1024; }
inline constexpr int list_edges = 512;
// A distance's five leading bits and its exponent are its place among the edges: the first one beyond it has that number.
constexpr int first_edge_bits = (127 - 10) << 5;
constexpr int edge_beyond(float octaves) {
  const int bits = (std::bit_cast<int32_t>(octaves) >> 18) - first_edge_bits;
  return bits < 0 ? 0 : bits < list_edges ? bits : list_edges - 1;
}
constexpr float edge_distance(int edge) { return std::bit_cast<float>((edge + 1 + first_edge_bits) << 18); }
static_assert(edge_distance(list_edges - 1) == 64 && edge_beyond(edge_distance(7)) == 8 && edge_beyond(0) == 0);
// Of `share`, in blocks with hidden rows: what stays below is not estimated, but counts as what was attended to.
inline constexpr double hidden_rows_share = 0.125;

// Variance of a head's estimated scores: distortion |q|^2 sigma^2 scale^2, with the mean square sigma of its blocks. The
// estimator `manhattan` quantises the query as well and keeps only the distance: of a product of two Gaussians it explains
// distance_weight^2 Var(L1 of a dimension) = 0.79^2 0.712 = 0.444.
inline constexpr double manhattan_distortion = 0.556;
double noise_of(const Query& query, int head_dim, double mean_square_sigma, double scale, Estimator estimator);

// The scores of a query head.
struct HeadEstimates {
  WeightScale scale;
  const int16_t* scores;  // [blocks, 64]
  int64_t blocks;
  const uint8_t* has_hidden_rows;  // [blocks]; NULL: no block has
};

// What its candidates depend on besides.
struct Threshold {
  double share;     // of the softmax
  double noise;     // variance of the estimates
  float estimated;  // sum of exp(s^_t), relative to scale.max: what weigh_blocks gives
  double always;    // log of the sum of exp(s_t) of the tokens that are read in any case; -inf: there are none
};

// By how many scores a bound goes down for tokens of half the weight.
int octave_of(const WeightScale& e);

// Marks the candidates: bit t of marked[b] says that score 64 b + t is one's. Returns the bound.
int16_t mark_candidates(const HeadEstimates& head, const Threshold& threshold, uint64_t* marked);

// Marks the tokens at `positions` [count], and no other. Returns the lowest of their scores that is no hidden one;
// always_score when there is none.
int16_t mark_positions(const int16_t* scores, int64_t blocks, const int32_t* positions, int64_t count, uint64_t* marked);

// The marked tokens, ascending: where their scores stand, and which tokens they are. marked, ids: [blocks]; block b has the
// tokens from 64 ids[b] on. positions, tokens: room for all. Returns how many.
int64_t list_marked(const uint64_t* marked, const int32_t* ids, int64_t blocks, int32_t* positions, int32_t* tokens);

}  // namespace adamas
