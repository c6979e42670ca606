#include "baselines/quest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/shape.h"

namespace adamas {

void quest_bounds(const Rows& rows, int head_dim, int64_t first_token, uint32_t live, float* min, float* max) {
  std::fill_n(min, head_dim, live != 0 ? std::numeric_limits<float>::infinity() : 0.0f);
  std::fill_n(max, head_dim, live != 0 ? -std::numeric_limits<float>::infinity() : 0.0f);
  for_each_bit(live, [&](int t) {
    const std::byte* row = rows.row(first_token + t);
    for (int d = 0; d < head_dim; d++) {
      const float loaded = load_f32(row, rows.dtype, d);
      const float x = std::isnan(loaded) ? 0.0f : loaded;
      min[d] = std::min(min[d], x);
      max[d] = std::max(max[d], x);
    }
  });
}

namespace {

// Sixteen sums, dimension d in sum d % 16, then added in order: one result on every machine, and a shape that a compiler
// turns into vectors.
float page_bound(const float* q, const float* min, const float* max, int head_dim) {
  float sums[16] = {};
  for (int start = 0; start < head_dim; start += 16)
    for (int i = 0; i < 16; i++)
      sums[i] += std::max(q[start + i] * min[start + i], q[start + i] * max[start + i]);
  float total = 0;
  for (float sum : sums) total += sum;
  return total;
}

uint32_t visible_of_page(const uint64_t* visible, int64_t page) {
  return visible[page / 4] >> (page % 4 * quest_page) & 0xFFFF;
}

}  // namespace

int64_t select_quest(const float* q, int head_dim, const float* bounds, const uint64_t* visible, int64_t blocks,
                     int64_t budget, float* scores, int32_t* pages, int32_t* tokens) {
  int64_t count = 0;
  for (int64_t page = 0; page < blocks * block_tokens / quest_page; page++) {
    if (visible_of_page(visible, page) == 0) continue;
    scores[page] = page_bound(q, bounds + page * 2 * head_dim, bounds + (page * 2 + 1) * head_dim, head_dim);
    pages[count++] = static_cast<int32_t>(page);
  }
  if (count == 0) return 0;
  const int64_t kept = std::min<int64_t>(count, std::max<int64_t>(1, budget / quest_page));
  const int32_t newest = pages[count - 1];
  const auto better = [&](int32_t a, int32_t b) {
    if ((a == newest) != (b == newest)) return a == newest;
    return scores[a] != scores[b] ? scores[a] > scores[b] : a > b;
  };
  std::nth_element(pages, pages + kept - 1, pages + count, better);
  std::sort(pages, pages + kept);
  int64_t written = 0;
  for (int64_t i = 0; i < kept; i++)
    for_each_bit(visible_of_page(visible, pages[i]),
                 [&](int t) { tokens[written++] = pages[i] * quest_page + t; });
  return written;
}

}  // namespace adamas
