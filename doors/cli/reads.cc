#include "reads.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "true_scores.h"

namespace cli {
namespace {

// ---- weights --------------------------------------------------------------------------------------------------------

HeadRead read_of(const adamas_observation& o, std::int32_t q_head, const std::vector<float>& scores) {
  HeadRead read;
  read.tokens = selection_of(o, q_head);

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
  read.dense = std::ssize(read.tokens) ==
               std::ranges::count_if(scores, [](float score) { return score > -std::numeric_limits<float>::infinity(); });
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
  for (std::int32_t kv_head = 0; kv_head < o.kv_heads; ++kv_head)
    for (const std::vector<float>& scores : scores_of(o, kv_head))
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
