// What the rotation means, in double precision: the sum over the matrix, entry by entry.
#pragma once

#include <bit>
#include <cmath>
#include <vector>

#include "hadamard/hadamard.h"

namespace adamas::ref {

inline std::vector<double> rotate(const float* row, int head_dim) {
  const int n = rotation_block(head_dim);
  std::vector<double> out(head_dim);
  for (int i = 0; i < head_dim; i++) {
    const int start = i - i % n;
    double sum = 0;
    for (int j = 0; j < n; j++) {
      const bool negative = std::popcount(static_cast<unsigned>((i - start) & j)) % 2 == 1;
      sum += negative ? -double{row[start + j]} : double{row[start + j]};
    }
    out[i] = sum / std::sqrt(double(n));
  }
  return out;
}

}  // namespace adamas::ref
