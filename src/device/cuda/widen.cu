// min_mass: a query head that reads less of the softmax than that reads more tokens, at last all, as step/heads.cc has it.
// With a rest from half the share on, a quarter, and so on; with a fixed budget twice as many, four times, and so on; from
// half of the tokens on all of them.
//
// One kernel, a block of threads for each query head, launched behind a step whose settings ask for it. With a rest the mass
// is known, and blocks whose head has enough leave at once; with a fixed budget it is measured here. What a head reads by
// itself becomes its first slice, the others are empty, and `combine` does what it does with any.
#include <climits>
#include <cub/block/block_scan.cuh>

#include "device/cuda/scores.cuh"

namespace adamas::cuda {
namespace {

constexpr int threads = 512, warps = threads / 32;
constexpr uint32_t unknown = 0x7FFFFFFF;  // the bits of an exact score that nobody has asked for

using Scan = cub::BlockScan<int, threads>;

struct Shared {
  Scan::TempStorage scan;
  float query[256];
  float of_warp[7][warps];
  float vectors[3][threads];
  int histogram[256];
  int least, digit, left;
};
__shared__ Shared m;

// All threads of a block call it.
__device__ int min_of_block(int own) {
  __syncthreads();
  if (threadIdx.x == 0) m.least = INT_MAX;
  __syncthreads();
  atomicMin(&m.least, own);
  __syncthreads();
  return m.least;
}

// What a head reads, relative to its largest exact score, and what it does not, to head.top: enum Sum of attend.cu.
struct Sums {
  float top = nothing, listed = 0, low = 0, low_estimated = 0, with_mean = 0, rest = 0, beside = 0;
  __device__ float mass(const Head& head) const {
    const float by = factor_of(head.top, top, low, low_estimated);
    return listed / (listed + by * rest + by * beside);
  }
};

// A query head of a row, and what it reads by itself. A warp has a block of tokens, a lane tokens l and l + 32 of it.
struct Reader {
  const Step& s;
  const View& view;
  const Head& head;
  int row, h, g, blocks;
  int64_t at;  // of its first block
  uint64_t *marks, *low_marks;
  float* exact;   // [blocks, 64] log2 of exp(score)
  float2* parts;  // [blocks] estimated weights of what is not listed; weights of the low tokens that have a mean

  __device__ int offset(int b) const { return offset_of(head, __ldcg(s.centres + at + b)); }
  __device__ int score(int b, int t) const { return __ldcg(s.scores + (at + b) * block_tokens + t); }
  __device__ bool has_hidden(int b) const {
    return s.seen != nullptr ? (s.flags[s.seen_at(row) + b] & has_hidden_rows) != 0 : b == view.hidden_block;
  }

  // Marks the tokens that is(block, token of it, score) says, and those that are read in any case. Returns how many.
  template <class Is>
  __device__ int mark(Is&& is) {
    int count = 0;
    for (int b = int(threadIdx.x) / 32; b < blocks; b += warps) {
      const int from = offset(b);
      uint64_t bits = 0;
      for (int i = 0; i < 2; i++) {
        const int t = 32 * i + int(threadIdx.x) % 32, v = score(b, t);
        bits |= uint64_t{__ballot_sync(~0u, v != hidden_score && is(b, t, v + from))} << 32 * i;
      }
      bits = attended(s, view, row, b, bits);
      if (threadIdx.x % 32 == 0) marks[b] = bits, count += __popcll(bits);
    }
    return sum_of_block(count);
  }

  // Exact scores of marked tokens that have none yet.
  __device__ void score_marked() {
    const int lane = threadIdx.x % 32;
    with_element(s.k_dtype, [&](auto zero) {
      using T = decltype(zero);
      for (int b = int(threadIdx.x) / 32; b < blocks; b += warps)
        for (uint64_t left = marks[b]; left != 0; left &= left - 1) {
          const int token = b * block_tokens + __ffsll(static_cast<long long>(left)) - 1;
          if (__float_as_uint(exact[token]) != unknown) continue;
          const T* k = reinterpret_cast<const T*>(s.k.of(view.sequence, g).row(token));
          float sum = 0;
          for (int d = lane; d < s.head_dim; d += 32) sum = fmaf(m.query[d], to_f32(load_one(k + d)), sum);
          sum = sum_of_warp(sum);
          if (lane == 0) exact[token] = s.score_of(sum, view, row, h, token) * log2e;
          __syncwarp();
        }
    });
    __syncthreads();
  }

  // Sums of all blocks, and parts of each. bound: from which score on it lists tokens.
  __device__ Sums measure(int bound) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, low_top = low_top_of(head, bound);
    Sums sums;
    for (int b = warp; b < blocks; b += warps)
      for (int i = 0; i < 2; i++)
        if (const int t = 32 * i + lane; (marks[b] >> t & 1) != 0) sums.top = fmaxf(sums.top, exact[b * block_tokens + t]);
    sums.top = max_of_warp(sums.top);
    if (lane == 0) m.of_warp[0][warp] = sums.top;
    __syncthreads();
    sums.top = max_of_warp(m.of_warp[0][lane % warps]);
    for (int b = warp; b < blocks; b += warps) {
      const int from = offset(b);
      const float base = base_of(s, head, __ldcg(s.centres + at + b));
      const uint64_t marked = marks[b], seen = seen_of(s, view, row, b);
      const bool hidden = has_hidden(b);
      uint64_t low_bits = 0;
      float rest = 0, low_with_mean = 0;
      for (int i = 0; i < 2; i++) {
        const int t = 32 * i + lane, v = score(b, t);
        const bool listed = (marked >> t & 1) != 0;
        const float weight = listed ? exp2f(exact[b * block_tokens + t] - sums.top) : 0.0f,
                    estimated = v != hidden_score && (seen >> t & 1) != 0 ? exp2_fast(weight_of(head, base, v)) : 0.0f;
        const bool low = listed && v != hidden_score && v + from >= bound && v + from <= low_top;
        sums.listed += weight;
        if (low) sums.low += weight, sums.low_estimated += estimated;
        if (low && !hidden) low_with_mean += weight;
        if (!listed) rest += estimated;
        low_bits |= uint64_t{__ballot_sync(~0u, low && !hidden)} << 32 * i;
      }
      rest = sum_of_warp(rest), low_with_mean = sum_of_warp(low_with_mean);
      if (lane != 0) continue;
      (hidden ? sums.beside : sums.rest) += rest;
      sums.with_mean += low_with_mean;
      low_marks[b] = low_bits;
      parts[b] = make_float2(hidden ? 0.0f : rest, low_with_mean);
    }
    float* each[] = {&sums.listed, &sums.low, &sums.low_estimated, &sums.with_mean, &sums.rest, &sums.beside};
    for (int i = 0; i < 6; i++) {
      const float sum = sum_of_warp(*each[i]);
      if (lane == 0) m.of_warp[1 + i][warp] = sum;
    }
    __syncthreads();
    for (int i = 0; i < 6; i++) {
      *each[i] = 0;
      for (int w = 0; w < warps; w++) *each[i] += m.of_warp[1 + i][w];
    }
    __syncthreads();
    return sums;
  }

  // The vectors of attend.cu, A, E and M, as the head's first slice; the others have nothing.
  __device__ void store(const Sums& sums, bool rest) {
    const int D = s.head_dim, width = D <= 64 ? 64 : D <= 128 ? 128 : 256, d = threadIdx.x % width;
    const int turn = threadIdx.x / width, turns = threads / width, stride = 3 * D + partial_sums;
    float x[3] = {};
    with_element(s.k_dtype, [&](auto zero) {
      using T = decltype(zero);
      for (int b = turn; b < blocks && d < D; b += turns) {
        const uint64_t low = rest ? low_marks[b] : 0;
        for (uint64_t left = marks[b]; left != 0; left &= left - 1) {
          const int t = __ffsll(static_cast<long long>(left)) - 1, token = b * block_tokens + t;
          const float v = to_f32(load_one(reinterpret_cast<const T*>(s.v.of(view.sequence, g).row(token)) + d)),
                      weight = exp2f(exact[token] - sums.top);
          x[0] = fmaf(weight, v, x[0]);
          if ((low >> t & 1) != 0) x[1] = fmaf(weight, v, x[1]);
        }
        if (!rest) continue;
        const int64_t place = s.codes.place(s.k, view.sequence, b);
        const float mean = float(s.codes.mean.at<int16_t>(place, g)[d]) * *s.codes.mean_scale.at<float>(place, g);
        x[1] = fmaf(-parts[b].y, mean, x[1]);
        x[2] = fmaf(parts[b].x, mean, x[2]);
      }
    });
    for (int i = 0; i < 3; i++) m.vectors[i][threadIdx.x] = x[i];
    __syncthreads();
    const View all = see(s, row);
    float* partials = s.partials + (int64_t(row) * s.q_heads + h) * s.slices * stride;
    for (int i = threadIdx.x; i < s.slices_of(blocks_in(all.tokens)) * stride; i += threads) {
      float sum = 0;
      if (i < 3 * D)
        for (int j = 0; j < turns; j++) sum += m.vectors[i / D][j * width + i % D];
      partials[i] = i % stride == 3 * D + sum_max ? -INFINITY : sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    float* to = partials + 3 * D;
    to[sum_max] = sums.top > nothing ? sums.top : -INFINITY;
    to[sum_listed] = sums.listed;
    if (!rest) return;
    to[sum_low] = sums.low;
    to[sum_low_estimated] = sums.low_estimated;
    to[sum_low_with_mean] = sums.with_mean;
    to[sum_rest] = sums.rest;
    to[sum_beside_hidden] = sums.beside;
  }

  // Marks the k tokens of the highest scores, of equal ones the later, and those that are read in any case.
  __device__ void mark_top(int k) {
    if (k <= 0) {
      mark([](int, int, int) { return false; });
      return;
    }
    int prefix = 0, left = k;
    for (int shift = 8; shift >= 0; shift -= 8) {
      for (int i = threadIdx.x; i < 256; i += threads) m.histogram[i] = 0;
      __syncthreads();
      for (int b = int(threadIdx.x) / 32; b < blocks; b += warps)
        for (int i = 0; i < 2; i++) {
          const int v = score(b, 32 * i + int(threadIdx.x) % 32), key = v + offset(b) - hidden_score;
          if (v != hidden_score && (shift == 8 || key >> 8 == prefix)) atomicAdd(&m.histogram[key >> shift & 255], 1);
        }
      __syncthreads();
      if (threadIdx.x == 0) {
        int digit = 255;
        for (; digit > 0 && m.histogram[digit] < left; digit--) left -= m.histogram[digit];
        m.digit = digit, m.left = shift == 0 ? m.histogram[digit] - left : left;
      }
      __syncthreads();
      prefix = prefix << 8 | m.digit, left = m.left;
      __syncthreads();
    }
    const int bound = prefix + hidden_score;
    mark([&](int, int, int score) { return score >= bound; });
    // Of those that equal the bound the first `left` are too many.
    for (int base = 0; base < blocks && left > 0; base += threads) {
      const int b = base + int(threadIdx.x), from = b < blocks ? offset(b) : 0;
      uint64_t equal = 0;
      for (int t = 0; t < block_tokens && b < blocks; t++)
        if (const int v = score(b, t); v != hidden_score && v + from == bound) equal |= uint64_t{1} << t;
      int before, here;
      Scan(m.scan).ExclusiveSum(__popcll(equal), before, here);
      for (int drop = min(left - before, __popcll(equal)); drop > 0; drop--, equal &= equal - 1)
        marks[b] &= ~(equal & (~equal + 1));
      left -= here;
      __syncthreads();
    }
  }
};

__global__ void __launch_bounds__(threads) widen(const __grid_constant__ Step s) {
  const int h = blockIdx.x, row = blockIdx.y;
  const int64_t index = int64_t(row) * s.q_heads + h, at = s.blocks_at(row, h);
  const View view = s.views[row];
  if (view.dense) return;
  const Head head = s.heads[index];
  if (head.reading != reads_list || (s.automatic && !(s.mass[index] < s.min_mass))) return;
  Reader own{s,
             view,
             head,
             row,
             h,
             h / s.group,
             blocks_in(view.tokens),
             at,
             s.own_marks + at,
             s.low_marks + at,
             s.keys + at * block_tokens,
             s.parts + at};
  const char* q = s.query(row, h);
  for (int d = threadIdx.x; d < s.head_dim; d += threads) m.query[d] = load_element(q, s.q_dtype, d);
  for (int i = threadIdx.x; i < own.blocks * block_tokens; i += threads) own.exact[i] = __uint_as_float(unknown);
  __syncthreads();
  const Sight sight = sight_of(s, view, row);
  const int octave = int(fmin(fmax(double(ln2) / head.unit, 1.0), 65536.0));
  int64_t budget = s.budget;
  int bound = head.bound;
  bool first = !s.automatic, all = false;
  Sums sums;
  float mass = 0;
  for (;; first = false) {
    int count = 0;
    if (s.automatic) {
      bound = max(bound - octave, hidden_score + 1);
      count = own.mark([&](int, int, int score) { return score >= bound; });
      all = 2 * int64_t(count) >= sight.visible;
    } else if (first) {
      own.mark([&](int b, int t, int) { return (s.marks[at + b] >> t & 1) != 0; });
    } else {
      budget *= 2;
      all = 2 * budget >= sight.visible;
      if (!all) own.mark_top(int(budget) - sight.always);
    }
    if (all) own.mark([](int, int, int) { return true; });
    own.score_marked();
    if (!s.automatic) {  // the lowest estimate that it lists
      int lowest = always_score;
      for (int b = int(threadIdx.x) / 32; b < own.blocks; b += warps)
        for (int t = threadIdx.x % 32; t < block_tokens; t += 32)
          if (const int v = own.score(b, t); (own.marks[b] >> t & 1) != 0 && v != hidden_score)
            lowest = min(lowest, v + own.offset(b));
      bound = min_of_block(lowest);
    }
    sums = own.measure(bound);
    mass = sums.mass(head);
    if (all || !(mass < s.min_mass)) break;
  }
  if (threadIdx.x == 0) {
    s.heads[index].mass = all ? 1.0f : mass;
    if (first) s.mass[index] = mass;
    if (!first) s.heads[index].reading = all ? reads_all_widened : reads_widened;
  }
  if (!first) own.store(sums, s.automatic && !all);
}

}  // namespace

cudaError_t launch_widen(const Step& s, cudaStream_t stream) {
  const dim3 heads(unsigned(s.q_heads), unsigned(s.query_rows));
  if (const cudaError_t error = launch(Start::after, widen, heads, threads, 0, stream, s); error != cudaSuccess)
    return error;
  return launch_combine(s, true, stream);
}

}  // namespace adamas::cuda
