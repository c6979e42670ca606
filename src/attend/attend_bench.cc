// Attention of one core over 128 scattered tokens and over all tokens of a range (items are tokens times query heads), and
// the rate at which the memory can be read at all.
#include <numeric>

#include "attend/attend.h"
#include "core/bench.h"

namespace adamas {
namespace {

struct Memory {
  explicit Memory(int head_dim)
      : head_dim(head_dim), tokens((int64_t{128} << 20) / (head_dim * 2)), k(bench::random_f16(tokens * head_dim)), v(k) {}
  Attention attention() const {
    const auto rows = [&](const std::vector<uint16_t>& m) {
      return Rows{reinterpret_cast<const std::byte*>(m.data()), DType::f16, head_dim * 2};
    };
    return {head_dim, 0.1f, 0, rows(k), rows(v), nullptr};
  }
  int head_dim;
  int64_t tokens;
  std::vector<uint16_t> k, v;
};

struct Heads {
  Heads(int heads, int head_dim) : q(bench::random_f32(heads * head_dim)), outs(heads * head_dim), states(heads) {
    for (int h = 0; h < heads; h++) {
      queries.push_back(q.data() + h * head_dim);
      slopes.push_back(1);
      states[h].out = outs.data() + h * head_dim;
      states[h].clear(head_dim);
    }
  }
  std::vector<float> q, outs, slopes;
  std::vector<const float*> queries;
  std::vector<SoftmaxState> states;
};

void BM_attend_list(benchmark::State& state) {
  const int head_dim = int(state.range(0));
  const Memory memory(head_dim);
  Heads heads(1, head_dim);
  std::mt19937 random(3);
  std::vector<int32_t> list(128);
  for (auto _ : state) {
    for (int32_t& token : list) token = int32_t(random() % memory.tokens);
    attend_list(memory.attention(), heads.queries.data(), heads.slopes.data(), 1, list.data(), 128, heads.states.data());
  }
  bench::rates(state, 128, 128 * head_dim * 4);
}
BENCHMARK(BM_attend_list)->Arg(64)->Arg(128);

void BM_attend_range(benchmark::State& state) {
  const int head_dim = int(state.range(0)), count = int(state.range(1));
  const Memory memory(head_dim);
  Heads heads(count, head_dim);
  const int64_t blocks = 128, all_blocks = memory.tokens / block_tokens;
  const std::vector<uint64_t> visible(all_blocks, ~uint64_t{0});
  int64_t first = 0;
  for (auto _ : state) {
    attend_range(memory.attention(), heads.queries.data(), heads.slopes.data(), count, visible.data(), first, first + blocks,
                 heads.states.data());
    first = (first + blocks) % (all_blocks - blocks);
  }
  bench::rates(state, count * blocks * block_tokens, blocks * block_tokens * head_dim * 4);
}
BENCHMARK(BM_attend_range)->Args({64, 1})->Args({64, 3})->Args({128, 1})->Args({128, 4});

void BM_memory_read(benchmark::State& state) {
  const std::vector<uint64_t> memory(size_t{256} << 17, 1);
  for (auto _ : state) benchmark::DoNotOptimize(std::accumulate(memory.begin(), memory.end(), uint64_t{0}));
  bench::rates(state, 1, int64_t(memory.size()) * 8);
}
BENCHMARK(BM_memory_read)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
