#include "select/select.h"

#include <algorithm>
#include <bit>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/select_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

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
  const I16 d;
  auto least = hn::Set(d, always_score), most = hn::Set(d, hidden_score);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto s = hn::LoadU(d, scores + i);
    least = hn::Min(least, s);
    most = hn::Max(most, s);
  }
  HWY_ALIGN int16_t ends[2][hn::MaxLanes(I16())];
  hn::StoreU(least, d, ends[0]);
  hn::StoreU(most, d, ends[1]);
  constexpr int16_t lowest = hidden_score + 1;
  int low = std::max(lowest, *std::min_element(ends[0], ends[0] + hn::Lanes(d)));
  int high = std::max(lowest, *std::max_element(ends[1], ends[1] + hn::Lanes(d)));
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

// The scores at or above the bound, in order, with their positions, which are 32-bit: half as many to a vector. Both arrays have room for count: a whole vector is written
// at the place of its first entry, which is never beyond the vector's own.
int64_t Gather(const int16_t* scores, int64_t count, int16_t bound, int32_t* positions, int16_t* gathered) {
  const I16 d;
  const I32 d32;
  const hn::Rebind<int16_t, I32> d16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), lanes32 = static_cast<int64_t>(hn::Lanes(d32));
  const auto below = hn::Set(d, static_cast<int16_t>(bound - 1));
  const auto below32 = hn::Set(d32, bound - 1);
  const auto iota = hn::Iota(d32, 0);
  int64_t written = 0;
  for (int64_t i = 0; i < count; i += lanes) {
    if (hn::AllFalse(d, hn::Gt(hn::LoadU(d, scores + i), below))) continue;  // the best tokens stand in groups
    for (int64_t j = i; j < i + lanes; j += lanes32) {
      const auto s = hn::PromoteTo(d32, hn::LoadU(d16, scores + j));
      const auto reached = hn::Gt(s, below32);
      hn::StoreU(hn::Compress(hn::Add(iota, hn::Set(d32, static_cast<int32_t>(j))), reached), d32, positions + written);
      hn::StoreU(hn::DemoteTo(d16, hn::Compress(s, reached)), d16, gathered + written);
      written += static_cast<int64_t>(hn::CountTrue(d32, reached));
    }
  }
  return written;
}

// Of gathered scores, in order, the positions of those above kth, and of those equal to it all but the first `ties_to_skip`: moved to
// the front. Returns how many. No branch: what is kept is a coin toss.
int64_t Keep(const int16_t* gathered, int32_t* positions, int64_t count, int16_t kth, int64_t ties_to_skip) {
  int64_t written = 0;
  for (int64_t i = 0; i < count; i++) {
    const bool tie = gathered[i] == kth;
    ties_to_skip -= tie;
    positions[written] = positions[i];
    written += (gathered[i] > kth) | (tie & (ties_to_skip < 0));
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
  const int64_t kept = Keep(gathered, candidates, reached, kth, std::max<int64_t>(0, ties - (k - above)));
  std::copy_n(candidates, kept, positions);
  return kept;
}

int64_t SelectReaching(const int16_t* scores, int64_t count, int16_t bound, int64_t least, int64_t most, int32_t* positions,
                       int16_t* selected, int16_t* scratch) {
  const int64_t reached = Gather(scores, count, std::max<int16_t>(bound, hidden_score + 1), positions, selected);
  if (least <= reached && reached <= most) return reached;
  const int64_t kept = Select(scores, count, reached < least ? least : most, positions, scratch);
  for (int64_t i = 0; i < kept; i++) selected[i] = scores[positions[i]];
  return kept;
}

int16_t HighestScore(const int16_t* scores, int64_t count) {
  const I16 d;
  auto most = hn::Set(d, hidden_score);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) most = hn::Max(most, hn::LoadU(d, scores + i));
  HWY_ALIGN int16_t lanes[hn::MaxLanes(I16())];
  hn::StoreU(most, d, lanes);
  return *std::max_element(lanes, lanes + hn::Lanes(d));
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

HWY_EXPORT(SelectReaching);
int64_t select_reaching(const int16_t* scores, int64_t count, int16_t bound, int64_t least, int64_t most, int32_t* positions,
                        int16_t* selected, int16_t* scratch) {
  return HWY_DYNAMIC_DISPATCH(SelectReaching)(scores, count, bound, least, most, positions, selected, scratch);
}

HWY_EXPORT(HighestScore);
int16_t highest_score(const int16_t* scores, int64_t count) { return HWY_DYNAMIC_DISPATCH(HighestScore)(scores, count); }

}  // namespace adamas
#endif
