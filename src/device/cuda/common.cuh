// What the kernels are given and what they share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "adamas/adamas.h"
#include "codes/codes.h"
#include "core/dtype.h"
#include "core/shape.h"
#include "device/cuda/layout.h"
#include "device/cuda/ptx.cuh"
#include "estimate/estimate.h"
#include "hadamard/hadamard.h"
#include "list/list.h"
#include "list/rescale.h"
#include "rest/rest.h"
#include "select/select.h"

namespace adamas::cuda {

inline constexpr int slice_blocks = 256;  // of a part that a block of threads scans or attends to, at most
inline constexpr int span_blocks = 16;    // of which a scan leaves one summary
inline constexpr float log2e = 1.4426950408889634f;
inline constexpr float ln2 = 0.6931471805599453f;
inline constexpr float nothing = -1e30f;  // a logarithm of nothing, without the NaNs of infinities

// A page id; one out of its range is read as the first page: nothing else can be done here.
__device__ inline int64_t page_at(const int32_t* id, int32_t page_count) {
  const int32_t page = __ldg(id);
  return uint32_t(page) < uint32_t(page_count) ? page : 0;
}

// Rows of a sequence's KV head.
struct HeadRows {
  const char* data;
  const int32_t* pages;  // NULL: not paged
  int64_t stride_page;
  int32_t stride_token, page_bits, page_count;
  __device__ const char* row(int token) const {
    if (pages == nullptr) return data + int64_t(token) * stride_token;
    return data + page_at(pages + (token >> page_bits), page_count) * stride_page +
           int64_t(token & ((1 << page_bits) - 1)) * stride_token;
  }
};

// Rows of K or V.
struct Table {
  const char* data;
  int64_t stride_sequence, stride_head, stride_page;
  const int32_t* pages;  // NULL: not paged
  int64_t stride_table;
  int32_t stride_token, page_bits, page_count;

  __device__ int64_t page(int64_t sequence, int64_t index) const {
    return page_at(pages + sequence * stride_table + index, page_count);
  }
  __device__ HeadRows of(int64_t sequence, int head) const {
    const bool paged = pages != nullptr;
    return {data + (paged ? 0 : sequence * stride_sequence) + head * stride_head,
            paged ? pages + sequence * stride_table : nullptr,
            stride_page,
            stride_token,
            page_bits,
            page_count};
  }
};

// One kind of what is kept of blocks.
struct Kind {
  char* data;
  int64_t stride_block, stride_head;
  template <class T>
  __device__ T* at(int64_t place, int head) const {
    return reinterpret_cast<T*>(data + place * stride_block + head * stride_head);
  }
};

// What a scan has to know of all deviations of a sequence's first blocks: the reference, which is the largest but at most 16
// times the median to a power of two; and the sum of squares, none above the reference's, in units of spread_one a square of
// the reference.
struct Spread {
  float reference;
  unsigned long long squares;
};
inline constexpr double spread_one = 4294967296.0;

// A cache's codes, and where a sequence's blocks are among them.
struct Codes {
  Kind words, centre, centre_scale, sigma, mean, mean_scale, bounds;
  uint8_t* coded;    // [places] rows of a block that its codes are made of
  Spread* spreads;   // [places, kv_heads] of a sequence's blocks up to this one
  int64_t* lengths;  // [sequences]
  int64_t blocks;    // of a sequence
  bool by_page;

  // k: by page, whose pages the places are.
  __device__ int64_t place(const Table& k, int64_t sequence, int64_t block) const {
    if (!by_page) return sequence * blocks + block;
    const int bits = k.page_bits - 6;
    return (k.page(sequence, block >> bits) << bits) + (block & ((1 << bits) - 1));
  }
};

// What has to be known of all estimates of a span of blocks.
struct alignas(16) Span {
  double highest, lowest;  // centre score
  float top, sum;          // of estimated weights: log2 of what the sum is relative to; {inf, }: not all of them have codes
  float rounding;          // the largest unit of a centre
};

// A head as the scan leaves it, and what the blocks of threads that select for it have found so far.
struct Tally {
  double unit;       // u
  float rms, noise;  // rms: of the rotated query
  int through, candidates;
  int attended;  // blocks of threads that are through with the slices of the list that begins with this head
};
// A token that may be among those wanted, by its rank.
struct Candidate {
  int score, token;
};
inline constexpr int most_candidates = 2048;

// How a query head is read, and why: Reading of step/step.h.
enum Reading : int { reads_list = 0, reads_widened = 1, reads_all_widened = 2, reads_noisy = 3, reads_short = 4 };
__device__ inline bool reads_all(int reading) { return reading >= reads_all_widened; }
__device__ inline bool is_widened(int reading) { return reading == reads_widened || reading == reads_all_widened; }

// What a query row sees: tokens [0, tokens), but for those that a mask hides. Those of [sinks, estimated) have estimates;
// the others are read in any case.
struct View {
  int64_t sequence;
  int tokens;
  int estimated;
  int coded_blocks;  // whose blocks have codes: all, or all but the last, whose centre and deviation count as 0
  int hidden_block;  // the last block, when its codes are of rows, too, that the row does not see; -1: not so, or see
                     // `flags`
  int dense;
};

// What it sees of these.
struct Sight {
  int visible, active;  // tokens; blocks that have one
  int first, last;      // the first and the last of the tokens
  int sinks;            // from where on they are not the first ones, which are read in any case
  int always;           // how many are
  bool biased;
};

// Of a block, where there is a mask.
enum Flag : uint8_t { has_bias = 1, has_hidden_rows = 2 };  // has_hidden_rows: its codes are of rows, too, that are not seen

// A query head, as `choose` or `select` leaves it.
struct Head {
  double unit, highest;         // of a score: scale u, scale c_max
  double per_unit;              // 1 / unit
  double c_max, u, per_centre;  // C_b = (c_b - c_max) / u; per_centre: 1 / u
  float unit2;                  // scale u log2(e)
  float top;                    // log2 of the weight that all estimated weights are relative to
  float softcap;                // 0: none, or scores have it in them already
  float noise;
  int bound, lower, low_top;  // the head lists tokens from this score on, in a block with hidden rows from the lower one; of
                              // these the low ones are up to that
  float low_log2;             // log2 of the weight at the bound
  float reached;              // log2 of an estimate that no score from the bound on stays below
  int reading;
  float mass;  // where it is known before anything is read
  bool anew;   // scores are relative to the highest estimate, not to their blocks' C_b
};

// Apart, since it is rare, and long where it is not called.
__device__ static ADAMAS_NOINLINE float soft_capped(float x, float cap) { return cap * tanhf(x / cap); }

struct Step {
  int q_heads, kv_heads, head_dim, rows, query_rows;  // query_rows: of all sequences
  int group;                                          // query heads of a KV head
  int passes, lists;            // a KV head's query heads are scanned in so many passes; lists of a row
  int lists_each, at_once;      // lists of a KV head; query heads of a list
  int most_slices, most_parts;  // that fill a large GPU
  int max_blocks, splits, slices;
  int policy;
  bool automatic, all_dense, causal, rotated, manhattan;
  float query_threshold;      // of the estimator manhattan; 0: 0.98 times the query's RMS
  int budget, sinks, recent;  // budget: tokens; with `automatic` those from which on a row is sparse
  int64_t min_context;
  double max_noise, min_mass;
  float log2_share;
  float scale, softcap, v_scale;
  const int64_t *sequences, *lengths;
  const char* q;
  int q_dtype, k_dtype;
  int64_t q_stride_batch, q_stride_row, q_stride_head;
  Table k, v;
  char* out;
  int64_t out_stride_batch, out_stride_row, out_stride_head;
  float *lse, *mass, *noise;
  const float *slopes, *sink_logits;
  const char* mask;  // NULL: there is none, and nothing lies in seen, flags and spreads
  int mask_dtype;
  int64_t mask_stride_batch, mask_stride_row;
  Codes codes;

  // The workspace; [query_rows, q_heads] of each but the first, which is [query_rows].
  View* views;
  Sight* sights;    // [query_rows]; with a mask
  uint64_t* seen;   // [query_rows, max_blocks] bit t of word b: the row sees token 64 b + t; NULL: there is no mask
  uint8_t* flags;   // [query_rows, max_blocks]
  Spread* spreads;  // [query_rows, kv_heads] of the blocks that have a token that is seen
  Head* heads;
  int16_t* scores;  // [max_blocks, 64] S less C of its block; hidden where there is no estimate
  float2*
      sums;     // [max_blocks] log2 of the highest estimated weight, their sum relative to it; {inf, }: it has not all codes
  Span* spans;  // [max_spans]
  Tally* tallies;
  Candidate* candidates;  // [candidate_room]
  double* centres;        // [max_blocks] c_b
  int16_t* offsets;       // [max_blocks] C_b
  uint64_t* marks;        // [max_blocks] tokens that are listed; with a rest those of a KV head, at its first query head
  int *selected,
      *listed;  // tokens that a head attends to, and [query_rows, kv_heads] those of a list: where stats are wanted
  // With min_mass, of what a head reads by itself; its exact scores are `keys`.
  uint64_t *own_marks, *low_marks;  // [max_blocks] its tokens; those of them whose weights tell the factor and the lean
  float2* parts;                    // [max_blocks] weights of what is not read, and of these
  float* keys;                      // [max_blocks, 64] what Quest's pages or the oracle's tokens are ranked by
  float* partials;                  // [slices, 3 head_dim + partial_sums]

  __device__ int64_t blocks_at(int row, int head) const { return (int64_t(row) * q_heads + head) * max_blocks; }
  __host__ __device__ int64_t max_spans() const { return (max_blocks + span_blocks - 1) / span_blocks; }
  // Parts that a list is split into: of its length alone, so that no result depends on the rest of a batch.
  __host__ __device__ int slices_of(int blocks) const {
    const int most = blocks / 8, least = (blocks + slice_blocks - 1) / slice_blocks;
    int slices = most_slices < most ? most_slices : most;
    if (slices < least) slices = least;
    return slices < 1 ? 1 : slices;
  }
  // Blocks of threads that select for a query head: what they have to tell each other takes as long as looking through 2,048
  // blocks of tokens.
  __host__ __device__ int parts_of(int blocks) const {
    const int parts = (blocks + 2047) / 2048;
    return parts < 1 ? 1 : parts < most_parts ? parts : most_parts;
  }
  __host__ __device__ int candidate_room() const {
    const int of_blocks = 16 * max_blocks;
    return of_blocks < most_candidates ? of_blocks : most_candidates;
  }
  __device__ int64_t spans_at(int row, int head) const { return (int64_t(row) * q_heads + head) * max_spans(); }
  // Whether kernels before the list say what is read.
  __host__ __device__ bool chosen() const {
    return policy == ADAMAS_POLICY_ADAMAS || policy == ADAMAS_POLICY_QUEST || policy == ADAMAS_POLICY_ORACLE;
  }
  // Whether the last slice of a list puts all of them together. The scan begins counting them; of several heads the slices
  // leave so much that a block of threads for each is faster, with a launch of their own.
  __host__ __device__ bool merges_inside() const { return policy == ADAMAS_POLICY_ADAMAS && at_once == 1; }
  __device__ float slope(int head) const { return slopes != nullptr ? __ldg(slopes + head) : 1.0f; }
  __device__ const char* query(int row, int head) const {
    const int b = rows == 1 ? row : row / rows;
    return q + b * q_stride_batch + (row - b * rows) * q_stride_row + head * q_stride_head;
  }
  __device__ int64_t seen_at(int row) const { return int64_t(row) * max_blocks; }
  // What a bias is the slope times of: a mask's value, or the distance from the last token in view.
  __device__ float distance_of(const View& view, int row, int token) const {
    return seen != nullptr ? mask_value(row, token) : float(token - (view.tokens - 1));
  }
  __device__ float mask_value(int row, int token) const;
  __device__ bool biased(int row) const { return seen != nullptr ? sights[row].biased : slopes != nullptr; }
  // The score of a product q . k, of a token.
  __device__ float score_of(float product, const View& view, int row, int head, int token) const {
    float x = product * scale;
    if (softcap > 0) x = soft_capped(x, softcap);
    if (biased(row)) x += slope(head) * distance_of(view, row, token);
    return x;
  }
};
inline constexpr int partial_sums = 8;

__device__ inline int blocks_in(int tokens) { return int(blocks_of(tokens)); }

// Blocks of a part of the scan, of `splits` parts at most: whole spans.
__host__ __device__ inline int blocks_of_split(int blocks, int splits) {
  const int spans = (blocks + span_blocks - 1) / span_blocks;
  return (spans + splits - 1) / splits * span_blocks;
}

__device__ inline bool is_dense(const Step& s, int visible) {
  return s.all_dense || visible <= s.budget || visible < s.min_context;
}
// How far a row sees, and whether it is so short that all of it is read: without a mask.
__device__ inline View see_all(const Step& s, int row) {
  const int b = s.rows == 1 ? row : row / s.rows, r = row - b * s.rows;
  View view{};
  view.sequence = s.sequences != nullptr ? s.sequences[b] : b;
  const int64_t length = s.lengths != nullptr ? s.lengths[b] : s.codes.lengths[view.sequence];
  int64_t tokens = s.causal ? length - s.rows + r + 1 : length;
  tokens = tokens < 0 ? 0 : tokens;
  const int64_t most = int64_t(s.max_blocks) * block_tokens;
  view.tokens = int(tokens < most ? tokens : most);
  view.hidden_block = -1;
  view.dense = is_dense(s, view.tokens);
  if (s.policy == ADAMAS_POLICY_STREAMING) view.estimated = view.tokens - (s.budget - s.sinks);
  return view;
}
// With one settle() has left it.
__device__ inline View see(const Step& s, int row) { return s.seen != nullptr ? s.views[row] : see_all(s, row); }
// What codes say of it, without a mask; coded: of how many rows those of the last block are.
__device__ inline void find_estimated(const Step& s, View& view, int coded) {
  const int last = blocks_in(view.tokens) - 1, in_block = view.tokens - last * block_tokens;
  if (coded > in_block) view.hidden_block = last;
  view.coded_blocks = coded > 0 ? last + 1 : last;
  const int end = last * block_tokens + (coded < in_block ? coded : in_block), old = view.tokens - s.recent;
  view.estimated = end < old ? end : old;
}
__device__ inline Sight sight_of(const Step& s, const View& view, int row) {
  if (s.seen != nullptr) return s.sights[row];
  const int sinks = min(s.sinks, view.tokens);
  return {view.tokens,
          blocks_in(view.tokens),
          0,
          view.tokens - 1,
          sinks,
          sinks + view.tokens - max(view.estimated, sinks),
          s.slopes != nullptr};
}

// Bits [0, end) of a block's 64, of a number of tokens that may be anything.
__device__ inline uint64_t bits_below(int end) {
  return end >= block_tokens ? ~uint64_t{0} : end <= 0 ? 0 : (uint64_t{1} << end) - 1;
}
// Of block b of a row, the tokens that it sees.
__device__ inline uint64_t seen_of(const Step& s, const View& view, int row, int b) {
  return s.seen != nullptr ? s.seen[s.seen_at(row) + b] : bits_below(view.tokens - b * block_tokens);
}
// Of these, the ones that are attended to where some are marked: what is read in any case as well.
__device__ inline uint64_t attended(const Step& s, const View& view, int row, int b, uint64_t marks) {
  const int first = b * block_tokens, sinks = sight_of(s, view, row).sinks;
  return (marks | bits_below(sinks - first) | ~bits_below(view.estimated - first)) & seen_of(s, view, row, b);
}

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(__half x) { return __half2float(x); }
__device__ inline float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_f32(F8E4M3 x) {
  const uint32_t wide = f16_from_e4m3(x.bits);
  return to_f32(*reinterpret_cast<const __half*>(&wide));
}
__device__ inline F8E4M3 load_one(const F8E4M3* from) { return {__ldg(&from->bits)}; }
template <class T>
__device__ T load_one(const T* from) {
  return __ldg(from);
}
// Calls visit with a zero of the type that elements of a dtype have here.
template <class Visit>
__host__ __device__ auto with_element(int dtype, Visit&& visit) {
  if (dtype == ADAMAS_F32) return visit(float{});
  if (dtype == ADAMAS_F16) return visit(__half{});
  if (dtype == ADAMAS_F8_E4M3) return visit(F8E4M3{});
  return visit(__nv_bfloat16{});
}
__device__ inline float load_element(const char* row, int dtype, int d) {
  return with_element(dtype, [&](auto zero) { return to_f32(load_one(reinterpret_cast<const decltype(zero)*>(row) + d)); });
}
__device__ inline float Step::mask_value(int row, int token) const {
  return load_element(mask + row / rows * mask_stride_batch + row % rows * mask_stride_row, mask_dtype, token);
}

// Eight elements of a row as they lie, and as numbers: so that many can be on their way before the first is looked at.
template <class T>
struct Eight {
  uint4 raw[sizeof(T) / 2];
  __device__ void load(const void* from) {
    for (int i = 0; i < int(sizeof(T)) / 2; i++) raw[i] = __ldg(static_cast<const uint4*>(from) + i);
  }
};
template <>
struct Eight<F8E4M3> {
  uint2 raw;
  __device__ void load(const void* from) { raw = __ldg(static_cast<const uint2*>(from)); }
  __device__ void widen(uint32_t (&to)[4]) const {
    to[0] = f16_from_e4m3(uint16_t(raw.x)), to[1] = f16_from_e4m3(uint16_t(raw.x >> 16));
    to[2] = f16_from_e4m3(uint16_t(raw.y)), to[3] = f16_from_e4m3(uint16_t(raw.y >> 16));
  }
};
__device__ inline void to_f32(const Eight<float>& from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = reinterpret_cast<const float*>(from.raw)[i];
}
__device__ inline void to_f32(const Eight<__half>& from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 two = __half22float2(reinterpret_cast<const __half2*>(from.raw)[i]);
    x[2 * i] = two.x, x[2 * i + 1] = two.y;
  }
}
__device__ inline void to_f32(const Eight<F8E4M3>& from, float (&x)[8]) {
  uint32_t wide[4];
  from.widen(wide);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&wide[i]));
    x[2 * i] = two.x, x[2 * i + 1] = two.y;
  }
}
__device__ inline void to_f32(const Eight<__nv_bfloat16>& from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 two = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(from.raw)[i]);
    x[2 * i] = two.x, x[2 * i + 1] = two.y;
  }
}
// By the bits of 2^23 + 2^15 + x, since the instruction that converts is a slow one.
__device__ inline void to_f32(const Eight<int16_t>& from, float (&x)[8]) {
  const unsigned words[4] = {from.raw[0].x, from.raw[0].y, from.raw[0].z, from.raw[0].w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const unsigned moved = words[i] ^ 0x80008000;
    x[2 * i] = __uint_as_float(__byte_perm(moved, 0x4B00, 0x5410)) - 8421376.0f;
    x[2 * i + 1] = __uint_as_float(__byte_perm(moved, 0x4B00, 0x5432)) - 8421376.0f;
  }
}

// Of each `lanes` lanes in line.
template <int lanes>
__device__ float max_of_lanes(float x) {
  for (int o = lanes / 2; o > 0; o /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
template <int lanes, class T>
__device__ T sum_of_lanes(T x) {
  for (int o = lanes / 2; o > 0; o /= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
__device__ inline float max_of_warp(float x) { return max_of_lanes<32>(x); }
template <class T>
__device__ T sum_of_warp(T x) {
  return sum_of_lanes<32>(x);
}
// Of all threads of a block, which all call it.
__device__ inline int sum_of_block(int x) {
  __shared__ int all;
  __syncthreads();
  if (threadIdx.x == 0) all = 0;
  __syncthreads();
  x = __reduce_add_sync(~0u, x);
  if (threadIdx.x % 32 == 0) atomicAdd(&all, x);
  __syncthreads();
  return all;
}

// The first of counts [bins] up to which they are `wanted` or more together, for each of `wanted`; bins: they never are. A
// warp's.
template <int bins, int count>
__device__ void bins_reaching(const int (&counts)[bins], const int (&wanted)[count], int (&found)[count]) {
  constexpr int each = bins / 32;
  const int lane = threadIdx.x % 32;
  int own[each], mine = 0;
#pragma unroll
  for (int i = 0; i < each; i++) mine += own[i] = counts[each * lane + i];
  int all = mine;
  for (int o = 1; o < 32; o *= 2) {
    const int v = __shfl_up_sync(~0u, all, o);
    if (lane >= o) all += v;
  }
#pragma unroll
  for (int k = 0; k < count; k++) {
    int bin = bins;
    if (all >= wanted[k] && all - mine < wanted[k]) {
      bin = each * lane;
      int before = all - mine;
#pragma unroll
      for (int i = 0; i < each; i++) bin += (before += own[i]) < wanted[k];
    }
    found[k] = __reduce_min_sync(~0u, bin);
  }
}

// A warp's row: lane l has dimension 32 i + l at i.
template <int parts>
struct RawRow {
  uint32_t bits[parts];
  __device__ void load(const char* row, int dtype, int head_dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < parts; i++) {
      const int d = min(32 * i + lane, head_dim - 1);
      bits[i] = dtype == ADAMAS_F32       ? __ldg(reinterpret_cast<const uint32_t*>(row) + d)
                : dtype == ADAMAS_F8_E4M3 ? __ldg(reinterpret_cast<const uint8_t*>(row) + d)
                                          : __ldg(reinterpret_cast<const uint16_t*>(row) + d);
    }
  }
  // As codes are made of it: no NaN, nothing beyond 1e15.
  __device__ void tame(int dtype, int head_dim, float (&x)[parts]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < parts; i++) {
      x[i] = dtype == ADAMAS_F32       ? __uint_as_float(bits[i])
             : dtype == ADAMAS_F16     ? to_f32(__ushort_as_half(uint16_t(bits[i])))
             : dtype == ADAMAS_F8_E4M3 ? to_f32(F8E4M3{uint8_t(bits[i])})
                                       : to_f32(__ushort_as_bfloat16(uint16_t(bits[i])));
      if (32 * i + lane >= head_dim || isnan(x[i])) x[i] = 0;
      x[i] = fminf(fmaxf(x[i], -largest_key), largest_key);
    }
  }
};

// Rotates it. The butterfly's order is hadamard.h's, so the bits are.
template <int parts>
__device__ void rotate(int head_dim, float (&x)[parts]) {
  const int lane = threadIdx.x % 32, n = rotation_block(head_dim);
#pragma unroll
  for (int span = 1; span < 32; span *= 2) {
    if (span >= n) break;
#pragma unroll
    for (int i = 0; i < parts; i++) {
      const float other = __shfl_xor_sync(~0u, x[i], span);
      x[i] = (lane & span) != 0 ? __fsub_rn(other, x[i]) : __fadd_rn(x[i], other);
    }
  }
#pragma unroll
  for (int span = 1; span < parts; span *= 2) {
    if (32 * span >= n) break;
#pragma unroll
    for (int i = 0; i < parts; i++) {
      if ((i & span) != 0 || i + span >= parts) continue;
      const float a = x[i], b = x[i + span];
      x[i] = __fadd_rn(a, b);
      x[i + span] = __fsub_rn(a, b);
    }
  }
  // 1 / sqrt(n), to the bit: n is a power of two, and what is divided and rooted is 1 or 2 times one of four.
  constexpr float of_two = 1.0f / 1.41421354f;
  const int exponent = __ffs(n) - 1;
  const float scale = __uint_as_float(unsigned(127 - exponent / 2) << 23) * (exponent % 2 != 0 ? of_two : 1.0f);
#pragma unroll
  for (int i = 0; i < parts; i++) x[i] = __fmul_rn(x[i], scale);
}

// Rows that were written. Either the newest `rows` of each entry of a batch, whose lengths lie on the device, or rows
// [first, first + rows) of one sequence.
struct Appended {
  int kv_heads, head_dim, batch, open_rows, dtype;
  bool one, rotate, means, paper, quest;
  int64_t rows, first, sequence;
  const int64_t *sequences, *lengths;
  Table k, v;
  int* tickets;  // [batch, 1 + kv_heads] blocks of threads that are through, of all and of each head's; 0 between launches
};

cudaError_t launch_append(const Codes& codes, const Appended& a, cudaStream_t stream);
// With a mask: what each row sees, before anything else; what the scan left of that, behind it.
cudaError_t launch_look(const Step& s, cudaStream_t stream);
cudaError_t launch_hide(const Step& s, cudaStream_t stream);
cudaError_t launch_scan(const Step& s, cudaStream_t stream);
cudaError_t launch_choose(const Step& s, cudaStream_t stream);
cudaError_t launch_select(const Step& s, cudaStream_t stream);
cudaError_t launch_rank(const Step& s, cudaStream_t stream);
cudaError_t launch_attend(const Step& s, cudaStream_t stream);
// With min_mass, behind a step: heads that have not enough read more, and are combined once more.
cudaError_t launch_widen(const Step& s, cudaStream_t stream);
cudaError_t launch_combine(const Step& s, bool again, cudaStream_t stream);
// Adds what the step did to `stats`, which lie where the GPU can write. s.mass is not NULL.
cudaError_t launch_count(const Step& s, adamas_step_stats* stats, cudaStream_t stream);

enum class Start { after, beside };  // beside: a kernel may start before the one ahead of it in the stream has ended

template <class... Parameters, class... Arguments>
cudaError_t launch(Start start, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute beside{};
  beside.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  beside.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &beside;
  config.numAttrs = start == Start::beside ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace adamas::cuda
