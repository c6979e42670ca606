// The list and the rest: a block of threads has a slice of the context, lists its marked tokens, reads their keys and values
// for all query heads of the list, and adds up the means of its blocks; `combine` merges the slices. rest/rest.h says what
// the sums are. All of it is linear in the values once three vectors are kept apart: the listed values by their weights
// (A), the low ones less their blocks' means (E), and the means by the weights of what is not listed (M).
//
// Products are those of tensor cores, mma.m16n8k16. Rows are query heads: the upper eight have what the lower eight lose
// when a query or a weight is rounded to 16 bits, so that the sums are those of f32. With a rest, row 4 + h has head h's low
// tokens. A warp has 16 tokens at a time, and reads their rows straight into operands: what a lane needs of a row is 16
// bytes in line, since dimensions and tokens may come in any order. No warp waits for another before its sums are added up.
//
// Dense rows and heads are lists of all tokens, the policy `streaming` one of its first and last.
#include <climits>

#include "device/cuda/scores.cuh"

namespace adamas::cuda {
namespace {

constexpr int warps = 6, threads = 32 * warps;
constexpr int tile_tokens = 16;
constexpr int most_at_once = 1024;  // tokens, after which the weights of the low ones are added up by block
constexpr float most_low = 1e30f;   // a low token's weight at most, by that at the bound
constexpr float may_exceed = 8;     // log2 by which a weight may exceed the reference of its sums

// Whether codes of a block are of rows, too, that the row does not see. M: there is a mask.
template <bool M>
__device__ bool hides_some(const Step& s, const View& view, int row, int block) {
  if constexpr (M) return (__ldg(s.flags + s.seen_at(row) + block) & has_hidden_rows) != 0;
  return block == view.hidden_block;
}

__device__ uint32_t bits_of(__half2 x) { return *reinterpret_cast<uint32_t*>(&x); }
__device__ uint32_t bits_of(__nv_bfloat162 x) { return *reinterpret_cast<uint32_t*>(&x); }
__device__ __half2 round_two(__half, float x, float y) { return __floats2half2_rn(x, y); }
__device__ __nv_bfloat162 round_two(__nv_bfloat16, float x, float y) { return __floats2bfloat162_rn(x, y); }
__device__ float2 widen(__half2 x) { return __half22float2(x); }
__device__ float2 widen(__nv_bfloat162 x) { return __bfloat1622float2(x); }

// Two numbers in 16 bits each, and what that leaves.
template <class E>
__device__ void split(float x, float y, uint32_t& high, uint32_t& low) {
  const auto rounded = round_two(E{}, x, y);
  const float2 back = widen(rounded);
  high = bits_of(rounded);
  low = bits_of(round_two(E{}, x - back.x, y - back.y));
}

// How eight elements of a row are operands: as they are, or f32 as three bf16.
template <class T>
struct Operand {
  using Element = T;
  static constexpr int parts = 1;
  static __device__ void get(const Eight<T>& from, uint32_t (&to)[1][4]) {
    to[0][0] = from.raw[0].x, to[0][1] = from.raw[0].y, to[0][2] = from.raw[0].z, to[0][3] = from.raw[0].w;
  }
};
template <>
struct Operand<F8E4M3> {
  using Element = __half;
  static constexpr int parts = 1;
  static __device__ void get(const Eight<F8E4M3>& from, uint32_t (&to)[1][4]) { from.widen(to[0]); }
};
template <>
struct Operand<float> {
  using Element = __nv_bfloat16;
  static constexpr int parts = 3;
  static __device__ void get(const Eight<float>& from, uint32_t (&to)[3][4]) {
    float x[8];
    to_f32(from, x);
#pragma unroll
    for (int p = 0; p < 3; p++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const __nv_bfloat162 rounded = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
        const float2 back = __bfloat1622float2(rounded);
        to[p][i] = bits_of(rounded);
        x[2 * i] -= back.x, x[2 * i + 1] -= back.y;
      }
  }
};

// D: head_dim at most. H: heads with a rest; 0: none has, and heads are at most 8.
template <int D, int H>
struct Shared {
  static constexpr int marked = H == 0 ? 1 : H, rows = H == 0 ? 8 : 2 * H;  // rows: of sums that are kept
  static constexpr int pitch = D + 32;  // of a query, so that two of them meet in no bank
  Head heads[8];
  uint16_t q[2][8][pitch];  // of row r: rounded; what that leaves
  float q_scale[8];
  union {
    uint16_t list[slice_blocks * block_tokens];  // from the slice's first token on
    float values[warps][rows][D];
  };
  uint64_t group[slice_blocks];       // tokens that the heads with a list attend to
  uint16_t active[slice_blocks];      // blocks that may have a token to list, ascending
  uint16_t starts[slice_blocks + 1];  // where their tokens start in the list
  unsigned active_bits[slice_blocks / 32];
  float weights[marked][most_at_once];  // exact ones of the low tokens, by that at the bound; 0: not low
  float low[marked][slice_blocks];      // their sums
  float rest[marked][slice_blocks];     // estimated weights of what is not listed
  float bases[marked][slice_blocks];
  int16_t offsets[marked][slice_blocks];
  float means[H == 0 ? 1 : warps][H == 0 ? 1 : 2 * H][H == 0 ? 1 : D];
  int counts[2][warps];
  float sums[warps][8][4];
};

// A block of threads: a slice of a row, for the heads [first_head, first_head + heads) of a KV head.
// M: there is a mask.
template <class T, int D, int H, bool M>
struct Slice {
  using Memory = Shared<D, H>;
  using Element = typename Operand<T>::Element;
  static constexpr int marked = Memory::marked, parts = Operand<T>::parts, chunks = D / 32, pairs = D / 64;

  const Step& s;
  Memory& m;
  View view;
  int row, g, first_head, heads, first, n;   // n blocks from `first` on
  bool scored, any_all, mixed, rest, whole;  // whole: all of its tokens are attended to
  int actives;                               // blocks that may have a listed token

  __device__ int lane() const { return threadIdx.x % 32; }
  __device__ int warp() const { return threadIdx.x / 32; }
  // The head of a row of products; which of its tokens it has.
  __device__ int head_of(int r) const { return H == 0 ? r : r % 4; }
  __device__ bool is_low(int r) const { return H != 0 && r >= 4; }
  __device__ bool lists(int h) const { return m.heads[h].reading == reads_list; }
  __device__ int sinks() const { return M ? s.sights[row].sinks : s.sinks; }
  __device__ bool has_hidden(int b) const { return hides_some<M>(s, view, row, first + b); }
  __device__ int64_t block_at(int h, int b) const { return s.blocks_at(row, first_head + h) + first + b; }

  // What has to be read of the estimates before anything else can be done: asked for as soon as they are there. Of one
  // block, and eight scores of each of the blocks that are looked at in one turn, when these are all.
  static constexpr int in_turn = H == 4 ? 1 : 2;
  struct Estimates {
    float2 sums[marked];
    double centres[marked];
    Eight<int16_t> scores[in_turn][marked];
  };
  __device__ bool one_turn() const { return 8 * n <= in_turn * threads; }
  __device__ void load_block(int b, Estimates& to) const;
  __device__ void load_scores(int i, int b, Estimates& to) const;
  __device__ void load_first(Estimates& to) const;

  __device__ void store_queries();
  __device__ int find_blocks(Estimates& known);
  __device__ int find_tokens(Estimates& known);
  __device__ void leave_rest(int b, bool real, unsigned listed, unsigned counts, const float (&x)[marked][8]);
  __device__ void add_low(int from, int end);
  __device__ void attend_to(int listed);
  __device__ void add_means(const float* tops);
  __device__ void store(float* partials, int64_t head_stride);
};

// Rows of no head are left as they are: nobody looks at their products.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::store_queries() {
  for (int h = warp(); h < heads; h += warps) {
    const char* q = s.query(row, first_head + h);
    float x[D / 32], most = 0;
#pragma unroll
    for (int i = 0; i < D / 32; i++) x[i] = load_element(q, s.q_dtype, min(32 * i + lane(), s.head_dim - 1));
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
      if (32 * i + lane() >= s.head_dim) x[i] = 0;
      most = fmaxf(most, fabsf(x[i]));
    }
    // By a power of two, so that nothing is lost where nothing has to be.
    const unsigned exponent = __float_as_uint(max_of_warp(most)) >> 23;
    const bool scaled = exponent > 3 && exponent < 250;
    const float by = scaled ? __uint_as_float((254 - exponent) << 23) : 1.0f;
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
      uint32_t high, low;
      split<Element>(x[i] * by, 0.0f, high, low);
      for (int r = h; r < 8; r += H == 0 ? 8 : 4)
        m.q[0][r][32 * i + lane()] = uint16_t(high), m.q[1][r][32 * i + lane()] = uint16_t(low);
    }
    if (lane() == 0) m.q_scale[h] = scaled ? __uint_as_float(exponent << 23) : 1.0f;
  }
}

// The estimated weights of eight tokens, of those whose bits are set, with a softcap.
__device__ ADAMAS_NOINLINE float sum_softly(const Head& head, float base, const float* x, unsigned counts) {
  float sum = 0;
  for (int j = 0; j < 8; j++)
    if (counts >> j & 1) sum += exp2_fast(weight_of(head, base, int(x[j])));
  return sum;
}

// Which of eight scores a head lists, with a rest. hidden: hides_some of their block.
__device__ unsigned listed_of(const Head& head, bool hidden, int offset, const float (&x)[8]) {
  const int from = (hidden ? head.lower : head.bound) - offset;
  const float least = float(max(hidden_score + 1, from));
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < 8; j++) bits |= unsigned(x[j] >= least) << j;
  return head.reading == reads_list ? bits : 0;
}

// The same of the eighth `item` of a row's blocks, by all query heads of a KV head: more than are attended to at once.
template <bool M>
__device__ ADAMAS_NOINLINE unsigned listed_by_all(const Step& s, const View& view, int row, int g, int item) {
  unsigned bits = 0;
#pragma unroll 1
  for (int h = g * s.group; h < (g + 1) * s.group; h++) {
    const Head& head = s.heads[row * s.q_heads + h];
    const int64_t at = s.blocks_at(row, h);
    Eight<int16_t> raw;
    raw.raw[0] = __ldcg(reinterpret_cast<const uint4*>(s.scores + at * block_tokens) + item);
    float x[8];
    to_f32(raw, x);
    bits |= listed_of(head, hides_some<M>(s, view, row, item / 8), offset_of(head, __ldcg(s.centres + at + item / 8)), x);
  }
  return bits;
}

template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::load_block(int b, Estimates& to) const {
#pragma unroll
  for (int h = 0; h < H; h++) {
    const int64_t at = block_at(min(h, heads - 1), min(b, n - 1));
    to.sums[h] = __ldcg(s.sums + at), to.centres[h] = __ldcg(s.centres + at);
  }
}

template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::load_scores(int i, int b, Estimates& to) const {
#pragma unroll
  for (int h = 0; h < H; h++)
    to.scores[i][h].raw[0] =
        __ldcg(reinterpret_cast<const uint4*>(s.scores + block_at(min(h, heads - 1), b) * block_tokens) + threadIdx.x % 8);
}

template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::load_first(Estimates& to) const {
  if (H == 0 || n == 0) return;
  load_block(threadIdx.x, to);
  if (one_turn())
#pragma unroll
    for (int i = 0; i < in_turn; i++) load_scores(i, min((int(threadIdx.x) + i * threads) / 8, n - 1), to);
}

// What is known of blocks before their scores are looked at, a thread having a block: which may have a token to list, what
// their scores stand for, and their estimated weights. Returns how many may.
template <class T, int D, int H, bool M>
__device__ int Slice<T, D, H, M>::find_blocks(Estimates& known) {
#pragma unroll 1
  for (int b = int(threadIdx.x); b - lane() < n; b += threads) {
    const int here = min(b, n - 1), token = (first + here) * block_tokens;
    if (b >= threads) load_block(b, known);
    // What is read in any case, and what may be listed otherwise: from a lower score on, or by a head that is not attended
    // to here.
    bool may = token < sinks() || token + block_tokens > view.estimated || has_hidden(here) || any_all || heads < s.group ||
               one_turn();
#pragma unroll
    for (int h = 0; h < marked; h++) {
      if (h >= heads) break;
      const Head& head = m.heads[h];
      may |= lists(h) && known.sums[h].x >= head.reached;
      m.offsets[h][here] = int16_t(offset_of(head, known.centres[h]));
      m.bases[h][here] = base_of(s, head, known.centres[h]);
      m.rest[h][here] = lists(h) ? known.sums[h].y * exp2_fast(known.sums[h].x - head.top) : 0.0f;
      m.low[h][here] = 0;
    }
    const unsigned all = __ballot_sync(~0u, may && b < n);
    if (lane() == 0) m.active_bits[b / 32] = all;
    if (!may && b < n && first_head == g * s.group) s.marks[block_at(0, b)] = 0;
  }
  __syncthreads();
  if (one_turn()) return n;  // whatever they may
  const int words = (n + 31) / 32;
  int before = 0;
#pragma unroll 1
  for (int w = 0; w < words; w++) {
    const unsigned bits = m.active_bits[w];
    if (warp() == w % warps && (bits >> lane() & 1) != 0)
      m.active[before + __popc(bits & ((1u << lane()) - 1))] = uint16_t(32 * w + lane());
    before += __popc(bits);
  }
  __syncthreads();
  return before;
}

// What of a block is not listed, where something is: sums of whole blocks are known. Eight lanes have a block, with eight
// scores each, of which those count that have an estimate and are not listed.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::leave_rest(int b, bool real, unsigned listed, unsigned counts,
                                              const float (&x)[marked][8]) {
  const unsigned any_listed = __ballot_sync(~0u, listed != 0);
  if (any_listed == 0) return;
#pragma unroll
  for (int h = 0; h < marked; h++) {
    if (h >= heads) break;
    const Head& head = m.heads[h];
    const float base = m.bases[h][b];
    float sum = 0;
    if (head.softcap == 0) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float weight = exp2_fast(fmaf(x[h][j], head.unit2, base));
        if (counts >> j & 1) sum += weight;
      }
    } else {
      sum = sum_softly(head, base, x[h], counts);
    }
    sum = sum_of_lanes<8>(sum);
    if (lane() % 8 == 0 && real && (any_listed >> lane() & 0xFF) != 0) m.rest[h][b] = lists(h) ? sum : 0.0f;
  }
}

// Which tokens are read; what of a block is not. Eight lanes have a block. Returns how many are read.
template <class T, int D, int H, bool M>
__device__ int Slice<T, D, H, M>::find_tokens(Estimates& known) {
  constexpr int ahead = in_turn;
  const int active = H != 0 && (!M || rest) ? find_blocks(known) : n;
  const bool all_active = H == 0 || active == n;
  const int items = 8 * active, eighth = threadIdx.x % 8;
  const int64_t of_first = block_at(0, 0);
  const int first_token = first * block_tokens;
  int listed = 0;
#pragma unroll 1
  for (int base = int(threadIdx.x), turn = 0; base - int(threadIdx.x) < items; base += ahead * threads, turn++) {
    unsigned marks[ahead] = {}, own[ahead];
    int b[ahead], count = 0;  // counts of 16 bits
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const int item = min(base + i * threads, items - 1);
      b[i] = all_active ? item / 8 : m.active[item / 8];
      if (H != 0 && !one_turn()) load_scores(i, b[i], known);
      if (H == 0 && scored) {
        const unsigned here = __ldcg(reinterpret_cast<const uint8_t*>(s.marks + of_first) + item);
        marks[i] = lists(0) ? here : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const int item = base + i * threads, token = first_token + 8 * (8 * b[i] + eighth);
      float x[marked][8];
      if constexpr (H != 0) {
#pragma unroll
        for (int h = 0; h < marked; h++) {
          to_f32(known.scores[i][h], x[h]);
          if (h < heads) marks[i] |= listed_of(m.heads[h], has_hidden(b[i]), m.offsets[h][b[i]], x[h]);
        }
        if (heads < s.group) marks[i] = listed_by_all<M>(s, view, row, g, 8 * (first + b[i]) + eighth);
        if (first_head == g * s.group && item < items)  // for who asks afterwards
          reinterpret_cast<uint8_t*>(s.marks + of_first + b[i])[eighth] = uint8_t(marks[i]);
      }
      const auto before = [&](int end) { return (1u << max(0, min(8, end - token))) - 1; };
      unsigned visible = item < items ? before(view.tokens) : 0;
      if constexpr (M)
        if (item < items) visible &= reinterpret_cast<const uint8_t*>(s.seen + s.seen_at(row) + first + b[i])[eighth];
      const unsigned listed_here = (marks[i] | before(sinks()) | ~before(view.estimated)) & visible;
      own[i] = any_all ? visible : listed_here;
      count += __popc(own[i]) << 16 * i;
      if (mixed && item < items) reinterpret_cast<uint8_t*>(m.group)[8 * b[i] + eighth] = uint8_t(listed_here);
      if constexpr (H != 0) leave_rest(b[i], item < items, listed_here, visible & ~listed_here, x);
    }
    if (whole) {
      for (int i = 0; i < ahead; i++)
        if (H != 0 && eighth == 0 && base + i * threads < items) m.starts[b[i]] = uint16_t(b[i] * block_tokens);
      continue;
    }
    int before = count;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int v = __shfl_up_sync(~0u, before, o);
      if (lane() >= o) before += v;
    }
    if (lane() == 31) m.counts[turn % 2][warp()] = before;
    __syncthreads();
    int ahead_of_us = before - count, all = 0;
#pragma unroll
    for (int w = 0; w < warps; w++) {
      const int of_warp = m.counts[turn % 2][w];
      if (w < warp()) ahead_of_us += of_warp;
      all += of_warp;
    }
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      int at = listed + (ahead_of_us >> 16 * i & 0xFFFF);
      if (H != 0 && eighth == 0 && base + i * threads < items) m.starts[(base + i * threads) / 8] = uint16_t(at);
#pragma unroll 1
      for (unsigned left = own[i]; left != 0; left &= left - 1)
        m.list[at++] = uint16_t(8 * (8 * b[i] + eighth) + __ffs(left) - 1);
      listed += all >> 16 * i & 0xFFFF;
    }
  }
  if (whole) listed = max(0, min(view.tokens - first_token, n * block_tokens));
  if (H != 0 && threadIdx.x == 0) m.starts[active] = uint16_t(listed);
  actives = active;
  __syncthreads();
  return listed;
}

// The low tokens' weights of the list's part [from, end), by block.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::add_low(int from, int end) {
#pragma unroll 1
  for (int i = threadIdx.x; i < heads * actives; i += threads) {
    const int h = heads == 1 ? 0 : i / actives, a = i - h * actives, last = min(int(m.starts[a + 1]), end);
    float sum = 0;
#pragma unroll 1
    for (int at = max(int(m.starts[a]), from); at < last; at++) sum += m.weights[h][at - from];
    m.low[h][actives == n ? a : m.active[a]] += sum;
  }
}

// A warp's tiles: exact scores, weights, values. Leaves the sums of values in m.values, relative to the slice's maximum.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::attend_to(int listed) {
  constexpr bool early = H == 0 && D * int(sizeof(T)) <= 256;  // whether there are registers for values beside keys
  const int r = lane() / 4, t = lane() % 4, h = min(head_of(r), heads - 1);
  const Head& head = m.heads[h];
  const bool ours = head_of(r) < heads, low_row = is_low(r), lists_only = mixed && lists(h),
             has_low = low_row && ours && rest && lists(h);
  const float to_score = m.q_scale[h];
  const bool plain = s.softcap == 0 && (M ? !s.sights[row].biased : s.slopes == nullptr);
  const float to_log2 = to_score * s.scale * log2e;
  const int16_t* own_scores = s.scores + block_at(h, 0) * block_tokens;
  float sums[pairs][8][4] = {};
  float top = nothing, sum = 0, low = 0, low_estimated = 0;
  int at_once = 0;  // of the list, from where on its low tokens are being told
  for (int tile = warp();; tile += warps) {
    const int begin = tile * tile_tokens;
    if (H != 0 && rest)  // all warps together
      for (; at_once + most_at_once <= min(begin, listed); at_once += most_at_once) {
        __syncthreads();
        add_low(at_once, at_once + most_at_once);
        __syncthreads();
      }
    if (begin >= listed) break;
    const auto token_at = [&](int i) {
      const int at = min(begin + i, listed - 1);
      return whole ? at : int(m.list[at]);
    };
    Eight<T> k[2][chunks], v[4][pairs];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const char* from = s.k.row(view.sequence, g, first * block_tokens + token_at(8 * i + r));
#pragma unroll
      for (int c = 0; c < chunks; c++) {
        const int d = 32 * c + 8 * t;  // past head_dim the query is 0
        k[i][c].load(from + (d < s.head_dim ? d : 0) * int(sizeof(T)));
      }
    }
    int tokens[2][2];
#pragma unroll
    for (int i = 0; i < 4; i++) tokens[i / 2][i % 2] = token_at(8 * (i / 2) + 2 * t + i % 2);
    const auto load_values = [&] {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const char* from = s.v.row(view.sequence, g, first * block_tokens + tokens[i / 2][i % 2]);
#pragma unroll
        for (int c = 0; c < pairs; c++) {
          const int d = 64 * c + 8 * r;
          v[i][c].load(from + (d < s.head_dim ? d : 0) * int(sizeof(T)));
        }
      }
    };
    if (early) {
      load_values();
    } else if (r == 0) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const char* from = s.v.row(view.sequence, g, first * block_tokens + tokens[i / 2][i % 2]);
        for (int c = 0; c < D * int(sizeof(T)) && c < s.head_dim * int(sizeof(T)); c += 128) prefetch_to_l2(from + c);
      }
    }
    int scores[2][2] = {}, offsets[2][2] = {};
    if (has_low)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scores[i / 2][i % 2] = __ldcg(own_scores + tokens[i / 2][i % 2]);
        offsets[i / 2][i % 2] = m.offsets[h][tokens[i / 2][i % 2] / block_tokens];
      }

    float x[2][4] = {};
#pragma unroll
    for (int c = 0; c < chunks; c++) {
      const uint4 high = *reinterpret_cast<const uint4*>(&m.q[0][r][32 * c + 8 * t]);
      const uint4 rest_of = *reinterpret_cast<const uint4*>(&m.q[1][r][32 * c + 8 * t]);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t b[parts][4];
        Operand<T>::get(k[i][c], b);
#pragma unroll
        for (int p = 0; p < parts; p++) {
          mma(Element{}, x[i], high.x, rest_of.x, high.y, rest_of.y, b[p][0], b[p][1]);
          mma(Element{}, x[i], high.z, rest_of.z, high.w, rest_of.w, b[p][2], b[p][3]);
        }
      }
    }
    if (!early) load_values();
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int token = tokens[i][j];
        const float product = x[i][j] + x[i][2 + j];
        float score = product * to_log2;
        if (!plain) score = s.score_of(product * to_score, view, row, first_head + h, first * block_tokens + token) * log2e;
        bool there = ours && begin + 8 * i + 2 * t + j < listed;
        if (mixed) there &= !lists_only || (m.group[token / block_tokens] >> token % block_tokens & 1) != 0;
        x[i][j] = there ? score : -INFINITY;
        most = fmaxf(most, x[i][j]);
      }
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    if (tile == warp()) {
      top = fmaxf(top, most);
    } else if (__any_sync(~0u, most > top + may_exceed)) {  // rare
      const float before = top;
      top = fmaxf(top, most);
      const float by = exp2_fast(before - top);
      sum *= by, low *= by;
#pragma unroll
      for (int c = 0; c < pairs; c++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) sums[c][j][e] *= by;
    }
    float weights[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) weights[i][j] = exp2_fast(x[i][j] - top);
    if (low_row && ours) {
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int b = tokens[i][j] / block_tokens, v = scores[i][j], score = v + offsets[i][j];
          const bool is =
              has_low && x[i][j] != -INFINITY && v != hidden_score && score >= head.bound && score <= head.low_top;
          const bool has_mean = is && !has_hidden(b);
          const float estimated =
              head.softcap == 0 ? fmaf(float(v), head.unit2, m.bases[h][b]) : weight_of(head, m.bases[h][b], v);
          low += is ? weights[i][j] : 0.0f;
          low_estimated += is ? exp2_fast(estimated) : 0.0f;
          if (const int at = begin + 8 * i + 2 * t + j; rest && at < listed)
            m.weights[h][at - at_once] = has_mean ? fminf(exp2_fast(x[i][j] - head.low_log2), most_low) : 0.0f;
          if (!has_mean) weights[i][j] = 0;
        }
    }
    sum += (weights[0][0] + weights[0][1]) + (weights[1][0] + weights[1][1]);
    uint32_t high[2], left[2];
#pragma unroll
    for (int i = 0; i < 2; i++) split<Element>(weights[i][0], weights[i][1], high[i], left[i]);
#pragma unroll
    for (int c = 0; c < pairs; c++) {
      uint32_t b[4][parts][4];
#pragma unroll
      for (int i = 0; i < 4; i++) Operand<T>::get(v[i][c], b[i]);
#pragma unroll
      for (int p = 0; p < parts; p++)
#pragma unroll
        for (int w = 0; w < 4; w++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const int which = half == 0 ? 0x5410 : 0x7632;
            mma(Element{}, sums[c][2 * w + half], high[0], left[0], high[1], left[1],
                __byte_perm(b[0][p][w], b[1][p][w], which), __byte_perm(b[2][p][w], b[3][p][w], which));
          }
    }
  }

  sum += __shfl_xor_sync(~0u, sum, 1), sum += __shfl_xor_sync(~0u, sum, 2);
  if (H != 0) {
    low += __shfl_xor_sync(~0u, low, 1), low += __shfl_xor_sync(~0u, low, 2);
    low_estimated += __shfl_xor_sync(~0u, low_estimated, 1), low_estimated += __shfl_xor_sync(~0u, low_estimated, 2);
  }
  if (t == 0)
    m.sums[warp()][r][0] = top, m.sums[warp()][r][1] = sum, m.sums[warp()][r][2] = low, m.sums[warp()][r][3] = low_estimated;
  __syncthreads();
  if (H != 0 && rest) add_low(at_once, listed);
  float highest = nothing;
#pragma unroll
  for (int w = 0; w < warps; w++) highest = fmaxf(highest, m.sums[w][r][0]);
  const float by = exp2f(top - highest);
  const int kept = H == 0 ? r : H == 1 ? r / 4 : r;
  if (H != 1 || r % 4 == 0)
#pragma unroll
    for (int c = 0; c < pairs; c++)
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j += 4)
          *reinterpret_cast<float4*>(&m.values[warp()][kept][64 * c + 8 * (2 * t + i) + j]) = make_float4(
              (sums[c][j][i] + sums[c][j][2 + i]) * by, (sums[c][j + 1][i] + sums[c][j + 1][2 + i]) * by,
              (sums[c][j + 2][i] + sums[c][j + 2][2 + i]) * by, (sums[c][j + 3][i] + sums[c][j + 3][2 + i]) * by);
  if (H != 0 && rest) __syncthreads();
}

// The means by what is not listed, and by what the low tokens weigh.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::add_means(const float* tops) {
  constexpr int lanes = D / 8, rows_of_warp = 32 / lanes, ahead = H == 4 ? 4 : 8, step = warps * rows_of_warp;
  const int mine = lane() % lanes * 8 < s.head_dim ? lane() % lanes * 8 : 0, own = warp() * rows_of_warp + lane() / lanes;
  float sums[2 * marked][8] = {}, to_low[marked];
#pragma unroll
  for (int h = 0; h < marked; h++)  // no infinity: there may be no low token to multiply with
    to_low[h] = exp2f(fminf(m.heads[min(h, heads - 1)].low_log2 - tops[h], 100.0f));
  for (int base = own; base - lane() / lanes < n; base += ahead * step) {
    Eight<int16_t> raw[ahead];
    float scales[ahead];
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      if (base - lane() / lanes + i * step >= n) break;
      const int64_t place = s.codes.place(s.k, view.sequence, first + min(base + i * step, n - 1));
      raw[i].load(s.codes.mean.at<int16_t>(place, g) + mine);
      scales[i] = __ldg(s.codes.mean_scale.at<float>(place, g));
    }
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      if (base - lane() / lanes + i * step >= n) break;
      const int b = min(base + i * step, n - 1);
      const bool counts = base + i * step < n && !has_hidden(b);
      float x[8];
      to_f32(raw[i], x);
#pragma unroll
      for (int h = 0; h < marked; h++) {
        if (h >= heads) break;
        const float rest_of = counts ? m.rest[h][b] * scales[i] : 0.0f,
                    low = counts ? m.low[h][b] * to_low[h] * scales[i] : 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) {
          sums[2 * h][j] = fmaf(rest_of, x[j], sums[2 * h][j]);
          sums[2 * h + 1][j] = fmaf(low, x[j], sums[2 * h + 1][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * marked; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) {
      for (int o = lanes; o < 32; o *= 2) sums[i][j] += __shfl_xor_sync(~0u, sums[i][j], o);
      if (lane() < lanes) m.means[warp()][i][8 * lane() + j] = sums[i][j];
    }
}

// The slice's vectors and sums.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::store(float* partials, int64_t head_stride) {
  const auto values = [&](int r, int d) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; w++) sum += m.values[w][r][d];
    return sum;
  };
  const auto means = [&](int i, int d) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; w++) sum += m.means[w][i][d];
    return sum;
  };
  for (int i = threadIdx.x; i < heads * D; i += threads) {
    const int h = i / D, d = i % D;
    if (d >= s.head_dim) continue;
    float* to = partials + h * head_stride;
    to[d] = values(h, d);
    if constexpr (H != 0) {
      to[s.head_dim + d] = rest ? values(H == 1 ? 1 : 4 + h, d) - means(2 * h + 1, d) : 0.0f;
      to[2 * s.head_dim + d] = rest ? means(2 * h, d) : 0.0f;
    }
  }
  for (int h = warp(); h < heads; h += warps) {
    float* to = partials + h * head_stride + 3 * s.head_dim;
    float top = nothing, listed = 0, low = 0, low_estimated = 0, with_mean = 0, others = 0, beside = 0;
#pragma unroll
    for (int w = 0; w < warps; w++) top = fmaxf(top, m.sums[w][h][0]);
#pragma unroll
    for (int w = 0; w < warps; w++) {
      const float by = exp2f(m.sums[w][h][0] - top);
      listed = fmaf(m.sums[w][h][1], by, listed);
      if (H == 0) continue;
      with_mean = fmaf(m.sums[w][4 + h][1], by, with_mean);
      low = fmaf(m.sums[w][4 + h][2], by, low);
      low_estimated += m.sums[w][4 + h][3];
    }
    if (H != 0 && rest) {
#pragma unroll 1
      for (int b = lane(); b < n; b += 32) {
        const bool hidden = has_hidden(b);
        others += hidden ? 0.0f : m.rest[h][b];
        if (M) beside += hidden ? m.rest[h][b] : 0.0f;
      }
      others = sum_of_warp(others);
      if (M) beside = sum_of_warp(beside);
    }
    if (lane() != 0) continue;
    to[sum_max] = top > nothing ? top : -INFINITY;
    to[sum_listed] = listed;
    to[sum_low] = low;
    to[sum_low_estimated] = low_estimated;
    to[sum_low_with_mean] = with_mean;
    if (H == 0 || !rest) continue;
    const int at = view.hidden_block - first;
    to[sum_rest] = others;
    to[sum_beside_hidden] = M ? beside : at >= 0 && at < n ? m.rest[h][at] : 0.0f;
  }
}

template <class T, int D, int H, bool M>
__global__ void __launch_bounds__(threads, D <= 128 ? 2 : 1) attend(const __grid_constant__ Step s) {
  using Memory = Shared<D, H>;
  Memory& m = *reinterpret_cast<Memory*>(shared_memory());
  launch_next();
  const int row = blockIdx.z, g = s.lists_each == 1 ? blockIdx.y : blockIdx.y / s.lists_each;
  const int first_head = g * s.group + (blockIdx.y - g * s.lists_each) * s.at_once,
            heads = min(s.at_once, (g + 1) * s.group - first_head);
  const bool scored = s.chosen();
  View view = M ? s.views[row] : see_all(s, row);
  const int blocks = blocks_in(view.tokens), slices = s.slices_of(blocks), each = (blocks + slices - 1) / slices;
  const int slice = blockIdx.x;
  if (slice >= slices) return;
  const int first = min(blocks, slice * each), last = min(blocks, first + each);
  if (H != 0 && !view.dense) {  // the means are wanted last, and can come before anything is known of the scores
    const int lines = (2 * s.head_dim + 127) / 128;
#pragma unroll 1
    for (int i = threadIdx.x; i < (last - first) * lines; i += threads) {
      const char* line = s.codes.mean.at<char>(s.codes.place(s.k, view.sequence, first + i / lines), g) + i % lines * 128;
      prefetch_to_l2(line);
    }
  }
  Slice<T, D, H, M> of{s, m, view, row, g, first_head, heads, first, last - first, scored, false, false, false, false, 0};
  of.store_queries();
  wait_for_previous();
  if (scored) of.view = view = s.views[row];
  typename Slice<T, D, H, M>::Estimates known;
  of.load_first(known);
  if (threadIdx.x < 8) {
    Head head{};
    head.reading = scored || view.dense ? reads_short : reads_list;
    if (scored && int(threadIdx.x) < heads) head = s.heads[row * s.q_heads + first_head + threadIdx.x];
    m.heads[threadIdx.x] = head;
  }
  __syncthreads();
  bool any_list = false;
#pragma unroll 1
  for (int h = 0; h < heads; h++) {
    any_list |= m.heads[h].reading == reads_list;
    of.any_all |= m.heads[h].reading != reads_list;
  }
  of.mixed = of.any_all && any_list;
  of.rest = H != 0 && any_list;
  of.whole = of.any_all && !M;
  const bool asked = H == 0 || view.dense || heads == s.group;  // or other lists of the KV head need the marks
  const int listed = of.whole && !any_list && asked ? max(0, min(view.tokens - first * block_tokens, of.n * block_tokens))
                                                    : of.find_tokens(known);
  of.attend_to(listed);
  float tops[Memory::marked];
#pragma unroll
  for (int h = 0; h < Memory::marked; h++) {
    tops[h] = nothing;
#pragma unroll
    for (int w = 0; w < warps; w++) tops[h] = fmaxf(tops[h], m.sums[w][h][0]);
  }
  if constexpr (H != 0)
    if (of.rest) of.add_means(tops);
  __syncthreads();
  const int64_t stride = 3 * s.head_dim + partial_sums, head_stride = s.slices * stride;
  of.store(s.partials + (int64_t(row) * s.q_heads + first_head) * head_stride + slice * stride, head_stride);
}

constexpr int combine_threads = 512, most_scales = 64;

// The slices of a head: a thread has a dimension, and its turn of the slices. The first warp sees to what the vectors count.
// again: of the heads that min_mass has widened.
__global__ void __launch_bounds__(combine_threads) combine(const __grid_constant__ Step s, bool again) {
  __shared__ float scales[most_scales];
  __shared__ float vectors[3][combine_threads];
  __shared__ float reference, factor, leaning, share;
  launch_next();
  const int h = blockIdx.x, row = blockIdx.y, D = s.head_dim, width = D <= 64 ? 64 : D <= 128 ? 128 : 256;
  const int d = threadIdx.x % width, turn = threadIdx.x / width, turns = combine_threads / width, lane = threadIdx.x % 32;
  const View seen = see(s, row);
  const int slices = s.slices_of(blocks_in(seen.tokens)), stride = 3 * D + partial_sums;
  const float* partials = s.partials + (int64_t(row) * s.q_heads + h) * s.slices * stride;
  const float* sums = partials + 3 * D;
  wait_for_previous();
  if (again && !is_widened(s.heads[row * s.q_heads + h].reading)) return;
  const bool scored = s.chosen(), may_rest = scored && s.automatic;
  constexpr int ahead = 9;
  float loaded[ahead][3] = {};
  const auto load = [&](int base) {
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const float* of = partials + min(base + i * turns, slices - 1) * stride + min(d, D - 1);
      loaded[i][0] = __ldcg(of);
      if (may_rest) loaded[i][1] = __ldcg(of + D), loaded[i][2] = __ldcg(of + 2 * D);
    }
  };
  load(turn);
  if (threadIdx.x < 32) {  // a lane has every 32nd slice's sums
    const Head head = s.heads[row * s.q_heads + h];
    float top = -INFINITY;
#pragma unroll 1
    for (int i = lane; i < slices; i += 32) top = fmaxf(top, __ldcg(sums + i * stride + sum_max));
    top = max_of_warp(top);
    const float highest = top == -INFINITY ? 0.0f : top;
    if (lane == 0) reference = highest;
    float listed = 0, low = 0, low_estimated = 0, with_mean = 0, others = 0, beside = 0;
    const int reading = scored ? head.reading : seen.dense ? reads_short : reads_list;
    const bool rest = may_rest && !reads_all(reading);
#pragma unroll 1
    for (int i = lane; i < slices; i += 32) {
      const float* of = sums + i * stride;
      const float scale = exp2f(__ldcg(of + sum_max) - highest);
      if (i < most_scales) scales[i] = scale;
      listed = fmaf(__ldcg(of + sum_listed), scale, listed);
      if (!rest) continue;
      low = fmaf(__ldcg(of + sum_low), scale, low);
      low_estimated += __ldcg(of + sum_low_estimated);
      with_mean = fmaf(__ldcg(of + sum_low_with_mean), scale, with_mean);
      others += __ldcg(of + sum_rest);
      beside += __ldcg(of + sum_beside_hidden);
    }
    listed = sum_of_warp(listed);
    float by = 0, lean_by = 0;
    if (rest) {
      low = sum_of_warp(low), low_estimated = sum_of_warp(low_estimated), with_mean = sum_of_warp(with_mean);
      others = sum_of_warp(others), beside = sum_of_warp(beside);
      by = factor_of(head, highest, low, low_estimated);
      others = others > 0 ? others * by : 0.0f;
      beside = beside > 0 ? beside * by : 0.0f;
      lean_by = with_mean > 0 ? lean * others / with_mean : 0.0f;
    }
    const float attended = listed + others, all = attended > 0 ? attended + beside : attended;
    float lse = all == 0 ? -INFINITY : (top + log2f(all)) * ln2, part = attended != 0 ? 1.0f / attended : 0.0f;
    if (s.sink_logits != nullptr) {
      const float logit = s.sink_logits[h];
      if (lse == -INFINITY) {
        lse = logit;
      } else {
        const float most = fmaxf(lse, logit), with = most + logf(expf(lse - most) + expf(logit - most));
        part *= expf(lse - with);
        lse = isnan(part) ? part : with;
      }
    }
    if (lane == 0) {
      factor = by, leaning = lean_by, share = part;
      const int64_t index = int64_t(row) * s.q_heads + h;
      if (s.lse != nullptr) s.lse[index] = lse;
      if (s.mass != nullptr)
        s.mass[index] = reads_all(reading) ? 1.0f
                        : rest             ? listed / (listed + others + beside)
                        : scored           ? head.mass
                                           : __int_as_float(0x7FC00000);
      if (s.noise != nullptr) s.noise[index] = scored ? head.noise : 0.0f;
    }
  }
  __syncthreads();
  float x[3] = {};
#pragma unroll 1
  for (int base = turn; base < slices; base += ahead * turns) {
    if (base != turn) load(base);
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const int slice = base + i * turns;
      if (slice >= slices) break;
      const float scale = slice < most_scales ? scales[slice] : exp2f(__ldcg(sums + slice * stride + sum_max) - reference);
      x[0] = fmaf(loaded[i][0], scale, x[0]);
      x[1] = fmaf(loaded[i][1], scale, x[1]);
      x[2] += loaded[i][2];
    }
  }
#pragma unroll
  for (int i = 0; i < 3; i++) vectors[i][threadIdx.x] = x[i];
  __syncthreads();
  if (turn != 0 || d >= D) return;
  char* out = s.out + row / s.rows * s.out_stride_batch + row % s.rows * s.out_stride_row + h * s.out_stride_head;
  float sum[3] = {};
#pragma unroll 1
  for (int i = 0; i < turns; i++)
#pragma unroll
    for (int j = 0; j < 3; j++) sum[j] += vectors[j][i * width + d];
  // Not all heads of a row have a rest: of what has none the factors are 0.
  const float value = may_rest ? fmaf(sum[1], leaning, fmaf(sum[2], factor, sum[0])) : sum[0];
  reinterpret_cast<float*>(out)[d] = share == 0 ? 0.0f : value * (share * s.v_scale);
}

template <class T, int D, int H, bool M>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  constexpr int shared = sizeof(Shared<D, H>);
  static const cudaError_t error =
      cudaFuncSetAttribute(attend<T, D, H, M>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned(s.slices), unsigned(s.lists), unsigned(s.query_rows));
  return cuda::launch(s.chosen() ? Start::beside : Start::after, attend<T, D, H, M>, grid, threads, shared, stream, s);
}
template <class T, int D>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  if (s.seen != nullptr) return s.automatic ? launch<T, D, 4, true>(s, stream) : launch<T, D, 0, true>(s, stream);
  if (!s.automatic) return launch<T, D, 0, false>(s, stream);
  return s.lists == s.q_heads ? launch<T, D, 1, false>(s, stream) : launch<T, D, 4, false>(s, stream);
}
template <class T>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  return s.head_dim <= 64    ? launch<T, 64>(s, stream)
         : s.head_dim <= 128 ? launch<T, 128>(s, stream)
                             : launch<T, 256>(s, stream);
}

}  // namespace

cudaError_t launch_combine(const Step& s, bool again, cudaStream_t stream) {
  const dim3 heads(unsigned(s.q_heads), unsigned(s.query_rows));
  return cuda::launch(Start::beside, combine, heads, combine_threads, 0, stream, s, again);
}

cudaError_t launch_attend(const Step& s, cudaStream_t stream) {
  const cudaError_t error = with_element(s.k_dtype, [&](auto zero) { return launch<decltype(zero)>(s, stream); });
  return error != cudaSuccess ? error : launch_combine(s, false, stream);
}

}  // namespace adamas::cuda
