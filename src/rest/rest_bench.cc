// The rest of one query head of one core: the weights of all tokens (items are tokens), list and rest of 400 tokens of 8,192
// (items are tokens of the list), the means of all blocks for three heads.
#include <numeric>

#include "core/bench.h"
#include "rest/rest.h"

namespace adamas {
namespace {

std::vector<int16_t> random_scores(int64_t tokens) {
  std::mt19937 random(2);
  std::vector<int16_t> scores(tokens);
  for (int16_t& score : scores) score = int16_t(-int(random() % 4000));
  return scores;
}

void BM_weigh_blocks(benchmark::State& state) {
  const int64_t blocks = state.range(0) / block_tokens;
  const std::vector<int16_t> scores = random_scores(state.range(0));
  std::vector<float> weights(blocks);
  for (auto _ : state) {
    weigh_blocks({0.003, 0, 0, 0}, scores.data(), blocks, weights.data());
    benchmark::DoNotOptimize(weights.data());
  }
  bench::rates(state, blocks * block_tokens, blocks * block_tokens * 2);
}
BENCHMARK(BM_weigh_blocks)->Arg(8192)->Arg(32768);

void BM_measure_and_lean(benchmark::State& state) {
  const int64_t tokens = state.range(0), blocks = tokens / block_tokens, count = 400;
  const std::vector<int16_t> scores = random_scores(tokens);
  std::vector<int16_t> estimated(rest_room(count));
  std::vector<int32_t> positions(rest_room(count)), low_positions(rest_room(count));
  std::vector<uint64_t> listed(blocks);
  for (int64_t i = 0; i < count; i++) {
    positions[i] = int32_t(i * tokens / count);
    listed[positions[i] / block_tokens] |= uint64_t{1} << positions[i] % block_tokens;
  }
  std::vector<float> all(blocks), sums, exact = bench::random_f32(rest_room(count)), weights, guesses(rest_room(count)),
                                        low_weights(rest_room(count));
  const HeadList list{{0.003, 0, 0, 0}, -2000, listed.data(), positions.data(), count, nullptr, blocks};
  weigh_blocks(list.e, scores.data(), blocks, all.data());
  for (auto _ : state) {
    sums = all;
    weights = exact;
    const Measured measured =
        measure_rest(list, scores.data(), sums.data(), weights.data(), estimated.data(), guesses.data());
    lean_rest(list, measured, estimated.data(), weights.data(), sums.data(), low_positions.data(), low_weights.data());
    benchmark::DoNotOptimize(weights.data());
  }
  bench::rates(state, count, count * 14);
}
BENCHMARK(BM_measure_and_lean)->Arg(8192)->Arg(131072);

void BM_add_means(benchmark::State& state) {
  const int head_dim = int(state.range(0)), heads = 3;
  const int64_t all = (int64_t{64} << 20) / (head_dim * 2);
  std::vector<int16_t> mean(all * head_dim, 77);
  std::vector<float> scale(all, 0.01f), weights(128, 0.01f), outs(heads * head_dim);
  std::vector<int32_t> blocks(128);
  const float* weight[heads] = {weights.data(), weights.data(), weights.data()};
  float* out[heads] = {outs.data(), outs.data() + head_dim, outs.data() + 2 * head_dim};
  int64_t first = 0;
  for (auto _ : state) {
    std::iota(blocks.begin(), blocks.end(), int32_t(first));
    add_means({{mean.data(), head_dim * 2}, {scale.data(), 4}}, head_dim, blocks.data(), weight, heads, 128, out);
    first = (first + 128) % (all - 128);
  }
  bench::rates(state, 128, 128 * head_dim * 2);
}
BENCHMARK(BM_add_means)->Arg(64)->Arg(128);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
