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
  const std::uint32_t magnitude = (bits & 0x7FFFu) << 13;
  const float value = (bits & 0x7C00u) == 0x7C00u ? std::bit_cast<float>(magnitude | 0x7F800000u)
                                                  : std::bit_cast<float>(magnitude) * 0x1p112f;
  return (bits & 0x8000u) != 0 ? -value : value;
}

float value_at(const void* data, std::int32_t dtype, std::int64_t index) {
  if (dtype == ADAMAS_F32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(data) + index * 4, sizeof value);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(data) + index * 2, sizeof bits);
  return dtype == ADAMAS_F16 ? of_f16(bits) : std::bit_cast<float>(std::uint32_t{bits} << 16);
}

// The score of one token as adamas.h defines it, bias included.
class Scores {
 public:
  Scores(const adamas_observation& o, std::int32_t q_head) : step_(*o.step), head_dim_(o.head_dim), slope_(1) {
    const std::int64_t sequence = step_.sequences != nullptr ? step_.sequences[step_.batch - 1] : step_.batch - 1;
    const std::int64_t kv_head = q_head / (o.q_heads / o.kv_heads);
    q_ = static_cast<const char*>(step_.q) + (step_.batch - 1) * step_.q_stride_batch +
         (step_.rows - 1) * step_.q_stride_row + q_head * step_.q_stride_head;
    k_ = static_cast<const char*>(step_.k.data) + sequence * step_.k.stride_sequence + kv_head * step_.k.stride_head;
    if (step_.mask != nullptr)
      mask_ = static_cast<const char*>(step_.mask) + (step_.batch - 1) * step_.mask_stride_batch +
              (step_.rows - 1) * step_.mask_stride_row;
    if (step_.slopes != nullptr) slope_ = step_.slopes[q_head];
    scale_ = step_.scale != 0 ? step_.scale : 1 / std::sqrt(static_cast<float>(head_dim_));
  }

  float of(std::int64_t token) const {
    const char* row = k_ + token * step_.k.stride_token;
    float score = 0;
    for (std::int32_t i = 0; i < head_dim_; ++i) score += value_at(q_, step_.q_dtype, i) * value_at(row, step_.k.dtype, i);
    score *= scale_;
    if (step_.softcap > 0) score = step_.softcap * std::tanh(score / step_.softcap);
    return mask_ == nullptr ? score : score + slope_ * value_at(mask_, step_.mask_dtype, token);
  }

 private:
  const adamas_step_params& step_;
  std::int32_t head_dim_;
  const char *q_ = nullptr, *k_ = nullptr, *mask_ = nullptr;
  float scale_ = 1, slope_;
};

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

HeadRead read_of(const adamas_observation& o, std::int32_t q_head) {
  HeadRead read;
  const std::int64_t visible = o.step->lengths != nullptr ? o.step->lengths[o.step->batch - 1] : 0;
  read.tokens.resize(static_cast<std::size_t>(visible));
  std::int64_t count = 0;
  adamas::detail::check(adamas_selection(o.plan, q_head, read.tokens.data(), visible, &count));
  read.tokens.resize(static_cast<std::size_t>(count));

  const Scores scores(o, q_head);
  std::vector<float> of_all(static_cast<std::size_t>(visible));
  for (std::int64_t token = 0; token < visible; ++token) of_all[static_cast<std::size_t>(token)] = scores.of(token);
  const float* sink = o.step->sink_logits != nullptr ? o.step->sink_logits + q_head : nullptr;
  float largest = sink != nullptr ? *sink : -std::numeric_limits<float>::infinity();
  for (float score : of_all) largest = std::max(largest, score);
  double sum = sink != nullptr ? std::exp(*sink - largest) : 0, own = 0;
  for (float score : of_all) sum += std::exp(score - largest);  // a token that the mask hides adds 0
  for (std::int64_t token : read.tokens) {
    read.weights.push_back(std::exp(of_all[static_cast<std::size_t>(token)] - largest));
    own += read.weights.back();
  }
  for (float& weight : read.weights) weight = own > 0 ? static_cast<float>(weight / own) : 0;
  read.mass = sum > 0 ? static_cast<float>(own / sum) : 0;
  read.estimated = o.step->mass != nullptr ? o.step->mass[(o.step->batch * o.step->rows - 1) * o.q_heads + q_head]
                                           : std::numeric_limits<float>::quiet_NaN();
  return read;
}

// Two bytes and a half a token, a third more as base64: 8 million tokens are 27 MB. Beyond 512 a head weights are far below
// a thousandth.
Reads::Reads(std::int32_t layers, std::int64_t most_heads)
    : kept_tokens_(
          static_cast<std::size_t>(std::clamp<std::int64_t>(8'000'000 / std::max<std::int64_t>(most_heads, 1), 8, 512))),
      step_(static_cast<std::size_t>(layers)) {}

void Reads::see(const adamas_observation& o) {
  if (o.layer < 0 || o.layer >= std::ssize(step_)) return;
  Layer& layer = step_[static_cast<std::size_t>(o.layer)];
  if (layer.heads != 0) {  // a later layer that attends over this one's cache
    ++shared_;
    return;
  }
  layer.heads = o.q_heads;
  for (std::int32_t head = 0; head < o.q_heads; ++head) add(read_of(o, head), layer);
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
  tokens_ += std::ssize(read.tokens);

  put_number(layer.bytes, read.tokens.size());
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

std::vector<std::string> Reads::left_out() const {
  std::vector<std::string> sentences;
  if (weight_kept_ < weight_)
    sentences.push_back(
        fmt::format("Of each head the {} tokens of the largest weight are in this page: {:.2f} % of the attention.",
                    kept_tokens_, 100 * weight_kept_ / weight_));
  if (shared_ > 0)
    sentences.push_back(fmt::format(
        "Layers that attend over the cache of an earlier layer are not shown ({} steps of such layers).", shared_));
  return sentences;
}

}  // namespace cli
