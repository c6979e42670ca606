// StreamingLLM (arXiv 2309.17453): the first `sinks` tokens and the most recent budget - sinks. It reads no key at all.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/shape.h"

namespace adamas {

// visible: [blocks], `count` bits set in all, count > budget. tokens: [budget], ascending. Returns budget.
inline int64_t select_streaming(const uint64_t* visible, int64_t blocks, int64_t count, int64_t budget, int64_t sinks,
                                int32_t* tokens) {
  const int64_t first_recent = count - (budget - sinks);
  int64_t rank = 0, written = 0;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t in_block = std::popcount(visible[b]);
    if (rank < sinks || rank + in_block > first_recent)
      for_each_bit(visible[b], [&, r = rank](int t) mutable {
        if (r < sinks || r >= first_recent) tokens[written++] = static_cast<int32_t>(b * block_tokens + t);
        r++;
      });
    rank += in_block;
  }
  return written;
}

}  // namespace adamas
