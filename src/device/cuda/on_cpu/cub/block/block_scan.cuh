#pragma once

#include "cub/block/values.cuh"

namespace cub {

// Of all threads of a block.
template <class T, int threads>
struct BlockScan : BlockValues<T, threads> {
  using BlockValues<T, threads>::BlockValues, BlockValues<T, threads>::room;
  void ExclusiveSum(T own, T& before, T& all) {
    room.values[threadIdx.x] = own;
    __syncthreads();
    before = all = 0;
    for (unsigned i = 0; i < unsigned(threads); i++) {
      if (i < threadIdx.x) before += room.values[i];
      all += room.values[i];
    }
    __syncthreads();
  }
};

}  // namespace cub
