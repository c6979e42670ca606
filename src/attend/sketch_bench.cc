// Second tier and tail of one query head of one core: the weights of all tokens (items are tokens), the levels of 512 scattered
// ones, the means of all blocks.
#include <numeric>

#include "attend/sketch.h"
#include "core/bench.h"

namespace adamas {
namespace {

// Codes of values that no cache holds: 64 MB of them, of which a run uses one stretch after the other.
struct Values {
  explicit Values(int head_dim)
      : layout{head_dim, Coded::values}, blocks((int64_t{64} << 20) / int64_t(layout.block_bytes())),
        memory(layout.head_bytes(blocks) / 8), scale(blocks, 0.01f), sigma(blocks, 1.0f) {
    std::mt19937_64 random(1);
    for (uint64_t& word : memory) word = random();
  }
  Codes codes() {
    return {reinterpret_cast<std::byte*>(memory.data()), blocks, scale.data(), sigma.data(), layout};
  }
  BlockLayout layout;
  int64_t blocks;
  std::vector<uint64_t> memory;
  std::vector<float> scale, sigma;
};

void BM_weigh_blocks(benchmark::State& state) {
  const int64_t blocks = state.range(0) / block_tokens;
  std::mt19937 random(2);
  std::vector<int16_t> scores(blocks * block_tokens);
  for (int16_t& score : scores) score = int16_t(-int(random() % 4000));
  std::vector<float> weights(blocks);
  for (auto _ : state) {
    weigh_blocks({0.003, 0, 0, 0}, scores.data(), blocks, weights.data());
    benchmark::DoNotOptimize(weights.data());
  }
  bench::rates(state, blocks * block_tokens, blocks * block_tokens * 2);
}
BENCHMARK(BM_weigh_blocks)->Arg(8192)->Arg(32768);

void BM_add_levels(benchmark::State& state) {
  const int head_dim = int(state.range(0));
  Values values(head_dim);
  std::mt19937 random(3);
  std::vector<int32_t> tokens(512);
  std::vector<float> weights(512, 0.01f), out(head_dim);
  for (auto _ : state) {
    state.PauseTiming();
    for (int32_t& token : tokens) token = int32_t(random() % (values.blocks * block_tokens));
    state.ResumeTiming();
    add_levels(values.codes(), head_dim, tokens.data(), weights.data(), 512, out.data());
  }
  bench::rates(state, 512, 512 * int64_t(values.layout.token_stride()) * 4);
}
BENCHMARK(BM_add_levels)->Arg(64)->Arg(128);

void BM_add_means(benchmark::State& state) {
  const int head_dim = int(state.range(0));
  Values values(head_dim);
  std::vector<int32_t> blocks(128);
  std::vector<float> weights(128, 0.01f), out(head_dim);
  int64_t first = 0;
  for (auto _ : state) {
    std::iota(blocks.begin(), blocks.end(), int32_t(first));
    add_means(values.codes(), head_dim, blocks.data(), weights.data(), 128, 1, out.data());
    first = (first + 128) % (values.blocks - 128);
  }
  bench::rates(state, 128, 128 * head_dim * 2);
}
BENCHMARK(BM_add_means)->Arg(64)->Arg(128);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
