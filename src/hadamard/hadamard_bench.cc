// Rows rotated a second.
#include "core/bench.h"
#include "hadamard/hadamard.h"

namespace adamas {
namespace {

void BM_rotate(benchmark::State& state) {
  const int head_dim = int(state.range(0));
  std::vector<float> row = bench::random_f32(head_dim);
  for (auto _ : state) {
    rotate(row.data(), head_dim);
    benchmark::DoNotOptimize(row.data());
  }
  bench::rates(state, 1, head_dim * 4);
}
BENCHMARK(BM_rotate)->Arg(64)->Arg(80)->Arg(128)->Arg(256);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
