// What query rows see of their sequences where there is a mask: three small kernels, which steps without one do not launch.
//
//   look    a warp for each block of tokens: which of them are seen, whether one has a bias, and whether the block's codes
//           are of rows, too, that are not seen
//   settle  a block of threads for each row: its View and its Sight, once ranks among the tokens that are seen are known;
//           and for each of its KV heads: the reference deviation of the blocks that it sees
//   hide    behind the scan: scores of what is hidden, or read in any case, are no estimates; the sums of a block are those
//           of the others, and what is said of spans is so of the blocks that are seen
//
// The rest of a step asks `see` and `seen_of`. step/view.h says the same of the CPU.
#include <cub/block/block_scan.cuh>

#include "device/cuda/spread.cuh"

namespace adamas::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

__global__ void __launch_bounds__(threads) look(const __grid_constant__ Step s) {
  const int row = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const View view = see_all(s, row);
  const int blocks = blocks_in(view.tokens);
  for (int b = int(blockIdx.x) * warps + warp; b < blocks; b += int(gridDim.x) * warps) {
    const int coded = __ldg(s.codes.coded + s.codes.place(s.k, view.sequence, b));
    uint64_t seen = 0;
    bool biased = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int token = b * block_tokens + 32 * i + lane;
      const float bias = token < view.tokens ? s.mask_value(row, token) : -INFINITY;
      biased |= bias != 0 && bias != -INFINITY;
      seen |= uint64_t{__ballot_sync(~0u, bias != -INFINITY)} << 32 * i;
    }
    biased = __any_sync(~0u, biased);
    if (lane != 0) continue;
    s.seen[s.seen_at(row) + b] = seen;
    s.flags[s.seen_at(row) + b] =
        uint8_t((biased ? has_bias : 0) | ((bits_below(coded) & ~seen) != 0 ? has_hidden_rows : 0));
  }
}

// The place of the i-th bit that is set, from 0 on.
__device__ int place_of_bit(uint64_t bits, int i) {
  for (; i > 0; i--) bits &= bits - 1;
  return __ffsll(static_cast<long long>(bits)) - 1;
}

__device__ void settle_view(const Step& s, int row) {
  using Scan = cub::BlockScan<int, threads>;
  __shared__ Scan::TempStorage room;
  __shared__ int first, last, sinks, old;
  View view = see_all(s, row);
  Sight sight{};
  const int blocks = blocks_in(view.tokens);
  const uint64_t* seen = s.seen + s.seen_at(row);
  const uint8_t* flags = s.flags + s.seen_at(row);
  if (threadIdx.x == 0) first = view.tokens, last = -1, sinks = 0, old = view.tokens;
  __syncthreads();
  int visible = 0, active = 0, biased = 0;
  for (int b = threadIdx.x; b < blocks; b += threads) {
    const uint64_t bits = seen[b];
    visible += __popcll(bits), active += bits != 0, biased |= flags[b] & has_bias;
    if (bits == 0) continue;
    atomicMin(&first, b * block_tokens + __ffsll(static_cast<long long>(bits)) - 1);
    atomicMax(&last, b * block_tokens + 63 - __clzll(static_cast<long long>(bits)));
  }
  sight.visible = sum_of_block(visible);
  sight.active = sum_of_block(active);
  sight.biased = __syncthreads_or(biased) != 0;
  view.dense = is_dense(s, sight.visible);
  // The tokens of these ranks: the last of the first ones, and the first of the last ones.
  const int wanted = min(s.sinks, sight.visible),
            recent = s.policy == ADAMAS_POLICY_STREAMING ? s.budget - s.sinks : s.recent,
            first_recent = max(0, sight.visible - recent);
  int rank = 0;
  for (int base = 0; base < blocks; base += threads) {
    const int b = base + int(threadIdx.x), count = b < blocks ? __popcll(seen[b]) : 0;
    int before, all;
    __syncthreads();
    Scan(room).ExclusiveSum(count, before, all);
    before += rank;
    if (wanted > before && wanted <= before + count)
      sinks = b * block_tokens + place_of_bit(seen[b], wanted - before - 1) + 1;
    if (recent > 0 && first_recent >= before && first_recent < before + count)
      old = b * block_tokens + place_of_bit(seen[b], first_recent - before);
    rank += all;
  }
  __syncthreads();
  sight.first = first, sight.last = last, sight.sinks = sinks;
  view.estimated = old;
  if (s.policy == ADAMAS_POLICY_ADAMAS && blocks > 0) {
    const int coded = s.codes.coded[s.codes.place(s.k, view.sequence, blocks - 1)], newest = (blocks - 1) * block_tokens;
    view.coded_blocks = coded > 0 ? blocks : blocks - 1;
    view.estimated = min(old, min(view.tokens, newest + coded));
  }
  int always = 0;
  for (int b = threadIdx.x; b < blocks; b += threads) {
    const int token = b * block_tokens;
    always += __popcll(seen[b] & (bits_below(sight.sinks - token) | ~bits_below(view.estimated - token)));
  }
  sight.always = sum_of_block(always);
  if (threadIdx.x == 0) s.views[row] = view, s.sights[row] = sight;
}

__device__ void settle_spread(const Step& s, int row, int g) {
  __shared__ int histogram[256];
  __shared__ float of_warp[warps], reference;
  __shared__ unsigned long long squares[warps];
  const View view = see_all(s, row);
  const int blocks = blocks_in(view.tokens), warp = threadIdx.x / 32;
  const uint64_t* seen = s.seen + s.seen_at(row);
  for (int i = threadIdx.x; i < 256; i += threads) histogram[i] = 0;
  __syncthreads();
  const auto sigma_of = [&](int b) {  // 0 where nothing is seen, or has codes
    const int64_t place = s.codes.place(s.k, view.sequence, b);
    return seen[b] != 0 && s.codes.coded[place] != 0 ? *s.codes.sigma.at<float>(place, g) : 0.0f;
  };
  float most = 0;
  for (int b = threadIdx.x; b < blocks; b += threads)
    if (const float sigma = sigma_of(b); sigma > 0) most = fmaxf(most, sigma), atomicAdd(&histogram[exponent_of(sigma)], 1);
  most = max_of_warp(most);
  if (threadIdx.x % 32 == 0) of_warp[warp] = most;
  __syncthreads();
  if (warp == 0) {
    const float found = reference_of(histogram, max_of_warp(of_warp[threadIdx.x % warps]));
    if (threadIdx.x == 0) reference = found;
  }
  __syncthreads();
  unsigned long long sum = 0;
  for (int b = threadIdx.x; b < blocks; b += threads) sum += square_of(sigma_of(b), reference);
  sum = sum_of_warp(sum);
  if (threadIdx.x % 32 == 0) squares[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; w++) sum += squares[w];
  s.spreads[row * s.kv_heads + g] = {reference, sum};
}

__global__ void __launch_bounds__(threads) settle(const __grid_constant__ Step s) {
  if (blockIdx.x == 0)
    settle_view(s, int(blockIdx.y));
  else
    settle_spread(s, int(blockIdx.y), int(blockIdx.x) - 1);
}

// A block of threads has a span of a query head; a warp two of its blocks, a lane two tokens of each.
__global__ void __launch_bounds__(threads) hide(const __grid_constant__ Step s) {
  __shared__ double centres[span_blocks];
  __shared__ float2 sums[span_blocks];
  const int span = blockIdx.x, h = blockIdx.y, row = blockIdx.z, lane = threadIdx.x % 32;
  const View view = s.views[row];
  const Sight sight = s.sights[row];
  const int blocks = blocks_in(view.tokens), first = span * span_blocks, last = min(blocks, first + span_blocks);
  if (view.dense || first >= last) return;
  const float unit = float(s.tallies[int64_t(row) * s.q_heads + h].unit * s.scale);
  for (int b = first + int(threadIdx.x) / 32; b < last; b += warps) {
    const int64_t at = s.blocks_at(row, h) + b;
    const uint64_t seen = s.seen[s.seen_at(row) + b];
    const int token = b * block_tokens + 2 * lane;
    const double centre = seen != 0 ? s.centres[at] : -INFINITY;  // of a block that is not seen it is far below all others
    auto* both = reinterpret_cast<uint32_t*>(s.scores + at * block_tokens) + lane;
    const uint32_t word = *both;
    int score[2];
    float logs[2], top = nothing, sum = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const bool estimated = (seen >> (2 * lane + i) & 1) != 0 && token + i >= sight.sinks && token + i < view.estimated;
      score[i] = estimated ? int16_t(word >> 16 * i) : hidden_score;
      logs[i] = nothing;
      if (score[i] == hidden_score) continue;
      float x = fmaf(float(score[i]), unit, float(centre * s.scale));
      if (s.softcap > 0) x = soft_capped(x, s.softcap);
      if (sight.biased) x += s.slope(h) * s.mask_value(row, token + i);
      logs[i] = x > -1e30f ? fminf(x, 1e30f) * log2e : nothing;  // a bias may be any number, or none
      top = fmaxf(top, logs[i]);
    }
    top = max_of_warp(top);
#pragma unroll
    for (int i = 0; i < 2; i++) sum += score[i] == hidden_score ? 0.0f : exp2_fast(logs[i] - top);
    sum = sum_of_warp(sum);
    *both = __byte_perm(unsigned(score[0]), unsigned(score[1]), 0x5410);
    if (lane != 0) continue;
    const float before = s.sums[at].x;  // of rows that nobody told of it says so
    const float2 of_block = {seen != 0 && before == INFINITY ? before : top, sum};
    s.centres[at] = centre, s.sums[at] = of_block;
    centres[b - first] = centre, sums[b - first] = of_block;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int b = first + lane;
  const bool is = b < last && centres[min(lane, span_blocks - 1)] > -INFINITY;
  const float2 own = b < last ? sums[lane] : make_float2(nothing, 0.0f);
  const float highest = max_of_warp(own.x), sum = sum_of_warp(own.y * exp2_fast(own.x - highest));
  float rounding = 0;
  if (is && b < view.coded_blocks)
    rounding = *s.codes.centre_scale.at<float>(s.codes.place(s.k, view.sequence, b), h / s.group);
  rounding = max_of_warp(rounding);
  double most = is ? centres[lane] : -INFINITY, least = is ? centres[lane] : INFINITY;
  for (int o = 16; o > 0; o /= 2) {
    most = fmax(most, __shfl_xor_sync(~0u, most, o));
    least = fmin(least, __shfl_xor_sync(~0u, least, o));
  }
  if (lane == 0) s.spans[s.spans_at(row, h) + span] = {most, least, highest, sum, rounding};
}

}  // namespace

cudaError_t launch_look(const Step& s, cudaStream_t stream) {
  const int of_a_warp = 4;
  const dim3 parts(unsigned((s.max_blocks + warps * of_a_warp - 1) / (warps * of_a_warp)), unsigned(s.query_rows));
  if (const cudaError_t error = launch(Start::after, look, parts, threads, 0, stream, s); error != cudaSuccess) return error;
  const int heads = s.policy == ADAMAS_POLICY_ADAMAS ? s.kv_heads : 0;
  return launch(Start::after, settle, dim3(unsigned(1 + heads), unsigned(s.query_rows)), threads, 0, stream, s);
}

cudaError_t launch_hide(const Step& s, cudaStream_t stream) {
  const dim3 grid(unsigned(s.max_spans()), unsigned(s.q_heads), unsigned(s.query_rows));
  return launch(Start::after, hide, grid, threads, 0, stream, s);
}

}  // namespace adamas::cuda
