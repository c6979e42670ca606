#include "data.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "../f16.h"

namespace cli::kernel {
namespace {

// As SmolLM2 and Qwen2.5-Coder-0.5B have it at 8,192 tokens (recorded keys and queries, text and program code): a query head
// has 140 tokens (the median) that weigh 0.0004 and more; the lists of 3 and 7 heads of a group are 1.8 and 3.3 times as
// long, so 0.6 of a head's are everyone's; of the listed tokens 0.53 and 0.62 follow upon another one, and they lie in 0.37
// and 0.51 of the blocks; the first four tokens hold 0.23 and 0.13 of the softmax.
constexpr std::int64_t block = ADAMAS_BLOCK_TOKENS, tokens_of_a_topic = 32, sinks = 4;
constexpr int shared_topics = 3, own_topics = 2;  // that a query asks for
constexpr std::uint64_t goes_on = 55,
                        lives_in =
                            40;  // percent: that a token is of the topic of the one before; that a topic is one of a block's
constexpr float common = 3;      // size of what the keys of a head share, in deviations of the noise
constexpr float spread_of_strength = 0.3f;  // of a token's part in its topic, as a logarithm
constexpr float query_noise = 1.0f;
constexpr float query_gain = 6.0f;  // score that a token of a topic has, times its strength
constexpr float sink_score = 8.3f;

// Normal numbers; a vector of them begins anywhere, which is far cheaper than making new ones and as good here.
constexpr std::size_t numbers = std::size_t{1} << 20;
const float* normal_at(std::uint64_t place) {
  static const std::vector<float> table = [] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(numbers + 256);  // the longest head_dim behind the last beginning
    for (float& value : values) value = normal(random);
    return values;
  }();
  return table.data() + place % numbers;
}

// A number for these four, as good as random (the finaliser of SplitMix64).
std::uint64_t mix(std::uint64_t seed, std::int64_t a, std::int64_t b, std::uint64_t purpose) {
  std::uint64_t x = seed * 0x9E3779B97F4A7C15u + static_cast<std::uint64_t>(a) * 0xD1B54A32D192ED03u +
                    static_cast<std::uint64_t>(b) * 0x8CB92BA72F3D8DD7u + purpose * 0xAEF17502108EF2D9u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

enum Purpose : std::uint64_t {
  topic_of_token,
  topic_vector,
  strength,
  key_noise,
  value_noise,
  common_vector,
  query_vector,
  query_topic,
  sink_vector,
  run_of_topic,
  home_of_topic
};

}  // namespace

Layer::Layer(const Shape& shape, std::int64_t tokens, std::uint64_t seed, int threads)
    : shape_(shape),
      topics_(std::max<std::int64_t>(8, tokens / tokens_of_a_topic)),
      seed_(seed),
      k_(new adamas::f16[static_cast<std::size_t>(tokens * shape.row_bytes() / 2)]),
      v_(new adamas::f16[static_cast<std::size_t>(tokens * shape.row_bytes() / 2)]) {
  normal_at(0);  // made before there are threads
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t b = 0; b < (tokens + block - 1) / block; b++) fill(b * block, std::min(tokens, (b + 1) * block));
}

const float* Layer::topic(std::int64_t topic, int kv_head) const {
  return normal_at(mix(seed_, topic, kv_head, topic_vector));
}

std::vector<std::int64_t> Layer::topics_of(std::int64_t first, std::int64_t last) const {
  std::vector<std::int64_t> topics;
  for (std::int64_t t = first; t < last; t++) {
    if (!topics.empty() && mix(seed_, t, 0, run_of_topic) % 100 < goes_on) {
      topics.push_back(topics.back());
      continue;
    }
    std::int64_t topic = 0;
    for (int attempt = 0; attempt < 16; attempt++) {
      topic = static_cast<std::int64_t>(mix(seed_, t, attempt, topic_of_token) % static_cast<std::uint64_t>(topics_));
      if (mix(seed_, topic, first / block, home_of_topic) % 100 < lives_in) break;
    }
    topics.push_back(topic);
  }
  return topics;
}

void Layer::fill(std::int64_t first, std::int64_t last) {
  const int dims = shape_.head_dim;
  const std::vector<std::int64_t> topics = topics_of(first, last);
  for (int g = 0; g < shape_.kv_heads; g++) {
    float shared[256];
    const float* vector = normal_at(mix(seed_, 0, g, common_vector));
    for (int d = 0; d < dims; d++)  // turns once in 20,000 tokens, or slower
      shared[d] =
          common * vector[d] * std::cos(static_cast<float>(first) * 6.28f / (20000.0f * static_cast<float>(1 + d % 8)));
    for (std::int64_t t = first; t < last; t++) {
      const float* noise = normal_at(mix(seed_, t, g, key_noise));
      const float* value = normal_at(mix(seed_, t, g, value_noise));
      const float* of_topic =
          t < sinks ? normal_at(mix(seed_, 0, g, sink_vector)) : topic(topics[static_cast<std::size_t>(t - first)], g);
      const float part = std::exp(spread_of_strength * *normal_at(mix(seed_, t, g, strength)));
      adamas::f16* k = k_.get() + (t * shape_.kv_heads + g) * dims;
      adamas::f16* v = v_.get() + (t * shape_.kv_heads + g) * dims;
      for (int d = 0; d < dims; d++) k[d] = to_f16(cut_to_f16(shared[d] + noise[d] + part * of_topic[d]));
      for (int d = 0; d < dims; d++) v[d] = to_f16(cut_to_f16(value[d] + 0.5f * of_topic[d]));
    }
  }
}

std::vector<float> Layer::query(std::int64_t step) const {
  const int dims = shape_.head_dim, group = shape_.q_heads / shape_.kv_heads;
  std::vector<float> q(static_cast<std::size_t>(shape_.q_heads * dims));
  for (int h = 0; h < shape_.q_heads; h++) {
    const float* noise = normal_at(mix(seed_, step, h, query_vector));
    const float* sink = normal_at(mix(seed_, 0, h / group, sink_vector));
    float* to = &q[static_cast<std::size_t>(h * dims)];
    const float root = std::sqrt(static_cast<float>(dims));
    for (int d = 0; d < dims; d++) to[d] = query_noise * noise[d] + sink_score / root * sink[d];
    for (int i = 0; i < shared_topics + own_topics; i++) {
      const std::int64_t asker = i < shared_topics ? -1 - h / group : h;
      const float* asked = topic(
          static_cast<std::int64_t>(mix(seed_, step * 8 + i, asker, query_topic) % static_cast<std::uint64_t>(topics_)),
          h / group);
      for (int d = 0; d < dims; d++) to[d] += query_gain / root * asked[d];
    }
  }
  return q;
}

}  // namespace cli::kernel
