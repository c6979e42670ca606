#include "true_scores.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include <adamas/adamas.hpp>

namespace cli {
namespace {

float of_f16(std::uint16_t bits) {
  // The exponent moves to where f32 has it; 2^112 makes up for the biases, 127 - 15, and for numbers below the normal ones.
  // No branch, so that a loop over it becomes vectors.
  const std::uint32_t magnitude = (bits & 0x7FFFu) << 13;
  const std::uint32_t infinite = magnitude >= 0x0F800000u ? 0x7F800000u : 0;
  return std::bit_cast<float>((bits & 0x8000u) << 16 |
                              std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f) | infinite);
}

// `to`: [count], the dtype looked at once.
void load(const void* from, std::int32_t dtype, std::int64_t count, float* to) {
  if (dtype == ADAMAS_F32) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
    return;
  }
  const auto convert = [&](auto of) {
    for (std::int64_t i = 0; i < count; ++i) {
      std::uint16_t bits;
      std::memcpy(&bits, static_cast<const char*>(from) + i * 2, sizeof bits);
      to[i] = of(bits);
    }
  };
  dtype == ADAMAS_F16 ? convert(of_f16)
                      : convert([](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); });
}

// Every head_dim is a multiple of 16. Sixteen sums, because one would have to be added up in its order.
float dot(const float* a, const float* b, std::int64_t count) {
  float sums[16] = {};
  for (std::int64_t i = 0; i < count; i += 16)
    for (std::int64_t j = 0; j < 16; ++j) sums[j] += a[i + j] * b[i + j];
  return std::accumulate(std::begin(sums), std::end(sums), 0.0f);
}

std::int64_t tokens_in_view(const adamas_observation& o) { return o.step->lengths[o.step->batch - 1]; }  // always given

}  // namespace

Scores scores_of(const adamas_observation& o, std::int32_t kv_head) {
  const adamas_step_params& p = *o.step;
  const std::int64_t batch = p.batch - 1, row = p.rows - 1, visible = tokens_in_view(o);
  const std::int64_t sequence = p.sequences != nullptr ? p.sequences[batch] : batch;
  const std::int32_t group = o.q_heads / o.kv_heads;
  const char* k = static_cast<const char*>(p.k.data) + sequence * p.k.stride_sequence + kv_head * p.k.stride_head;
  const char* q = static_cast<const char*>(p.q) + batch * p.q_stride_batch + row * p.q_stride_row;
  const float scale = p.scale != 0 ? p.scale : 1 / std::sqrt(static_cast<float>(o.head_dim));

  std::vector<float> queries(static_cast<std::size_t>(group * o.head_dim)), key(static_cast<std::size_t>(o.head_dim)),
      bias(static_cast<std::size_t>(visible));
  for (std::int32_t i = 0; i < group; ++i)
    load(q + (kv_head * group + i) * p.q_stride_head, p.q_dtype, o.head_dim,
         &queries[static_cast<std::size_t>(i * o.head_dim)]);
  if (p.mask != nullptr)
    load(static_cast<const char*>(p.mask) + batch * p.mask_stride_batch + row * p.mask_stride_row, p.mask_dtype, visible,
         bias.data());

  Scores scores(static_cast<std::size_t>(group), std::vector<float>(static_cast<std::size_t>(visible)));
  for (std::int64_t token = 0; token < visible; ++token) {
    load(k + token * p.k.stride_token, p.k.dtype, o.head_dim, key.data());
    for (std::int32_t i = 0; i < group; ++i) {
      float score = scale * dot(&queries[static_cast<std::size_t>(i * o.head_dim)], key.data(), o.head_dim);
      if (p.softcap > 0) score = p.softcap * std::tanh(score / p.softcap);
      const float slope = p.slopes != nullptr ? p.slopes[kv_head * group + i] : 1;
      scores[static_cast<std::size_t>(i)][static_cast<std::size_t>(token)] =
          score + slope * bias[static_cast<std::size_t>(token)];
    }
  }
  return scores;
}

std::vector<std::int64_t> selection_of(const adamas_observation& o, std::int32_t q_head) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(tokens_in_view(o)));
  std::int64_t count = 0;
  adamas::detail::check(adamas_selection(o.plan, q_head, tokens.data(), std::ssize(tokens), &count));
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

}  // namespace cli
