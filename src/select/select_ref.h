// What the selection means: sort all, keep k.
#pragma once

#include <algorithm>
#include <vector>

#include "select/select.h"

namespace adamas::ref {

inline std::vector<int32_t> select(const int16_t* scores, int64_t count, int64_t k) {
  std::vector<int32_t> order;
  for (int64_t i = 0; i < count; i++)
    if (scores[i] != hidden_score) order.push_back(int32_t(i));
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a > b; });
  if (int64_t(order.size()) > k) order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace adamas::ref
