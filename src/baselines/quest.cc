#include "baselines/quest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/shape.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "baselines/quest.cc"
#include "hwy/foreach_target.h"

#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

// The bounds of four pages, those of one block. Sixteen sums a page, dimension d in sum d % 16, then added in order: one
// result on every machine.
void PageScores(const float* q, int head_dim, const float* bounds, float* scores) {
  const F32 d;
  constexpr int most = 16 / static_cast<int>(hn::MaxLanes(F32()));
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int page = 0; page < block_tokens / quest_page; page++, bounds += 2 * head_dim) {
    float total = 0;
    hn::Vec<F32> sums[most];
    for (int i = 0; i < most; i++) sums[i] = hn::Zero(d);
    for (int start = 0; start < head_dim; start += 16)
      for (int i = 0; i < most; i++) {
        const auto x = hn::LoadU(d, q + start + i * lanes);
        const auto low = hn::Mul(x, hn::LoadU(d, bounds + start + i * lanes));
        const auto high = hn::Mul(x, hn::LoadU(d, bounds + head_dim + start + i * lanes));
        sums[i] = hn::Add(sums[i], hn::IfThenElse(hn::Lt(low, high), high, low));  // as std::max
      }
    float each[16];
    for (int i = 0; i < most; i++) hn::StoreU(sums[i], d, each + i * lanes);
    for (float sum : each) total += sum;
    scores[page] = total;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {

HWY_EXPORT(PageScores);

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

uint32_t visible_of_page(const uint64_t* visible, int64_t page) {
  return visible[page / 4] >> (page % 4 * quest_page) & 0xFFFF;
}

}  // namespace

int64_t select_quest(const float* q, int head_dim, const QuestBounds& bounds, const uint64_t* visible, int64_t blocks,
                     int64_t budget, float* scores, int32_t* pages, int32_t* tokens) {
  int64_t count = 0;
  constexpr int64_t pages_of_block = block_tokens / quest_page;
  for (int64_t b = 0; b < blocks; b++) {
    if (visible[b] == 0) continue;
    const int64_t first = b * pages_of_block;
    HWY_DYNAMIC_DISPATCH(PageScores)(q, head_dim, bounds.of(b), scores + first);
    for (int64_t page = first; page < first + pages_of_block; page++)
      if (visible_of_page(visible, page) != 0) pages[count++] = static_cast<int32_t>(page);
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
    for_each_bit(visible_of_page(visible, pages[i]), [&](int t) { tokens[written++] = pages[i] * quest_page + t; });
  return written;
}

}  // namespace adamas
#endif
