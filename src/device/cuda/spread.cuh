// The reference deviation of a set of blocks: the largest of theirs, but at most 16 times the median to a power of two.
#pragma once

#include "device/cuda/common.cuh"

namespace adamas::cuda {

__device__ inline int exponent_of(float sigma) { return int(__float_as_uint(sigma) >> 23); }

// Of how many deviations have each exponent, without those that are 0, and of the largest. A warp's.
__device__ inline float reference_of(const int (&exponents)[256], float largest) {
  int all = 0, median[1];
  for (int i = threadIdx.x % 32; i < 256; i += 32) all += exponents[i];
  all = __reduce_add_sync(~0u, all);
  bins_reaching(exponents, {(all + 1) / 2}, median);
  return all == 0 ? 0.0f : fminf(largest, ldexpf(1.0f, min(median[0] - 127 + 4, 127)));
}

// A deviation's part of Spread::squares.
__device__ inline unsigned long long square_of(float sigma, float reference) {
  const double part = reference > 0 ? fmin(double(sigma), double(reference)) / double(reference) : 0.0;
  return __double2ull_rn(part * part * spread_one);
}

}  // namespace adamas::cuda
