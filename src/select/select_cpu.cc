#include "select/select.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/shape.h"

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

// The positions of the scores at or above the bound, in order. No branch: whether a token reaches it is a coin toss.
// Positions have 16 bits within a segment, as scores have, and 32 afterwards. positions: [count], because a whole vector is
// written at the place of its first entry, which is never beyond the vector's own; scratch: [count].
int64_t Gather(const int16_t* scores, int64_t count, int16_t bound, int32_t* positions, int16_t* scratch) {
  const I16 d;
  const I32 d32;
  const hn::RebindToUnsigned<I16> du;
  const hn::Rebind<uint16_t, I32> du16;
  constexpr int64_t segment = 65536;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), lanes32 = static_cast<int64_t>(hn::Lanes(d32));
  auto* in_segment = reinterpret_cast<uint16_t*>(scratch);
  const auto below = hn::Set(d, static_cast<int16_t>(bound - 1));
  int64_t written = 0;
  for (int64_t first = 0; first < count; first += segment) {
    int64_t reaching = 0;
    auto position = hn::Iota(du, 0);
    for (int64_t i = 0; i < std::min(segment, count - first); i += lanes) {
      const auto reached = hn::Gt(hn::LoadU(d, scores + first + i), below);
      hn::StoreU(hn::Compress(position, hn::RebindMask(du, reached)), du, in_segment + reaching);
      reaching += static_cast<int64_t>(hn::CountTrue(d, reached));
      position = hn::Add(position, hn::Set(du, static_cast<uint16_t>(lanes)));
    }
    for (int64_t i = 0; i < reaching; i += lanes32) {
      const auto wide = hn::PromoteTo(d32, hn::LoadU(du16, in_segment + i));
      hn::StoreU(hn::Add(wide, hn::Set(d32, static_cast<int32_t>(first))), d32, positions + written + i);
    }
    written += reaching;
  }
  return written;
}

// The positions of the k highest scores, in order; of equal ones the last. positions: [count]. Returns how many.
int64_t Highest(const int16_t* scores, int64_t count, int64_t k, int32_t* positions, int16_t* scratch) {
  const int16_t kth = KthLargest(scores, count, k);
  const int64_t reached = Gather(scores, count, kth, positions, scratch);
  int64_t to_skip = reached - k, written = 0;
  if (to_skip <= 0) return reached;
  for (int64_t i = 0; i < reached; i++) {
    const bool skipped = scores[positions[i]] == kth && to_skip > 0;
    to_skip -= skipped;
    positions[written] = positions[i];
    written += !skipped;
  }
  return written;
}

// Of gathered scores and their positions the k highest, moved to the front. Room for count to a multiple of 32; scratch:
// three times that.
int64_t Trim(int16_t* gathered, int64_t count, int64_t k, int32_t* positions, int16_t* scratch) {
  const int64_t padded = (count + 31) / 32 * 32;
  std::fill(gathered + count, gathered + padded, hidden_score);
  auto* chosen = reinterpret_cast<int32_t*>(scratch);  // [padded]
  const int64_t kept = Highest(gathered, padded, k, chosen, scratch + 2 * padded);
  for (int64_t i = 0; i < kept; i++) {
    positions[i] = positions[chosen[i]];
    gathered[i] = gathered[chosen[i]];
  }
  return kept;
}

// Of many scores first those that reach a bound that at least k do, from maxima, and few others.
int64_t Select(const int16_t* scores, int64_t count, int64_t k, int32_t* positions, int16_t* scratch) {
  if (k <= 0 || count <= 0) return 0;
  auto* candidates = reinterpret_cast<int32_t*>(scratch);  // [count]
  int16_t* gathered = scratch + 2 * count;                 // [count + 32]
  int16_t* rest = gathered + count + 32;                   // [3 count]
  int64_t rows = 16;                                       // of vectors, whose maxima are taken: at least twice as many as k
  while (rows > 1 && count / rows < 2 * k) rows /= 2;
  int64_t kept;
  if (rows < 4) {
    kept = Highest(scores, count, k, candidates, rest);
  } else {
    const int16_t bound = KthLargest(gathered, Maxima(scores, count, rows, gathered), k);
    const int64_t reached = Gather(scores, count, bound, candidates, rest);
    for (int64_t i = 0; i < reached; i++) gathered[i] = scores[candidates[i]];
    kept = Trim(gathered, reached, k, candidates, rest);
  }
  std::copy_n(candidates, kept, positions);
  return kept;
}

int64_t MarkReaching(const int16_t* scores, int64_t blocks, int16_t bound, const uint8_t* lower, int16_t other,
                     uint64_t* marked) {
  const I16 d;
  constexpr int lanes = static_cast<int>(hn::MaxLanes(I16()));
  int64_t total = 0;
  for (int64_t b = 0; b < blocks; b++) {
    const auto below = hn::Set(d, static_cast<int16_t>((lower != nullptr && lower[b] ? other : bound) - 1));
    uint64_t bits = 0;
    for (int t = 0; t < block_tokens; t += lanes) {
      uint8_t bytes[8] = {};
      hn::StoreMaskBits(d, hn::Gt(hn::LoadU(d, scores + b * block_tokens + t), below), bytes);
      bits |= bits_at<uint64_t>(bytes) << t;
    }
    marked[b] = bits;
    total += std::popcount(bits);
  }
  return total;
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

HWY_EXPORT(MarkReaching);
int64_t mark_reaching(const int16_t* scores, int64_t blocks, int16_t bound, const uint8_t* lower, int16_t other,
                      uint64_t* marked) {
  return HWY_DYNAMIC_DISPATCH(MarkReaching)(scores, blocks, bound, lower, other, marked);
}

HWY_EXPORT(HighestScore);
int16_t highest_score(const int16_t* scores, int64_t count) { return HWY_DYNAMIC_DISPATCH(HighestScore)(scores, count); }

}  // namespace adamas
#endif
