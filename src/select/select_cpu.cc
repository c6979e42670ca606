#include "select/select.h"

#include <algorithm>
#include <bit>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/select_cpu.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using I16 = hn::CappedTag<int16_t, 32>;

int64_t CountAbove(const int16_t* scores, int64_t count, int16_t bound) {
  const I16 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto b = hn::Set(d, bound);
  int64_t total = 0;
  for (int64_t i = 0; i < count; i += lanes)
    total += static_cast<int64_t>(hn::CountTrue(d, hn::Gt(hn::LoadU(d, scores + i), b)));
  return total;
}

// The largest bound that at least k scores reach; the lowest visible score when fewer than k are visible.
// count: a multiple of 32.
int16_t KthLargest(const int16_t* scores, int64_t count, int64_t k) {
  int low = hidden_score + 1, high = always_score;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (CountAbove(scores, count, static_cast<int16_t>(middle - 1)) >= k)
      low = middle;
    else
      high = middle - 1;
  }
  return static_cast<int16_t>(low);
}

// The maxima of `rows` vectors at a time, lane by lane: [count / rows] of them. k of the maxima at or above a bound mean at
// least k scores at or above it.
int64_t Maxima(const int16_t* scores, int64_t count, int64_t rows, int16_t* maxima) {
  const I16 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t written = 0;
  for (int64_t start = 0; start < count; start += rows * lanes) {
    auto best = hn::Set(d, hidden_score);
    for (int64_t i = start; i < std::min(count, start + rows * lanes); i += lanes)
      best = hn::Max(best, hn::LoadU(d, scores + i));
    hn::StoreU(best, d, maxima + written);
    written += lanes;
  }
  for (; written % 32 != 0; written++) maxima[written] = hidden_score;
  return written;
}

// The scores at or above the bound, in order, with their positions.
int64_t Gather(const int16_t* scores, int64_t count, int16_t bound, int32_t* positions, int16_t* gathered) {
  const I16 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto below = hn::Set(d, static_cast<int16_t>(bound - 1));
  int64_t written = 0;
  for (int64_t i = 0; i < count; i += lanes) {
    const auto reached = hn::Gt(hn::LoadU(d, scores + i), below);
    if (hn::AllFalse(d, reached)) continue;
    uint8_t bytes[8] = {};
    hn::StoreMaskBits(d, reached, bytes);
    uint32_t bits;
    std::memcpy(&bits, bytes, sizeof bits);
    for (; bits != 0; bits &= bits - 1) {
      const int64_t position = i + std::countr_zero(bits);
      positions[written] = static_cast<int32_t>(position);
      gathered[written++] = scores[position];
    }
  }
  return written;
}

// Three steps: a bound that at least k scores reach, from maxima, so that few scores reach it; the scores that do; the exact
// k-th among them, and of those equal to it the last ones.
int64_t Select(const int16_t* scores, int64_t count, int64_t k, int32_t* positions, int16_t* scratch) {
  if (k <= 0 || count <= 0) return 0;
  int64_t rows = 16;
  while (rows > 1 && count / rows < 2 * k) rows /= 2;
  int16_t* maxima = scratch;
  int16_t bound = hidden_score + 1;
  if (rows > 1) bound = KthLargest(maxima, Maxima(scores, count, rows, maxima), k);

  auto* candidates = reinterpret_cast<int32_t*>(scratch);  // [count]; the maxima are done with
  int16_t* gathered = scratch + 2 * count;                 // [count + 32]
  const int64_t reached = Gather(scores, count, bound, candidates, gathered);
  for (int64_t i = reached; i < reached + 32; i++) gathered[i] = hidden_score;

  const int64_t padded = (reached + 31) / 32 * 32;
  const int16_t kth = KthLargest(gathered, padded, k);
  const int64_t above = CountAbove(gathered, padded, kth);
  const int64_t ties = CountAbove(gathered, padded, static_cast<int16_t>(kth - 1)) - above;
  int64_t ties_to_skip = std::max<int64_t>(0, ties - (k - above));
  int64_t written = 0;
  for (int64_t i = 0; i < reached; i++) {
    if (gathered[i] < kth || (gathered[i] == kth && ties_to_skip-- > 0)) continue;
    positions[written++] = candidates[i];
  }
  return written;
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {

HWY_EXPORT(Select);
int64_t select(const int16_t* scores, int64_t count, int64_t k, int32_t* positions, int16_t* scratch) {
  return HWY_DYNAMIC_DISPATCH(Select)(scores, count, k, positions, scratch);
}

}  // namespace adamas
#endif
