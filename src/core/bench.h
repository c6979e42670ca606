// What the benchmarks of all stages share: shapes, and rows that no cache holds.
#pragma once

#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "core/shape.h"
#include "core/rows.h"

namespace adamas::bench {

// Random f16 rows of magnitude 0.125 to 2.
inline std::vector<uint16_t> random_f16(int64_t count) {
  std::mt19937 random(1);
  std::vector<uint16_t> values(count);
  for (uint16_t& x : values) x = uint16_t(0x3000 | (random() & 0x8FFF));
  return values;
}

inline std::vector<float> random_f32(int64_t count) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& x : values) x = normal(random);
  return values;
}

// Bytes and items as rates, which Google Benchmark prints beside the time. The memory's own rate is the line
// BM_memory_read of the attend benchmark.
inline void rates(benchmark::State& state, int64_t items, int64_t bytes) {
  state.SetItemsProcessed(state.iterations() * items);
  state.SetBytesProcessed(state.iterations() * bytes);
}

}  // namespace adamas::bench
