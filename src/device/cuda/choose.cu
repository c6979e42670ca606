// Stage 4, with a rest: from which score on a query head lists tokens. list/list.h says how. A block of threads has a head,
// and needs no score for it: the scan has left the highest estimate of every block, and sums of spans. Little of this is
// work, and all of it is waiting, so warps have a part each: the first one has the spans, then the threshold; four score
// what is read in any case; all but the first count how many blocks reach which estimate.
#include "device/cuda/scores.cuh"

namespace adamas::cuda {
namespace {

constexpr int always_warps = 4, warps = 8, threads = 32 * warps, first_always = threads - 32 * always_warps;

struct Shared {
  float query[always_warps][256];
  float always_max[always_warps], always_sum[always_warps];
  double room[warps];
  Summary all;
  int reaching[list_edges];  // blocks whose highest estimate is that far below the highest of all
};
__shared__ Shared m;

// The exact scores of what is read in any case, as a maximum and a sum of exponentials for each of the warps that call it;
// +inf when one is no number. Eight lanes have a token.
__device__ void score_always(const Step& s, const View& view, int row, int h) {
  constexpr int ahead = 2, step = 4 * always_warps;
  const int part = threadIdx.x % 8, warp = (threadIdx.x - first_always) / 32, g = h / s.group;
  const Sight sight = sight_of(s, view, row);
  const int sinks = max(0, sight.sinks - sight.first), from = max(view.estimated, sight.sinks),
            count = sinks + view.tokens - from;
  const char* q = s.query(row, h);
  for (int d = threadIdx.x % 32; d < s.head_dim; d += 32) m.query[warp][d] = load_element(q, s.q_dtype, d);
  __syncwarp();
  const HeadRows rows = s.k.of(view.sequence, g);
  float most = -INFINITY, sum = 0;
  const auto score = [&](auto zero) {
    using T = decltype(zero);
    for (int base = 4 * warp; base < count; base += ahead * step) {
      float x[ahead] = {};
      int token[ahead];
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        const int at = min(base + i * step + int(threadIdx.x % 32) / 8, count - 1);
        token[i] = at < sinks ? sight.first + at : from + at - sinks;
      }
      for (int d = 8 * part; d - 8 * part < s.head_dim; d += 64) {
        const int here = d < s.head_dim ? d : 0;  // past head_dim the query is 0
        Eight<T> raw[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) raw[i].load(rows.row(token[i]) + here * sizeof(T));
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
        x[i] = s.score_of(x[i], view, row, h, token[i]);
        if (s.seen != nullptr && (s.seen[s.seen_at(row) + token[i] / block_tokens] >> token[i] % block_tokens & 1) == 0)
          x[i] = -INFINITY;
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

// log2 of the estimate from which on a share of the softmax is possible. A warp's.
__device__ float least_of_share(const Step& s, const Head& head) {
  const float estimated = m.all.top + log2f(m.all.sum), always = log_of_always();
  const float higher = fmaxf(estimated, always), lower = fminf(estimated, always);
  const float total = lower > -INFINITY ? higher + log2f(1.0f + exp2f(lower - higher)) : higher;
  return s.log2_share + total - sqrtf(head.noise) * log2e;
}

__global__ void __launch_bounds__(threads, 4) choose(const __grid_constant__ Step s) {
  const int h = blockIdx.x, row = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t index = int64_t(row) * s.q_heads + h;
  View view = see(s, row);
  if (view.dense) {
    wait_for_previous();
    if (threadIdx.x == 0) s.heads[index].reading = reads_short, s.heads[index].noise = 0;
    return;
  }
  const int blocks = blocks_in(view.tokens);
  if (s.seen == nullptr) find_estimated(s, view, s.codes.coded[s.codes.place(s.k, view.sequence, blocks - 1)]);
  for (int i = threadIdx.x; i < list_edges; i += threads) m.reaching[i] = 0;
  if (int(threadIdx.x) >= first_always) score_always(s, view, row, h);  // needs nothing of the scan
  wait_for_previous();
  const float2* sums = s.sums + s.blocks_at(row, h);
  constexpr int counting = threads - 32, kept = 4;
  const int own = int(threadIdx.x) - 32;
  float tops[kept];
  if (warp == 0) {
    const Summary all = read_spans(s.spans + s.spans_at(row, h), int((blocks + span_blocks - 1) / span_blocks));
    if (lane == 0) m.all = all;
  } else {
#pragma unroll
    for (int i = 0; i < kept; i++) tops[i] = __ldcg(&sums[min(own + i * counting, blocks - 1)].x);
  }
  __syncthreads();
  launch_next();  // not before: some of the next kernel's blocks of threads find no room beside these, and would come late
  const Summary all = m.all;
  Head head = begin_head(s, row, s.tallies[index], all);
  if (head.reading != reads_list) {
    if (threadIdx.x == 0) s.heads[index] = head;
    return;
  }
  if (head.anew) head = rescale<threads>(s, view, row, h, m.room, head);
  float least = 0;
  if (warp == 0) {
    least = least_of_share(s, head);
  } else {
    const auto count = [&](float top) { atomicAdd(&m.reaching[edge_beyond(all.top - top)], 1); };
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (own + i * counting < blocks) count(tops[i]);
#pragma unroll 4
    for (int b = own + kept * counting; b < blocks; b += counting) count(__ldcg(&sums[b].x));
  }
  __syncthreads();
  if (warp != 0) return;
  const int active = sight_of(s, view, row).active;
  int edges[2];
  bins_reaching(m.reaching, {int(most_blocks(active)), int(fewest_blocks(active))}, edges);
  const auto edge = [&](int i) { return all.top - edge_distance(min(edges[i], list_edges - 1)); };
  const float from = fminf(fmaxf(least, edge(0)), edge(1));
  // The second lane has the blocks with hidden rows.
  const float logit2 = lane == 1 ? fminf(from, least + log2f(float(hidden_rows_share))) : from;
  const int score = score_reaching(head, double(logit2) * double(ln2));
  head.bound = score;
  head.lower = __shfl_sync(~0u, score, 1);
  if (lane != 0) return;
  head.low_top = low_top_of(head, score);
  head.reached = reached_from(head, head.bound, all.largest_centre(s.scale));
  head.low_log2 = float(capped(head.unit * score + head.highest, head.softcap) * double(log2e));
  s.heads[index] = head;
}

}  // namespace

cudaError_t launch_choose(const Step& s, cudaStream_t stream) {
  return launch(Start::beside, choose, dim3(unsigned(s.q_heads), unsigned(s.query_rows)), threads, 0, stream, s);
}

}  // namespace adamas::cuda
