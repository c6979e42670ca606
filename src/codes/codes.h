// Stage 2. Two bits for each dimension of a key, made block by block, and the mean of a block's values.
//
//   x = rotated row            mu = mean of x over the rows that count, stored as int16 times one scale
//   r = x - stored mu          sigma = RMS of r over the same rows and all dimensions; 0 if that is within one unit of
//                              mu, by rounding
//   code = (r > -t) + (r > 0) + (r > t),   t = 0.98 sigma     read back as level(code) * 0.498 sigma, levels -3 -1 1 3
//
// 0.98 and 0.498: thresholds and level spacing of the 4-level quantiser of a Gaussian with the least squared error (Max
// 1960). The rows that count are the live rows; in a sequence's first block without its first four (attention sinks lie far
// from the rest), unless no other row is live. Codes are a function of the rows that they are made of and of being first,
// bit for bit. An element that is NaN counts as 0, one beyond +-1e15 as +-1e15, so that one bad row leaves the others
// usable.
//
// Of values the mean alone is kept, of the same rows and in the same form, as they are given: for the tokens that are not
// read (rest/rest.h). Preset `paper`: mu = 0 and t = 10, whatever the rows are.
#pragma once

#include <cstdint>

#include "codes/layout.h"
#include "core/rows.h"

namespace adamas {

inline constexpr float threshold_sigmas = 0.98f;
inline constexpr float level_sigmas = 0.498f;
inline constexpr double distortion = 0.1188;  // of that quantiser: mean squared error over the variance
inline constexpr float paper_threshold = 10.0f;
inline constexpr float largest_key = 1e15f;
inline constexpr uint64_t sink_rows = 0xF;  // of a sequence's first block

enum class Coding { by_block, paper };

// The rows whose mean and deviation centre and scale the block.
constexpr uint64_t rows_that_count(uint64_t live, bool first_block) {
  return first_block && (live & ~sink_rows) != 0 ? live & ~sink_rows : live;
}

// Encodes the live rows of one block; the codes and hashes of other rows become 0.
// rows: [64, head_dim] of the block, only live ones are read; rotate: false when they have been rotated already.
// scratch: [64, head_dim] floats.
void encode_block(const Rows& rows, int head_dim, uint64_t live, bool first_block, Coding coding, bool rotate,
                  const Block& block, float* scratch);

// The mean of the live rows that count, as mu is made: mean [head_dim] and its scale. The same scratch.
void encode_mean(const Rows& rows, int head_dim, uint64_t live, bool first_block, int16_t* mean, float* scale,
                 float* scratch);

// How many of the `count` rows named by `tokens` no longer have the hash that their codes were made from.
//
// The hash of a row's bytes: sum of its 32-bit words (half a word at the end is filled up with zeros), each times an odd
// constant of its place, modulo 2^32. One word that changed always changes the sum; any other change goes unseen with a
// chance of 2^-32.
int64_t count_stale(const Rows& rows, int head_dim, const Codes& codes, const int32_t* tokens, int64_t count);

}  // namespace adamas
