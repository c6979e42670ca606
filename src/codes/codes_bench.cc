// Encoding a block (items are tokens), and checking the hashes of scattered rows (items are rows).
#include "codes/codes.h"
#include "core/bench.h"

namespace adamas {
namespace {

struct Blocks {
  Blocks(int head_dim, int64_t count)
      : layout{head_dim},
        memory(layout.head_bytes(count) / 8),
        scale(count),
        sigma(count),
        codes{reinterpret_cast<std::byte*>(memory.data()), count, scale.data(), sigma.data(), layout} {}
  BlockLayout layout;
  std::vector<uint64_t> memory;
  std::vector<float> scale, sigma;
  Codes codes;
};

void BM_encode_block(benchmark::State& state) {
  const int head_dim = int(state.range(0));
  const int64_t blocks = (int64_t{128} << 20) / (block_tokens * head_dim * 2);
  const std::vector<uint16_t> keys = bench::random_f16(blocks * block_tokens * head_dim);
  Blocks to(head_dim, blocks);
  std::vector<float> scratch(block_tokens * head_dim);
  int64_t b = 0;
  for (auto _ : state) {
    const Rows rows{reinterpret_cast<const std::byte*>(keys.data() + b * block_tokens * head_dim), DType::f16, head_dim * 2};
    encode_block(rows, head_dim, ~uint64_t{0}, false, Coding::by_block, true, to.codes.block(b), scratch.data());
    b = (b + 1) % blocks;
  }
  bench::rates(state, block_tokens, block_tokens * head_dim * 2 + int64_t(to.layout.block_bytes()));
}
BENCHMARK(BM_encode_block)->Arg(64)->Arg(128);

void BM_check_hashes(benchmark::State& state) {
  const int head_dim = int(state.range(0));
  const int64_t tokens = (int64_t{128} << 20) / (head_dim * 2);
  const std::vector<uint16_t> keys = bench::random_f16(tokens * head_dim);
  const Rows rows{reinterpret_cast<const std::byte*>(keys.data()), DType::f16, head_dim * 2};
  Blocks made(head_dim, blocks_of(tokens));
  std::mt19937 random(3);
  std::vector<int32_t> list(128);
  for (auto _ : state) {
    for (int32_t& token : list) token = int32_t(random() % tokens);
    benchmark::DoNotOptimize(count_stale(rows, head_dim, made.codes, list.data(), int64_t(list.size())));
  }
  bench::rates(state, int64_t(list.size()), int64_t(list.size()) * head_dim * 2);
}
BENCHMARK(BM_check_hashes)->Arg(64)->Arg(128);

}  // namespace
}  // namespace adamas

BENCHMARK_MAIN();
