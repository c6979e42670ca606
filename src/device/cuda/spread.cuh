// The reference deviation of a set of blocks: the largest of theirs, but at most 16 times the median to a power of two.
#pragma once

#include "device/cuda/common.cuh"

namespace adamas::cuda {

__device__ inline int exponent_of(float sigma) { return int(__float_as_uint(sigma) >> 23); }

// Of how many deviations have each exponent, without those that are 0, and of the largest. A warp's.
__device__ inline float reference_of(const int (&exponents)[256], float largest) {
  const int lane = threadIdx.x % 32;
  int counts[8], mine = 0;
  for (int i = 0; i < 8; i++) mine += counts[i] = exponents[8 * lane + i];
  int below = mine;
  for (int o = 1; o < 32; o *= 2) {
    const int v = __shfl_up_sync(~0u, below, o);
    if (lane >= o) below += v;
  }
  const int all = __shfl_sync(~0u, below, 31), wanted = (all + 1) / 2;
  below -= mine;
  int median = -1;
  if (below < wanted && below + mine >= wanted)
    for (int i = 0; i < 8 && median < 0; i++)
      if ((below += counts[i]) >= wanted) median = 8 * lane + i;
  median = __reduce_max_sync(~0u, median);
  return all == 0 ? 0.0f : fminf(largest, ldexpf(1.0f, min(median - 127 + 4, 127)));
}

// A deviation's part of Spread::squares.
__device__ inline unsigned long long square_of(float sigma, float reference) {
  const double part = reference > 0 ? fmin(double(sigma), double(reference)) / double(reference) : 0.0;
  return __double2ull_rn(part * part * spread_one);
}

}  // namespace adamas::cuda
