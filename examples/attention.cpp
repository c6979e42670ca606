// The example of attention.c with the C++ face.
#include <adamas/adamas.hpp>
#include <cstdio>
#include <random>
#include <vector>

int main() {
  constexpr int q_heads = 8, kv_heads = 2, head_dim = 64, tokens = 4096;
  std::vector<float> k(kv_heads * tokens * head_dim), v(k.size()), q(q_heads * head_dim), out(q.size());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (auto* values : {&k, &v, &q})
    for (float& value : *values) value = normal(random);

  const adamas::Config config{.budget = 128};
  adamas::Cache cache({.kv_heads = kv_heads, .head_dim = head_dim, .capacity = tokens}, config);
  adamas::Plan plan({.q_heads = q_heads, .kv_heads = kv_heads, .head_dim = head_dim, .max_tokens = tokens}, config);

  cache.append({.count = tokens}, k, v);
  const auto stats = plan.step(cache, {.q = q, .k = k, .v = v, .out = out});

  std::printf("each query head attended to %lld of %d tokens; out[0] = %f\n",
              static_cast<long long>(stats.tokens_selected / q_heads), tokens, out[0]);
}
