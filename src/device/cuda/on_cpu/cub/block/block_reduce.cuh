#pragma once

#include "cub/block/values.cuh"

namespace cub {

// Of all threads of a block; the first one's result counts.
template <class T, int threads>
struct BlockReduce : BlockValues<T, threads> {
  using BlockValues<T, threads>::BlockValues, BlockValues<T, threads>::room;
  template <class Merge>
  T Reduce(T own, Merge&& merge) {
    room.values[threadIdx.x] = own;
    __syncthreads();
    T all = room.values[0];
    for (int i = 1; i < threads; i++) all = merge(all, room.values[i]);
    __syncthreads();
    return all;
  }
  T Sum(T own) {
    return Reduce(own, [](T a, T b) { return a + b; });
  }
};

}  // namespace cub
