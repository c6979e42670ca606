// The baselines that rank without codes: Quest's pages by what bounds their scores (baselines/quest.h), the oracle's tokens
// by their exact scores. A kernel writes a number for each of them, a second one marks the highest, a block of threads for
// each query head.
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "baselines/quest.h"
#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int score_threads = 256, threads = 512;
constexpr int pages_of_block = block_tokens / quest_page;

// How both kernels of scores begin: what a row sees, all of which is ranked, and a head's query, unless the row is dense.
__device__ View begin(const Step& s, int row, int h, float (&query)[256]) {
  View view = see(s, row);
  view.estimated = view.tokens;
  if (s.seen == nullptr && blockIdx.x == 0 && h == 0 && threadIdx.x == 0) s.views[row] = view;
  if (view.dense) return view;
  for (int d = threadIdx.x; d < 256; d += score_threads)
    query[d] = d < s.head_dim ? load_element(s.query(row, h), s.q_dtype, d) : 0.0f;
  __syncthreads();
  return view;
}

// keys: [rows, q_heads, max_blocks * 64]. Eight lanes have a token.
__global__ void __launch_bounds__(score_threads) score_tokens(const __grid_constant__ Step s) {
  __shared__ float query[256];
  const int h = blockIdx.y, row = blockIdx.z, g = h / s.group, part = threadIdx.x % 8;
  const View view = begin(s, row, h, query);
  if (view.dense) return;
  float* keys = s.keys + s.blocks_at(row, h) * block_tokens;
  const auto score = [&](auto zero) {
    using T = decltype(zero);
    constexpr int step = score_threads / 8;
    for (int base = blockIdx.x * step; base < view.tokens; base += gridDim.x * step) {
      const int token = base + int(threadIdx.x) / 8;
      const char* k = s.k.of(view.sequence, g).row(min(token, view.tokens - 1));
      float sum = 0;
      for (int d = 8 * part; d < s.head_dim; d += 64) {
        Eight<T> raw;
        raw.load(k + d * sizeof(T));
        float x[8];
        to_f32(raw, x);
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(query[d + j], x[j], sum);
      }
      for (int o = 1; o < 8; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
      if (part != 0 || token >= view.tokens) continue;
      const bool seen = (seen_of(s, view, row, token / block_tokens) >> token % block_tokens & 1) != 0;
      sum = seen ? s.score_of(sum, view, row, h, token) : -INFINITY;
      keys[token] = isnan(sum) ? -INFINITY : sum;
    }
  };
  with_element(s.k_dtype, score);
}

__device__ uint64_t seen_of_page(const Step& s, const View& view, int row, int page) {
  return seen_of(s, view, row, page / pages_of_block) >> page % pages_of_block * quest_page & ((1 << quest_page) - 1);
}

// keys: [rows, q_heads, max_blocks * 64], of which the first are pages. Sixteen lanes have a page, and add up as quest.cc
// does.
__global__ void __launch_bounds__(score_threads) score_pages(const __grid_constant__ Step s) {
  __shared__ float query[256];
  const int h = blockIdx.y, row = blockIdx.z, g = h / s.group, part = threadIdx.x % 16;
  const View view = begin(s, row, h, query);
  if (view.dense) return;
  float* keys = s.keys + s.blocks_at(row, h) * block_tokens;
  constexpr int step = score_threads / 16;
  const int pages = (view.tokens + quest_page - 1) / quest_page;
  for (int base = blockIdx.x * step; base < pages; base += gridDim.x * step) {
    const int page = base + int(threadIdx.x) / 16, here = min(page, pages - 1);
    const float* low = s.codes.bounds.at<float>(s.codes.place(s.k, view.sequence, here / pages_of_block), g) +
                       here % pages_of_block * 2 * s.head_dim;
    float own = 0;
    for (int d = part; d < s.head_dim; d += 16)
      own = __fadd_rn(own, fmaxf(__fmul_rn(query[d], low[d]), __fmul_rn(query[d], low[s.head_dim + d])));
    float sum = 0;
    for (int i = 0; i < 16; i++) sum = __fadd_rn(sum, __shfl_sync(~0u, own, i, 16));
    if (part != 0 || page >= pages) continue;
    keys[page] = page == sight_of(s, view, row).last / quest_page ? INFINITY  // the newest is always read
                 : seen_of_page(s, view, row, page) != 0          ? sum
                                                                  : -INFINITY;
  }
}

// A number's bits in an order that is its own.
__device__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

__global__ void __launch_bounds__(threads) rank(const __grid_constant__ Step s) {
  using Scan = cub::BlockScan<int, threads>;
  using Reduce = cub::BlockReduce<float, threads>;
  __shared__ union {
    Scan::TempStorage scan;
    Reduce::TempStorage reduce;
  } room;
  __shared__ int histogram[256];
  __shared__ uint32_t threshold;
  __shared__ int left;
  __shared__ float top;
  const int h = blockIdx.x, row = blockIdx.y;
  const View view = s.views[row];
  Head head{};
  head.reading = reads_short;
  Head& result = s.heads[row * s.q_heads + h];
  const bool quest = s.policy == ADAMAS_POLICY_QUEST;
  const int blocks = blocks_in(view.tokens);
  // Of a page whose rows were not all told of nothing is known.
  int uncoded = 0;
  for (int b = threadIdx.x; quest && b < blocks; b += threads)
    uncoded |= seen_of(s, view, row, b) != 0 &&
               s.codes.coded[s.codes.place(s.k, view.sequence, b)] < min(block_tokens, view.tokens - b * block_tokens);
  if (view.dense || __syncthreads_or(uncoded)) {
    if (threadIdx.x == 0) result = head;
    return;
  }
  const float* keys = s.keys + s.blocks_at(row, h) * block_tokens;
  const int each = quest ? quest_page : 1, of_block = block_tokens / each, items = (view.tokens + each - 1) / each;
  const int wanted = min(items, max(1, s.budget / each));
  if (threadIdx.x == 0) threshold = 0, left = wanted;
  uint32_t known = 0;
  for (int shift = 24; shift >= 0; shift -= 8, known |= 255u << (shift + 8)) {
    for (int i = threadIdx.x; i < 256; i += threads) histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < items; i += threads)
      if (const uint32_t key = ordered(keys[i]); (key & known) == threshold) atomicAdd(&histogram[key >> shift & 255], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      for (; digit > 0 && histogram[digit] < left; digit--) left -= histogram[digit];
      threshold |= uint32_t(digit) << shift;
      if (shift == 0) left = histogram[digit] - left;  // of those that are equal to it the first ones are too many
    }
    __syncthreads();
  }
  const uint32_t least = threshold;
  int skip = left;
  uint64_t* marks = s.marks + s.blocks_at(row, h);
  const uint64_t whole = quest ? (uint64_t{1} << quest_page) - 1 : 1;
  for (int base = 0; base < blocks; base += threads) {
    const int b = base + int(threadIdx.x), first = b * of_block, end = b < blocks ? min(items, first + of_block) : first;
    int equal = 0, before, all;
    for (int i = first; i < end; i++) equal += ordered(keys[i]) == least;
    __syncthreads();
    Scan(room.scan).ExclusiveSum(equal, before, all);
    uint64_t bits = 0;
    for (int i = first; i < end; i++) {
      const uint32_t key = ordered(keys[i]);
      if (key > least || (key == least && before++ >= skip)) bits |= whole << (i - first) * each;
    }
    if (b < blocks) marks[b] = bits;
    skip -= all;
  }
  head.reading = reads_list;
  head.mass = __int_as_float(0x7FC00000);
  if (!quest) {  // the share of the softmax that is read
    float most = -INFINITY, everything = 0, selected = 0;
    for (int i = threadIdx.x; i < items; i += threads) most = fmaxf(most, keys[i]);
    __syncthreads();
    most = Reduce(room.reduce).Reduce(most, [](float a, float b) { return fmaxf(a, b); });
    if (threadIdx.x == 0) top = most;
    __syncthreads();
    for (int i = threadIdx.x; i < items; i += threads) {
      const float weight = expf(keys[i] - top);
      everything += weight;
      if (marks[i / block_tokens] >> i % block_tokens & 1) selected += weight;
    }
    __syncthreads();
    everything = Reduce(room.reduce).Sum(everything);
    __syncthreads();
    selected = Reduce(room.reduce).Sum(selected);
    head.mass = selected / everything;
  }
  if (threadIdx.x == 0) result = head;
}

}  // namespace

cudaError_t launch_rank(const Step& s, cudaStream_t stream) {
  const dim3 grid(unsigned(s.splits), unsigned(s.q_heads), unsigned(s.query_rows));
  const auto score = s.policy == ADAMAS_POLICY_QUEST ? score_pages : score_tokens;
  if (const cudaError_t error = launch(Start::after, score, grid, score_threads, 0, stream, s); error != cudaSuccess)
    return error;
  return launch(Start::after, rank, dim3(unsigned(s.q_heads), unsigned(s.query_rows)), threads, 0, stream, s);
}

}  // namespace adamas::cuda
