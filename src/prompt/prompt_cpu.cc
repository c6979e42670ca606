#include "prompt/prompt.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "prompt/prompt_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/load-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

using Floats = hn::Vec<F32>;
using Ints = hn::Vec<I32>;

// Queries lie across the lanes, so nothing is ever summed across them: a tile is `width` vectors of queries, and products of
// `height` keys (or dimensions of V) with them stay in registers: 24 of 32, or 8 of 16 where there are no more.
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
constexpr int width = 3, height = 8;
#else
constexpr int width = 2, height = 4;
#endif
HWY_INLINE int lanes() { return static_cast<int>(hn::Lanes(F32())); }
HWY_INLINE int tile() { return width * lanes(); }

constexpr float norm_of_rows = 32700, norm_of_values = 16000, most_weight = 16383;
constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;
constexpr float unseen = -1e30f;  // the largest score where there is none: finite, so that differences are numbers
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// sum += a.lower b.lower + a.upper b.upper, of the 16-bit halves of each lane.
HWY_INLINE Ints DotPair(Ints sum, Ints a, Ints b) {
#if HWY_TARGET == HWY_AVX3_DL
  // Highway 1.0 requires VNNI of the machine for this set, but has no operation for it; and of its intrinsic g++ 12 makes
  // code that moves every sum through memory, at half the speed.
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
#elif HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  const hn::Repartition<int16_t, I32> d16;
  Ints unused = hn::Zero(I32());
  return hn::ReorderWidenMulAccumulate(I32(), hn::BitCast(d16, a), hn::BitCast(d16, b), sum, unused);
#else
  const auto lower = [](Ints x) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(x)); };
  sum = hn::Add(sum, hn::Mul(lower(a), lower(b)));
  return hn::Add(sum, hn::Mul(hn::ShiftRight<16>(a), hn::ShiftRight<16>(b)));
#endif
}

HWY_INLINE Ints Pair(Ints lower, Ints upper) {
  return hn::Or(hn::And(lower, hn::Set(I32(), 0xFFFF)), hn::ShiftLeft<16>(upper));
}

template <int W, int... I, class Visit>
HWY_INLINE void ProductsOf(std::integer_sequence<int, I...>, const int32_t* HWY_RESTRICT a, int row, int step,
                           const int32_t* HWY_RESTRICT b, int pairs, Visit&& visit) {
  const I32 d;
  const int n_lanes = lanes();
  Ints sums[] = {(static_cast<void>(I), hn::Zero(d))...};
  for (int p = 0; p < pairs; p++, a += step, b += width * n_lanes)
    ((sums[I] = DotPair(sums[I], hn::Load(d, b + I % W * n_lanes), hn::Set(d, a[I / W * row]))), ...);
  (visit(I / W, I % W, sums[I]), ...);
}
// visit(m, n, sum over the pairs of a[m * row + step * pair] . b[pair * tile + n]), m < height, for W vectors n of a tile.
template <int W = width, class Visit>
HWY_INLINE void Products(const int32_t* HWY_RESTRICT a, int row, int step, const int32_t* HWY_RESTRICT b, int pairs,
                         Visit&& visit) {
  ProductsOf<W>(std::make_integer_sequence<int, height * W>(), a, row, step, b, pairs, visit);
}

template <class T>
HWY_INLINE float SumOfSquares(const T* row, int head_dim) {
  const F32 d;
  auto squares = hn::Zero(d);
  for (int i = 0; i < head_dim; i += lanes()) {
    const auto x = load(d, row, i);
    squares = hn::MulAdd(x, x, squares);
  }
  return hn::GetLane(hn::SumOfLanes(d, squares));
}

// A row, of norm norm_of_rows, as whole numbers. Returns what they are to be multiplied by; NaN when it has no finite norm.
template <class T>
HWY_INLINE float PackRow(const T* row, int head_dim, int16_t* to) {
  const F32 d;
  const hn::Rebind<int16_t, F32> d16;
  const float norm = std::sqrt(SumOfSquares(row, head_dim));
  const bool finite = norm < std::numeric_limits<float>::infinity();
  const auto inverse = hn::Set(d, finite && norm > 0 ? norm_of_rows / norm : 0.0f);
  for (int i = 0; i < head_dim; i += lanes()) {
    const auto x = finite ? hn::Mul(load(d, row, i), inverse) : hn::Zero(d);
    hn::StoreU(hn::DemoteTo(d16, hn::NearestInt(x)), d16, to + i);
  }
  return finite ? norm / norm_of_rows : std::numeric_limits<float>::quiet_NaN();
}

// A block of keys: pairs of dimensions, and what each key is to be multiplied by. Rows that are not live become zeros.
// Returns the rows that are no numbers.
uint64_t PackKeys(const PromptContext& a, int64_t block, uint64_t live, PromptRoom& room) {
  uint64_t spoilt = 0;
  float* scales = room.of_block.get();
  with_dtype(a.k.dtype, [&]<class T>(T) {
    for (int t = 0; t < block_tokens; t++) {
      auto* to = reinterpret_cast<int16_t*>(room.k.get() + t * a.head_dim / 2);
      scales[t] = 0;
      if (live >> t & 1)
        scales[t] = PackRow(reinterpret_cast<const T*>(a.k.row(block * block_tokens + t)), a.head_dim, to);
      else
        std::fill_n(to, a.head_dim, int16_t{0});
      if (std::isnan(scales[t])) {
        scales[t] = 0;
        spoilt |= uint64_t{1} << t;
      }
    }
  });
  return spoilt;
}

// Whether a row of V has an element that is no finite number, or whose square is none.
template <class T>
HWY_INLINE bool IsSpoilt(const T* row, int head_dim) {
  return !(SumOfSquares(row, head_dim) < std::numeric_limits<float>::infinity());
}

// A block of values: pairs of tokens, and what each dimension is to be multiplied by. Returns the rows that are no numbers.
uint64_t PackValues(const PromptContext& a, int64_t block, uint64_t live, PromptRoom& room) {
  const F32 d;
  uint64_t spoilt = 0;
  float* scales = room.of_block.get() + block_tokens;
  with_dtype(a.v.dtype, [&]<class T>(T) {
    const T* rows[block_tokens];
    for (int t = 0; t < block_tokens; t++)
      rows[t] = live >> t & 1 ? reinterpret_cast<const T*>(a.v.row(block * block_tokens + t)) : nullptr;
    for (int attempt = 0; attempt < 2; attempt++) {
      std::fill_n(scales, a.head_dim, 0.0f);
      for (int t = 0; t < block_tokens; t++) {
        if (rows[t] == nullptr) continue;
        for (int i = 0; i < a.head_dim; i += lanes()) {
          const auto x = load(d, rows[t], i);
          hn::Store(hn::MulAdd(x, x, hn::Load(d, scales + i)), d, scales + i);
        }
      }
      bool finite = true;
      for (int i = 0; i < a.head_dim; i++) finite &= scales[i] < std::numeric_limits<float>::infinity();
      if (finite) break;
      for (int t = 0; t < block_tokens; t++)  // rare
        if (rows[t] != nullptr && IsSpoilt(rows[t], a.head_dim)) {
          rows[t] = nullptr;
          spoilt |= uint64_t{1} << t;
        }
    }
    for (int i = 0; i < a.head_dim; i += lanes()) {
      const auto norm = hn::Sqrt(hn::Load(d, scales + i));
      const auto none = hn::Eq(norm, hn::Zero(d));
      const auto inverse = hn::IfThenZeroElse(none, hn::Div(hn::Set(d, norm_of_values), norm));
      const auto whole = [&](int t) HWY_ATTR {
        return rows[t] == nullptr ? hn::Zero(I32()) : hn::NearestInt(hn::Mul(load(d, rows[t], i), inverse));
      };
      for (int t = 0; t < block_tokens; t += 2)
        hn::Store(Pair(whole(t), whole(t + 1)), I32(), room.v.get() + t / 2 * a.head_dim + i);
      hn::Store(hn::Mul(norm, hn::Set(d, 1 / norm_of_values)), d, scales + i);
    }
  });
  return spoilt;
}

// The queries of a tile, and what is known of them so far.
struct Tile {
  const PromptQuery* queries;
  int count;         // of them; the others of the tile are zeros
  int32_t* q;        // [head_dim / 2, tile]
  float* out;        // [head_dim, tile]
  float* scale;      // [tile] of a product: to a score, to base 2
  float* reference;  // [tile] score that weights are relative to, to base 2
  float* sum;        // [tile] of weights
  float* slope;      // [tile]
  float* left_out;   // [tile] what the blocks left out weigh, at most
  float* share;      // [tile] of its softmax that a query leaves out with a block; 0: none
  int64_t blocks;    // that any query sees
  int64_t whole;     // of them, from the first on, all of whose tokens every query sees
  bool biased;       // some score has a bias
  bool sparse;       // some query leaves blocks out
};

Tile MakeTile(const PromptContext& a, const PromptQuery* queries, int count, int index, PromptRoom& room) {
  const int n = tile();
  float* of_query = room.of_query.get() + index * 6 * n;
  Tile to{queries,
          count,
          room.q.get() + index * a.head_dim / 2 * n,
          room.out.get() + index * a.head_dim * n,
          of_query,
          of_query + n,
          of_query + 2 * n,
          of_query + 3 * n,
          of_query + 4 * n,
          of_query + 5 * n,
          0,
          queries->row->blocks,
          false,
          false};
  std::fill_n(to.q, a.head_dim / 2 * n, 0);
  std::fill_n(to.out, a.head_dim * n, 0.0f);
  for (int j = 0; j < n; j++) {
    to.reference[j] = unseen;
    to.scale[j] = to.sum[j] = to.slope[j] = to.left_out[j] = 0;
    to.share[j] = 1e30f;  // where there is no query, nothing is missed
    if (j >= count) continue;
    const PromptQuery& query = queries[j];
    to.share[j] = query.sparse ? negligible_block : 0.0f;
    to.sparse |= query.sparse;
    HWY_ALIGN int16_t row[max_head_dim];
    const float scale =
        with_dtype(query.q_dtype, [&]<class T>(T) { return PackRow(reinterpret_cast<const T*>(query.q), a.head_dim, row); });
    for (int i = 0; i < a.head_dim / 2; i++) std::memcpy(to.q + i * n + j, row + 2 * i, sizeof(int32_t));
    if (std::isnan(scale))
      to.sum[j] = scale;
    else
      to.scale[j] = scale * a.scale * log2_e;
    to.slope[j] = query.slope;
    if (j > 0 && query.row == queries[j - 1].row) continue;
    const PromptRow& row_seen = *query.row;
    to.blocks = std::max(to.blocks, row_seen.blocks);
    to.biased |= row_seen.biased;
    int64_t whole = 0;
    while (whole < std::min(to.whole, row_seen.blocks) && ~row_seen.visible[whole] == 0) whole++;
    to.whole = whole;
  }
  return to;
}

// Scores of a block's keys, before the query's own scale: room.scores [64, tile].
HWY_INLINE void Scores(const PromptContext& a, const Tile& to, PromptRoom& room, Floats (&largest)[width]) {
  const F32 d;
  for (int n = 0; n < width; n++) largest[n] = hn::Set(d, minus_infinity);
  for (int t = 0; t < block_tokens; t += height) {
    float* scores = room.scores.get() + t * tile();
    Products(room.k.get() + t * a.head_dim / 2, a.head_dim / 2, 1, to.q, a.head_dim / 2,
             [&](int m, int n, Ints sum) HWY_ATTR {
               const auto score = hn::Mul(hn::ConvertTo(d, sum), hn::Set(d, room.of_block[t + m]));
               hn::Store(score, d, scores + m * tile() + n * lanes());
               largest[n] = hn::Max(largest[n], score);
             });
  }
}

// The biases of a block's tokens: room.biases [64, tile], 0 where there is none.
void FindBiases(const Tile& to, int64_t block, const uint64_t* visible, PromptRoom& room) {
  const int n = tile();
  std::fill_n(room.biases.get(), block_tokens * n, 0.0f);
  for (int j = 0; j < to.count; j++) {
    const PromptRow& row = *to.queries[j].row;
    if (!row.biased) continue;
    const auto bias_at = [&](auto bias) {
      for_each_bit(visible[j], [&](int t) { room.biases[t * n + j] = to.slope[j] * bias(block * block_tokens + t); });
    };
    if (row.mask == nullptr)
      bias_at([&](int64_t token) { return static_cast<float>(token - row.newest); });
    else
      with_dtype(row.mask_dtype, [&]<class T>(T) {
        bias_at([&](int64_t token) { return element(reinterpret_cast<const T*>(row.mask), token); });
      });
  }
}

// Scores with all that is rare: softcap, bias, hidden tokens (-inf). They are whole then, to base 2.
void Complete(const PromptContext& a, const Tile& to, const uint64_t* visible, PromptRoom& room, Floats (&largest)[width]) {
  const F32 d;
  const I32 di;
  HWY_ALIGN int32_t seen[2][prompt_tile];
  for (int j = 0; j < tile(); j++) {
    seen[0][j] = static_cast<int32_t>(visible[j]);
    seen[1][j] = static_cast<int32_t>(visible[j] >> 32);
  }
  for (int n = 0; n < width; n++) {
    const int at = n * lanes();
    const auto scale = hn::Load(d, to.scale + at);
    largest[n] = hn::Set(d, unseen);
    for (int t = 0; t < block_tokens; t++) {
      float* score = room.scores.get() + t * tile() + at;
      auto s = hn::Mul(hn::Load(d, score), scale);
      if (a.softcap > 0) s = hn::Mul(hn::Tanh(d, hn::Mul(s, hn::Set(d, ln_2 / a.softcap))), hn::Set(d, a.softcap * log2_e));
      if (to.biased) s = hn::MulAdd(hn::Load(d, room.biases.get() + t * tile() + at), hn::Set(d, log2_e), s);
      const auto bit = hn::Set(di, static_cast<int32_t>(uint32_t{1} << t % 32));
      const auto shown = hn::TestBit(hn::Load(di, seen[t / 32] + at), bit);
      s = hn::IfThenElse(hn::RebindMask(d, shown), s, hn::Set(d, minus_infinity));
      hn::Store(s, d, score);
      largest[n] = hn::Max(largest[n], s);
    }
  }
}

// 16383 (a + f (b + f (c + f e))).
HWY_INLINE Floats Cubic(Floats f, float a, float b, float c, float e) {
  const F32 d;
  const auto of = [&](float coefficient) HWY_ATTR { return hn::Set(d, most_weight * coefficient); };
  return hn::MulAdd(f, hn::MulAdd(f, hn::MulAdd(f, of(e), of(c)), of(b)), of(a));
}

// 16383 * 2^x as a whole number in the lower half of each lane, x <= 0, with an error of 0.008% and of half a step. (What
// lies in the upper half is not asked.) The cubics are the best ones of 2^f over 0 to 1 and over -0.5 to 0.5.
HWY_INLINE Ints Weight(Floats x) {
  const F32 d;
  const I32 di;
  const auto magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23: the last bit is worth 1
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  const Floats f{_mm512_reduce_ps(x.raw, 1)};  // what x lies above the whole number below it
  const Floats p = Cubic(f, 0.99992522f, 0.69583354f, 0.22606716f, 0.07802452f);
  return hn::BitCast(di, hn::Add(Floats{_mm512_scalef_ps(p.raw, x.raw)}, magic));
#else
  x = hn::Max(x, hn::Set(d, -20.0f));  // less than half a step
  const auto shifted = hn::Add(x, magic);
  const auto f = hn::Sub(x, hn::Sub(shifted, magic));
  const Floats p = Cubic(f, 0.99992807f, 0.69326099f, 0.24261112f, 0.05517167f);
  const auto scaled = hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::BitCast(di, hn::Add(hn::BitCast(d, scaled), magic));
#endif
}

// Scores of a vector of queries become weights: room.weights [32, tile], and their sums are returned. Of the largest score,
// and that a difference is to be multiplied by to be one to base 2.
HWY_INLINE Ints Weights(PromptRoom& room, int at, Floats largest, Floats scale) {
  const F32 d;
  const I32 di;
  const auto ones = hn::Set(di, 0x00010001);
  Ints sum = hn::Zero(di);
  for (int t = 0; t < block_tokens; t += 2) {
    const float* scores = room.scores.get() + t * tile() + at;
    const auto weight = [&](const float* score)
                            HWY_ATTR { return Weight(hn::Mul(hn::Sub(hn::Load(d, score), largest), scale)); };
    const auto pair = Pair(weight(scores), weight(scores + tile()));
    sum = DotPair(sum, pair, ones);
    hn::Store(pair, di, room.weights.get() + t / 2 * tile() + at);
  }
  return sum;
}

// out [head_dim, W vectors from `at` on] = out * older + (weights . values) * newer
template <bool Moved, int W>
HWY_INLINE void AddValues(const PromptContext& a, const Tile& to, const PromptRoom& room, int at, const Floats* older,
                          const Floats* newer) {
  const F32 d;
  const float* scales = room.of_block.get() + block_tokens;
  for (int i = 0; i < a.head_dim; i += height) {
    float* outs = to.out + i * tile() + at;
    Products<W>(room.v.get() + i, 1, a.head_dim, room.weights.get() + at, block_tokens / 2,
                [&](int m, int n, Ints sum) HWY_ATTR {
                  float* out = outs + m * tile() + n * lanes();
                  auto before = hn::Load(d, out);
                  if (Moved) before = hn::Mul(before, older[n]);
                  const auto more = hn::Mul(hn::ConvertTo(d, sum), hn::Set(d, scales[i + m]));
                  hn::Store(hn::MulAdd(more, newer[n], before), d, out);
                });
  }
}

// 2^x, x <= 16.
HWY_INLINE Floats Power(Floats x) { return hn::Exp(F32(), hn::Mul(x, hn::Set(F32(), ln_2))); }

// Whether every query of a vector leaves a block out that weighs `weight` at most, relative to 2^largest: next to nothing of
// its softmax so far, alone and with all that was left out before. The sum only grows, so that holds of the whole too.
HWY_INLINE bool LeaveOut(const Tile& to, int at, Floats weight, Floats largest) {
  const F32 d;
  const auto above = hn::Min(hn::Sub(largest, hn::Load(d, to.reference + at)), hn::Set(d, 64.0f));
  weight = hn::Mul(weight, Power(above));
  const auto left_out = hn::Add(hn::Load(d, to.left_out + at), weight);
  const auto negligible = hn::Mul(hn::Load(d, to.sum + at), hn::Load(d, to.share + at));
  const auto in_all = hn::Mul(negligible, hn::Set(d, negligible_in_all / negligible_block));
  if (!hn::AllTrue(d, hn::And(hn::Le(weight, negligible), hn::Le(left_out, in_all)))) return false;
  hn::Store(left_out, d, to.left_out + at);
  return true;
}

// A block whose keys and values are packed.
void AddBlock(const PromptContext& a, const Tile& to, int64_t block, const uint64_t* visible, bool all, PromptRoom& room) {
  const F32 d;
  Floats scores[width], scale[width], older[width], newer[width];  // scores: the largest
  Scores(a, to, room, scores);
  for (int n = 0; n < width; n++) scale[n] = hn::Load(d, to.scale + n * lanes());
  if (!all || to.biased || a.softcap > 0) {
    if (to.biased) FindBiases(to, block, visible, room);
    Complete(a, to, visible, room, scores);
    for (int n = 0; n < width; n++) scale[n] = hn::Set(d, 1.0f);
  }
  bool moved = false, read[width], all_read = true;
  for (int n = 0; n < width; n++) {
    const int at = n * lanes();
    const auto largest = hn::Mul(scores[n], scale[n]);
    read[n] = !to.sparse || !LeaveOut(to, at, hn::Set(d, float{block_tokens}), largest);
    Floats sums;
    if (read[n]) {
      sums = hn::Mul(hn::ConvertTo(d, Weights(room, at, scores[n], scale[n])), hn::Set(d, 1 / most_weight));
      read[n] = !to.sparse || !LeaveOut(to, at, sums, largest);
    }
    if (!read[n]) {
      all_read = false;
      continue;
    }
    // Weights are relative to a score that only moves when a larger one is so far above it that floats might not hold its
    // weight: seldom after the first blocks.
    const auto before = hn::Load(d, to.reference + at);
    const auto now = hn::IfThenElse(hn::Gt(hn::Sub(largest, before), hn::Set(d, 16.0f)), largest, before);
    older[n] = Power(hn::Sub(before, now));
    newer[n] = Power(hn::Sub(largest, now));
    if (!hn::AllTrue(d, hn::Eq(before, now))) {
      moved = true;
      hn::Store(now, d, to.reference + at);
      hn::Store(hn::Mul(hn::Load(d, to.left_out + at), older[n]), d, to.left_out + at);
    }
    hn::Store(hn::MulAdd(sums, newer[n], hn::Mul(hn::Load(d, to.sum + at), older[n])), d, to.sum + at);
    newer[n] = hn::Mul(newer[n], hn::Set(d, 1 / most_weight));
  }
  const auto add = [&]<int W>(std::integral_constant<int, W>, int n) HWY_ATTR {
    if (moved)
      AddValues<true, W>(a, to, room, n * lanes(), older + n, newer + n);
    else
      AddValues<false, W>(a, to, room, n * lanes(), older + n, newer + n);
  };
  if (all_read)
    add(std::integral_constant<int, width>(), 0);
  else
    for (int n = 0; n < width; n++)
      if (read[n]) add(std::integral_constant<int, 1>(), n);
}

void Finish(const PromptContext& a, const Tile& to) {
  const int n = tile();
  for (int j = 0; j < to.count; j++) {
    SoftmaxState& state = *to.queries[j].state;
    state.sum = to.sum[j];
    state.max = to.sum[j] == 0 ? minus_infinity : to.reference[j] * ln_2;
    for (int i = 0; i < a.head_dim; i++) state.out[i] = to.out[i * n + j];
  }
}

int Together() { return lanes(); }

void AttendPrompt(const PromptContext& a, const PromptQuery* queries, int count, PromptRoom& room) {
  const int n = tile();
  Tile tiles[prompt_queries(head_dims[0]) / width];
  int64_t blocks = 0;
  const int tile_count = (count + n - 1) / n;
  for (int i = 0; i < tile_count; i++) {
    tiles[i] = MakeTile(a, queries + i * n, std::min(n, count - i * n), i, room);
    blocks = std::max(blocks, tiles[i].blocks);
  }
  for (int64_t i = 0; i < blocks; i++) {
    const int64_t b = i == 0 ? 0 : blocks - i;  // the first and the newest weigh most, and say what is next to nothing
    bool packed = false;
    uint64_t spoilt = 0;
    for (int j = 0; j < tile_count; j++) {
      const Tile& to = tiles[j];
      if (b >= to.blocks) continue;
      uint64_t visible[prompt_tile], all = ~uint64_t{0}, any = 0;
      if (b < to.whole) {
        std::fill(visible, visible + n, any = all);
      } else {
        for (int j = 0; j < to.count; j++) {
          const PromptRow& row = *to.queries[j].row;
          visible[j] = b < row.blocks ? row.visible[b] : 0;
          all &= visible[j];
          any |= visible[j];
        }
        if (any == 0) continue;
        std::fill(visible + to.count, visible + n, ~uint64_t{0});
      }
      if (!packed) {
        spoilt = PackKeys(a, b, a.live[b], room) | PackValues(a, b, a.live[b], room);
        packed = true;
      }
      AddBlock(a, to, b, visible, ~all == 0, room);
      if ((spoilt & any) != 0)
        for (int j = 0; j < to.count; j++)
          if ((spoilt & visible[j]) != 0) to.sum[j] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  for (int i = 0; i < tile_count; i++) Finish(a, tiles[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {

HWY_EXPORT(AttendPrompt);
HWY_EXPORT(Together);

PromptRoom::PromptRoom(int head_dim) {
  const int64_t queries = prompt_queries(head_dim);
  q = make_array<int32_t>(queries * head_dim / 2);
  out = make_array<float>(queries * head_dim);
  of_query = make_array<float>(queries * 6);
  k = make_array<int32_t>(block_tokens * head_dim / 2);
  v = make_array<int32_t>(block_tokens / 2 * head_dim);
  of_block = make_array<float>(block_tokens + head_dim);
  scores = make_array<float>(block_tokens * prompt_tile);
  biases = make_array<float>(block_tokens * prompt_tile);
  weights = make_array<int32_t>(block_tokens / 2 * prompt_tile);
}

int prompt_vector() { return HWY_DYNAMIC_DISPATCH(Together)(); }

void attend_prompt(const PromptContext& a, const PromptQuery* queries, int count, PromptRoom& room) {
  HWY_DYNAMIC_DISPATCH(AttendPrompt)(a, queries, count, room);
}

}  // namespace adamas
#endif
