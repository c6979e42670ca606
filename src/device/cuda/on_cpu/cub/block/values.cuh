// A value of each thread of a block, where all can see it: what cub's functions of a block stand on here.
#pragma once

#include "cuda_runtime.h"

namespace cub {

template <class T, int threads>
struct BlockValues {
  struct TempStorage {
    T values[threads];
  };
  explicit BlockValues(TempStorage& room) : room(room) {}
  TempStorage& room;
};

}  // namespace cub
