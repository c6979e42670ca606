// The exact top 128 of a row of scores (items are scores), scores spread as a normal distribution and all equal.
#include "core/bench.h"
#include "select/select.h"

namespace adamas {
namespace {

void BM_select(benchmark::State& state, float deviation) {
  const int64_t tokens = state.range(0);
  std::vector<int16_t> scores(tokens);
  const std::vector<float> normal = bench::random_f32(tokens);
  for (int64_t t = 0; t < tokens; t++) scores[t] = int16_t(normal[t] * deviation);
  std::vector<int32_t> positions(128), scratch(select_scratch(tokens) / 2 + 1);
  for (auto _ : state)
    benchmark::DoNotOptimize(
        select(scores.data(), tokens, 128, positions.data(), reinterpret_cast<int16_t*>(scratch.data())));
  bench::rates(state, tokens, tokens * 2);
}
BENCHMARK_CAPTURE(BM_select, spread, 250.0f)->Arg(8192)->Arg(32768)->Arg(131072);
BENCHMARK_CAPTURE(BM_select, all_equal, 0.0f)->Arg(32768);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
