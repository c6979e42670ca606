// What the machine has, to compare with.
#pragma once

#include <cstdint>

namespace cli::kernel {

std::int64_t last_level_cache();  // bytes
std::int64_t free_memory();       // bytes that a program can get without swapping

// Bytes a second that so many threads read together from an array far larger than the caches: the best of several passes.
double memory_bandwidth(int threads);

}  // namespace cli::kernel
