#include "data.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "../f16.h"

namespace cli::kernel {
namespace {

constexpr std::int64_t block = ADAMAS_BLOCK_TOKENS, tokens_of_a_topic = 64;
constexpr float common = 3;                 // size of what the keys of a head share, in deviations of the noise
constexpr float spread_of_strength = 0.3f;  // of a token's part in its topic, as a logarithm
constexpr float query_noise = 1.0f;
constexpr float query_gain = 7;  // score that a token of the topic has, times its strength

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
  query_topic
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

void Layer::fill(std::int64_t first, std::int64_t last) {
  const int dims = shape_.head_dim;
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
          topic(static_cast<std::int64_t>(mix(seed_, t, 0, topic_of_token) % static_cast<std::uint64_t>(topics_)), g);
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
    const float* asked =
        topic(static_cast<std::int64_t>(mix(seed_, step, h, query_topic) % static_cast<std::uint64_t>(topics_)), h / group);
    for (int d = 0; d < dims; d++)
      q[static_cast<std::size_t>(h * dims + d)] =
          query_noise * noise[d] + query_gain / std::sqrt(static_cast<float>(dims)) * asked[d];
  }
  return q;
}

}  // namespace cli::kernel
