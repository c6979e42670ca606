// What the codes mean: loops over tokens and dimensions, one code at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "codes/codes.h"
#include "codes/hash_constants.h"
#include "hadamard/hadamard.h"

namespace adamas::ref {

struct BlockCodes {
  std::vector<int> code;        // [64, head_dim], 0 to 3
  std::vector<int16_t> centre;  // [head_dim]
  std::vector<uint32_t> hash;   // [64]
  float centre_scale = 0;
  float sigma = 0;
};

inline float tame(float x) {
  if (std::isnan(x)) return 0;
  return std::clamp(x, -largest_key, largest_key);
}

// Of a row's bytes.
inline uint32_t hash(const std::byte* row, int64_t bytes) {
  uint32_t sum = 0;
  for (int64_t i = 0; 4 * i < bytes; i++) {
    uint32_t word = 0;
    std::memcpy(&word, row + 4 * i, std::min<int64_t>(4, bytes - 4 * i));
    sum += word * hash_constants[i];
  }
  return sum;
}

inline BlockCodes encode_block(const Rows& rows, int head_dim, uint64_t live, bool first_block, Coding coding,
                               bool rotated = false) {
  BlockCodes out;
  out.code.assign(block_tokens * head_dim, 0);
  out.centre.assign(head_dim, 0);
  out.hash.assign(block_tokens, 0);

  std::vector<float> x(block_tokens * head_dim);
  for_each_bit(live, [&](int t) {
    for (int d = 0; d < head_dim; d++) x[t * head_dim + d] = tame(load_f32(rows.row(t), rows.dtype, d));
    if (!rotated) rotate(&x[t * head_dim], head_dim);
    out.hash[t] = hash(rows.row(t), row_bytes(rows.dtype, head_dim));
  });

  const uint64_t counted = rows_that_count(live, first_block);
  const int count = std::popcount(counted);
  std::vector<float> centre(head_dim, 0.0f);
  float threshold = paper_threshold;
  if (coding == Coding::paper) {
    out.sigma = paper_threshold / threshold_sigmas;
  } else {
    std::vector<float> mean(head_dim, 0.0f);
    for_each_bit(counted, [&](int t) {
      for (int d = 0; d < head_dim; d++) mean[d] += x[t * head_dim + d];
    });
    float largest = 0;
    for (int d = 0; d < head_dim; d++) {
      mean[d] = count > 0 ? mean[d] / float(count) : 0;
      largest = std::max(largest, std::abs(mean[d]));
    }
    if (largest > 1e-30f) {
      out.centre_scale = largest / 32767.0f;
      const float inverse = 32767.0f / largest;
      for (int d = 0; d < head_dim; d++) {
        out.centre[d] = static_cast<int16_t>(std::nearbyint(std::clamp(mean[d] * inverse, -32767.0f, 32767.0f)));
        centre[d] = float(out.centre[d]) * out.centre_scale;
      }
    }
    std::vector<float> squares(head_dim, 0.0f);
    for_each_bit(counted, [&](int t) {
      for (int d = 0; d < head_dim; d++) {
        const float r = x[t * head_dim + d] - centre[d];
        squares[d] += r * r;
      }
    });
    double sum = 0;
    for (int d = 0; d < head_dim; d++) sum += squares[d];
    out.sigma = count > 0 ? float(std::sqrt(sum / (double(count) * head_dim))) : 0;
    if (out.sigma <= out.centre_scale) out.sigma = 0;
    threshold = threshold_sigmas * out.sigma;
  }
  for_each_bit(live, [&](int t) {
    for (int d = 0; d < head_dim; d++) {
      const float r = x[t * head_dim + d] - centre[d];
      out.code[t * head_dim + d] = (r > -threshold) + (r > 0) + (r > threshold);
    }
  });
  return out;
}

// The mean of the counted rows, as stored, read back: [head_dim].
inline std::vector<float> mean_value(const Rows& rows, int head_dim, uint64_t live, bool first_block) {
  const BlockCodes made = encode_block(rows, head_dim, live, first_block, Coding::by_block, true);
  std::vector<float> mean;
  for (int16_t x : made.centre) mean.push_back(float(x) * made.centre_scale);
  return mean;
}

// To where a block's codes lie: every byte of it.
inline void pack(const BlockCodes& made, const Block& block) {
  const int head_dim = block.layout.head_dim;
  std::fill_n(block.high, block.layout.code_words(), 0u);
  for (int t = 0; t < block_tokens; t++)
    for (int d = 0; d < head_dim; d++) {
      const auto code = uint32_t(made.code[t * head_dim + d]);
      block.high[block.word(t, d / chunk_dims)] |= (code >> 1) << d % chunk_dims;
      block.low[block.word(t, d / chunk_dims)] |= (code & 1) << d % chunk_dims;
    }
  std::copy(made.centre.begin(), made.centre.end(), block.centre);
  std::copy(made.hash.begin(), made.hash.end(), block.hash);
  *block.centre_scale = made.centre_scale;
  *block.sigma = made.sigma;
}

// The code of one token and dimension, read from the planes.
inline int code_at(const Block& block, int token, int dim) {
  const size_t word = block.word(token, dim / chunk_dims);
  const int bit = dim % chunk_dims;
  return 2 * int(block.high[word] >> bit & 1) + int(block.low[word] >> bit & 1);
}

}  // namespace adamas::ref
