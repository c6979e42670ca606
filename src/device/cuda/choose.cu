// Stage 4: which tokens a query head lists, from the scores of the scan. list/list.h and select/select.h say which. A few
// blocks of threads share a head's blocks of tokens, and the last one that is through completes the choice.
//
// All of them find what the scores stand for, and from which score on a token is listed, from the scan's summaries of spans.
// The highest estimate of every block is known, so only blocks are looked into that have a token to list. Where a rank
// decides, that of the k-th best block is reached by k tokens at least; those that reach it, roughly, are collected, and the
// last block of threads ranks them. Little of this is work, and all of it is waiting, so warps have a part each: four score
// what is read in any case, the first finds the bound, the others count blocks and see to their scores' offsets.
#include <cub/block/block_scan.cuh>

#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int block_warps = 7, always_warps = 4, warps = 1 + block_warps + always_warps, threads = 32 * warps;
constexpr int block_threads = 32 * block_warps, first_always = 32 * (1 + block_warps);
constexpr int groups = threads / 8;  // eight lanes have a block's 64 scores
constexpr int chunk = 2048;          // blocks that are looked through at a time
constexpr int bins = 512;            // of blocks by their highest estimates

using Scan = cub::BlockScan<int, threads>;

struct Shared {
  Scan::TempStorage scan;
  float query[always_warps][256];
  float always_max[always_warps], always_sum[always_warps];
  double result[warps];
  double c_max, c_min;
  float rounding, of_all, sum_of_all;
  int counted[3][warps];
  int counts[32];
  union {
    int histogram[warps][256];  // of the slow way
    int of_bins[bins];
    Candidate candidates[most_candidates];
  };
  int candidate_count, first_candidate, highest_candidate, digit, left;
  int bound, lower, low_top;
  bool last;
  float tops[chunk];         // of the first blocks: log2 of the highest estimate
  int16_t offsets[chunk];    // C_b of the part's first blocks
  uint32_t reaching[chunk];  // blocks that have a score to mark: C_b, and which one from the chunk's first on
  int reaching_count;
};
__shared__ Shared m;

// What is rare stands apart: instructions that are jumped over have to be fetched, too.
__device__ ADAMAS_NOINLINE double capped_softly(double score, double softcap) { return softcap * tanh(score / softcap); }
__device__ ADAMAS_NOINLINE double uncapped(double capped, double softcap) {
  return capped > -softcap ? softcap * atanh(fmin(capped / softcap, 1 - 1e-9)) : -INFINITY;
}
__device__ double capped(double score, double softcap) { return softcap > 0 ? capped_softly(score, softcap) : score; }

// The largest of a warp's numbers, from which a rounded one mostly tells.
__device__ double highest_of_warp(double x) {
  const float rounded = float(x);
  const int bits = __float_as_int(rounded), ordered = bits ^ (bits >> 31 & 0x7FFFFFFF);
  unsigned first = __ballot_sync(~0u, ordered == __reduce_max_sync(~0u, ordered));
  double most = __shfl_sync(~0u, x, __ffs(first) - 1);
  while (first &= first - 1) most = fmax(most, __shfl_sync(~0u, x, __ffs(first) - 1));
  return most;
}

// The same of all threads, for what is rare.
__device__ double highest_of_all(double x) {
  x = highest_of_warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) m.result[threadIdx.x / 32] = x;
  __syncthreads();
  return highest_of_warp(m.result[min(int(threadIdx.x % 32), warps - 1)]);
}

// One head: its scores, and what is known of its blocks.
struct Scores {
  int16_t *scores, *offsets;  // [blocks, 64], [blocks]
  float2* sums;
  uint64_t* marks;
  int blocks, hidden_block;
  int own, own_end;  // of which blocks the offsets are in m.offsets

  // Eight scores of a block: [8 eighth, 8 eighth + 8).
  __device__ uint4 load(int b, int eighth) const {
    return __ldcg(reinterpret_cast<const uint4*>(scores + int64_t(b) * block_tokens) + eighth);
  }
  __device__ int offset(int b) const { return b >= own && b < own_end ? m.offsets[b - own] : __ldcg(offsets + b); }
  __device__ float top(int b) const { return b < chunk ? m.tops[b] : __ldcg(&sums[b].x); }
};
__device__ int score_of(const uint4& eight, int j) {
  const unsigned two = j < 4 ? (j < 2 ? eight.x : eight.y) : (j < 6 ? eight.z : eight.w);
  return int16_t(two >> 16 * (j % 2));
}

// Calls visit(b, eighth, eight scores) for all; the lanes of a warp together.
template <class Visit>
__device__ void for_all(const Scores& x, Visit&& visit) {
  for (int b = threadIdx.x / 8; b < x.blocks; b += groups) visit(b, int(threadIdx.x % 8), x.load(b, threadIdx.x % 8));
}

// The exact scores of what is read in any case, as a maximum and a sum of exponentials for each of the warps that call it;
// +inf when one is no number. Eight lanes have a token.
__device__ void score_always(const Step& s, const View& view, int row, int h) {
  constexpr int ahead = 4, step = 4 * always_warps;
  const int part = threadIdx.x % 8, warp = (threadIdx.x - first_always) / 32, g = h / s.group;
  const int sinks = min(s.sinks, view.tokens), from = max(view.estimated, sinks), count = sinks + view.tokens - from;
  const char* q = s.query(row, h);
  for (int d = threadIdx.x % 32; d < s.head_dim; d += 32) m.query[warp][d] = load_element(q, s.q_dtype, d);
  __syncwarp();
  float most = -INFINITY, sum = 0;
  const auto score = [&](auto zero) {
    using T = decltype(zero);
    for (int base = 4 * warp; base < count; base += ahead * step) {
      float x[ahead] = {};
      int token[ahead];
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        const int at = min(base + i * step + int(threadIdx.x % 32) / 8, count - 1);
        token[i] = at < sinks ? at : from + at - sinks;
      }
      for (int d = 8 * part; d - 8 * part < s.head_dim; d += 64) {
        const int here = d < s.head_dim ? d : 0;  // past head_dim the query is 0
        Eight<T> raw[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) raw[i].load(s.k.row(view.sequence, g, token[i]) + here * sizeof(T));
#pragma unroll
        for (int i = 0; i < ahead; i++) {
          float k[8];
          to_f32(raw[i], k);
#pragma unroll
          for (int j = 0; j < 8; j++) x[i] = fmaf(d < s.head_dim ? m.query[warp][d + j] : 0.0f, k[j], x[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        for (int o = 1; o < 8; o *= 2) x[i] += __shfl_xor_sync(~0u, x[i], o);
        x[i] = s.score_of(x[i], h, view.tokens - 1 - token[i]);
        if (base + i * step + int(threadIdx.x % 32) / 8 >= count) continue;
        if (!(x[i] < INFINITY)) most = INFINITY;
        if (x[i] > most) sum *= expf(most - x[i]), most = x[i];
        if (x[i] > -INFINITY && most < INFINITY) sum += expf(x[i] - most);
      }
    }
  };
  with_element(s.k_dtype, score);
  for (int o = 8; o < 32; o *= 2) {
    const float other = __shfl_xor_sync(~0u, most, o), others = __shfl_xor_sync(~0u, sum, o), highest = fmaxf(most, other);
    if (highest > -INFINITY) sum = sum * expf(most - highest) + others * expf(other - highest);
    most = highest;
  }
  if (threadIdx.x % 32 == 0) m.always_max[warp] = most, m.always_sum[warp] = sum;
}

// log2 of the sum of all of these; -inf when there is none, or one is no number. A warp's.
__device__ float log_of_always() {
  const int own = threadIdx.x % always_warps;
  const float most = m.always_max[own], highest = max_of_warp(most);
  if (!isfinite(highest)) return -INFINITY;
  float sum = most > -INFINITY ? m.always_sum[own] * expf(most - highest) : 0.0f;
  for (int o = always_warps / 2; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  return highest * log2e + log2f(sum);
}

// C_b, as a division gives it: by a multiplication, unless that is close to a half.
__device__ ADAMAS_NOINLINE int offset_by_division(double above, double unit) {
  return int(rint(fmax(double(lowest_centre), above / unit)));
}
__device__ int offset_of(double above, double unit, double inverse) {
  const double quotient = fmax(double(lowest_centre), above * inverse), rounded = rint(quotient);
  if (fabs(fabs(quotient - rounded) - 0.5) > 1e-6) return int(rounded);
  return offset_by_division(above, unit);
}

// The lowest score whose estimate reaches a logit; inverse: 1 / e.unit.
__device__ int score_reaching(const Head& e, double inverse, double logit) {
  if (e.softcap > 0) logit = uncapped(logit, e.softcap);
  const double units = ceil((logit - e.highest) * inverse);
  return units > hidden_score + 1 ? int(fmin(units, always_score - 1.0)) : hidden_score + 1;
}

// The highest score of at most twice the weight of one.
__device__ int low_top_of(const Head& e, int score) {
  const double limit = capped(e.unit * score + e.highest, e.softcap) + double(ln2), cap = e.softcap;
  double units = always_score;
  if (cap == 0)
    units = (limit - e.highest) / e.unit;
  else if (limit < cap)
    units = (uncapped(limit, cap) - e.highest) / e.unit;
  return int(fmin(floor(units + 1e-6), double(always_score)));
}

// From which score on tokens are listed by their share: m.bound, m.lower, m.low_top. A warp's.
__device__ ADAMAS_NOINLINE void find_bound(const Step& s, const Head& head, double inverse) {
  const float estimated = m.of_all + log2f(m.sum_of_all), always = log_of_always();
  const float higher = fmaxf(estimated, always), lower = fminf(estimated, always);
  const float total = lower > -INFINITY ? higher + log2f(1.0f + exp2f(lower - higher)) : higher;
  const float least = (s.log2_share + total) * ln2 - sqrtf(head.noise);
  const bool hidden = threadIdx.x % 32 == 1;
  const int score = score_reaching(head, inverse, hidden ? least + logf(float(hidden_rows_share)) : least);
  // Surely of at most twice the weight of the least that reaches the bound, whichever that is.
  const int low_top = s.softcap > 0 ? score - 1 : score + int(fmin(double(ln2) * inverse, 65536.0)) - 1;
  if (threadIdx.x % 32 == 0) m.bound = score, m.low_top = low_top;
  if (hidden) m.lower = score;
}

// Scores anew, relative to the highest estimate: list/rescale.h.
__device__ ADAMAS_NOINLINE void rescale(const Step& s, const View& view, int h, const double* centres, const Scores& x,
                                        Head& head) {
  const double origin = capped(head.highest, head.softcap), slope = s.slope(h), scale = s.scale;
  const auto estimate = [&](int b, int t, int score) {
    const int offset = x.offset(b), full = score + offset;
    const double centre = __dsub_rn(__dmul_rn(scale, __ldcg(centres + b)), __dmul_rn(head.unit, double(offset)));
    double e = capped(__dadd_rn(__dmul_rn(head.unit, double(full)), centre), head.softcap) - origin;
    if (s.slopes != nullptr) e = __dadd_rn(e, __dmul_rn(slope, double(float(b * block_tokens + t - (view.tokens - 1)))));
    return e > -1e30 ? float(fmin(e, 1e30)) : -1e30f;
  };
  float top = -INFINITY;
  for_all(x, [&](int b, int eighth, const uint4& eight) {
    for (int j = 0; j < 8; j++)
      if (const int v = score_of(eight, j); v != hidden_score) top = fmaxf(top, estimate(b, 8 * eighth + j, v));
  });
  top = float(highest_of_all(double(top)));
  const double unit = fmax(head.unit, lightest / always_score);
  for_all(x, [&](int b, int eighth, const uint4& eight) {
    uint4 anew = eight;
    for (int j = 0; j < 8; j++)
      if (const int v = score_of(eight, j); v != hidden_score)
        reinterpret_cast<int16_t*>(&anew)[j] =
            int16_t(rint(fmax((double(estimate(b, 8 * eighth + j, v)) - double(top)) / unit, -32767.0)));
    __stcg(reinterpret_cast<uint4*>(x.scores + int64_t(b) * block_tokens) + eighth, anew);
  });
  head.unit = unit;
  head.highest = isfinite(top) ? origin + double(top) : origin;
  head.softcap = 0;
  head.top = float(head.highest * double(log2e));
}

// The k-th highest score, of more than k: the slow way, through all of them, for scores that are far above each other.
__device__ ADAMAS_NOINLINE int find_score(const Scores& x, int k) {
  const auto count = [&](int prefix, bool low) {
    for (int i = threadIdx.x; i < warps * 256; i += threads) m.histogram[i / 256][i % 256] = 0;
    __syncthreads();
    for_all(x, [&](int b, int, const uint4& eight) {
      for (int j = 0; j < 8; j++) {
        const int v = score_of(eight, j), key = v + x.offset(b) - hidden_score;
        if (v != hidden_score && (!low || key >> 8 == prefix))
          atomicAdd(&m.histogram[threadIdx.x / 32][low ? key & 255 : key >> 8], 1);
      }
    });
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += threads)
      for (int w = 1; w < warps; w++) m.histogram[0][i] += m.histogram[w][i];
    __syncthreads();
  };
  // The digit at which k is reached, walking down; what is left of k there.
  const auto walk = [&](int left) {
    if (threadIdx.x == 0) {
      int digit = 255;
      for (; digit > 0 && m.histogram[0][digit] < left; digit--) left -= m.histogram[0][digit];
      m.digit = digit, m.left = left;
    }
    __syncthreads();
    return m.digit;
  };
  count(0, false);
  const int high = walk(k), left = m.left;
  __syncthreads();
  count(high, true);
  const int score = (high << 8 | walk(left)) + hidden_score;
  __syncthreads();
  return score;
}

// The highest number of [least, beyond) that at least k of all are not below; count(x): how many of the calling thread's are
// not below x.
template <class Count>
__device__ int find_rank(int k, int least, int beyond, Count&& count) {
  if (threadIdx.x < 32) m.counts[threadIdx.x] = 0;
  __syncthreads();
  for (int i = 0; beyond - least > 1; i++) {
    const int middle = (least + beyond) >> 1, own = __reduce_add_sync(~0u, count(middle));
    if (threadIdx.x % 32 == 0 && own != 0) atomicAdd(&m.counts[i], own);
    __syncthreads();
    (m.counts[i] >= k ? least : beyond) = middle;
  }
  __syncthreads();
  return least;
}

// How many scores are marked; of those that reach the bound the least, and how many are not above `low_top`.
struct Marked {
  int count, least, low;
};

// What is marked: scores from `bound` on, in a block with hidden rows from `lower` on.
struct Wanted {
  int bound, lower, low_top;
  int cut;        // from this score on they are collected, and all that are marked; always_score: none is
  bool store;     // or only counted
  float reached;  // log2 of an estimate that none of these stays below
};

// In the blocks [first, last). All threads of a block call it.
__device__ ADAMAS_NOINLINE Marked mark(const Scores x, int first, int last, const Wanted wanted) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, eighth = lane % 8;
  const bool collect = wanted.cut < always_score;
  int count = 0, least = always_score, low = 0;
  __syncthreads();
  if (threadIdx.x == 0) m.candidate_count = m.reaching_count = 0;
  __syncthreads();
#pragma unroll 1
  for (int base = first; base < last; base += chunk) {
    const int end = min(last, base + chunk);
#pragma unroll 1
    for (int b = base + int(threadIdx.x); b - lane < end; b += threads) {
      const bool may = b < end && (x.top(b) >= wanted.reached || b == x.hidden_block);
      if (wanted.store && b < end && !may) x.marks[b] = 0;
      const unsigned all = __ballot_sync(~0u, may);
      if (all == 0) continue;
      int at = 0;
      if (lane == 0) at = atomicAdd(&m.reaching_count, __popc(all));
      at = __shfl_sync(~0u, at, 0);
      if (may) m.reaching[at + __popc(all & ((1u << lane) - 1))] = unsigned(x.offset(b)) << 16 | unsigned(b - base);
    }
    __syncthreads();
    constexpr int ahead = 4;
    const int reaching = m.reaching_count;
#pragma unroll 1
    for (int at = int(threadIdx.x) / 8; at < reaching; at += ahead * groups) {
      uint4 eight[ahead];
      uint32_t of[ahead];
#pragma unroll
      for (int i = 0; i < ahead; i++) {  // the last ones read what was read, and forget it
        of[i] = m.reaching[min(at + i * groups, reaching - 1)];
        eight[i] = x.load(base + int(of[i] & 0xFFFF), eighth);
      }
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        if (at + i * groups >= reaching) break;
        const int block = base + int(of[i] & 0xFFFF), offset = int16_t(of[i] >> 16);
        const int own = max(hidden_score + 1, wanted.bound - offset), high = wanted.low_top - offset;
        const int listed_from =
            block == x.hidden_block ? max(hidden_score + 1, min(wanted.bound, wanted.lower) - offset) : own;
        unsigned bits = 0, lows = 0, listed = 0;
        int lowest = always_score;
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const int v = score_of(eight[i], j);
          const bool reaches = v >= own;
          bits |= unsigned(reaches) << j;
          lows |= unsigned(v <= high) << j;
          listed |= unsigned(v >= listed_from) << j;
          lowest = min(lowest, reaches ? v : always_score);
        }
        if (bits != 0) least = min(least, lowest + offset);
        low += __popc(bits & lows);
        count += __popc(listed);
        if (wanted.store) reinterpret_cast<uint8_t*>(x.marks + block)[eighth] = uint8_t(listed);
        if (!collect) continue;
        const int cut = max(hidden_score + 1, wanted.cut - offset);
#pragma unroll
        for (int j = 0; j < 8; j++) listed |= unsigned(score_of(eight[i], j) >= cut) << j;
        if (listed == 0) continue;
        int to = atomicAdd(&m.candidate_count, __popc(listed));
        for (; listed != 0; listed &= listed - 1, to++) {
          const int j = __ffs(listed) - 1;
          if (to < most_candidates)
            m.candidates[to] = {score_of(eight[i], j) + offset, block * block_tokens + 8 * eighth + j};
        }
      }
    }
    if (base + chunk >= last) break;
    __syncthreads();
    if (threadIdx.x == 0) m.reaching_count = 0;
    __syncthreads();
  }
  count = __reduce_add_sync(~0u, count), least = __reduce_min_sync(~0u, least), low = __reduce_add_sync(~0u, low);
  if (lane == 0) m.counted[0][warp] = count, m.counted[1][warp] = least, m.counted[2][warp] = low;
  __syncthreads();
  const int w = min(lane, warps - 1);
  const bool mine = lane < warps;
  return {__reduce_add_sync(~0u, mine ? m.counted[0][w] : 0), __reduce_min_sync(~0u, m.counted[1][w]),
          __reduce_add_sync(~0u, mine ? m.counted[2][w] : 0)};
}

// Of the marked scores that equal the bound the first `extra` are too many.
__device__ ADAMAS_NOINLINE void unmark(const Scores x, int bound, int extra) {
  __syncthreads();
  for (int base = 0; base < x.blocks && extra > 0; base += threads) {
    const int b = base + int(threadIdx.x), offset = b < x.blocks ? x.offset(b) : 0;
    uint64_t bits = b < x.blocks ? __ldcg(x.marks + b) : 0, equal = 0;
    for (uint64_t left = bits; left != 0; left &= left - 1) {
      const int t = __ffsll(left) - 1;
      if (__ldcg(x.scores + int64_t(b) * block_tokens + t) + offset == bound) equal |= uint64_t{1} << t;
    }
    int before_us, here;
    Scan(m.scan).ExclusiveSum(__popcll(equal), before_us, here);
    for (int drop = min(extra - before_us, __popcll(equal)); drop > 0; drop--, equal &= equal - 1)
      bits &= ~(equal & (~equal + 1));
    if (b < x.blocks) x.marks[b] = bits;
    extra -= here;
    __syncthreads();
  }
}

// How many of m.candidates have a score of [from, to]. All threads of a block call it.
__device__ ADAMAS_NOINLINE int count_candidates(int count, int from, int to) {
  __syncthreads();
  if (threadIdx.x == 0) m.counts[0] = 0;
  __syncthreads();
  int own = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += threads) own += m.candidates[i].score >= from && m.candidates[i].score <= to;
  own = __reduce_add_sync(~0u, own);
  if (threadIdx.x % 32 == 0) atomicAdd(&m.counts[0], own);
  __syncthreads();
  return m.counts[0];
}

// The k highest of m.candidates, of equal ones the later, become what is marked; until now that are `was`. They are not
// fewer than k. Returns the lowest score.
__device__ ADAMAS_NOINLINE int rank_candidates(const Scores x, int k, int count, const Wanted was) {
  __syncthreads();
  if (threadIdx.x == 0) m.highest_candidate = hidden_score;
  __syncthreads();
  int highest = hidden_score;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += threads) highest = max(highest, m.candidates[i].score);
  highest = __reduce_max_sync(~0u, highest);
  if (threadIdx.x % 32 == 0) atomicMax(&m.highest_candidate, highest);
  __syncthreads();
  const int bound = find_rank(k, min(was.cut, was.lower), m.highest_candidate + 1, [&](int score) {
    int reach = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += threads) reach += m.candidates[i].score >= score;
    return reach;
  });
  const int extra = count_candidates(count, bound, always_score) - k;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += threads) {
    const Candidate own = m.candidates[i];
    bool is = own.score >= bound;
    if (own.score == bound && extra > 0) {
      int before = 0;
#pragma unroll 1
      for (int j = 0; j < count; j++) before += m.candidates[j].score == bound && m.candidates[j].token < own.token;
      is = before >= extra;
    }
    const int block = own.token / block_tokens;
    const bool marked = own.score >= (block == x.hidden_block ? min(was.bound, was.lower) : was.bound);
    if (is != marked) atomicXor(reinterpret_cast<unsigned*>(x.marks) + own.token / 32, 1u << own.token % 32);
  }
  return bound;
}

// An estimate that at least k are not below, by counts of how far below the highest they are: an eighth of an octave near
// it, half of one further down; -inf: all. A warp's; the counts are there.
__device__ float reached_by(int k, float top) {
  const int lane = threadIdx.x % 32;
  constexpr int each = bins / 32;
  int mine = 0;
#pragma unroll
  for (int i = 0; i < each; i++) mine += m.of_bins[each * lane + i];
  int below = mine;
  for (int o = 1; o < 32; o *= 2) {
    const int v = __shfl_up_sync(~0u, below, o);
    if (lane >= o) below += v;
  }
  int bin = bins;
  if (below >= k && below - mine < k) {
    below -= mine;
    for (int i = 0; i < each && bin == bins; i++)
      if ((below += m.of_bins[each * lane + i]) >= k) bin = each * lane + i;
  }
  bin = __reduce_min_sync(~0u, bin);
  if (bin >= bins - 1) return -INFINITY;
  return top - (bin < 256 ? 0.125f * float(bin + 1) : 32 + 0.5f * float(bin - 255));
}
__device__ int bin_of(float below) {
  return below < 32 ? int(8 * below) : 256 + int(fminf(2 * (below - 32), float(bins - 257)));
}

// log2 of an estimate that no token of this score or a higher one stays below, by more than floats and C_b are rounded.
__device__ float reached_from(const Head& head, int score, float largest_centre) {
  if (score >= always_score) return INFINITY;
  const float at = float(capped(head.unit * score + head.highest, head.softcap) * double(log2e));
  return at - 1.5f * float(head.unit * double(log2e)) - 1e-6f * (fabsf(at) + 2 * largest_centre);
}

// The lowest score of what is not below an estimate, or a lower one: by what floats and C_b are rounded.
__device__ int cut_of(const Head& head, double inverse, float reached, float largest_centre) {
  if (reached == INFINITY) return always_score;
  if (reached == -INFINITY) return hidden_score + 1;
  const double below = double(reached) - 1e-6 * (fabs(double(reached)) + 2 * double(largest_centre));
  return max(hidden_score + 1, score_reaching(head, inverse, below * double(ln2)) - 2);
}

// Marks the k highest of all, by one block of threads: where blocks are too few to tell, or those collected too many.
// Returns the lowest score.
__device__ ADAMAS_NOINLINE int rank_all(const Scores& x, const Head& head, int k, float largest_centre) {
  __syncthreads();
  for (int i = threadIdx.x; i < bins; i += threads) m.of_bins[i] = 0;
  __syncthreads();
  const float unit2 = head.unit2, highest2 = float(head.highest * double(log2e)), top = m.of_all;
  constexpr int ahead = 4;
#pragma unroll 1
  for (int base = int(threadIdx.x) / 8; base < x.blocks; base += ahead * groups) {
    uint4 eight[ahead];
    int offsets[ahead];
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const int b = min(base + i * groups, x.blocks - 1);
      eight[i] = x.load(b, threadIdx.x % 8);
      offsets[i] = x.offset(b);
    }
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      if (base + i * groups >= x.blocks) break;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int v = score_of(eight[i], j);
        float at = fmaf(float(v + offsets[i]), unit2, highest2);
        if (head.softcap > 0) at = soft_capped(at * ln2, head.softcap) * log2e;
        if (v != hidden_score) atomicAdd(&m.of_bins[bin_of(fmaxf(top - at, 0.0f))], 1);
      }
    }
  }
  __syncthreads();
  const int cut = cut_of(head, 1 / head.unit, reached_by(k, top), largest_centre);
  const Wanted wanted{cut, cut, always_score, cut, true, reached_from(head, cut, largest_centre)};
  const Marked marked = mark(x, 0, x.blocks, wanted);
  if (marked.count <= k) return marked.least;
  if (marked.count <= most_candidates) return rank_candidates(x, k, marked.count, wanted);
  const int bound = find_score(x, k);
  const Marked again = mark(x, 0, x.blocks, {bound, bound, always_score, always_score, true, -INFINITY});
  if (again.count > k) unmark(x, bound, again.count - k);
  return bound;
}

// What the scan says of all blocks: m.c_max, m.c_min, m.rounding, m.of_all, m.sum_of_all. A warp's.
__device__ void read_spans(const Span* of, int count) {
  const int lane = threadIdx.x % 32;
  double highest = -INFINITY, lowest = INFINITY;
  float top = nothing, sum = 0, rounding = 0;
#pragma unroll 4
  for (int i = lane; i < count; i += 32) {
    const double2 c = __ldcg(reinterpret_cast<const double2*>(of + i));
    const float4 rest = __ldcg(reinterpret_cast<const float4*>(&of[i].top));
    highest = fmax(highest, c.x), lowest = fmin(lowest, c.y), rounding = fmaxf(rounding, rest.z);
    const float higher = fmaxf(top, rest.x);
    sum = fmaf(sum, exp2_fast(top - higher), rest.y * exp2_fast(rest.x - higher));
    top = higher;
  }
  const float of_all = max_of_warp(top);
  sum = sum_of_warp(sum * exp2_fast(top - of_all));
  highest = highest_of_warp(highest), lowest = -highest_of_warp(-lowest), rounding = max_of_warp(rounding);
  if (lane == 0) m.c_max = highest, m.c_min = lowest, m.rounding = rounding, m.of_all = of_all, m.sum_of_all = sum;
}

// Tells the other blocks of threads of a head what this one has found. The last one gets what all have, and the candidates
// that were collected, and goes on; most_candidates + 1: there was no room for them.
__device__ bool join(const Step& s, int64_t index, int parts, bool collects, Marked& marked, int& collected) {
  Tally& tally = s.tallies[index];
  Candidate* candidates = s.candidates + index * s.candidate_room();
  if (collects) {
    if (threadIdx.x == 0) m.first_candidate = atomicAdd(&tally.candidates, collected);
    __syncthreads();
    const int to = m.first_candidate;
    for (int i = threadIdx.x; i < min(collected, most_candidates) && to + i < s.candidate_room(); i += threads)
      candidates[to + i] = m.candidates[i];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    atomicAdd(&tally.count, marked.count);
    atomicMin(&tally.least, marked.least);
    atomicAdd(&tally.low, marked.low);
    __threadfence();
    m.last = atomicAdd(&tally.through, 1) == parts - 1;
    __threadfence();
  }
  __syncthreads();
  if (!m.last) return false;
  marked = {__ldcg(&tally.count), __ldcg(&tally.least), __ldcg(&tally.low)};
  if (!collects) return true;
  collected = __ldcg(&tally.candidates);
  if (collected > s.candidate_room()) {
    collected = most_candidates + 1;
    return true;
  }
  for (int i = threadIdx.x; i < collected; i += threads) {
    const int2 both = __ldcg(reinterpret_cast<const int2*>(candidates + i));
    m.candidates[i] = {both.x, both.y};
  }
  __syncthreads();
  return true;
}

__global__ void __launch_bounds__(threads, 2) choose(const __grid_constant__ Step s) {
  launch_next();
  const int h = blockIdx.x, part = blockIdx.y, row = blockIdx.z;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t index = row * s.q_heads + h;
  Head& result = s.heads[index];
  View view = see(s, row);
  if (view.dense) {
    wait_for_previous();
    if (part == 0 && threadIdx.x == 0) result.reading = reads_short, result.noise = 0;
    return;
  }
  const int blocks = blocks_in(view.tokens);
  find_estimated(s, view, s.codes.coded[s.codes.place(s.k, view.sequence, blocks - 1)]);
  int parts = s.parts_of(blocks);
  const int each = (blocks + parts - 1) / parts;
  int first = min(blocks, part * each), last = min(blocks, first + each);
  if (first >= last) return;
  parts = (blocks + each - 1) / each;
  const int64_t at = s.blocks_at(row, h);
  const double* centres = s.centres + at;
  Scores x{s.scores + at * block_tokens, s.offsets + at, s.sums + at, s.marks + at, blocks, view.hidden_block, first, 0};
  const int sinks = min(s.sinks, view.tokens), always = sinks + view.tokens - max(view.estimated, sinks);
  const int fewest = s.automatic ? int(fewest_listed) : max(0, s.budget - always);
  const bool few_blocks = !s.automatic && 2 * fewest > blocks;                    // a rank of blocks would say nothing
  if (threadIdx.x >= first_always && s.automatic) score_always(s, view, row, h);  // needs nothing of the scan
  wait_for_previous();
  const Tally& found = s.tallies[index];
  const double from_scan = found.unit;
  const float rms = found.rms;
  Head head{};
  head.noise = found.noise;
  constexpr int kept = (chunk + block_threads - 1) / block_threads;
  const int own = int(threadIdx.x) - 32;  // among those that see to blocks
  double c_own = 0;
  if (warp == 0) {
    read_spans(s.spans + s.spans_at(row, h), (blocks + span_blocks - 1) / span_blocks);
  } else if (warp <= block_warps) {
    if (first + own < blocks) c_own = __ldcg(centres + first + own);
    float tops[kept];
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (const int b = own + i * block_threads; b < min(blocks, chunk)) tops[i] = __ldcg(&x.sums[b].x);
    for (int i = own; i < bins; i += block_threads) m.of_bins[i] = 0;
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (const int b = own + i * block_threads; b < min(blocks, chunk)) m.tops[b] = tops[i];
  }
  __syncthreads();
  const double highest = m.c_max, lowest = m.c_min;
  const float top = m.of_all;
  const bool uncoded = top == INFINITY;  // nobody knows what is in a block whose rows were never appended
  if (uncoded || (s.max_noise > 0 && head.noise > s.max_noise)) {
    if (part == 0 && threadIdx.x == 0) {
      result.reading = uncoded ? reads_short : reads_noisy;
      result.noise = uncoded ? 0 : head.noise;
    }
    return;
  }
  const double scale = s.scale;
  double unit = from_scan;
  if (!(unit > 0)) unit = fmax((highest - lowest) / 16384.0, double(rms) * sqrt(double(s.head_dim)) * double(m.rounding));
  if (!(unit > 0)) unit = flat_unit;
  head.unit = scale * unit;
  head.highest = scale * highest;
  head.softcap = s.softcap;
  head.top = top;
  const double inverse = 1 / head.unit, inverse_unit = inverse * scale;
  const bool anew = s.slopes != nullptr || (lowest - highest) * inverse_unit < lowest_centre;
  const float largest_centre = float(scale * fmax(fabs(highest), fabs(lowest)) * double(log2e));
  if (anew || few_blocks) {  // one does all
    if (part != 0) return;
    parts = 1, last = blocks;
  }
  x.own_end = min(last, first + chunk);
  const auto set_offset = [&](int b, double c) {
    const int offset = offset_of(c - highest, unit, inverse_unit);
    x.offsets[b] = int16_t(offset);
    if (b < x.own_end) m.offsets[b - first] = int16_t(offset);
    s.bases[at + b] = s.softcap > 0 ? float(c * scale) : float(c * scale * double(log2e) - double(top));
  };
  if (warp == 0) {
    if (s.automatic && !anew) find_bound(s, head, inverse);
  } else if (warp <= block_warps) {
#pragma unroll 4
    for (int b = own; b < blocks; b += block_threads) atomicAdd(&m.of_bins[bin_of(top - x.top(b))], 1);
    if (first + own < last) set_offset(first + own, c_own);
#pragma unroll 1
    for (int b = first + own + block_threads; b < last; b += block_threads) set_offset(b, __ldcg(centres + b));
  }
  __syncthreads();
  if (anew) {
    rescale(s, view, h, centres, x, head);
    __syncthreads();
    for (int b = threadIdx.x; b < blocks; b += threads) {
      x.offsets[b] = 0;
      if (b < chunk) m.offsets[b] = 0;
      s.bases[at + b] = 0;
    }
    if (s.automatic && warp == 0) find_bound(s, head, 1 / head.unit);
    __syncthreads();
  }
  head.unit2 = float(head.unit * double(log2e));
  head.reading = reads_list;
  head.low_top = always_score;
  head.mass = __int_as_float(0x7FC00000);  // it follows from the rest
  if (few_blocks) {
    head.bound = rank_all(x, head, fewest, largest_centre);
    if (threadIdx.x == 0) result = head;
    return;
  }
  const float reached = fewest > 0 ? reached_by(fewest, top) : INFINITY;
  const int cut = cut_of(head, anew ? 1 / head.unit : inverse, reached, largest_centre);
  Wanted wanted{cut, cut, always_score, cut, true, 0};
  if (s.automatic) {
    wanted.bound = m.bound, wanted.lower = m.lower, wanted.low_top = m.low_top;
    if (cut >= wanted.bound) wanted.cut = always_score;  // so many reach the bound
  }
  wanted.reached = reached_from(head, min(wanted.bound, wanted.cut), largest_centre);
  Marked marked = mark(x, first, last, wanted);
  int collected = wanted.cut < always_score ? m.candidate_count : 0;
  if (parts > 1 && !join(s, index, parts, wanted.cut < always_score, marked, collected)) return;
  head.bound = s.automatic ? wanted.bound : marked.least;
  const int most = s.automatic ? int(most_listed(view.tokens)) : fewest;
  bool ranked = false;
  if (marked.count > most || (s.automatic && marked.count < fewest)) {
    ranked = wanted.cut < always_score && collected <= most_candidates;
    int k = marked.count > most ? most : fewest;
    if (ranked) k = min(k, collected);  // there may be fewer
    head.bound = ranked ? rank_candidates(x, k, collected, wanted) : rank_all(x, head, k, largest_centre);
    marked = {k, head.bound, 0};
  }
  if (s.automatic) {
    // The low ones weigh at most twice the least; when these are few, all are low.
    if (marked.count > 0 && marked.least < always_score) {
      const int low_top = low_top_of(head, marked.least);
      if (ranked)
        marked.low = count_candidates(collected, head.bound, low_top);
      else if (marked.low < enough_low)
        marked.low =
            mark(x, 0, blocks,
                 {head.bound, head.bound, low_top, always_score, false, reached_from(head, head.bound, largest_centre)})
                .low;
      if (marked.low >= enough_low) head.low_top = low_top;
    }
    head.low_log2 = float(capped(head.unit * head.bound + head.highest, head.softcap) * double(log2e));
  }
  if (threadIdx.x == 0) result = head;
}

}  // namespace

cudaError_t launch_choose(const Step& s, cudaStream_t stream) {
  const dim3 grid(unsigned(s.q_heads), unsigned(s.parts_of(s.max_blocks)), unsigned(s.query_rows));
  return launch(Start::beside, choose, grid, threads, 0, stream, s);
}

}  // namespace adamas::cuda
