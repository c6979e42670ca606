// The list and the rest: a block of threads has a slice of the context, lists its marked tokens, reads their keys and values
// for all query heads of the list, and adds up the means of its blocks; merge.cuh puts the slices together. rest/rest.h says
// what the sums are. All of it is linear in the values once three vectors are kept apart: the listed values by their weights
// (A), the low ones less their blocks' means (E), and the means by the weights of what is not listed (M).
//
// Products are those of tensor cores, mma.m16n8k16, eight tokens a warp at a time. Scores are queries by keys: the upper
// eight rows have what the lower eight lose when a query is rounded to 16 bits. Sums are values by weights: the tokens stand
// in line twice, by their weights and by what rounding these loses. So both are those of f32. With a rest, row and column
// 4 + h have head h's low tokens. What a lane needs of a row is 16 bytes in line, since dimensions and tokens may come in
// any order.
//
// Nothing of a slice may have its address taken, not by a function that is not inlined either: all of it would lie in local
// memory, and what lies in shared memory would be reached by generic addresses.
//
// Dense rows and heads are lists of all tokens, the policy `streaming` one of its first and last.
#include "device/cuda/merge.cuh"
#include "device/cuda/scores.cuh"

namespace adamas::cuda {
namespace {

constexpr int warps = 8, threads = 32 * warps;
constexpr int warp_blocks = slice_blocks / warps;  // of a warp, at most: a lane has one
constexpr int tile_tokens = 8;
constexpr int most_at_once = 1024;  // tokens, after which the weights of the low ones are added up by block
constexpr float most_low = 1e30f;   // a low token's weight at most, by that at the bound
constexpr float may_exceed = 8;     // log2 by which a weight may exceed the reference of its sums

// Whether codes of a block are of rows, too, that the row does not see. M: there is a mask.
template <bool M>
__device__ bool hides_some(const Step& s, int hidden_block, int row, int block) {
  if constexpr (M) return (__ldg(s.flags + s.seen_at(row) + block) & has_hidden_rows) != 0;
  return block == hidden_block;
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
  static constexpr int marked = H == 0 ? 1 : H, vectors = H == 0 ? 8 : 2 * H;  // vectors: of values that are kept
  static constexpr int pitch = D + 32;  // of a query, so that two of them meet in no bank
  Head heads[8];
  uint16_t q[2][8][pitch];  // of row r: rounded; what that leaves
  float q_scale[8];
  union {
    uint16_t list[warps][warp_blocks * block_tokens];  // each warp's, from the slice's first token on
    float values[warps][vectors][D];
    float merged[warps][3][D];
  };
  int counts[warps];                        // tokens that a warp lists
  uint64_t group[slice_blocks];             // tokens that the heads with a list attend to
  uint8_t active[warps][warp_blocks];       // blocks that may have a token to list, ascending
  uint16_t starts[warps][warp_blocks + 1];  // where their tokens start in the warp's list
  float weights[marked][most_at_once];      // exact ones of the low tokens, by that at the bound; 0: not low
  float low[marked][slice_blocks];          // their sums
  float rest[marked][slice_blocks];         // estimated weights of what is not listed
  float bases[marked][slice_blocks];
  int16_t offsets[marked][slice_blocks];
  const int16_t* mean_rows[H == 0 ? 1 : slice_blocks];
  float mean_weights[H == 0 ? 1 : 2 * H][H == 0 ? 1 : slice_blocks];  // what each weighs in M and in E, head by head
  float means[H == 0 ? 1 : 2 * H][H == 0 ? 1 : D];
  float sums[warps][8][4];
};

// A block of threads: a slice of a row, for the heads [first_head, first_head + heads) of a KV head. M: there is a mask.
// Each warp finds the tokens of blocks of its own; what is found is read by all, eight tokens a warp and turn.
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
  HeadRows keys, values;
  int16_t* scores;      // of the first head and block
  uint64_t* marks;      // of the list
  float mean_scale;     // of the lane's block
  int own, count;       // blocks of the slice that the warp has, and how many
  int actives, listed;  // of these blocks those that may have a listed token; what the slice lists
  int before[warps];    // what the warps before one list
  int told;             // of the list, up to where its low tokens have been added up

  __device__ int lane() const { return threadIdx.x % 32; }
  __device__ int warp() const { return threadIdx.x / 32; }
  // The head of a row of products; which of its tokens it has.
  __device__ int head_of(int r) const { return H == 0 ? r : r % 4; }
  __device__ bool is_low(int r) const { return H != 0 && r >= 4; }
  __device__ bool lists(int h) const { return m.heads[h].reading == reads_list; }
  __device__ int sinks() const { return M ? s.sights[row].sinks : s.sinks; }
  __device__ bool has_hidden(int b) const { return hides_some<M>(s, view.hidden_block, row, first + b); }
  __device__ const int16_t* scores_of(int h, int b) const { return scores + (h * s.max_blocks + b) * block_tokens; }
  __device__ bool leads() const { return H == 1 || first_head == g * s.group; }  // of the lists of a KV head the first
  __device__ bool shares() const { return H != 1 && heads < s.group; }           // there are others

  // The largest score of a row of products, of all warps, once they are through.
  __device__ float top_of(int r) const {
    float top = nothing;
#pragma unroll
    for (int w = 0; w < warps; w++) top = fmaxf(top, m.sums[w][r][0]);
    return top;
  }

  // What has to be read of the estimates before anything else can be done: asked for as soon as they are there. Of a head
  // and block in each of at most `marked` passes, and eight scores of each of the blocks that are looked at in one turn,
  // when these are all.
  static constexpr int in_turn = 2, in_pass = 32 / marked;
  struct Estimates {
    float2 sums[marked];
    double centres[marked];
    Eight<int16_t> scores[in_turn][marked];
    uint64_t marks;
  };
  __device__ bool one_turn() const { return n <= warps * in_turn * 4; }
  __device__ void load_scores(int i, int b, Estimates& to) const;
  __device__ void begin();
  __device__ void load_first(Estimates& to) const;

  __device__ void store_queries();
  __device__ unsigned find_blocks(const Estimates& known);
  __device__ void find_tokens(Estimates& known);
  __device__ void leave_rest(int b, bool real, unsigned listed, unsigned counts, const Eight<int16_t> (&scores)[marked],
                             const float (&x)[marked][8]);
  __device__ void join_lists();
  __device__ void add_low(int from, int end);
  __device__ void attend_to();
  __device__ void weigh_means();
  __device__ void add_means();
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
__device__ ADAMAS_NOINLINE float sum_softly(const Head& head, float base, Eight<int16_t> scores, unsigned counts) {
  float x[8], sum = 0;
  to_f32(scores, x);
#pragma unroll
  for (int j = 0; j < 8; j++)
    if (counts >> j & 1) sum += exp2_fast(weight_of(head, base, int(x[j])));
  return sum;
}

// Which of eight scores a head lists, with a rest. hidden: their block has hidden rows.
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
__device__ ADAMAS_NOINLINE unsigned listed_by_all(const Step& s, int hidden_block, int row, int g, int item) {
  unsigned bits = 0;
#pragma unroll 1
  for (int h = g * s.group; h < (g + 1) * s.group; h++) {
    const Head& head = s.heads[row * s.q_heads + h];
    const int64_t at = s.blocks_at(row, h);
    Eight<int16_t> raw;
    raw.raw[0] = __ldcg(reinterpret_cast<const uint4*>(s.scores + at * block_tokens) + item);
    float x[8];
    to_f32(raw, x);
    bits |= listed_of(head, hides_some<M>(s, hidden_block, row, item / 8),
                      offset_of(head, __ldcg(s.centres + at + item / 8)), x);
  }
  return bits;
}

template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::load_scores(int i, int b, Estimates& to) const {
#pragma unroll
  for (int h = 0; h < H; h++)
    to.scores[i][h].raw[0] = __ldcg(reinterpret_cast<const uint4*>(scores_of(min(h, heads - 1), b)) + threadIdx.x % 8);
}

// What needs nothing of the kernels before: where things are, and the means, which are wanted last.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::begin() {
  const int each = (n + warps - 1) / warps;
  own = min(n, warp() * each), count = min(n, own + each) - own;
  keys = s.k.of(view.sequence, g), values = s.v.of(view.sequence, g);
  const int64_t at = s.blocks_at(row, first_head) + first;
  scores = s.scores + at * block_tokens, marks = s.marks + at;
  if (H == 0 || view.dense || count == 0) return;
  const int here = own + min(lane(), count - 1);
  const int64_t place = s.codes.place(s.k, view.sequence, first + here);
  const int16_t* mean = s.codes.mean.at<int16_t>(place, g);
  m.mean_rows[here] = mean;
  mean_scale = __ldg(s.codes.mean_scale.at<float>(place, g));
  for (int d = 0; d < s.head_dim && lane() < count; d += 64) prefetch_to_l2(mean + d);
}

template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::load_first(Estimates& to) const {
  if (count == 0 || view.dense) return;  // of dense rows nothing is known
  if (H == 0) to.marks = scored ? __ldcg(marks + own + min(lane(), count - 1)) : 0;
  const int64_t at = s.blocks_at(row, first_head + min(lane() / in_pass, heads - 1)) + first + own;
#pragma unroll
  for (int p = 0; p < H; p++) {
    if (p * in_pass >= count) break;
    const int of_warp = min(p * in_pass + lane() % in_pass, count - 1);
    to.sums[p] = __ldcg(s.sums + at + of_warp), to.centres[p] = __ldcg(s.centres + at + of_warp);
  }
  if (one_turn())
#pragma unroll
    for (int i = 0; i < in_turn; i++) load_scores(i, own + min(4 * i + lane() / 8, count - 1), to);
}

// What is known of the warp's blocks before their scores are looked at, a lane having a head and a block at a time: which
// may have a token to list, what their scores stand for, and their estimated weights. Returns those that may.
template <class T, int D, int H, bool M>
__device__ unsigned Slice<T, D, H, M>::find_blocks(const Estimates& known) {
  const int block = first + own + lane(), token = block * block_tokens;
  // What is read in any case, and what may be listed otherwise: from a lower score on, or by a head that is not attended to
  // here.
  bool may = token < sinks() || token + block_tokens > view.estimated || any_all;
  may |= H == 0 ? known.marks != 0 && lists(0) : lane() < count && has_hidden(own + lane()) || shares() || one_turn();
  unsigned active = __ballot_sync(~0u, may && lane() < count);
#pragma unroll
  for (int p = 0; p < H; p++) {
    if (p * in_pass >= count) break;
    const int h = lane() / in_pass, of_warp = p * in_pass + lane() % in_pass, here = own + of_warp;
    bool reached = false;
    if (h < heads && of_warp < count) {
      const Head& head = m.heads[h];
      reached = lists(h) && known.sums[p].x >= head.reached;
      m.offsets[h][here] = int16_t(offset_of(head, known.centres[p]));
      m.bases[h][here] = base_of(s, head, known.centres[p]);
      m.rest[h][here] = lists(h) ? known.sums[p].y * exp2_fast(known.sums[p].x - head.top) : 0.0f;
      m.low[h][here] = 0;
    }
    unsigned bits = __ballot_sync(~0u, reached);
    if (H == 4) bits |= bits >> 16, bits = (bits | bits >> 8) & 0xFF;
    active |= bits << p * in_pass;
  }
  const bool is = (active >> lane() & 1) != 0;
  if (is) m.active[warp()][__popc(active & ((1u << lane()) - 1))] = uint8_t(lane());
  if (H != 0 && !is && lane() < count && leads()) marks[own + lane()] = 0;
  __syncwarp();
  return active;
}

// What of a block is not listed, where something is: sums of whole blocks are known. Eight lanes have a block, with eight
// scores each, of which those count that have an estimate and are not listed.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::leave_rest(int b, bool real, unsigned listed, unsigned counts,
                                              const Eight<int16_t> (&scores)[marked], const float (&x)[marked][8]) {
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
      sum = sum_softly(head, base, scores[h], counts);
    }
    sum = sum_of_lanes<8>(sum);
    if (lane() % 8 == 0 && real && (any_listed >> lane() & 0xFF) != 0) m.rest[h][b] = lists(h) ? sum : 0.0f;
  }
}

// Which tokens of the warp's blocks are read; what of a block is not. Eight lanes have a block.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::find_tokens(Estimates& known) {
  constexpr int ahead = in_turn;
  actives = __popc(find_blocks(known));
  const int eighth = lane() % 8, first_token = first * block_tokens;
  uint16_t* list = m.list[warp()];
  int listed_here = 0;
#pragma unroll 1
  for (int base = lane() / 8; base - lane() / 8 < actives; base += 4 * ahead) {
    unsigned found[ahead] = {}, read[ahead];
    int b[ahead], counts = 0;  // of 16 bits
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const int of_warp = m.active[warp()][min(base + 4 * i, actives - 1)];
      b[i] = own + of_warp;
      if (H != 0 && !one_turn() && !view.dense) load_scores(i, b[i], known);
      if (H == 0) {
        const uint32_t low = __shfl_sync(~0u, uint32_t(known.marks), of_warp),
                       high = __shfl_sync(~0u, uint32_t(known.marks >> 32), of_warp);
        found[i] = lists(0) ? (eighth < 4 ? low : high) >> 8 * (eighth % 4) & 0xFF : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const int token = first_token + 8 * (8 * b[i] + eighth);
      const bool real = base + 4 * i < actives;
      float x[marked][8];
      if constexpr (H != 0) {
#pragma unroll
        for (int h = 0; h < marked; h++) {
          to_f32(known.scores[i][h], x[h]);
          if (h < heads) found[i] |= listed_of(m.heads[h], has_hidden(b[i]), m.offsets[h][b[i]], x[h]);
        }
        if (shares()) found[i] = listed_by_all<M>(s, view.hidden_block, row, g, 8 * (first + b[i]) + eighth);
        if (leads() && real)  // for who asks afterwards
          reinterpret_cast<uint8_t*>(marks + b[i])[eighth] = uint8_t(found[i]);
      }
      const auto before = [&](int end) { return (1u << max(0, min(8, end - token))) - 1; };
      unsigned visible = real ? before(view.tokens) : 0;
      if constexpr (M) visible &= reinterpret_cast<const uint8_t*>(s.seen + s.seen_at(row) + first + b[i])[eighth];
      const unsigned listed = (found[i] | before(sinks()) | ~before(view.estimated)) & visible;
      read[i] = any_all ? visible : listed;
      counts += __popc(read[i]) << 16 * i;
      if (mixed && real) reinterpret_cast<uint8_t*>(m.group)[8 * b[i] + eighth] = uint8_t(listed);
      if constexpr (H != 0) leave_rest(b[i], real, listed, visible & ~listed, known.scores[i], x);
    }
    int up_to = counts;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int v = __shfl_up_sync(~0u, up_to, o);
      if (lane() >= o) up_to += v;
    }
    const int all = __shfl_sync(~0u, up_to, 31), ahead_of_us = up_to - counts;
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      int at = listed_here + (ahead_of_us >> 16 * i & 0xFFFF);
      if (H != 0 && eighth == 0 && base + 4 * i < actives) m.starts[warp()][base + 4 * i] = uint16_t(at);
#pragma unroll 1
      for (unsigned left = whole ? 0 : read[i]; left != 0; left &= left - 1)
        list[at++] = uint16_t(8 * (8 * b[i] + eighth) + __ffs(left) - 1);
      listed_here += all >> 16 * i & 0xFFFF;
    }
  }
  if (lane() == 0) m.counts[warp()] = listed_here, m.starts[warp()][actives] = uint16_t(listed_here);
}

// Where each warp's list begins in that of all.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::join_lists() {
  listed = 0;
#pragma unroll
  for (int w = 0; w < warps; w++) before[w] = listed, listed += m.counts[w];
}

// The low tokens' weights of the list's part [from, end), by the warp's blocks.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::add_low(int from, int end) {
  const uint16_t* starts = m.starts[warp()];
  int begin = 0;
#pragma unroll
  for (int w = 0; w < warps; w++) begin = w == warp() ? before[w] : begin;
#pragma unroll 1
  for (int i = lane(); i < heads * actives; i += 32) {
    const int h = heads == 1 ? 0 : i / actives, a = i - h * actives, last = min(begin + starts[a + 1], end);
    float sum = 0;
#pragma unroll 4
    for (int at = max(begin + starts[a], from); at < last; at++) sum += m.weights[h][at - from];
    m.low[h][own + m.active[warp()][a]] += sum;
  }
  __syncwarp();
}

// A warp's tiles: exact scores, weights, values. Leaves the sums of values in m.values, relative to the slice's maximum.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::attend_to() {
  constexpr bool early = D * int(sizeof(T)) <= (D <= 128 ? 256 : 512);  // whether there are registers for values beside keys
  const int r = lane() / 4, t = lane() % 4, h = min(head_of(r), heads - 1);
  const Head& head = m.heads[h];
  const bool ours = head_of(r) < heads, low_row = is_low(r), lists_only = mixed && lists(h),
             has_low = low_row && ours && rest && lists(h);
  const float to_score = m.q_scale[h];
  const bool plain = s.softcap == 0 && (M ? !s.sights[row].biased : s.slopes == nullptr);
  const float to_log2 = to_score * s.scale * log2e;
  const int16_t* own_scores = scores_of(h, 0);
  float sums[pairs][4][4] = {};
  float top = nothing, sum = 0, low = 0, low_estimated = 0;
  // What a row's lanes know, for the columns 2 t and 2 t + 1.
  const auto of_columns = [&](float x, float(&to)[2]) {
    to[0] = __shfl_sync(~0u, x, 8 * t), to[1] = __shfl_sync(~0u, x, 8 * t + 4);
  };
  const auto token_at = [&](int i) {  // of the list
    if (whole) return i;
    int skipped = 0;
#pragma unroll
    for (int w = 1; w < warps; w++)
      if (i >= before[w]) skipped = w * warp_blocks * block_tokens - before[w];
    return int((&m.list[0][0])[i + skipped]);
  };
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
    const int own_token = token_at(min(begin + r, listed - 1));
    const int tokens[2] = {__shfl_sync(~0u, own_token, 8 * t), __shfl_sync(~0u, own_token, 8 * t + 4)};
    Eight<T> k[chunks], v[2][pairs];
    const char* own_key = keys.row(first * block_tokens + own_token);
#pragma unroll
    for (int c = 0; c < chunks; c++) {
      const int d = 32 * c + 8 * t;  // past head_dim the query is 0
      k[c].load(own_key + (d < s.head_dim ? d : 0) * int(sizeof(T)));
    }
    const auto load_values = [&] {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const char* from = values.row(first * block_tokens + tokens[j]);
#pragma unroll
        for (int c = 0; c < pairs; c++) {
          const int d = 64 * c + 8 * r;
          v[j][c].load(from + (d < s.head_dim ? d : 0) * int(sizeof(T)));
        }
      }
    };
    if (early) {
      load_values();
    } else {
      const char* from = values.row(first * block_tokens + own_token);
      for (int c = 128 * t; c < s.head_dim * int(sizeof(T)); c += 512) prefetch_to_l2(from + c);
    }
    int estimates[2] = {}, offsets[2] = {};
    if (has_low)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        estimates[j] = __ldcg(own_scores + tokens[j]);
        offsets[j] = m.offsets[h][tokens[j] / block_tokens];
      }

    float products[2][4] = {};
#pragma unroll
    for (int c = 0; c < chunks; c++) {
      const uint4 high = *reinterpret_cast<const uint4*>(&m.q[0][r][32 * c + 8 * t]);
      const uint4 rest_of = *reinterpret_cast<const uint4*>(&m.q[1][r][32 * c + 8 * t]);
      uint32_t b[parts][4];
      Operand<T>::get(k[c], b);
#pragma unroll
      for (int p = 0; p < parts; p++) {
        mma(Element{}, products[c % 2], high.x, rest_of.x, high.y, rest_of.y, b[p][0], b[p][1]);
        mma(Element{}, products[c % 2], high.z, rest_of.z, high.w, rest_of.w, b[p][2], b[p][3]);
      }
    }
    if (!early) load_values();
    float x[2], most = -INFINITY;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float product = (products[0][j] + products[1][j]) + (products[0][2 + j] + products[1][2 + j]);
      float score = product * to_log2;
      if (!plain)
        score = s.score_of(product * to_score, view, row, first_head + h, first * block_tokens + tokens[j]) * log2e;
      bool there = ours && begin + 2 * t + j < listed;
      if (mixed) there &= !lists_only || (m.group[tokens[j] / block_tokens] >> tokens[j] % block_tokens & 1) != 0;
      x[j] = there ? score : -INFINITY;
      most = fmaxf(most, x[j]);
    }
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    if (tile == warp()) {
      top = fmaxf(top, most);
    } else if (__any_sync(~0u, most > top + may_exceed)) {  // rare
      const float highest = fmaxf(top, most), by = exp2_fast(top - highest);
      top = highest, sum *= by, low *= by;
      float by_column[2];
      of_columns(by, by_column);
#pragma unroll
      for (int c = 0; c < pairs; c++)
#pragma unroll
        for (int w = 0; w < 4; w++)
#pragma unroll
          for (int e = 0; e < 4; e++) sums[c][w][e] *= by_column[e % 2];
    }
    float weights[2];
#pragma unroll
    for (int j = 0; j < 2; j++) weights[j] = exp2_fast(x[j] - top);
    if (low_row && ours) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int b = tokens[j] / block_tokens, v = estimates[j], score = v + offsets[j];
        const bool is = has_low && x[j] != -INFINITY && v != hidden_score && score >= head.bound && score <= head.low_top;
        const bool has_mean = is && !has_hidden(b);
        const float estimated =
            head.softcap == 0 ? fmaf(float(v), head.unit2, m.bases[h][b]) : weight_of(head, m.bases[h][b], v);
        low += is ? weights[j] : 0.0f;
        low_estimated += is ? exp2_fast(estimated) : 0.0f;
        if (const int at = begin + 2 * t + j; rest && at < listed)
          m.weights[h][at - at_once] = has_mean ? fminf(exp2_fast(x[j] - head.low_log2), most_low) : 0.0f;
        if (!has_mean) weights[j] = 0;
      }
    }
    sum += weights[0] + weights[1];
    uint32_t high, left;
    split<Element>(weights[0], weights[1], high, left);
#pragma unroll
    for (int c = 0; c < pairs; c++) {
      uint32_t a[2][parts][4];
      Operand<T>::get(v[0][c], a[0]);
      Operand<T>::get(v[1][c], a[1]);
#pragma unroll
      for (int p = 0; p < parts; p++)
#pragma unroll
        for (int w = 0; w < 4; w++) {
          const uint32_t even = __byte_perm(a[0][p][w], a[1][p][w], 0x5410),
                         odd = __byte_perm(a[0][p][w], a[1][p][w], 0x7632);
          mma(Element{}, sums[c][w], even, odd, even, odd, high, left);
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
  float by[2];
  of_columns(exp2f(top - top_of(r)), by);
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int column = 2 * t + j, kept = H == 1 ? column / 4 : column;
    if (H == 1 && column % 4 != 0) continue;
#pragma unroll
    for (int c = 0; c < pairs; c++)
#pragma unroll
      for (int w = 0; w < 4; w += 2)
        *reinterpret_cast<float4*>(&m.values[warp()][kept][64 * c + 8 * r + 2 * w]) = make_float4(
            sums[c][w][j] * by[j], sums[c][w][2 + j] * by[j], sums[c][w + 1][j] * by[j], sums[c][w + 1][2 + j] * by[j]);
  }
  told = at_once;
}

// What the means of the warp's blocks weigh, a lane having a block.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::weigh_means() {
  if (lane() >= count) return;
  const int here = own + lane();
  const bool counts = !has_hidden(here);
#pragma unroll
  for (int h = 0; h < marked; h++) {
    if (h >= heads) break;
    // No infinity: there may be no low token to multiply with.
    const float to_low = exp2f(fminf(m.heads[h].low_log2 - top_of(h), 100.0f));
    // A block without codes has no mean, and no weight either.
    const float others = counts ? m.rest[h][here] : 0.0f, low = counts ? m.low[h][here] : 0.0f;
    m.mean_weights[h][here] = others != 0 ? others * mean_scale : 0.0f;
    m.mean_weights[H + h][here] = low != 0 ? low * to_low * mean_scale : 0.0f;
  }
}

// The means by their weights: a product [2 H, blocks] by [blocks, D] on tensor cores. A warp has dimensions of its own, so
// nothing has to be added up over warps.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::add_means() {
  constexpr int tiles = D / warps / 8, ahead = 8;  // a lane has `tiles` dimensions in line of a mean
  using Word = std::conditional_t<tiles == 1, uint16_t, std::conditional_t<tiles == 2, uint32_t, uint2>>;
  const int r = lane() / 4, t = lane() % 4, vector = H == 4 ? r : r / 4;
  const int d = warp() * (D / warps) + r * tiles, from = d < s.head_dim ? d : 0;
  union Dimensions {
    Word word;
    int16_t x[tiles];
  } means[ahead][4];
  const auto load = [&](int base) {
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      if (base + 16 * i >= n) break;
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int b = min(base + 16 * i + 2 * t + k % 2 + 8 * (k / 2), n - 1);
        means[i][k].word = __ldg(reinterpret_cast<const Word*>(m.mean_rows[b] + from));
      }
    }
  };
  float sums[tiles][4] = {};
  load(0);  // on their way while the low tokens are added up
  add_low(told, listed);
  weigh_means();
  __syncthreads();
#pragma unroll 1
  for (int base = 0; base < n; base += 16 * ahead) {
    if (base != 0) load(base);
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      if (base + 16 * i >= n) break;
      uint32_t weights[2][2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int b = base + 16 * i + 2 * t + 8 * half;
        const float2 two = *reinterpret_cast<const float2*>(&m.mean_weights[vector][b]);
        split<__nv_bfloat16>(b < n ? two.x : 0.0f, b + 1 < n ? two.y : 0.0f, weights[half][0], weights[half][1]);
      }
#pragma unroll
      for (int j = 0; j < tiles; j++) {
        uint32_t x[2][2];
#pragma unroll
        for (int half = 0; half < 2; half++)
          split<__nv_bfloat16>(float(means[i][2 * half].x[j]), float(means[i][2 * half + 1].x[j]), x[half][0], x[half][1]);
#pragma unroll
        for (int part = 0; part < 2; part++)
          mma(__nv_bfloat16{}, sums[j], weights[0][0], weights[0][1], weights[1][0], weights[1][1], x[0][part], x[1][part]);
      }
    }
  }
  if (H == 1 && r % 4 != 0) return;
#pragma unroll
  for (int j = 0; j < tiles; j++)
#pragma unroll
    for (int k = 0; k < 2; k++)
      m.means[vector][warp() * (D / warps) + (2 * t + k) * tiles + j] = sums[j][k] + sums[j][2 + k];
}

// The slice's vectors and sums.
template <class T, int D, int H, bool M>
__device__ void Slice<T, D, H, M>::store(float* partials, int64_t head_stride) {
  const int busy = min(warps, (listed + tile_tokens - 1) / tile_tokens);
  const auto values = [&](int vector, int d) {
    float4 sum{};
#pragma unroll 4
    for (int w = 0; w < busy; w++) {
      const float4 x = *reinterpret_cast<const float4*>(&m.values[w][vector][d]);
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    return sum;
  };
  for (int i = threadIdx.x; i < heads * (D / 4); i += threads) {
    const int h = i / (D / 4), d = i % (D / 4) * 4;
    if (d >= s.head_dim) continue;
    float* to = partials + h * head_stride + d;
    *reinterpret_cast<float4*>(to) = values(h, d);
    if constexpr (H != 0) {
      if (!rest) {
        *reinterpret_cast<float4*>(to + s.head_dim) = *reinterpret_cast<float4*>(to + 2 * s.head_dim) = float4{};
        continue;
      }
      float4 low = values(H + h, d);
      const float4 mean = *reinterpret_cast<const float4*>(&m.means[H + h][d]);
      low.x -= mean.x, low.y -= mean.y, low.z -= mean.z, low.w -= mean.w;
      *reinterpret_cast<float4*>(to + s.head_dim) = low;
      *reinterpret_cast<float4*>(to + 2 * s.head_dim) = *reinterpret_cast<const float4*>(&m.means[h][d]);
    }
  }
  for (int h = warp(); h < heads; h += warps) {
    float* to = partials + h * head_stride + 3 * s.head_dim;
    const float top = top_of(h);
    float listed = 0, low = 0, low_estimated = 0, with_mean = 0, others = 0, beside = 0;
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
      for (int b = lane(); b < n; b += 32) (has_hidden(b) ? beside : others) += m.rest[h][b];
      others = sum_of_warp(others), beside = sum_of_warp(beside);
    }
    if (lane() != 0) continue;
    to[sum_max] = top > nothing ? top : -INFINITY;
    to[sum_listed] = listed;
    to[sum_low] = low;
    to[sum_low_estimated] = low_estimated;
    to[sum_low_with_mean] = with_mean;
    if (H == 0 || !rest) continue;
    to[sum_rest] = others;
    to[sum_beside_hidden] = beside;
  }
}

template <class T, int D, int H, bool M>
__global__ void __launch_bounds__(threads, D <= 128 ? 2 : 1) attend(const __grid_constant__ Step s) {
  using Memory = Shared<D, H>;
  Memory& m = *reinterpret_cast<Memory*>(shared_memory());
  launch_next();
  const int row = blockIdx.z, g = s.lists_each == 1 ? blockIdx.y : blockIdx.y / s.lists_each;
  const int first_head = g * s.group + (blockIdx.y - g * s.lists_each) * s.at_once,
            heads = H == 1 ? 1 : min(s.at_once, (g + 1) * s.group - first_head);
  const bool scored = s.chosen();
  View view = M ? s.views[row] : see_all(s, row);
  const int blocks = blocks_in(view.tokens), slices = s.slices_of(blocks), each = (blocks + slices - 1) / slices;
  const int slice = blockIdx.x;
  if (slice >= slices) return;
  const int first = min(blocks, slice * each), last = min(blocks, first + each);
  Slice<T, D, H, M> of{s, m, view, row, g, first_head, heads, first, last - first, scored};
  of.begin();
  of.store_queries();
  wait_for_previous();
  if (scored) of.view = view = s.views[row];
  typename Slice<T, D, H, M>::Estimates known;
  of.load_first(known);
  if (scored) {  // a word a thread: one thread would copy them one after another
    static_assert(8 * sizeof(Head) / 4 <= threads);
    const auto* from = reinterpret_cast<const uint32_t*>(s.heads + row * s.q_heads + first_head);
    if (threadIdx.x < heads * sizeof(Head) / 4)
      reinterpret_cast<uint32_t*>(m.heads)[threadIdx.x] = __ldcg(from + threadIdx.x);
  } else if (threadIdx.x < 8) {
    m.heads[threadIdx.x].reading = view.dense ? reads_short : reads_list;
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
  const bool asked = H == 0 || view.dense || !of.shares();  // or other lists of the KV head need the marks
  if (any_list || !of.whole || !asked) {
    of.find_tokens(known);
    __syncthreads();
    of.join_lists();
  }
  if (of.whole) of.listed = max(0, min(view.tokens - first * block_tokens, of.n * block_tokens));
  of.attend_to();
  if constexpr (H != 0)
    if (of.rest) of.add_means();
  __syncthreads();
  const int64_t stride = 3 * s.head_dim + partial_sums, head_stride = s.slices * stride;
  of.store(s.partials + (int64_t(row) * s.q_heads + first_head) * head_stride + slice * stride, head_stride);
  if (!s.merges_inside()) return;
  // The last block of threads that is through puts all slices of its heads together.
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) is_last = add_released(&s.tallies[row * s.q_heads + first_head].attended, 1) == slices - 1;
  __syncthreads();
  if (!is_last) return;
  merge<D>(s, view, row, first_head, heads, slices, m.merged);
}

// The same by a launch of its own. again: of the heads that min_mass has widened.
template <int D>
__global__ void __launch_bounds__(threads) combine(const __grid_constant__ Step s, bool again) {
  __shared__ float merged[warps][3][D];
  launch_next();
  const View view = see(s, blockIdx.y);
  wait_for_previous();
  if (again && !is_widened(s.heads[blockIdx.y * s.q_heads + blockIdx.x].reading)) return;
  merge<D>(s, view, blockIdx.y, blockIdx.x, 1, s.slices_of(blocks_in(view.tokens)), merged);
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
  const dim3 grid(unsigned(s.q_heads), unsigned(s.query_rows));
  const auto kernel = s.head_dim <= 64 ? combine<64> : s.head_dim <= 128 ? combine<128> : combine<256>;
  return cuda::launch(Start::beside, kernel, grid, threads, 0, stream, s, again);
}

cudaError_t launch_attend(const Step& s, cudaStream_t stream) {
  const cudaError_t error = with_element(s.k_dtype, [&](auto zero) { return launch<decltype(zero)>(s, stream); });
  return error != cudaSuccess || s.merges_inside() ? error : launch_combine(s, false, stream);
}

}  // namespace adamas::cuda
