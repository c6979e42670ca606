// The whole step through the C ABI: time, and the speed over our own dense step is the ratio of two lines.
//   step/<policy>/<q_heads>/<kv_heads>/<head_dim>/<tokens>/<threads>
// Sixteen layers in turn, so that K, V and codes come from memory as they do in a model, not from the caches.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <vector>

#include "adamas/adamas.h"

namespace {

void BM_step(benchmark::State& state, const char* policy) {
  const int q_heads = int(state.range(0)), kv_heads = int(state.range(1)), head_dim = int(state.range(2));
  const int64_t tokens = state.range(3);
  const int threads = int(state.range(4));
  const int64_t row_bytes = int64_t(kv_heads) * head_dim * 2;
  const int layers = int(std::clamp<int64_t>((int64_t{512} << 20) / (2 * tokens * row_bytes), 1, 16));

  adamas_config config;
  adamas_config_init(&config);
  adamas_config_set(&config, "policy", policy);
  adamas_plan* plan;
  const adamas_plan_params plan_params{sizeof plan_params, q_heads, kv_heads, head_dim, tokens, threads,
                                       ADAMAS_DEVICE_CPU,  0};
  adamas_plan_create(&config, &plan_params, &plan);

  std::mt19937 random(1);
  std::uniform_int_distribution<uint32_t> bits;
  std::vector<std::vector<uint16_t>> keys, values;
  std::vector<adamas_cache*> caches;
  std::vector<float> q(q_heads * head_dim), out(q.size());
  std::normal_distribution<float> normal(0, 2);
  for (float& x : q) x = normal(random);
  adamas_step_params p{};
  p.struct_size = sizeof p;
  p.threads = threads;
  p.batch = p.rows = 1;
  p.q = q.data();
  p.q_stride_head = p.out_stride_head = head_dim * 4;
  p.out = out.data();
  p.verify = 1;
  p.verify_rows = 64;
  p.lengths = &tokens;
  for (int layer = 0; layer < layers; layer++) {
    for (auto* rows : {&keys, &values}) {
      rows->emplace_back(tokens * kv_heads * head_dim);
      for (uint16_t& x : rows->back()) x = uint16_t(0x3000 | (bits(random) & 0x8FFF));  // +-0.125 to 2
    }
    adamas_cache* cache;
    const adamas_cache_params params{sizeof params,     layer, kv_heads, head_dim, 1, tokens, 0,
                                     ADAMAS_DEVICE_CPU, 0,     0,        nullptr,  0};
    adamas_cache_create(&config, &params, &cache);
    caches.push_back(cache);
  }
  int layer = 0;
  for (auto _ : state) {
    p.k = {keys[layer].data(), ADAMAS_F16, 0, head_dim * 2, row_bytes, nullptr, 0};
    p.v = {values[layer].data(), ADAMAS_F16, 0, head_dim * 2, row_bytes, nullptr, 0};
    adamas_append(caches[layer], 0, tokens - 1, 1, nullptr, nullptr);  // the token that a decoding step brings
    if (adamas_step(plan, caches[layer], &p) != ADAMAS_OK) state.SkipWithError(adamas_last_error());
    layer = (layer + 1) % layers;
  }
  for (adamas_cache* cache : caches) adamas_cache_destroy(cache);
  adamas_plan_destroy(plan);
}

void shapes(benchmark::internal::Benchmark* b) {
  for (int64_t tokens : {8192, 32768}) {
    b->Args({9, 3, 64, tokens, 2});
    b->Args({12, 2, 128, tokens, 2});
    b->Args({32, 8, 128, tokens, 2});
  }
  b->UseRealTime()->Unit(benchmark::kMicrosecond)->MinWarmUpTime(0.2);
}

BENCHMARK_CAPTURE(BM_step, adamas, "adamas")->Apply(shapes);
BENCHMARK_CAPTURE(BM_step, full, "full")->Apply(shapes);
BENCHMARK_CAPTURE(BM_step, quest, "quest")->Apply(shapes);
BENCHMARK_CAPTURE(BM_step, streaming, "streaming")->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
