// Scores a second of one core (items are key scores, one for each query head and token), over codes that no cache holds.
#include <numeric>

#include "core/bench.h"
#include "core/memory.h"
#include "estimate/estimate.h"

namespace adamas {
namespace {

void BM_scan(benchmark::State& state, Estimator estimator) {
  const int head_dim = int(state.range(0)), heads = int(state.range(1));
  const BlockLayout layout{head_dim};
  const int64_t step_blocks = 512,
                all_blocks = (int64_t{256} << 20) / int64_t(layout.block_bytes()) / step_blocks * step_blocks;
  const int64_t words = layout.head_bytes(all_blocks) / 8;
  const Array<uint64_t> memory = make_array<uint64_t>(words);
  std::mt19937_64 random(1);
  for (int64_t i = 0; i < words; i++) memory[i] = random();
  std::vector<float> scale(all_blocks, 1e-5f), sigma(all_blocks, 1);
  std::vector<int32_t> blocks(step_blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<int16_t> weights(step_blocks), offsets(step_blocks), scores(heads * step_blocks * block_tokens);
  std::vector<double> centres(step_blocks);
  const std::vector<float> y = bench::random_f32(head_dim);
  Query query;
  prepare_query(y.data(), head_dim, estimator, 0, query);
  int64_t first = 0;
  for (auto _ : state) {
    const Codes codes(reinterpret_cast<std::byte*>(memory.get()) + first * int64_t(layout.block_bytes()), step_blocks,
                      scale.data() + first, sigma.data() + first, layout);
    block_weights(codes, blocks.data(), step_blocks, 1, weights.data());
    const Query* queries[max_scan_heads];
    const int16_t* offsets_of[max_scan_heads];
    int16_t* scores_to[max_scan_heads];
    for (int h = 0; h < heads; h++) {
      block_offsets(query, head_dim, estimator, codes, blocks.data(), step_blocks, 1, centres.data(), offsets.data());
      queries[h] = &query;
      offsets_of[h] = offsets.data();
      scores_to[h] = scores.data() + h * step_blocks * block_tokens;
    }
    scan(queries, heads, head_dim, estimator, codes, blocks.data(), step_blocks, weights.data(), offsets_of, scores_to);
    benchmark::ClobberMemory();
    first = (first + step_blocks) % all_blocks;
  }
  bench::rates(state, heads * step_blocks * block_tokens,
               step_blocks * int64_t(layout.code_bytes() + layout.centre_bytes()));
}

void shapes(benchmark::internal::Benchmark* b) {
  for (int head_dim : {64, 128})
    for (int heads : {1, 3, 4}) b->Args({head_dim, heads});
}
BENCHMARK_CAPTURE(BM_scan, dot, Estimator::dot)->Apply(shapes);
BENCHMARK_CAPTURE(BM_scan, manhattan, Estimator::manhattan)->Apply(shapes);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
