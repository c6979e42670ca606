#include "machine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

namespace cli::kernel {

std::int64_t last_level_cache() {
  const long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return size > 0 ? size : std::int64_t{32} << 20;  // a virtual machine may hide it
}

std::int64_t free_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("MemAvailable:")) return std::stoll(line.substr(13)) * 1024;
  return std::numeric_limits<std::int64_t>::max();
}

double memory_bandwidth(int threads) {
  constexpr std::int64_t part = 4096;  // words; small enough that threads end together
  const std::int64_t parts = std::max(4 * last_level_cache(), std::int64_t{256} << 20) / (part * 8);
  std::vector<std::uint64_t> memory(static_cast<std::size_t>(parts * part), 1);
  double best = 0;
  std::uint64_t sum = 0;
  for (int pass = 0; pass < 6; pass++) {
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
    for (std::int64_t i = 0; i < parts; i++) {
      std::uint64_t sums[8]{};  // independent, so that no addition waits for another
      for (std::int64_t word = i * part; word < (i + 1) * part; word += 8)
        for (int j = 0; j < 8; j++) sums[j] += memory[static_cast<std::size_t>(word + j)];
      for (const std::uint64_t one : sums) sum += one;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    memory[0] += sum & 1;  // the sum is wanted: the passes are not optimised away
    best = std::max(best, static_cast<double>(memory.size() * 8) / seconds);
  }
  return best;
}

}  // namespace cli::kernel
