// Stage 4: which tokens a query head lists, from the scores of the scan. list/list.h and select/select.h say which; a block
// of threads chooses for one query head.
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int threads = 512, warps = threads / 32, groups = threads / 8;  // eight lanes have a block's 64 scores
constexpr int fewest_listed = 64, enough_low = 16, lowest_centre = -16639, always_score = 32767;
constexpr double flat_unit = 1e-9, hidden_rows_share = 0.125, lightest = 100;
constexpr int bins = 2048;  // of the scores above a bound

using Reduce = cub::BlockReduce<double, threads>;
using Scan = cub::BlockScan<int, threads>;

struct Shared {
  union {
    Reduce::TempStorage reduce;
    Scan::TempStorage scan;
  };
  double result;
  float query[256];
  float always_max[warps], always_sum[warps];
  int histogram[warps][256];
  int above[bins];
  int digit, left, tie;
  int bound, lower;
};

// Reduced over the block of threads, and known to all of them.
template <class Operation>
__device__ double all_of(Shared& m, double x, Operation operation) {
  x = Reduce(m.reduce).Reduce(x, operation);
  if (threadIdx.x == 0) m.result = x;
  __syncthreads();
  x = m.result;
  __syncthreads();
  return x;
}
__device__ double max_of(Shared& m, double x) {
  return all_of(m, x, [](double a, double b) { return a > b ? a : b; });
}
__device__ double min_of(Shared& m, double x) {
  return all_of(m, x, [](double a, double b) { return a < b ? a : b; });
}
__device__ double sum_of(Shared& m, double x) {
  return all_of(m, x, [](double a, double b) { return a + b; });
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
__device__ int score_of(const uint4& eight, int j) { return reinterpret_cast<const int16_t*>(&eight)[j]; }

// Calls visit(b, eighth, eight scores) for all; the lanes of a warp together.
template <class Visit>
__device__ void for_all(const Scores& x, Visit&& visit) {
  for (int b = threadIdx.x / 8; b < x.blocks; b += groups) visit(b, int(threadIdx.x % 8), x.load(b, threadIdx.x % 8));
}

// The exact scores of what is read in any case, as the log of the sum of their exponentials; -inf when there is none, or one
// is no number.
__device__ double log_of_always(Shared& m, const Step& s, const View& view, int row, int h) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = h / (s.q_heads / s.kv_heads);
  const int sinks = min(s.sinks, view.tokens), from = max(view.estimated, sinks), count = sinks + view.tokens - from;
  const char* q = s.q + row / s.rows * s.q_stride_batch + row % s.rows * s.q_stride_row + h * s.q_stride_head;
  for (int d = threadIdx.x; d < s.head_dim; d += threads) m.query[d] = load_element(q, s.q_dtype, d);
  __syncthreads();
  float most = -INFINITY, sum = 0;
  for (int i = warp; i < count; i += warps) {
    const int token = i < sinks ? i : from + i - sinks;
    const char* k = s.k.row(view.sequence, g, token);
    float x = 0;
    for (int d = lane; d < s.head_dim; d += 32) x = fmaf(m.query[d], load_element(k, s.k_dtype, d), x);
    x = sum_of_warp(x) * s.scale;
    if (s.softcap > 0) x = s.softcap * tanhf(x / s.softcap);
    if (s.slopes != nullptr) x += s.slope(h) * float(token - (view.tokens - 1));
    if (!(x < INFINITY)) most = INFINITY;
    if (x > most) sum *= expf(most - x), most = x;
    if (x > -INFINITY && most < INFINITY) sum += expf(x - most);
  }
  if (lane == 0) m.always_max[warp] = most, m.always_sum[warp] = sum;
  __syncthreads();
  float highest = -INFINITY;
  for (int i = 0; i < warps; i++) highest = fmaxf(highest, m.always_max[i]);
  if (!isfinite(highest)) return -INFINITY;
  double all = 0;
  for (int i = 0; i < warps; i++)
    if (m.always_sum[i] > 0) all += double(m.always_sum[i]) * exp(double(m.always_max[i]) - highest);
  return highest + log(all);
}

// The lowest score whose estimate reaches a logit.
__device__ int score_reaching(const Head& e, double logit) {
  const double cap = e.softcap;
  if (cap > 0) logit = logit > -cap ? cap * atanh(fmin(logit / cap, 1 - 1e-9)) : -INFINITY;
  const double units = ceil((logit - e.highest) / e.unit);
  return units > hidden + 1 ? int(fmin(units, always_score - 1.0)) : hidden + 1;
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
      if (const int v = score_of(eight, j); v != hidden) top = fmaxf(top, estimate(b, 8 * eighth + j, v));
  });
  top = float(max_of(m, top));
  const double unit = fmax(head.unit, lightest / always_score);
  for_all(x, [&](int b, int eighth, const uint4& eight) {
    uint4 anew = eight;
    for (int j = 0; j < 8; j++)
      if (const int v = score_of(eight, j); v != hidden)
        reinterpret_cast<int16_t*>(&anew)[j] =
            int16_t(rint(fmax((double(estimate(b, 8 * eighth + j, v)) - double(top)) / unit, -32767.0)));
    __stcg(reinterpret_cast<uint4*>(x.scores + int64_t(b) * block_tokens) + eighth, anew);
  });
  head.unit = unit;
  head.highest = isfinite(top) ? origin + double(top) : origin;
  head.softcap = 0;
  head.top = float(head.highest * double(log2e));
}

// The k highest scores: those above `bound`, and of those equal to it the positions from `tie` on.
struct Rank {
  int bound, tie;
};
__device__ Rank find_rank(Shared& m, const Scores& x, int k) {
  const auto count = [&](int prefix, bool low) {
    for (int i = threadIdx.x; i < warps * 256; i += threads) m.histogram[i / 256][i % 256] = 0;
    __syncthreads();
    for_all(x, [&](int b, int, const uint4& eight) {
      for (int j = 0; j < 8; j++) {
        const int v = score_of(eight, j), key = v + x.offsets[b] - hidden;
        if (v != hidden && (!low || key >> 8 == prefix))
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
  if (m.histogram[0][high] < left) return {hidden + 1, 0};  // there are not so many
  __syncthreads();
  count(high, true);
  const int low = walk(left), ties = m.left, bound = (high << 8 | low) + hidden, all = m.histogram[0][low];
  if (ties == all) return {bound, 0};
  // The position of the ties-th tie from the end.
  int found = 0;
  for (int end = (x.blocks + groups - 1) / groups * groups; end > 0; end -= groups) {
    const int b = end - 1 - int(threadIdx.x) / 8, eighth = 7 - int(threadIdx.x) % 8;
    unsigned equal = 0;
    if (b < x.blocks) {
      const uint4 eight = x.load(b, eighth);
      for (int j = 0; j < 8; j++)
        equal |= unsigned(score_of(eight, j) != hidden && score_of(eight, j) + x.offsets[b] == bound) << j;
    }
    int before, here;
    __syncthreads();
    Scan(m.scan).ExclusiveSum(__popc(equal), before, here);
    const int wanted = ties - found - before;  // from the end of these eight
    if (wanted > 0 && wanted <= __popc(equal)) {
      for (int i = __popc(equal); i > wanted; i--) equal &= equal - 1;
      m.tie = b * block_tokens + 8 * eighth + __ffs(equal) - 1;
    }
    found += here;
    if (found >= ties) break;
  }
  __syncthreads();
  return {bound, m.tie};
}

// Marks the scores from a bound on; counts them, and finds the least of those from `own` on, and how many are how far above.
struct Marked {
  int count, least;
};
__device__ Marked mark(Shared& m, const Step& s, const Scores& x, uint64_t* marks, const float2* sums, const Head& head,
                       Rank from, int lower, bool skip) {
  for (int i = threadIdx.x; i < bins; i += threads) m.above[i] = 0;
  __syncthreads();
  // A block whose weights together are less than that of one token at the bound has none. Its sum is known within a
  // thousandth, and a centre was rounded to a unit.
  const float reached = float(capped(head.unit * (from.bound - 1) + head.highest, head.softcap) * double(log2e)) - 0.05f;
  int count = 0, least = always_score;
  for (int base = 0; base < x.blocks; base += groups) {
    const int b = base + int(threadIdx.x) / 8, eighth = int(threadIdx.x) % 8;
    if (b >= x.blocks) continue;
    const bool lowered = b == x.hidden_block && lower < from.bound;
    unsigned bits = 0;
    const float2 sum = skip ? __ldcg(sums + b) : make_float2(0, 0);
    if (!skip || lowered || (sum.y > 0 && sum.x + log2f(sum.y) >= reached)) {
      const uint4 eight = x.load(b, eighth);
      const int offset = x.offsets[b], bound = lowered ? lower : from.bound;
      const int lowest = max(hidden + 1, min(always_score, bound - offset));
      const unsigned both = unsigned(lowest) & 0xFFFF | unsigned(lowest) << 16;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const unsigned reaches = __vcmpges2(reinterpret_cast<const unsigned*>(&eight)[j], both) & 0x00020001u;
        bits |= ((reaches | reaches >> 16) & 3) << 2 * j;
      }
      for (unsigned left = bits; left != 0; left &= left - 1) {
        const int j = __ffs(left) - 1, score = score_of(eight, j) + offset;
        if (score == from.bound && b * block_tokens + 8 * eighth + j < from.tie) {
          bits &= ~(1u << j);
          continue;
        }
        if (score < from.bound) continue;
        least = min(least, score);
        atomicAdd(&m.above[min(score - from.bound, bins - 1)], 1);
      }
      count += __popc(bits);
    }
    reinterpret_cast<uint8_t*>(marks + b)[eighth] = uint8_t(bits);
  }
  return {int(sum_of(m, count)), int(min_of(m, least))};
}

__global__ void __launch_bounds__(threads) choose(const __grid_constant__ Step s) {
  __shared__ Shared m;
  launch_next();
  const int h = blockIdx.x, row = blockIdx.y, g = h / (s.q_heads / s.kv_heads);
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
  uint64_t* marks = s.marks + at;
  Scores x{s.scores + at * block_tokens, offsets, blocks, view.hidden_block};

  // A block before the last without all its codes was never appended: nobody knows what is in it.
  int uncoded = 0;
  double highest = -INFINITY, lowest = INFINITY, top = nothing;
  for (int b = threadIdx.x; b < blocks; b += threads) {
    const double c = __ldcg(centres + b);
    highest = fmax(highest, c), lowest = fmin(lowest, c);
    top = fmax(top, double(__ldcg(&sums[b].x)));
    uncoded |= b + 1 < blocks && s.codes.coded[s.codes.place(s.k, view.sequence, b)] != block_tokens;
  }
  uncoded = __syncthreads_or(uncoded);
  const bool noisy = s.max_noise > 0 && head.noise > s.max_noise;
  if (uncoded != 0 || noisy) {
    if (threadIdx.x == 0) {
      result.reading = uncoded != 0 ? reads_short : reads_noisy;
      if (uncoded != 0) result.noise = 0;
    }
    return;
  }
  highest = max_of(m, highest), lowest = min_of(m, lowest), top = max_of(m, top);
  double unit = head.unit;
  if (!(unit > 0)) {
    double rounding = 0;
    for (int b = threadIdx.x; b < view.coded_blocks; b += threads)
      rounding = fmax(rounding, double(*s.codes.centre_scale.at<float>(s.codes.place(s.k, view.sequence, b), g)));
    rounding = max_of(m, rounding);
    unit = fmax((highest - lowest) / 16384.0, double(head.rms) * sqrt(double(s.head_dim)) * rounding);
  }
  if (!(unit > 0)) unit = flat_unit;
  const double scale = s.scale;
  head.highest = scale * highest;
  head.top = float(top);
  head.softcap = s.softcap;
  const bool anew = s.slopes != nullptr || (lowest - highest) / unit < lowest_centre;
  double estimated = 0;
  for (int b = threadIdx.x; b < blocks; b += threads) {
    const double c = __ldcg(centres + b);
    const float2 sum = __ldcg(sums + b);
    offsets[b] = int16_t(rint(fmax(double(lowest_centre), (c - highest) / unit)));
    s.bases[at + b] = s.softcap > 0 ? float(c * scale) : float(c * scale * double(log2e) - top);
    estimated += double(sum.y * exp2f(sum.x - head.top));
  }
  head.unit = scale * unit;
  __syncthreads();
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

  Rank from{};
  if (!s.automatic) {
    const int sinks = min(s.sinks, view.tokens), always = sinks + view.tokens - max(view.estimated, sinks);
    from = s.budget > always ? find_rank(m, x, s.budget - always) : Rank{always_score, 0};
    mark(m, s, x, marks, sums, head, from, from.bound, !anew);
    head.bound = from.bound;
  } else {
    estimated = sum_of(m, estimated);
    const double always = log_of_always(m, s, view, row, h);
    if (threadIdx.x == 0) {
      const double logs = estimated > 0 ? (top + log2(estimated)) / double(log2e) : -INFINITY;
      double total = fmax(logs, always);
      if (logs > -INFINITY && always > -INFINITY) total += log1p(exp(-fabs(logs - always)));
      const double least = log(s.share) + total - sqrt(double(head.noise));
      m.bound = score_reaching(head, least);
      m.lower = score_reaching(head, least + log(hidden_rows_share));
    }
    __syncthreads();
    from = {m.bound, 0};
    Marked marked = mark(m, s, x, marks, sums, head, from, m.lower, !anew);
    const int most = max(2048, view.tokens / 16);
    if (marked.count < fewest_listed || marked.count > most) {
      from = find_rank(m, x, marked.count > most ? most : fewest_listed);
      marked = mark(m, s, x, marks, sums, head, from, from.bound, !anew);
    }
    head.bound = from.bound;
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
        if (i == bins - 1 ? low_top - from.bound >= i : i <= low_top - from.bound) low += m.above[i];
      if (int(sum_of(m, low)) >= enough_low) head.low_top = low_top;
    }
  }
  if (threadIdx.x == 0) result = head;
}

}  // namespace

cudaError_t launch_choose(const Step& s, cudaStream_t stream) {
  return launch_behind(choose, dim3(unsigned(s.q_heads), unsigned(s.query_rows)), threads, 0, stream, s);
}

}  // namespace adamas::cuda
