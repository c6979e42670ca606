#include "attend/attend.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attend/attend_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/load-inl.h"
#include "core/sum-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// The rows of a tile: where each lies is found out once, for all that is done with it.
using RowPointer = const std::byte*;

HWY_INLINE void PointAt(const Rows& rows, const int32_t* tokens, int count, RowPointer* pointers) {
  for (int t = 0; t < count; t++) pointers[t] = rows.row(tokens[t]);
}

// Whose rows a tile reads: of a list, of a list whose rows were asked for already, or of a range.
enum class Reads { list, list_fetched, range };

// Asks for the rows that are needed next, which the machine cannot guess: rows of a list lie anywhere, and rows of a range
// lie kv_heads apart. A list's values follow its keys by one tile; a range's next tile is 64 tokens on (past the end of the
// context is harmless, past the end of a table of pages is not).
HWY_INLINE void PrefetchAhead(const Attention& a, const RowPointer* k, const RowPointer* v, const int32_t* tokens, int t,
                              int count, Reads reads) {
  const int64_t k_bytes = row_bytes(a.k.dtype, a.head_dim), v_bytes = row_bytes(a.v.dtype, a.head_dim);
  constexpr int ahead = 12;
  if (reads == Reads::list_fetched) return;
  for (int i = 0; i < 4; i++) {
    if (reads == Reads::list) {
      fetch_row(v[t + i], v_bytes);
      if (t + ahead < count) fetch_row(k[t + ahead + i], k_bytes);
    } else if (const int64_t next = int64_t{tokens[t + i]} + attend_tile; next < a.k.end) {
      fetch_row(a.v.row(next), v_bytes);
      fetch_row(a.k.row(next), k_bytes);
    }
  }
}

// q . k of up to 64 tokens, four at a time; tokens and rows are padded to a multiple of four. v: of a list that was not
// asked for. scores[h]: [64].
template <class T, int H>
void Products(const Attention& a, const float* const* queries, const RowPointer* k, const RowPointer* v,
              const int32_t* tokens, int count, Reads reads, float (&scores)[H][attend_tile]) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int t = 0; t < count; t += 4) {
    PrefetchAhead(a, k, v, tokens, t, count, reads);
    const T* k0 = reinterpret_cast<const T*>(k[t]);
    const T* k1 = reinterpret_cast<const T*>(k[t + 1]);
    const T* k2 = reinterpret_cast<const T*>(k[t + 2]);
    const T* k3 = reinterpret_cast<const T*>(k[t + 3]);
    Floats sums[H][4];
    for (int h = 0; h < H; h++)
      for (int i = 0; i < 4; i++) sums[h][i] = hn::Zero(d);
    for (int i = 0; i < a.head_dim; i += lanes) {
      const auto x0 = load(d, k0, i), x1 = load(d, k1, i), x2 = load(d, k2, i), x3 = load(d, k3, i);
      for (int h = 0; h < H; h++) {
        const auto q = hn::LoadU(d, queries[h] + i);
        sums[h][0] = hn::MulAdd(q, x0, sums[h][0]);
        sums[h][1] = hn::MulAdd(q, x1, sums[h][1]);
        sums[h][2] = hn::MulAdd(q, x2, sums[h][2]);
        sums[h][3] = hn::MulAdd(q, x3, sums[h][3]);
      }
    }
    for (int h = 0; h < H; h++) SumLanesOfFour(sums[h][0], sums[h][1], sums[h][2], sums[h][3], scores[h] + t);
  }
}

// Products become scores: scale, softcap, bias. What lies beyond count becomes -inf.
HWY_INLINE void Finish(const Attention& a, const float* bias, float slope, int count, float* scores) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int t = 0; t < count; t += lanes) {
    auto s = hn::Mul(hn::LoadU(d, scores + t), hn::Set(d, a.scale));
    if (a.softcap > 0) s = hn::Mul(hn::Tanh(d, hn::Mul(s, hn::Set(d, 1 / a.softcap))), hn::Set(d, a.softcap));
    if (bias != nullptr) s = hn::MulAdd(hn::LoadU(d, bias + t), hn::Set(d, slope), s);
    hn::StoreU(s, d, scores + t);
  }
  for (int t = count; t < attend_tile; t++) scores[t] = minus_infinity;
}

// scores [attend_tile] become exp(score - max); the state's max, sum and out move to the new max.
HWY_INLINE void Weigh(int head_dim, float* scores, SoftmaxState& state) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto largest = hn::Set(d, minus_infinity);
  auto ordered = hn::Eq(largest, largest);
  for (int t = 0; t < attend_tile; t += lanes) {
    const auto s = hn::LoadU(d, scores + t);
    largest = hn::Max(largest, s);
    ordered = hn::And(ordered, hn::Eq(s, s));
  }
  const float top = std::max(state.max, hn::GetLane(hn::MaxOfLanes(d, largest)));
  if (!hn::AllTrue(d, ordered) ||
      !(top < -minus_infinity)) {  // a NaN or an infinity: neither Max nor Exp would let a NaN through
    state.max = state.sum = std::numeric_limits<float>::quiet_NaN();
    for (int t = 0; t < attend_tile; t++) scores[t] = 0;
    return;
  }
  if (top == minus_infinity) {  // nothing visible yet
    for (int t = 0; t < attend_tile; t++) scores[t] = 0;
    return;
  }
  if (top > state.max) {
    const float factor = state.sum == 0 ? 0.0f : std::exp(state.max - top);
    for (int i = 0; i < head_dim; i += lanes)
      hn::StoreU(hn::Mul(hn::LoadU(d, state.out + i), hn::Set(d, factor)), d, state.out + i);
    state.sum *= factor;
    state.max = top;
  }
  auto sum = hn::Zero(d);
  for (int t = 0; t < attend_tile; t += lanes) {
    const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + t), hn::Set(d, top)));
    hn::StoreU(weight, d, scores + t);
    sum = hn::Add(sum, weight);
  }
  state.sum += hn::GetLane(hn::SumOfLanes(d, sum));
}

// outs[h] += sum of weights[h][t] v[t], for P vectors of dimensions from `start` on, kept in registers over all tokens.
template <class T, int H, int P>
HWY_INLINE void AddValuesOf(const RowPointer* rows, int count, const float* const (&weights)[H], int start,
                            float* const* outs) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  Floats out[H][P];
  for (int h = 0; h < H; h++)
    for (int p = 0; p < P; p++) out[h][p] = hn::LoadU(d, outs[h] + start + p * lanes);
  for (int t = 0; t < count; t++) {
    const T* v = reinterpret_cast<const T*>(rows[t]);
    Floats x[P];
    for (int p = 0; p < P; p++) x[p] = load(d, v, start + p * lanes);
    for (int h = 0; h < H; h++) {
      const auto weight = hn::Set(d, weights[h][t]);
      for (int p = 0; p < P; p++) out[h][p] = hn::MulAdd(weight, x[p], out[h][p]);
    }
  }
  for (int h = 0; h < H; h++)
    for (int p = 0; p < P; p++) hn::StoreU(out[h][p], d, outs[h] + start + p * lanes);
}

// The tokens of a tile, whose weights are given.
template <int H>
HWY_INLINE void AddTile(const Attention& a, const RowPointer* v, int count, const float* const (&weights)[H],
                        float* const* outs) {
  const int lanes = static_cast<int>(hn::Lanes(F32()));
  with_dtype(a.v.dtype, [&]<class T>(T) {
    int start = 0;
    for (; start + 4 * lanes <= a.head_dim; start += 4 * lanes) AddValuesOf<T, H, 4>(v, count, weights, start, outs);
    for (; start < a.head_dim; start += lanes) AddValuesOf<T, H, 1>(v, count, weights, start, outs);
  });
}

template <int H>
HWY_INLINE void ScoreTile(const Attention& a, const float* const* queries, const float* slopes, const RowPointer* k,
                          const RowPointer* v, const int32_t* tokens, int count, Reads reads,
                          float (&scores)[H][attend_tile]) {
  HWY_ALIGN float bias[attend_tile] = {};
  with_dtype(a.k.dtype, [&]<class T>(T) { Products<T, H>(a, queries, k, v, tokens, count, reads, scores); });
  if (a.bias != nullptr)
    for (int t = 0; t < count; t++) bias[t] = a.bias[tokens[t]];
  for (int h = 0; h < H; h++) Finish(a, a.bias != nullptr ? bias : nullptr, slopes[h], count, scores[h]);
}

template <int H>
void Tile(const Attention& a, const float* const* queries, const float* slopes, const int32_t* tokens, int count,
          Reads reads, SoftmaxState* states) {
  HWY_ALIGN float scores[H][attend_tile];
  RowPointer k[attend_tile], v[attend_tile];
  const int padded = (count + 3) / 4 * 4;
  PointAt(a.k, tokens, padded, k);
  PointAt(a.v, tokens, padded, v);
  ScoreTile<H>(a, queries, slopes, k, v, tokens, count, reads, scores);
  const float* weights[H];
  float* outs[H];
  for (int h = 0; h < H; h++) {
    Weigh(a.head_dim, scores[h], states[h]);
    weights[h] = scores[h];
    outs[h] = states[h].out;
  }
  AddTile<H>(a, v, count, weights, outs);
}

// To a multiple of four, with what is there already.
template <class T>
HWY_INLINE void pad(T* tile, int count) {
  for (int t = count; t % 4 != 0; t++) tile[t] = tile[count - 1];
}

// Calls visit with the number of heads as a constant: with_heads(heads, [&]<int H>() { ... }).
template <class Visit>
HWY_INLINE void with_heads(int heads, Visit&& visit) {
  switch (heads) {
    case 1: return visit.template operator()<1>();
    case 2: return visit.template operator()<2>();
    case 3: return visit.template operator()<3>();
    default: return visit.template operator()<4>();
  }
}

template <class Next>  // next(tokens) fills a tile and says how many; 0 ends
void Tiles(const Attention& a, const float* const* queries, const float* slopes, int heads, Reads reads,
           SoftmaxState* states, Next&& next) {
  int32_t tokens[attend_tile];
  while (const int count = next(tokens)) {
    pad(tokens, count);
    with_heads(heads, [&]<int H>() { Tile<H>(a, queries, slopes, tokens, count, reads, states); });
  }
}

void AttendList(const Attention& a, const float* const* queries, const float* slopes, int heads, const int32_t* tokens,
                int64_t count, SoftmaxState* states) {
  int64_t done = 0;
  Tiles(a, queries, slopes, heads, Reads::list, states, [&](int32_t* tile) {
    const int n = static_cast<int>(std::min<int64_t>(attend_tile, count - done));
    std::copy_n(tokens + done, n, tile);
    done += n;
    return n;
  });
}

void AttendRange(const Attention& a, const float* const* queries, const float* slopes, int heads, const uint64_t* visible,
                 int64_t first_block, int64_t last_block, SoftmaxState* states) {
  int64_t b = first_block;
  Tiles(a, queries, slopes, heads, Reads::range, states, [&](int32_t* tile) {
    int n = 0;
    for (; n == 0 && b < last_block; b++)
      for_each_bit(visible[b], [&](int t) { tile[n++] = static_cast<int32_t>(b * block_tokens + t); });
    return n;
  });
}

// Calls visit(rows of a tile, padded; where in the list it begins; how many), when the rows of the tile after it are on
// their way.
template <class Visit>
HWY_INLINE void ForEachTile(const Rows& rows, int head_dim, const int32_t* tokens, int64_t count, Visit&& visit) {
  const int64_t bytes = row_bytes(rows.dtype, head_dim);
  RowPointer tiles[2 * attend_tile];  // the one in hand, and the next
  int64_t fetched = 0;
  const auto fetch = [&](int64_t until) {
    for (; fetched < std::min(until, count); fetched++) {
      const RowPointer row = rows.row(tokens[fetched]);
      tiles[fetched & (2 * attend_tile - 1)] = row;
      fetch_row(row, bytes);
    }
  };
  fetch(attend_tile);
  for (int64_t first = 0; first < count; first += attend_tile) {
    fetch(first + 2 * attend_tile);
    const int n = static_cast<int>(std::min<int64_t>(attend_tile, count - first));
    RowPointer* tile = tiles + (first & attend_tile);
    pad(tile, n);
    visit(tile, first, n);
  }
}

void ScoreList(const Attention& a, const float* const* queries, const float* slopes, int heads, const int32_t* tokens,
               int64_t count, float* const* scores) {
  with_heads(heads, [&]<int H>() {
    ForEachTile(a.k, a.head_dim, tokens, count, [&](const RowPointer* tile, int64_t first, int n) {
      HWY_ALIGN float of_tile[H][attend_tile];
      ScoreTile<H>(a, queries, slopes, tile, nullptr, tokens + first, n, Reads::list_fetched, of_tile);
      for (int h = 0; h < H; h++) std::copy_n(of_tile[h], n, scores[h] + first);
    });
  });
}

void AddValues(const Attention& a, const int32_t* tokens, const float* const* weights, int heads, int64_t count,
               float* const* outs) {
  with_heads(heads, [&]<int H>() {
    ForEachTile(a.v, a.head_dim, tokens, count, [&](const RowPointer* tile, int64_t first, int n) {
      const float* of_tile[H];
      for (int h = 0; h < H; h++) of_tile[h] = weights[h] + first;
      AddTile<H>(a, tile, n, of_tile, outs);
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {

HWY_EXPORT(AttendList);
HWY_EXPORT(AttendRange);
HWY_EXPORT(ScoreList);
HWY_EXPORT(AddValues);

void attend_list(const Attention& a, const float* const* queries, const float* slopes, int heads, const int32_t* tokens,
                 int64_t count, SoftmaxState* states) {
  HWY_DYNAMIC_DISPATCH(AttendList)(a, queries, slopes, heads, tokens, count, states);
}

void attend_range(const Attention& a, const float* const* queries, const float* slopes, int heads, const uint64_t* visible,
                  int64_t first_block, int64_t last_block, SoftmaxState* states) {
  HWY_DYNAMIC_DISPATCH(AttendRange)(a, queries, slopes, heads, visible, first_block, last_block, states);
}

void score_list(const Attention& a, const float* const* queries, const float* slopes, int heads, const int32_t* tokens,
                int64_t count, float* const* scores) {
  HWY_DYNAMIC_DISPATCH(ScoreList)(a, queries, slopes, heads, tokens, count, scores);
}

void add_values(const Attention& a, const int32_t* tokens, const float* const* weights, int heads, int64_t count,
                float* const* outs) {
  HWY_DYNAMIC_DISPATCH(AddValues)(a, tokens, weights, heads, count, outs);
}

}  // namespace adamas
#endif
