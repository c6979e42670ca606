// Stage 4: which tokens a query head lists, from the scores of the scan. list/list.h and select/select.h say which; a block
// of threads chooses for one query head.
#include <cub/block/block_scan.cuh>

#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int threads = 512, warps = threads / 32, groups = threads / 8;  // eight lanes have a block's 64 scores
constexpr float smallest_sum = -119;   // log2 of what a block's weights may come to and yet be lost
constexpr int bins = 2048;             // of the scores above a bound; the last has all that are farther
constexpr int kept = 4;                // blocks of which a thread keeps what it read
constexpr int chunk = kept * threads;  // blocks that are looked through at a time

using Scan = cub::BlockScan<int, threads>;

struct Shared {
  Scan::TempStorage scan;
  float query[256];
  float always_max[warps], always_sum[warps];
  double highest[warps], lowest[warps], result[warps];
  float top[warps], estimated[warps];
  int counted[2][warps];
  int histogram[warps][256], above[bins];
  int digit, left, found;
  int bound, lower;
  uint16_t reaching[chunk];  // blocks, from the chunk's first on, that may have a score to mark
  int reaching_count;
};

// What the threads of a warp have, in one; then what the warps have, once each has put it into `room` and all have met.
template <class T, class Operation>
__device__ T of_warp(T x, Operation operation) {
  for (int o = 16; o > 0; o /= 2) x = operation(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
template <class T, class Operation>
__device__ T of_warps(const T* room, Operation operation) {
  T x = room[threadIdx.x % warps];
  for (int o = warps / 2; o > 0; o /= 2) x = operation(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Min {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};
struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// Both steps at once, for what is rare.
template <class Operation>
__device__ double of_all(Shared& m, double x, Operation operation) {
  x = of_warp(x, operation);
  __syncthreads();
  if (threadIdx.x % 32 == 0) m.result[threadIdx.x / 32] = x;
  __syncthreads();
  return of_warps(m.result, operation);
}

__device__ double capped(double score, double softcap) { return softcap > 0 ? softcap * tanh(score / softcap) : score; }

// One head: its scores, and what is known of its blocks.
struct Scores {
  int16_t* scores;  // [blocks, 64]
  const int16_t* offsets;
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

// The exact scores of what is read in any case, as a maximum and a sum of exponentials for each warp; +inf when one is no
// number.
__device__ void score_always(Shared& m, const Step& s, const View& view, int h) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = h / (s.q_heads / s.kv_heads);
  const int sinks = min(s.sinks, view.tokens), from = max(view.estimated, sinks), count = sinks + view.tokens - from;
  float most = -INFINITY, sum = 0;
  const auto score = [&](auto zero) {
    using T = decltype(zero);
    const int chunk = 8 * lane < s.head_dim ? 8 * lane : 0;
    for (int i = warp; i < count; i += warps) {
      const int token = i < sinks ? i : from + i - sinks;
      Eight<T> raw;
      raw.load(s.k.row(view.sequence, g, token) + chunk * sizeof(T));
      float k[8], x = 0;
      to_f32(raw, k);
#pragma unroll
      for (int j = 0; j < 8; j++) x = fmaf(m.query[chunk + j], k[j], x);
      x = s.score_of(sum_of_warp(8 * lane < s.head_dim ? x : 0.0f), h, view.tokens - 1 - token);
      if (!(x < INFINITY)) most = INFINITY;
      if (x > most) sum *= expf(most - x), most = x;
      if (x > -INFINITY && most < INFINITY) sum += expf(x - most);
    }
  };
  with_element(s.k_dtype, score);
  if (lane == 0) m.always_max[warp] = most, m.always_sum[warp] = sum;
}

// The log of the sum of all of these; -inf when there is none, or one is no number. A warp's.
__device__ float log_of_always(const Shared& m) {
  const float most = m.always_max[threadIdx.x % warps], highest = of_warps(m.always_max, Max());
  if (!isfinite(highest)) return -INFINITY;
  float sum = most > -INFINITY ? m.always_sum[threadIdx.x % warps] * expf(most - highest) : 0.0f;
  for (int o = warps / 2; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  return highest + logf(sum);
}

// C_b, as a division gives it: by a multiplication, unless that is close to a half.
__device__ int offset_of(double above, double unit, double inverse) {
  const double quotient = fmax(double(lowest_centre), above * inverse), rounded = rint(quotient);
  if (fabs(fabs(quotient - rounded) - 0.5) > 1e-6) return int(rounded);
  return int(rint(fmax(double(lowest_centre), above / unit)));
}

// The lowest score whose estimate reaches a logit.
__device__ int score_reaching(const Head& e, double logit) {
  const double cap = e.softcap;
  if (cap > 0) logit = logit > -cap ? cap * atanh(fmin(logit / cap, 1 - 1e-9)) : -INFINITY;
  const double units = ceil((logit - e.highest) / e.unit);
  return units > hidden_score + 1 ? int(fmin(units, always_score - 1.0)) : hidden_score + 1;
}

// Scores anew, relative to the highest estimate: list/rescale.h.
__device__ void rescale(Shared& m, const Step& s, const View& view, int h, const double* centres, Scores& x, Head& head) {
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
  top = float(of_all(m, double(top), Max()));
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
__device__ int find_score(Shared& m, const Scores& x, int k) {
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

// What a head knows of itself while it chooses.
struct Chooser {
  Shared& m;
  const Step& s;
  const Scores& x;
  const Head& head;
  uint64_t* marks;     // [blocks]
  const float2* sums;  // [blocks]
  bool skip;           // whether sums say which blocks have nothing to mark
};

// How many scores are marked, and the least of them; above which score m.above counts.
struct Marked {
  int count, least, base;
};

// Marks the scores from a bound on, `lower` in a block with hidden rows; m.above says how many are how far above it, of
// those that reach it.
__device__ Marked mark(const Chooser& c, int bound, int lower) {
  Shared& m = c.m;
  // A block whose weights together are less than that of one token at the bound has none. Its sum is known within a
  // thousandth, and a centre was rounded to a unit.
  const double at_bound = capped(c.head.unit * (bound - 1) + c.head.highest, c.head.softcap);
  const float reached = float(at_bound * double(log2e)) - 0.05f;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, eighth = lane % 8;
  int count = 0, least = always_score;
  for (int i = threadIdx.x; i < bins; i += threads) m.above[i] = 0;
  for (int base = 0; base < c.x.blocks; base += chunk) {
    if (threadIdx.x == 0) m.reaching_count = 0;
    __syncthreads();
    float2 sum[kept];
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (const int b = base + i * threads + int(threadIdx.x); c.skip && b < c.x.blocks) sum[i] = __ldcg(c.sums + b);
#pragma unroll
    for (int i = 0; i < kept; i++) {
      if (base + i * threads >= c.x.blocks) break;
      const int b = base + i * threads + int(threadIdx.x);
      const bool there = b < c.x.blocks;
      const float weight = c.skip && there ? sum[i].x + fmaxf(log2f(sum[i].y), smallest_sum) : 0;
      const bool may = there && (!c.skip || weight >= reached || (b == c.x.hidden_block && lower < bound));
      if (there && !may) c.marks[b] = 0;
      const unsigned all = __ballot_sync(~0u, may);
      int at = 0;
      if (lane == 0 && all != 0) at = atomicAdd(&m.reaching_count, __popc(all));
      at = __shfl_sync(~0u, at, 0);
      if (may) m.reaching[at + __popc(all & ((1u << lane) - 1))] = uint16_t(b - base);
    }
    __syncthreads();
    constexpr int ahead = 4;
    const int reaching = m.reaching_count;
    for (int first = int(threadIdx.x) / 8; first < reaching; first += ahead * groups) {
      uint4 eight[ahead];
      int offset[ahead], block[ahead];
#pragma unroll
      for (int i = 0; i < ahead; i++) {  // the last ones read what was read, and forget it
        block[i] = base + m.reaching[min(first + i * groups, reaching - 1)];
        eight[i] = c.x.load(block[i], eighth);
        offset[i] = c.x.offsets[block[i]];
      }
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        if (first + i * groups >= reaching) continue;
        const int from = block[i] == c.x.hidden_block ? min(lower, bound) : bound;
        const int lowest = max(hidden_score + 1, min(always_score, from - offset[i]));
        const unsigned both = unsigned(lowest) & 0xFFFF | unsigned(lowest) << 16;
        const auto reach = [&](unsigned two) {
          const unsigned reaches = __vcmpges2(two, both) & 0x00020001u;
          return (reaches | reaches >> 16) & 3;
        };
        unsigned bits = reach(eight[i].x) | reach(eight[i].y) << 2 | reach(eight[i].z) << 4 | reach(eight[i].w) << 6;
        for (unsigned left = bits; left != 0; left &= left - 1) {
          const int score = score_of(eight[i], __ffs(left) - 1) + offset[i];
          if (score < bound) continue;
          least = min(least, score);
          atomicAdd(&m.above[min(score - bound, bins - 1)], 1);
        }
        count += __popc(bits);
        reinterpret_cast<uint8_t*>(c.marks + block[i])[eighth] = uint8_t(bits);
      }
    }
  }
  count = of_warp(count, Sum()), least = of_warp(least, Min());
  if (lane == 0) m.counted[0][warp] = count, m.counted[1][warp] = least;
  __syncthreads();
  const Marked marked{of_warps(m.counted[0], Sum()), of_warps(m.counted[1], Min()), bound};
  __syncthreads();
  return marked;
}

// Marks the k highest scores, of equal ones the later. *bound, marked: a first look; then the lowest that is marked.
__device__ Marked mark_top(const Chooser& c, int k, int* bound, Marked marked) {
  Shared& m = c.m;
  constexpr int per_thread = bins / threads;
  const int octave = int(fmin(fmax(double(ln2) / c.head.unit, 1.0), 65536.0));
  for (int step = 2; marked.count<k&& * bound> hidden_score + 1; step *= 2) {
    *bound = step * octave < *bound - hidden_score ? *bound - step * octave : hidden_score + 1;
    marked = mark(c, *bound, *bound);
  }
  if (marked.count > k) {
    // The bin, from above, in which k is reached.
    int own[per_thread], before, mine = 0;
    for (int i = 0; i < per_thread; i++) mine += own[i] = m.above[bins - 1 - (int(threadIdx.x) * per_thread + i)];
    Scan(m.scan).ExclusiveSum(mine, before);
    if (before < k && before + mine >= k)
      for (int i = 0; i < per_thread; i++) {
        if (before < k && before + own[i] >= k) m.found = bins - 1 - (int(threadIdx.x) * per_thread + i);
        before += own[i];
      }
    __syncthreads();
    *bound = m.found < bins - 1 ? *bound + m.found : find_score(m, c.x, k);
    marked = mark(c, *bound, *bound);
    // Of those that are equal to it the first ones are too many.
    int extra = marked.count - k;
    for (int base = 0; base < c.x.blocks && extra > 0; base += threads) {
      const int b = base + int(threadIdx.x), offset = b < c.x.blocks ? c.x.offsets[b] : 0;
      uint64_t bits = b < c.x.blocks ? c.marks[b] : 0, equal = 0;
      for (uint64_t left = bits; left != 0; left &= left - 1) {
        const int t = __ffsll(left) - 1;
        if (c.x.scores[int64_t(b) * block_tokens + t] + offset == *bound) equal |= uint64_t{1} << t;
      }
      int before_us, here;
      Scan(m.scan).ExclusiveSum(__popcll(equal), before_us, here);
      for (int drop = min(extra - before_us, __popcll(equal)); drop > 0; drop--, equal &= equal - 1)
        bits &= ~(equal & (~equal + 1));
      if (b < c.x.blocks) c.marks[b] = bits;
      extra -= here;
      __syncthreads();
    }
    if (threadIdx.x == 0) m.above[0] -= marked.count - k;
    marked.count = k;
    __syncthreads();
  }
  *bound = marked.least;
  return marked;
}

__global__ void __launch_bounds__(threads) choose(const __grid_constant__ Step s) {
  __shared__ Shared m;
  launch_next();
  const int h = blockIdx.x, row = blockIdx.y, g = h / (s.q_heads / s.kv_heads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const char* q = s.query(row, h);
  for (int d = threadIdx.x; d < s.head_dim; d += threads) m.query[d] = load_element(q, s.q_dtype, d);
  __syncthreads();
  wait_for_previous();
  const View view = s.views[row];
  Head& result = s.heads[row * s.q_heads + h];
  if (view.dense) {
    if (threadIdx.x == 0) result.reading = reads_short, result.noise = 0;
    return;
  }
  Head head = result;
  const int blocks = blocks_in(view.tokens);
  const int64_t at = s.blocks_at(row, h);
  const double* centres = s.centres + at;
  const float2* sums = s.sums + at;
  int16_t* offsets = s.offsets + at;
  Scores x{s.scores + at * block_tokens, offsets, blocks, view.hidden_block};
  double c_kept[kept];
  float2 sum_kept[kept];
#pragma unroll
  for (int i = 0; i < kept; i++)
    if (const int b = int(threadIdx.x) + i * threads; b < blocks)
      c_kept[i] = __ldcg(centres + b), sum_kept[i] = __ldcg(sums + b);
  const auto for_blocks = [&](auto&& visit) {
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (const int b = int(threadIdx.x) + i * threads; b < blocks) visit(b, c_kept[i], sum_kept[i]);
    for (int b = int(threadIdx.x) + chunk; b < blocks; b += threads) visit(b, __ldcg(centres + b), __ldcg(sums + b));
  };

  if (s.automatic) score_always(m, s, view, h);
  // A block before the last without all its codes was never appended: nobody knows what is in it.
  int uncoded = 0;
  double highest = -INFINITY, lowest = INFINITY;
  float top = nothing;
  for_blocks([&](int b, double c, float2 sum) {
    highest = fmax(highest, c), lowest = fmin(lowest, c);
    top = fmaxf(top, sum.x);
    uncoded |= b + 1 < blocks && s.codes.coded[s.codes.place(s.k, view.sequence, b)] != block_tokens;
  });
  highest = of_warp(highest, Max()), lowest = of_warp(lowest, Min()), top = of_warp(top, Max());
  if (lane == 0) m.highest[warp] = highest, m.lowest[warp] = lowest, m.top[warp] = top;
  uncoded = __syncthreads_or(uncoded);
  if (uncoded != 0 || (s.max_noise > 0 && head.noise > s.max_noise)) {
    if (threadIdx.x == 0) {
      result.reading = uncoded != 0 ? reads_short : reads_noisy;
      if (uncoded != 0) result.noise = 0;
    }
    return;
  }
  highest = of_warps(m.highest, Max()), lowest = of_warps(m.lowest, Min()), top = of_warps(m.top, Max());
  double unit = head.unit;
  if (!(unit > 0)) {
    double rounding = 0;
    for (int b = threadIdx.x; b < view.coded_blocks; b += threads)
      rounding = fmax(rounding, double(*s.codes.centre_scale.at<float>(s.codes.place(s.k, view.sequence, b), g)));
    rounding = of_all(m, rounding, Max());
    unit = fmax((highest - lowest) / 16384.0, double(head.rms) * sqrt(double(s.head_dim)) * rounding);
  }
  if (!(unit > 0)) unit = flat_unit;
  const double scale = s.scale;
  head.highest = scale * highest;
  head.top = top;
  head.softcap = s.softcap;
  const bool anew = s.slopes != nullptr || (lowest - highest) / unit < lowest_centre;
  const double inverse = 1 / unit;
  float estimated = 0;
  for_blocks([&](int b, double c, float2 sum) {
    offsets[b] = int16_t(offset_of(c - highest, unit, inverse));
    s.bases[at + b] = s.softcap > 0 ? float(c * scale) : float(c * scale * double(log2e) - double(top));
    estimated += sum.y * exp2f(sum.x - top);
  });
  estimated = of_warp(estimated, Sum());
  if (lane == 0) m.estimated[warp] = estimated;
  head.unit = scale * unit;
  __syncthreads();
  estimated = of_warps(m.estimated, Sum());
  if (anew) {
    rescale(m, s, view, h, centres, x, head);
    __syncthreads();
    for (int b = threadIdx.x; b < blocks; b += threads) {
      offsets[b] = 0;
      s.bases[at + b] = 0;
    }
    __syncthreads();
  }
  head.unit2 = float(head.unit * double(log2e));
  head.reading = reads_list;
  head.low_top = always_score;

  const Chooser chooser{m, s, x, head, s.marks + at, sums, !anew};
  const int sinks = min(s.sinks, view.tokens), always = sinks + view.tokens - max(view.estimated, sinks);
  const float log_estimated = (top + log2f(estimated)) * ln2;
  if (warp == 0) {
    if (s.automatic) {
      const float of_always = log_of_always(m);
      float total = fmaxf(log_estimated, of_always);
      if (estimated > 0 && of_always > -INFINITY) total += log1pf(expf(-fabsf(log_estimated - of_always)));
      const float least = logf(float(s.share)) + total - sqrtf(head.noise);
      m.bound = score_reaching(head, least);
      m.lower = score_reaching(head, least + logf(float(hidden_rows_share)));
    } else {
      // No more than 2 k tokens weigh as much as that part of all.
      m.bound = estimated > 0 ? score_reaching(head, log_estimated - logf(2.0f * float(max(1, s.budget - always))))
                              : hidden_score + 1;
    }
  }
  __syncthreads();
  int bound = m.bound;
  if (!s.automatic) {
    if (s.budget > always)
      mark_top(chooser, s.budget - always, &bound, mark(chooser, bound, bound));
    else
      mark(chooser, always_score, always_score);
    head.bound = bound;
  } else {
    Marked marked = mark(chooser, bound, m.lower);
    const int most = int(most_listed(view.tokens));
    if (marked.count < fewest_listed)
      marked = mark_top(chooser, fewest_listed, &bound, marked);
    else if (marked.count > most)  // by one bound for all
      marked = mark_top(chooser, most, &bound, mark(chooser, bound, bound));
    head.bound = bound;
    // The low ones weigh at most twice the least; when these are few, all are low.
    if (marked.count > 0 && marked.least < always_score) {
      const double limit = capped(head.unit * marked.least + head.highest, head.softcap) + double(ln2), cap = head.softcap;
      double units = always_score;
      if (cap == 0)
        units = (limit - head.highest) / head.unit;
      else if (limit < cap)
        units = (cap * atanh(limit / cap) - head.highest) / head.unit;
      const int low_top = int(fmin(floor(units + 1e-6), double(always_score)));
      int low = 0;
      for (int i = threadIdx.x; i < bins; i += threads)
        if (i == bins - 1 ? low_top - marked.base >= i : i <= low_top - marked.base) low += m.above[i];
      low = of_warp(low, Sum());
      if (lane == 0) m.counted[0][warp] = low;
      __syncthreads();
      if (of_warps(m.counted[0], Sum()) >= enough_low) head.low_top = low_top;
    }
  }
  if (threadIdx.x == 0) result = head;
}

}  // namespace

cudaError_t launch_choose(const Step& s, cudaStream_t stream) {
  return launch_behind(choose, dim3(unsigned(s.q_heads), unsigned(s.query_rows)), threads, 0, stream, s);
}

}  // namespace adamas::cuda
