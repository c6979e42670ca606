// Attention of one core, of the last 512 rows of a prompt, as many tokens long as the third number says. G/s are operations
// (a product and a sum are two) over the tokens that the rows see, which two products a dimension have, read or not.
// The last number says what is left out: 0: nothing (dense); 1: nothing either, but asked of every block (random keys weigh
// about the same); 2: all but the first block and the newest (the first token holds the softmax). Models lie between.
#include <algorithm>
#include <cmath>

#include "core/bench.h"
#include "prompt/prompt.h"

namespace adamas {
namespace {

void BM_attend_prompt(benchmark::State& state) {
  const int head_dim = int(state.range(0)), group = int(state.range(1));
  const int64_t tokens = state.range(2), rows = std::min<int64_t>(512, tokens), blocks = blocks_of(tokens);
  const bool sparse = state.range(3) != 0, nearly_all = state.range(3) == 2;
  std::vector<uint16_t> k = bench::random_f16(tokens * head_dim), v = bench::random_f16(tokens * head_dim);
  std::vector<float> q = bench::random_f32(rows * group * head_dim);
  if (nearly_all) {
    std::fill_n(k.begin(), head_dim, uint16_t{0x4000});  // 2
    for (float& x : q) x = 30 * std::abs(x);
  }
  const auto view = [&](const std::vector<uint16_t>& m) {
    return Rows{reinterpret_cast<const std::byte*>(m.data()), DType::f16, head_dim * 2};
  };
  std::vector<uint64_t> visible(rows * blocks), live(blocks, ~uint64_t{0});
  std::vector<PromptRow> seen;
  std::vector<PromptQuery> queries;
  std::vector<float> outs(rows * group * head_dim);
  std::vector<SoftmaxState> states(rows * group);
  int64_t pairs = 0;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t end = tokens - rows + r + 1;
    for (int64_t b = 0; b < blocks; b++)
      visible[r * blocks + b] = bits_between(0 - b * block_tokens, end - b * block_tokens);
    seen.push_back({visible.data() + r * blocks, blocks_of(end), false, nullptr, DType::f32, 0});
    pairs += end * group;
  }
  for (int64_t i = 0; i < rows * group; i++) {
    states[i].out = outs.data() + i * head_dim;
    queries.push_back(
        {&seen[i / group], reinterpret_cast<const std::byte*>(q.data() + i * head_dim), DType::f32, 1, sparse, &states[i]});
  }
  PromptRoom room(head_dim);
  const PromptContext context{head_dim, 0.1f, 0, view(k), view(v), live.data()};
  const int64_t most = prompt_queries(head_dim);
  for (auto _ : state)
    for (int64_t i = 0; i < rows * group; i += most)
      attend_prompt(context, queries.data() + i, int(std::min(most, rows * group - i)), room);
  state.counters["G/s"] =
      benchmark::Counter(4e-9 * double(head_dim) * double(pairs) * double(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_attend_prompt)
    ->ArgsProduct({{64}, {3}, {512, 8192, 16384}, {0, 1, 2}})
    ->ArgsProduct({{128}, {6}, {8192, 16384}, {0, 1, 2}})
    ->Args({256, 4, 8192, 0})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
