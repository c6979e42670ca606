#include "reads.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include <adamas/adamas.hpp>

namespace cli {
namespace {

// ---- weights --------------------------------------------------------------------------------------------------------

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

using Scores = std::vector<std::vector<float>>;  // [heads][visible]

// The scores of all visible tokens as adamas.h defines them, bias included, for the query heads of one KV head; -inf for a
// token that the mask hides.
Scores scores_of(const adamas_observation& o, std::int32_t kv_head, std::int64_t visible) {
  const adamas_step_params& p = *o.step;
  const std::int64_t batch = p.batch - 1, row = p.rows - 1;  // the last row: the one that adamas_selection tells of
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

HeadRead read_of(const adamas_observation& o, std::int32_t q_head, const std::vector<float>& scores) {
  HeadRead read;
  read.tokens.resize(scores.size());
  std::int64_t count = 0;
  adamas::detail::check(adamas_selection(o.plan, q_head, read.tokens.data(), std::ssize(scores), &count));
  read.tokens.resize(static_cast<std::size_t>(count));

  const float* sink = o.step->sink_logits != nullptr ? o.step->sink_logits + q_head : nullptr;
  float largest = sink != nullptr ? *sink : -std::numeric_limits<float>::infinity();
  for (float score : scores) largest = std::max(largest, score);
  double sum = sink != nullptr ? std::exp(*sink - largest) : 0, own = 0;
  for (float score : scores) sum += std::exp(score - largest);  // a token that the mask hides adds 0
  for (std::int64_t token : read.tokens) {
    read.weights.push_back(std::exp(scores[static_cast<std::size_t>(token)] - largest));
    own += read.weights.back();
  }
  for (float& weight : read.weights) weight = own > 0 ? static_cast<float>(weight / own) : 0;
  read.dense =
      count == std::ranges::count_if(scores, [](float score) { return score > -std::numeric_limits<float>::infinity(); });
  read.mass = sum > 0 ? static_cast<float>(own / sum) : 0;
  read.estimated = o.step->mass != nullptr ? o.step->mass[(o.step->batch * o.step->rows - 1) * o.q_heads + q_head]
                                           : std::numeric_limits<float>::quiet_NaN();
  return read;
}

// ---- bytes ----------------------------------------------------------------------------------------------------------

void put_number(std::string& bytes, std::uint64_t number) {  // seven bits a byte, the lowest first
  for (; number >= 0x80; number >>= 7) bytes += static_cast<char>(number | 0x80);
  bytes += static_cast<char>(number);
}

void put_share(std::string& bytes, float share) {  // in 65534 parts; 65535 is NaN
  const long parts = std::isnan(share) ? 65535 : std::lround(std::clamp(share, 0.0f, 1.0f) * 65534);
  bytes += static_cast<char>(parts & 255);
  bytes += static_cast<char>(parts >> 8);
}

// A tenth of an octave a step: 7 %, down to 2^-25.5.
char weight_code(float weight) {
  return static_cast<char>(std::clamp(std::lround(-10 * std::log2(std::max(weight, 1e-30f))), 0L, 255L));
}

std::string base64(const std::string& bytes) {
  static constexpr char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t three = 0;
    for (std::size_t j = 0; j < 3; ++j)
      three = three << 8 | (i + j < bytes.size() ? static_cast<std::uint8_t>(bytes[i + j]) : 0u);
    for (std::size_t j = 0; j < 4; ++j) text += i + j <= bytes.size() ? letters[three >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

}  // namespace

std::vector<HeadRead> reads_of(const adamas_observation& o) {
  std::vector<HeadRead> reads;
  const std::int64_t visible = o.step->lengths[o.step->batch - 1];  // the back end always gives them
  for (std::int32_t kv_head = 0; kv_head < o.kv_heads; ++kv_head)
    for (const auto& scores : scores_of(o, kv_head, visible))
      reads.push_back(read_of(o, static_cast<std::int32_t>(reads.size()), scores));
  return reads;
}

Reads::Reads(std::int32_t layers, std::int64_t most_steps)
    : most_steps_(most_steps), step_(static_cast<std::size_t>(layers)) {}

void Reads::see(const adamas_observation& o) {
  if (o.layer < 0 || o.layer >= std::ssize(step_)) return;
  Layer& layer = step_[static_cast<std::size_t>(o.layer)];
  if (layer.heads != 0) {  // a later layer that attends over this one's cache
    ++shared_;
    return;
  }
  if (kept_tokens_ == 0) {
    // Two bytes and a half a token, a third more as base64: 8 million tokens are 27 MB. Beyond 512 a head they weigh little.
    const std::int64_t heads = most_steps_ * std::ssize(step_) * o.q_heads;
    kept_tokens_ = static_cast<std::size_t>(std::clamp<std::int64_t>(8'000'000 / heads, 8, 512));
  }
  layer.heads = o.q_heads;
  for (const HeadRead& read : reads_of(o)) add(read, layer);
}

void Reads::add(const HeadRead& read, Layer& layer) {
  std::vector<std::size_t> kept(read.tokens.size());
  std::iota(kept.begin(), kept.end(), std::size_t{0});
  if (kept.size() > kept_tokens_) {
    const auto heavier = [&](std::size_t a, std::size_t b) { return read.weights[a] > read.weights[b]; };
    std::nth_element(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(kept_tokens_), kept.end(), heavier);
    kept.resize(kept_tokens_);
    std::sort(kept.begin(), kept.end());
  }
  ++heads_;
  dense_ += read.dense;
  tokens_ += std::ssize(read.tokens);

  put_number(layer.bytes, read.tokens.size() << 1 | (read.dense ? 1u : 0u));
  put_share(layer.bytes, read.mass);
  put_share(layer.bytes, read.estimated);
  put_number(layer.bytes, kept.size());
  std::int64_t before = -1;
  for (std::size_t i : kept) {
    put_number(layer.bytes, static_cast<std::uint64_t>(read.tokens[i] - before - 1));
    layer.bytes += weight_code(read.weights[i]);
    before = read.tokens[i];
    weight_kept_ += read.weights[i];
  }
  for (float weight : read.weights) weight_ += weight;
}

void Reads::end_step() {
  for (Layer& layer : step_) {
    put_number(bytes_, static_cast<std::uint64_t>(layer.heads));
    bytes_ += layer.bytes;
    layer = {};
  }
  ++steps_;
}

double Reads::mean_tokens() const { return empty() ? 0 : static_cast<double>(tokens_) / static_cast<double>(heads_); }

Json Reads::document() const {
  return {{"steps", steps_}, {"layers", step_.size()}, {"kept", kept_tokens_}, {"data", base64(bytes_)}};
}

std::vector<std::string> Reads::notes() const {
  std::vector<std::string> sentences;
  if (weight_kept_ < weight_)
    sentences.push_back(
        fmt::format("Of a head that read more than {} tokens, so many of the largest weight are in this page: with "
                    "all other heads, {:.2f} % of what was read.",
                    kept_tokens_, 100 * weight_kept_ / weight_));
  if (dense_ > 0)
    sentences.push_back(fmt::format("{:.1f} % of the heads read all that they could see.",
                                    100 * static_cast<double>(dense_) / static_cast<double>(heads_)));
  if (shared_ > 0)
    sentences.push_back(fmt::format(
        "Layers that attend over the cache of an earlier layer are not shown ({} steps of such layers).", shared_));
  return sentences;
}

}  // namespace cli
