// Stage 4, with a fixed budget: the tokens of the highest scores, of equal ones the later (select/select.h). A few blocks of
// threads share a head's blocks of tokens, and the last one that is through completes the choice.
//
// The highest estimate of every block is known, so that of the k-th best block is reached by k tokens at least. Blocks are
// counted by how far below the best they are, an eighth of an octave at a time; the tokens that reach the estimate found are
// collected, and the last block of threads ranks them.
#include <cub/block/block_scan.cuh>

#include "device/cuda/scores.cuh"

namespace adamas::cuda {
namespace {

constexpr int warps = 12, threads = 32 * warps;
constexpr int groups = threads / 8;  // eight lanes have a block's 64 scores
constexpr int chunk = 2048;          // blocks that are looked through at a time
constexpr int bins = 512;            // of blocks by their highest estimates

using Scan = cub::BlockScan<int, threads>;

struct Shared {
  Scan::TempStorage scan;
  double room[warps];
  Summary all;
  int counted[warps];
  int counts[32];
  union {
    int histogram[warps][256];  // of the slow way
    int of_bins[bins];
    Candidate candidates[most_candidates];
  };
  int candidate_count, first_candidate, highest_candidate, digit, left;
  bool last;
  float tops[chunk];         // of the first blocks: log2 of the highest estimate
  int16_t offsets[chunk];    // C_b of the part's first blocks
  uint32_t reaching[chunk];  // blocks that have a score to mark: C_b, and which one from the chunk's first on
  int reaching_count;
};
__shared__ Shared m;

// One head: its scores, and what is known of its blocks.
struct Scores {
  int16_t *scores, *offsets;  // [blocks, 64], [blocks]
  float2* sums;
  uint64_t* marks;
  int blocks;
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

// The k-th highest score, of more than k: the slow way, through all of them, for scores that are far above each other.
__device__ ADAMAS_NOINLINE int find_score(const Scores x, int k) {
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

// Marks the scores from `from` on of the blocks [first, last), and with `collect` puts them into m.candidates,
// m.candidate_count of them. reached: log2 of an estimate that none of these stays below. Returns how many. All threads of a
// block call it.
__device__ ADAMAS_NOINLINE int mark(const Scores x, int first, int last, int from, float reached, bool collect) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, eighth = lane % 8;
  int count = 0;
  __syncthreads();
  if (threadIdx.x == 0) m.candidate_count = m.reaching_count = 0;
  __syncthreads();
#pragma unroll 1
  for (int base = first; base < last; base += chunk) {
    const int end = min(last, base + chunk);
#pragma unroll 1
    for (int b = base + int(threadIdx.x); b - lane < end; b += threads) {
      const bool may = b < end && x.top(b) >= reached;
      if (b < end && !may) x.marks[b] = 0;
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
        const int own = max(hidden_score + 1, from - offset);
        unsigned bits = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) bits |= unsigned(score_of(eight[i], j) >= own) << j;
        count += __popc(bits);
        reinterpret_cast<uint8_t*>(x.marks + block)[eighth] = uint8_t(bits);
        if (!collect || bits == 0) continue;
        int to = atomicAdd(&m.candidate_count, __popc(bits));
        for (; bits != 0; bits &= bits - 1, to++) {
          const int j = __ffs(bits) - 1;
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
  count = __reduce_add_sync(~0u, count);
  if (lane == 0) m.counted[warp] = count;
  __syncthreads();
  return __reduce_add_sync(~0u, lane < warps ? m.counted[lane] : 0);
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

// How many of m.candidates reach a score. All threads of a block call it.
__device__ ADAMAS_NOINLINE int count_candidates(int count, int score) {
  int own = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += threads) own += m.candidates[i].score >= score;
  return sum_of_block(own);
}

// Of m.candidates, which are what is marked, those stay that are the k highest, of equal ones the later. They are more than
// k, and none is below `least`.
__device__ ADAMAS_NOINLINE void rank_candidates(const Scores x, int k, int count, int least) {
  __syncthreads();
  if (threadIdx.x == 0) m.highest_candidate = hidden_score;
  __syncthreads();
  int highest = hidden_score;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += threads) highest = max(highest, m.candidates[i].score);
  highest = __reduce_max_sync(~0u, highest);
  if (threadIdx.x % 32 == 0) atomicMax(&m.highest_candidate, highest);
  __syncthreads();
  const int bound = find_rank(k, least, m.highest_candidate + 1, [&](int score) {
    int reach = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += threads) reach += m.candidates[i].score >= score;
    return reach;
  });
  const int extra = count_candidates(count, bound) - k;
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
    if (!is) atomicXor(reinterpret_cast<unsigned*>(x.marks) + own.token / 32, 1u << own.token % 32);
  }
}

// An estimate that at least k are not below, by counts of how far below the highest they are: an eighth of an octave near
// it, half of one further down; -inf: all. A warp's; the counts are there.
__device__ float reached_by(int k, float top) {
  int bin[1];
  bins_reaching(m.of_bins, {k}, bin);
  if (bin[0] >= bins - 1) return -INFINITY;
  return top - (bin[0] < 256 ? 0.125f * float(bin[0] + 1) : 32 + 0.5f * float(bin[0] - 255));
}
__device__ int bin_of(float below) {
  return below < 32 ? int(8 * below) : 256 + int(fminf(2 * (below - 32), float(bins - 257)));
}

// The lowest score of what is not below an estimate, or a lower one: by what floats and C_b are rounded.
__device__ int cut_of(const Head& head, float reached, float largest_centre) {
  if (reached == -INFINITY) return hidden_score + 1;
  const double below = double(reached) - 1e-6 * (fabs(double(reached)) + 2 * double(largest_centre));
  return max(hidden_score + 1, score_reaching(head, below * double(ln2)) - 2);
}

// Marks the k highest of all, by one block of threads: where blocks are too few to tell, or those collected too many.
__device__ ADAMAS_NOINLINE void rank_all(const Scores x, const Head head, int k, float largest_centre) {
  __syncthreads();
  for (int i = threadIdx.x; i < bins; i += threads) m.of_bins[i] = 0;
  __syncthreads();
  const float unit2 = head.unit2, highest2 = float(head.highest * double(log2e)), top = m.all.top;
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
  const int cut = cut_of(head, reached_by(k, top), largest_centre);
  const int count = mark(x, 0, x.blocks, cut, reached_from(head, cut, largest_centre), true);
  if (count <= k) return;
  if (count <= most_candidates) return rank_candidates(x, k, count, cut);
  const int bound = find_score(x, k);
  if (const int extra = mark(x, 0, x.blocks, bound, -INFINITY, false) - k; extra > 0) unmark(x, bound, extra);
}

// Tells the other blocks of threads of a head how many tokens this one has marked and collected. The last one gets the
// candidates of all, unless there was no room for them, and goes on.
__device__ bool join(const Step& s, int64_t index, int parts, int& count) {
  Tally& tally = s.tallies[index];
  Candidate* candidates = s.candidates + index * s.candidate_room();
  if (threadIdx.x == 0) m.first_candidate = atomicAdd(&tally.candidates, count);
  __syncthreads();
  const int to = m.first_candidate;
  for (int i = threadIdx.x; i < min(count, most_candidates) && to + i < s.candidate_room(); i += threads)
    candidates[to + i] = m.candidates[i];
  __syncthreads();
  if (threadIdx.x == 0) m.last = add_released(&tally.through, 1) == parts - 1;
  __syncthreads();
  if (!m.last) return false;
  count = __ldcg(&tally.candidates);
  for (int i = threadIdx.x; i < count && count <= s.candidate_room(); i += threads) {
    const int2 both = __ldcg(reinterpret_cast<const int2*>(candidates + i));
    m.candidates[i] = {both.x, both.y};
  }
  __syncthreads();
  return true;
}

__global__ void __launch_bounds__(threads, 2) select(const __grid_constant__ Step s) {
  const int h = blockIdx.x, part = blockIdx.y, row = blockIdx.z, warp = threadIdx.x / 32;
  const int64_t index = int64_t(row) * s.q_heads + h, at = s.blocks_at(row, h);
  View view = see(s, row);
  if (view.dense) {
    wait_for_previous();
    if (part == 0 && threadIdx.x == 0) s.heads[index].reading = reads_short, s.heads[index].noise = 0;
    return;
  }
  const int blocks = blocks_in(view.tokens);
  if (s.seen == nullptr) find_estimated(s, view, s.codes.coded[s.codes.place(s.k, view.sequence, blocks - 1)]);
  int parts = s.parts_of(blocks);
  const int each = (blocks + parts - 1) / parts;
  int first = min(blocks, part * each), last = min(blocks, first + each);
  if (first >= last) return;
  parts = (blocks + each - 1) / each;
  const double* centres = s.centres + at;
  Scores x{s.scores + at * block_tokens, s.offsets + at, s.sums + at, s.marks + at, blocks, first, 0};
  const int k = max(0, s.budget - sight_of(s, view, row).always);
  wait_for_previous();
  if (warp == 0) {
    const Summary all = read_spans(s.spans + s.spans_at(row, h), int((blocks + span_blocks - 1) / span_blocks));
    if (threadIdx.x == 0) m.all = all;
  } else {
    for (int b = int(threadIdx.x) - 32; b < min(blocks, chunk); b += threads - 32) m.tops[b] = __ldcg(&x.sums[b].x);
    for (int i = int(threadIdx.x) - 32; i < bins; i += threads - 32) m.of_bins[i] = 0;
  }
  __syncthreads();
  launch_next();  // not before: see choose.cu
  const Summary all = m.all;
  Head head = begin_head(s, row, s.tallies[index], all);
  if (head.reading == reads_list && (head.anew || 2 * k > blocks)) {  // one does all; of few blocks a rank would say nothing
    if (part != 0) return;
    parts = 1, last = blocks;
  }
  if (head.reading == reads_list && head.anew) head = rescale<threads>(s, view, row, h, m.room, head);
  if (part == 0 && threadIdx.x == 0) s.heads[index] = head;
  if (head.reading != reads_list) return;
  const float largest_centre = all.largest_centre(s.scale);
  x.own_end = min(last, first + chunk);
  for (int b = first + int(threadIdx.x); b < last; b += threads) {
    const int offset = offset_of(head, __ldcg(centres + b));
    x.offsets[b] = int16_t(offset);
    if (b < x.own_end) m.offsets[b - first] = int16_t(offset);
  }
#pragma unroll 4
  for (int b = threadIdx.x; b < blocks; b += threads) atomicAdd(&m.of_bins[bin_of(all.top - x.top(b))], 1);
  __syncthreads();
  if (2 * k > blocks) return rank_all(x, head, k, largest_centre);
  const int from = k > 0 ? cut_of(head, reached_by(k, all.top), largest_centre) : always_score;
  const float reached = k > 0 ? reached_from(head, from, largest_centre) : INFINITY;
  int count = mark(x, first, last, from, reached, true);
  if (parts > 1 && !join(s, index, parts, count)) return;
  if (count <= k) return;
  if (count <= s.candidate_room()) return rank_candidates(x, k, count, from);
  rank_all(x, head, k, largest_centre);
}

}  // namespace

cudaError_t launch_select(const Step& s, cudaStream_t stream) {
  const dim3 grid(unsigned(s.q_heads), unsigned(s.parts_of(s.max_blocks)), unsigned(s.query_rows));
  return launch(Start::beside, select, grid, threads, 0, stream, s);
}

}  // namespace adamas::cuda
