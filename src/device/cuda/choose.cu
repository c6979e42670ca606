// Stage 4: which tokens a query head lists, from the scores of the scan. list/list.h and select/select.h say which; a block
// of threads chooses for one query head. The highest score of every block is known, so only blocks are looked into that have
// one to list. While most warps find the bound's parts from the blocks' sums, the others score what is read in any case.
#include <cub/block/block_scan.cuh>

#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int block_warps = 8, always_warps = 4, warps = block_warps + always_warps, threads = 32 * warps;
constexpr int block_threads = 32 * block_warps;
constexpr int groups = threads / 8;    // eight lanes have a block's 64 scores
constexpr int kept = 4;                // blocks of which a thread keeps what it read
constexpr int chunk = 2048;            // blocks that are looked through at a time
constexpr int most_candidates = 4096;  // for a rank; of more it is found the slow way

using Scan = cub::BlockScan<int, threads>;

struct Shared {
  Scan::TempStorage scan;
  float query[256];
  float always_max[always_warps], always_sum[always_warps];
  double highest[block_warps], lowest[block_warps], result[warps];
  float top[block_warps], estimated[block_warps];
  double c_max, c_min;
  float of_all, sum_of_all;
  int counted[3][warps];
  int counts[32];
  union {
    int histogram[warps][256];
    int candidates[most_candidates];
  };
  int candidate_count, digit, left;
  int bound, lower, low_top;
  int16_t maxima[chunk];     // of the first blocks: the highest score
  uint32_t reaching[chunk];  // blocks that have a score to mark: C_b, and which one from the chunk's first on
  int reaching_count;
};
__shared__ Shared m;

// What is rare stands apart: instructions that are jumped over have to be fetched, too.
__device__ __noinline__ double capped_softly(double score, double softcap) { return softcap * tanh(score / softcap); }
__device__ __noinline__ double uncapped(double capped, double softcap) {
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
  int16_t* scores;  // [blocks, 64]
  int16_t *maxima, *offsets;
  int blocks, hidden_block;

  // Eight scores of a block: [8 eighth, 8 eighth + 8).
  __device__ uint4 load(int b, int eighth) const {
    return __ldcg(reinterpret_cast<const uint4*>(scores + int64_t(b) * block_tokens) + eighth);
  }
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
__device__ void score_always(const Step& s, const View& view, int h) {
  constexpr int ahead = 4, step = 4 * always_warps;
  const int part = threadIdx.x % 8, warp = threadIdx.x / 32 - block_warps, g = h / (s.q_heads / s.kv_heads);
  const int sinks = min(s.sinks, view.tokens), from = max(view.estimated, sinks), count = sinks + view.tokens - from;
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
          for (int j = 0; j < 8; j++) x[i] = fmaf(d < s.head_dim ? m.query[d + j] : 0.0f, k[j], x[i]);
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

// The log of the sum of all of these; -inf when there is none, or one is no number. A warp's.
__device__ float log_of_always() {
  const int own = threadIdx.x % always_warps;
  const float most = m.always_max[own], highest = max_of_warp(most);
  if (!isfinite(highest)) return -INFINITY;
  float sum = most > -INFINITY ? m.always_sum[own] * expf(most - highest) : 0.0f;
  for (int o = always_warps / 2; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  return highest + logf(sum);
}

// C_b, as a division gives it: by a multiplication, unless that is close to a half.
__device__ __noinline__ int offset_by_division(double above, double unit) {
  return int(rint(fmax(double(lowest_centre), above / unit)));
}
__device__ int offset_of(double above, double unit, double inverse) {
  const double quotient = fmax(double(lowest_centre), above * inverse), rounded = rint(quotient);
  if (fabs(fabs(quotient - rounded) - 0.5) > 1e-6) return int(rounded);
  return offset_by_division(above, unit);
}

// The lowest score whose estimate reaches a logit.
__device__ int score_reaching(const Head& e, double logit) {
  if (e.softcap > 0) logit = uncapped(logit, e.softcap);
  const double units = ceil((logit - e.highest) / e.unit);
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

// Scores anew, relative to the highest estimate: list/rescale.h.
__device__ __noinline__ void rescale(const Step& s, const View& view, int h, const double* centres, const Scores& x,
                                     Head& head) {
  const double origin = capped(head.highest, head.softcap), slope = s.slope(h), scale = s.scale;
  const auto estimate = [&](int b, int t, int score) {
    const int full = score + x.offsets[b];
    const double centre = __dsub_rn(__dmul_rn(scale, centres[b]), __dmul_rn(head.unit, double(x.offsets[b])));
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
    int most = hidden_score;
    for (int j = 0; j < 8; j++)
      if (const int v = score_of(eight, j); v != hidden_score) {
        const int score = int(rint(fmax((double(estimate(b, 8 * eighth + j, v)) - double(top)) / unit, -32767.0)));
        reinterpret_cast<int16_t*>(&anew)[j] = int16_t(score);
        most = max(most, score);
      }
    __stcg(reinterpret_cast<uint4*>(x.scores + int64_t(b) * block_tokens) + eighth, anew);
    for (int o = 1; o < 8; o *= 2) most = max(most, __shfl_xor_sync(0xFFu << (threadIdx.x & 24), most, o));
    if (eighth == 0) x.maxima[b] = int16_t(most);
  });
  head.unit = unit;
  head.highest = isfinite(top) ? origin + double(top) : origin;
  head.softcap = 0;
  head.top = float(head.highest * double(log2e));
}

// The k-th highest score, of more than k: the slow way, through all of them, for scores that are far above each other.
__device__ __noinline__ int find_score(const Scores& x, int k) {
  const auto count = [&](int prefix, bool low) {
    for (int i = threadIdx.x; i < warps * 256; i += threads) m.histogram[i / 256][i % 256] = 0;
    __syncthreads();
    for_all(x, [&](int b, int, const uint4& eight) {
      for (int j = 0; j < 8; j++) {
        const int v = score_of(eight, j), key = v + x.offsets[b] - hidden_score;
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

// The highest number that at least k of all are not below; count(x): how many of the calling thread's are not below x.
template <class Count>
__device__ int find_rank(int k, Count&& count) {
  if (threadIdx.x < 32) m.counts[threadIdx.x] = 0;
  __syncthreads();
  int least = hidden_score + 1, beyond = always_score + 1;
  for (int i = 0; beyond - least > 1; i++) {
    const int middle = (least + beyond) >> 1, own = __reduce_add_sync(~0u, count(middle));
    if (threadIdx.x % 32 == 0 && own != 0) atomicAdd(&m.counts[i], own);
    __syncthreads();
    (m.counts[i] >= k ? least : beyond) = middle;
  }
  __syncthreads();
  return least;
}

// What is looked into while a head chooses.
struct Chooser {
  Scores x;
  uint64_t* marks;  // [blocks]

  __device__ int highest_of(int b) const { return b < chunk ? m.maxima[b] : x.maxima[b]; }
};

// How many scores are marked; of those that reach the bound the least, and how many are not above `low_top`.
struct Marked {
  int count, least, low;
};

// Marks the scores from a bound on, `lower` in a block with hidden rows. Those that reach the bound are collected, if there
// is room. Without `store` it only counts.
__device__ __noinline__ Marked mark(const Chooser c, int bound, int lower, int low_top, bool collect, bool store) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, eighth = lane % 8;
  int count = 0, least = always_score, low = 0;
  if (threadIdx.x == 0) m.candidate_count = m.reaching_count = 0;
  __syncthreads();
#pragma unroll 1
  for (int base = 0; base < c.x.blocks; base += chunk) {
    const int end = min(c.x.blocks, base + chunk);
#pragma unroll 1
    for (int first = base + 32 * warp; first < end; first += threads) {
      const int b = first + lane;
      const bool may = b < end && (c.highest_of(b) >= bound || (b == c.x.hidden_block && lower < bound));
      if (store && b < end && !may) c.marks[b] = 0;
      const unsigned all = __ballot_sync(~0u, may);
      if (all == 0) continue;
      int at = 0;
      if (lane == 0) at = atomicAdd(&m.reaching_count, __popc(all));
      at = __shfl_sync(~0u, at, 0);
      if (may) m.reaching[at + __popc(all & ((1u << lane) - 1))] = unsigned(c.x.offsets[b]) << 16 | unsigned(b - base);
    }
    __syncthreads();
    constexpr int ahead = 4;
    const int reaching = m.reaching_count;
#pragma unroll 1
    for (int first = int(threadIdx.x) / 8; first < reaching; first += ahead * groups) {
      uint4 eight[ahead];
      uint32_t of[ahead];
#pragma unroll
      for (int i = 0; i < ahead; i++) {  // the last ones read what was read, and forget it
        of[i] = m.reaching[min(first + i * groups, reaching - 1)];
        eight[i] = c.x.load(base + int(of[i] & 0xFFFF), eighth);
      }
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        if (first + i * groups >= reaching) break;
        const int block = base + int(of[i] & 0xFFFF), offset = int16_t(of[i] >> 16);
        const int own = max(hidden_score + 1, bound - offset), high = low_top - offset;
        unsigned bits = 0, lows = 0;
        int lowest = always_score;
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const int v = score_of(eight[i], j);
          const bool reaches = v >= own;
          bits |= unsigned(reaches) << j;
          lows |= unsigned(v <= high) << j;
          lowest = min(lowest, reaches ? v : always_score);
        }
        if (bits != 0) least = min(least, lowest + offset);
        low += __popc(bits & lows);
        unsigned listed = bits;
        if (block == c.x.hidden_block && lower < bound)
          for (int j = 0; j < 8; j++)
            listed |= unsigned(score_of(eight[i], j) >= max(hidden_score + 1, lower - offset)) << j;
        count += __popc(listed);
        if (store) reinterpret_cast<uint8_t*>(c.marks + block)[eighth] = uint8_t(listed);
        if (!collect || bits == 0) continue;
        int at = atomicAdd(&m.candidate_count, __popc(bits));
        for (; bits != 0; bits &= bits - 1, at++)
          if (at < most_candidates) m.candidates[at] = score_of(eight[i], __ffs(bits) - 1) + offset;
      }
    }
    if (base + chunk >= c.x.blocks) break;
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
__device__ __noinline__ void unmark(const Chooser c, int bound, int extra) {
  __syncthreads();
  for (int base = 0; base < c.x.blocks && extra > 0; base += threads) {
    const int b = base + int(threadIdx.x), offset = b < c.x.blocks ? c.x.offsets[b] : 0;
    uint64_t bits = b < c.x.blocks ? c.marks[b] : 0, equal = 0;
    for (uint64_t left = bits; left != 0; left &= left - 1) {
      const int t = __ffsll(left) - 1;
      if (c.x.scores[int64_t(b) * block_tokens + t] + offset == bound) equal |= uint64_t{1} << t;
    }
    int before_us, here;
    Scan(m.scan).ExclusiveSum(__popcll(equal), before_us, here);
    for (int drop = min(extra - before_us, __popcll(equal)); drop > 0; drop--, equal &= equal - 1)
      bits &= ~(equal & (~equal + 1));
    if (b < c.x.blocks) c.marks[b] = bits;
    extra -= here;
    __syncthreads();
  }
}

// Marks the k highest scores, of equal ones the later. *bound: the lowest that is marked.
__device__ __noinline__ Marked mark_top(const Chooser c, int k, int* bound) {
  // That of the k-th best block is reached by k tokens at least.
  *bound = find_rank(k, [&](int score) {
    int count = 0;
#pragma unroll 1
    for (int b = threadIdx.x; b < c.x.blocks; b += threads) count += c.highest_of(b) >= score;
    return count;
  });
  Marked marked = mark(c, *bound, *bound, always_score, true, true);
  if (marked.count > k) {
    const int collected = m.candidate_count;
    *bound = collected <= most_candidates ? find_rank(k,
                                                      [&](int score) {
                                                        int count = 0;
#pragma unroll 1
                                                        for (int i = threadIdx.x; i < collected; i += threads)
                                                          count += m.candidates[i] >= score;
                                                        return count;
                                                      })
                                          : find_score(c.x, k);
    marked = mark(c, *bound, *bound, always_score, false, true);
    if (marked.count > k) unmark(c, *bound, marked.count - k);
    marked.count = k;
  }
  *bound = marked.least;
  return marked;
}

__global__ void __launch_bounds__(threads, 2) choose(const __grid_constant__ Step s) {
  launch_next();
  const int h = blockIdx.x, row = blockIdx.y, g = h / (s.q_heads / s.kv_heads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool of_blocks = warp < block_warps;
  Head& result = s.heads[row * s.q_heads + h];
  View view = see(s, row);
  if (view.dense) {
    wait_for_previous();
    if (threadIdx.x == 0) result.reading = reads_short, result.noise = 0;
    return;
  }
  find_estimated(s, view);
  const int blocks = blocks_in(view.tokens);
  const int64_t at = s.blocks_at(row, h);
  const double* centres = s.centres + at;
  const float2* sums = s.sums + at;
  const Chooser chooser{{s.scores + at * block_tokens, s.maxima + at, s.offsets + at, blocks, view.hidden_block},
                        s.marks + at};
  const Scores& x = chooser.x;
  double c_kept[kept];
  int maxima[kept] = {};
  const auto for_centres = [&](auto&& visit) {
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (const int b = int(threadIdx.x) + i * block_threads; b < blocks) visit(b, c_kept[i], i);
#pragma unroll 1
    for (int b = int(threadIdx.x) + kept * block_threads; b < blocks; b += block_threads) visit(b, __ldcg(centres + b), -1);
  };
  if (!of_blocks && s.automatic) {  // needs nothing of the scan
    const char* q = s.query(row, h);
    for (int d = int(threadIdx.x) - block_threads; d < s.head_dim; d += 32 * always_warps)
      m.query[d] = load_element(q, s.q_dtype, d);
    asm volatile("bar.sync 1, %0;" ::"n"(32 * always_warps) : "memory");
    score_always(s, view, h);
  }
  wait_for_previous();
  Head head = result;
  if (of_blocks) {
    float2 sum_kept[kept];
#pragma unroll
    for (int i = 0; i < kept; i++) {
      const int b = min(int(threadIdx.x) + i * block_threads, blocks - 1);
      c_kept[i] = __ldcg(centres + b), sum_kept[i] = __ldcg(sums + b), maxima[i] = __ldcg(x.maxima + b);
    }
    double highest = c_kept[0], lowest = c_kept[0];  // of what may be the last block, again
    float top = sum_kept[0].x, estimated = 0;
#pragma unroll
    for (int i = 1; i < kept; i++)
      highest = fmax(highest, c_kept[i]), lowest = fmin(lowest, c_kept[i]), top = fmaxf(top, sum_kept[i].x);
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (int(threadIdx.x) + i * block_threads < blocks)
        estimated = fmaf(sum_kept[i].y, exp2_fast(sum_kept[i].x - top), estimated);
#pragma unroll 1
    for (int b = int(threadIdx.x) + kept * block_threads; b < blocks; b += block_threads) {
      const double c = __ldcg(centres + b);
      const float2 sum = __ldcg(sums + b);
      highest = fmax(highest, c), lowest = fmin(lowest, c);
      const float higher = fmaxf(top, sum.x);
      estimated = fmaf(estimated, exp2_fast(top - higher), sum.y * exp2_fast(sum.x - higher));
      top = higher;
    }
    const float of_all = max_of_warp(top);
    estimated = sum_of_warp(estimated * exp2_fast(top - of_all));
    highest = highest_of_warp(highest), lowest = -highest_of_warp(-lowest);
    if (lane == 0) m.highest[warp] = highest, m.lowest[warp] = lowest, m.top[warp] = of_all, m.estimated[warp] = estimated;
  }
  __syncthreads();
  if (warp == 0) {
    const int w = lane % block_warps;
    const double highest = highest_of_warp(m.highest[w]), lowest = -highest_of_warp(-m.lowest[w]);
    const float top = max_of_warp(m.top[w]);
    const float estimated = sum_of_warp(lane < block_warps ? m.estimated[w] * exp2_fast(m.top[w] - top) : 0.0f);
    if (lane == 0) m.c_max = highest, m.c_min = lowest, m.of_all = top, m.sum_of_all = estimated;
  }
  __syncthreads();
  const double highest = m.c_max, lowest = m.c_min;
  const float top = m.of_all, estimated = m.sum_of_all;
  const bool uncoded = top == INFINITY;  // nobody knows what is in a block whose rows were never appended
  if (uncoded || (s.max_noise > 0 && head.noise > s.max_noise)) {
    if (threadIdx.x == 0) {
      result.reading = uncoded ? reads_short : reads_noisy;
      if (uncoded) result.noise = 0;
    }
    return;
  }
  double unit = head.unit;
  if (!(unit > 0)) {
    double rounding = 0;
    for (int b = threadIdx.x; b < view.coded_blocks; b += threads)
      rounding = fmax(rounding, double(*s.codes.centre_scale.at<float>(s.codes.place(s.k, view.sequence, b), g)));
    rounding = highest_of_all(rounding);
    unit = fmax((highest - lowest) / 16384.0, double(head.rms) * sqrt(double(s.head_dim)) * rounding);
    if (!(unit > 0)) unit = flat_unit;
  }
  const double scale = s.scale;
  head.unit = scale * unit;
  head.highest = scale * highest;
  head.top = top;
  head.softcap = s.softcap;
  const double inverse = 1 / unit;
  const bool anew = s.slopes != nullptr || (lowest - highest) * inverse < lowest_centre;
  if (of_blocks)
    for_centres([&](int b, double c, int i) {
      const int offset = offset_of(c - highest, unit, inverse);
      x.offsets[b] = int16_t(offset);
      s.bases[at + b] = s.softcap > 0 ? float(c * scale) : float(c * scale * double(log2e) - double(top));
      const int most = max((i < 0 ? x.maxima[b] : maxima[max(i, 0)]) + offset, hidden_score);
      (b < chunk ? m.maxima[b] : x.maxima[b]) = int16_t(most);
    });
  if (anew) {
    __syncthreads();
    rescale(s, view, h, centres, x, head);
    __syncthreads();
    if (of_blocks)
      for_centres([&](int b, double, int) {
        x.offsets[b] = 0;
        s.bases[at + b] = 0;
        if (b < chunk) m.maxima[b] = x.maxima[b];
      });
  }
  head.unit2 = float(head.unit * double(log2e));
  head.reading = reads_list;
  head.low_top = always_score;
  head.mass = __int_as_float(0x7FC00000);  // it follows from the rest

  const int sinks = min(s.sinks, view.tokens), always = sinks + view.tokens - max(view.estimated, sinks);
  if (!s.automatic) {
    __syncthreads();
    if (s.budget > always)
      mark_top(chooser, s.budget - always, &head.bound);
    else
      mark(chooser, always_score, always_score, always_score, false, true);
    if (threadIdx.x == 0) result = head;
    return;
  }
  if (warp == 0) {
    const float log_estimated = (top + log2f(estimated)) * ln2, of_always = log_of_always();
    float total = fmaxf(log_estimated, of_always);
    if (estimated > 0 && of_always > -INFINITY) total += log1pf(expf(-fabsf(log_estimated - of_always)));
    const float least = logf(float(s.share)) + total - sqrtf(head.noise);
    const int score = score_reaching(head, lane == 0 ? least : least + logf(float(hidden_rows_share)));
    if (lane == 0) m.bound = score;
    if (lane == 1) m.lower = score;
    // Surely of at most twice the weight of the least that reaches the bound, whichever that is.
    if (lane == 0) m.low_top = s.softcap > 0 ? score - 1 : score + int(fmin(double(ln2) / head.unit, 65536.0)) - 1;
  }
  __syncthreads();
  head.bound = m.bound;
  Marked marked = mark(chooser, head.bound, m.lower, m.low_top, false, true);
  const int most = int(most_listed(view.tokens));
  if (marked.count < fewest_listed || marked.count > most) {
    marked = mark_top(chooser, marked.count > most ? most : int(fewest_listed), &head.bound);
    marked.low = 0;
  }
  // The low ones weigh at most twice the least; when these are few, all are low.
  if (marked.count > 0 && marked.least < always_score) {
    const int low_top = low_top_of(head, marked.least);
    if (marked.low >= enough_low || mark(chooser, head.bound, head.bound, low_top, false, false).low >= enough_low)
      head.low_top = low_top;
  }
  head.low_log2 = float(capped(head.unit * head.bound + head.highest, head.softcap) * double(log2e));
  if (threadIdx.x == 0) result = head;
}

}  // namespace

cudaError_t launch_choose(const Step& s, cudaStream_t stream) {
  return launch_behind(choose, dim3(unsigned(s.q_heads), unsigned(s.query_rows)), threads, 0, stream, s);
}

}  // namespace adamas::cuda
