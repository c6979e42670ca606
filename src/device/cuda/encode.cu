// Stages 1 and 2: rows of K and V to codes and means. A block of threads makes one block's codes of one KV head, in the
// order of operations that docs/codes.md states, so that the bits are the CPU's.
#include <climits>

#include "baselines/quest.h"
#include "device/cuda/spread.cuh"

namespace adamas::cuda {
namespace {

constexpr int threads = 128, warps = threads / 32;

// What became of one sequence.
struct Change {
  int64_t sequence, length, first;  // rows [first, length) are new; [0, first) are as they were
  int64_t first_block, last_block;  // whose codes may be other ones
};
__device__ Change change_of(const Codes& codes, const Appended& a, int entry) {
  Change c;
  c.sequence = a.one ? a.sequence : a.sequences != nullptr ? a.sequences[entry] : entry;
  const int64_t before = codes.by_page ? INT64_MAX : codes.lengths[c.sequence];
  int64_t end;
  if (a.one) {
    end = a.first + a.rows;
    c.length = codes.by_page || before < end ? end : before;
    c.first = a.first;
  } else {
    end = c.length = a.lengths[entry];
    c.first = c.length > a.rows ? c.length - a.rows : 0;
  }
  const int64_t most = codes.blocks * block_tokens;
  if (!codes.by_page && c.length > most) c.length = most;
  if (c.first > before) c.first = before;  // what was never told of is as new
  c.first_block = c.first / block_tokens;
  c.last_block = (c.length + block_tokens - 1) / block_tokens;
  return c;
}

// Of a block, how many rows its codes are to be made of: of the last one whole groups, or all before there is one.
__device__ int wanted_rows(const Change& c, int64_t block, int open_rows) {
  const int64_t rows = c.length - block * block_tokens;
  return int(rows >= block_tokens ? block_tokens : rows < open_rows ? rows : rows / open_rows * open_rows);
}

// Whether a block's codes are made anew.
__device__ bool is_changed(const Codes& codes, const Appended& a, const Change& c, int64_t block) {
  const int count = wanted_rows(c, block, a.open_rows);
  return c.first < block * block_tokens + count || codes.coded[codes.place(a.k, c.sequence, block)] != count;
}

__device__ float block_max(float x) {
  __shared__ float of_warp[warps];
  x = max_of_warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warp[0];
  for (int i = 1; i < warps; i++) x = fmaxf(x, of_warp[i]);
  return x;
}

// rows: [64, head_dim] of the block's first `count`. The mean of those from `skipped` on, stored, and read back to `centre`.
__device__ float store_mean(const float* x, int head_dim, int skipped, int count, int16_t* stored, float* scale,
                            float* centre) {
  float largest = 0;
  for (int d = threadIdx.x; d < head_dim; d += threads) {
    float sum = 0;
    for (int t = skipped; t < count; t++) sum = __fadd_rn(sum, x[t * head_dim + d]);
    const float mean = __fdiv_rn(sum, float(max(1, count - skipped)));
    centre[d] = mean;
    largest = fmaxf(largest, fabsf(mean));
  }
  largest = block_max(largest);
  const bool centred = largest > 1e-30f;
  const float unit = centred ? __fdiv_rn(largest, 32767.0f) : 0.0f, inverse = centred ? __fdiv_rn(32767.0f, largest) : 0.0f;
  for (int d = threadIdx.x; d < head_dim; d += threads) {
    const int units = __float2int_rn(fminf(fmaxf(__fmul_rn(centre[d], inverse), -32767.0f), 32767.0f));
    stored[d] = int16_t(units);
    centre[d] = __fmul_rn(float(units), unit);
  }
  if (threadIdx.x == 0) *scale = unit;
  return unit;
}

// Quest's bounds of a block: baselines/quest.h.
__device__ void bound_pages(const Codes& codes, const Appended& a, const Change& c, int head, int64_t block, int count,
                            int64_t place) {
  float* bounds = codes.bounds.at<float>(place, head);
  for (int i = threadIdx.x; i < block_tokens / quest_page * a.head_dim; i += threads) {
    const int page = i / a.head_dim, d = i % a.head_dim;
    float low = 0, high = 0;
    for (int t = page * quest_page; t < min(count, (page + 1) * quest_page); t++) {
      float x = load_element(a.k.of(c.sequence, head).row(block * block_tokens + t), a.dtype, d);
      if (isnan(x)) x = 0;
      low = t % quest_page == 0 ? x : fminf(low, x), high = t % quest_page == 0 ? x : fmaxf(high, x);
    }
    bounds[page * 2 * a.head_dim + d] = low;
    bounds[(page * 2 + 1) * a.head_dim + d] = high;
  }
}

// Takes a block's centre off its rows; the deviation of what is left, and the threshold of its codes.
__device__ void centre_rows(float* x, int head_dim, int skipped, int count, int16_t* stored, float* scale, float* deviation,
                            float* centre, float* squares, float* threshold) {
  const float unit = store_mean(x, head_dim, skipped, count, stored, scale, centre);
  for (int d = threadIdx.x; d < head_dim; d += threads) {
    float sum = 0;
    for (int t = 0; t < count; t++) {
      const float r = __fsub_rn(x[t * head_dim + d], centre[d]);
      x[t * head_dim + d] = r;
      if (t >= skipped) sum = __fadd_rn(sum, __fmul_rn(r, r));
    }
    squares[d] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (int d = 0; d < head_dim; d++) sum += double(squares[d]);
  float sigma = count > skipped ? float(sqrt(sum / (double(count - skipped) * head_dim))) : 0.0f;
  if (!(sigma > unit)) sigma = 0;
  *deviation = sigma;
  *threshold = __fmul_rn(threshold_sigmas, sigma);
}

template <int parts>
__device__ void load_rows(const Table& rows, const Appended& a, const Change& c, int head, int64_t block, int count,
                          bool rotated, float* x) {
  const int lane = threadIdx.x % 32;
  for (int t = threadIdx.x / 32; t < count; t += warps) {
    RawRow<parts> raw;
    raw.load(rows.of(c.sequence, head).row(block * block_tokens + t), a.dtype, a.head_dim);
    float row[parts];
    raw.tame(a.dtype, a.head_dim, row);
    if (rotated) rotate(a.head_dim, row);
#pragma unroll
    for (int i = 0; i < parts; i++)
      if (32 * i + lane < a.head_dim) x[t * a.head_dim + 32 * i + lane] = row[i];
  }
}

// The reference deviation of blocks [0, b], for all b from `from` on. Counts of their exponents are kept from one block to
// the next. The squares are whole numbers, so that their
// sum does not depend on how rows came. All threads of a block call it.
__device__ void refer(const Codes& codes, const Appended& a, const Change& c, int head, int64_t from, int64_t end) {
  __shared__ int histogram[256];
  __shared__ float reference;
  __shared__ unsigned long long of_warp[warps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto sigma_of = [&](int64_t b) { return __ldcg(codes.sigma.at<float>(codes.place(a.k, c.sequence, b), head)); };
  for (int i = threadIdx.x; i < 256; i += threads) histogram[i] = 0;
  __syncthreads();
  float most = 0;
  for (int64_t b = threadIdx.x; b < from; b += threads) {
    const float sigma = sigma_of(b);
    most = fmaxf(most, sigma);
    if (sigma > 0) atomicAdd(&histogram[exponent_of(sigma)], 1);
  }
  most = block_max(most);
  if (threadIdx.x == 0) reference = 0;
  unsigned long long sum = 0;
  for (int64_t b = from; b < end; b++) {
    __syncthreads();
    const float own = sigma_of(b), before = reference;
    most = fmaxf(most, own);
    if (threadIdx.x == 0 && own > 0) histogram[exponent_of(own)]++;
    __syncthreads();
    if (warp == 0) {
      const float found = reference_of(histogram, most);
      if (lane == 0) reference = found;
    }
    __syncthreads();
    const float now = reference;
    if (b == from || now != before) {
      sum = 0;
      for (int64_t i = threadIdx.x; i <= b; i += threads) sum += square_of(sigma_of(i), now);
      sum = sum_of_warp(sum);
      if (lane == 0) of_warp[warp] = sum;
      __syncthreads();
      sum = 0;
      for (int i = 0; i < warps; i++) sum += of_warp[i];
    } else {
      sum += square_of(own, now);
    }
    if (threadIdx.x == 0) codes.spreads[codes.place(a.k, c.sequence, b) * a.kv_heads + head] = {now, sum};
  }
}

template <int parts>
__global__ void __launch_bounds__(threads) encode(Codes codes, Appended a) {
  float* x = reinterpret_cast<float*>(shared_memory());  // [64, head_dim]
  __shared__ float centre[32 * parts], squares[32 * parts];
  __shared__ float threshold;
  __shared__ bool last;
  __shared__ int from;
  const int head = blockIdx.y % a.kv_heads, entry = blockIdx.z;
  const bool values = blockIdx.y >= unsigned(a.kv_heads);
  const Change c = change_of(codes, a, entry);
  for (int64_t block = c.first_block + blockIdx.x; block < c.last_block; block += gridDim.x) {
    const int64_t place = codes.place(a.k, c.sequence, block);
    const int count = wanted_rows(c, block, a.open_rows);
    if (!is_changed(codes, a, c, block)) continue;
    const int skipped = block == 0 && count > 4 ? 4 : 0;
    __syncthreads();
    if (values) {
      load_rows<parts>(a.v, a, c, head, block, count, false, x);
      __syncthreads();
      store_mean(x, a.head_dim, skipped, count, codes.mean.at<int16_t>(place, head), codes.mean_scale.at<float>(place, head),
                 centre);
      continue;
    }
    if (a.quest) bound_pages(codes, a, c, head, block, count, place);
    load_rows<parts>(a.k, a, c, head, block, count, a.rotate, x);
    __syncthreads();
    int16_t* stored = codes.centre.at<int16_t>(place, head);
    float *scale = codes.centre_scale.at<float>(place, head), *deviation = codes.sigma.at<float>(place, head);
    if (a.paper) {
      for (int d = threadIdx.x; d < a.head_dim; d += threads) stored[d] = 0;
      if (threadIdx.x == 0) *scale = 0, *deviation = paper_threshold / threshold_sigmas, threshold = paper_threshold;
    } else {
      centre_rows(x, a.head_dim, skipped, count, stored, scale, deviation, centre, squares, &threshold);
    }
    __syncthreads();
    const int words = words_of(a.head_dim);
    uint32_t* to = codes.words.at<uint32_t>(place, head);
    for (int i = threadIdx.x; i < block_tokens * 4; i += threads) {
      const int row = i / 4, lane = i % 4, token = row / 16 * 16 + row % 8 * 2 + row / 8 % 2;
      for (int w = 0; w < words; w++) {
        uint32_t word = 0;
        if (token < count)
          for (int f = 0; f < 4; f++)
            for (int y = 0; y < 4; y++) {
              const int d = 64 * w + 16 * f + 4 * lane + y;
              if (d >= a.head_dim) continue;
              const float r = x[token * a.head_dim + d];
              word |= uint32_t((r > -threshold) + (r > 0) + (r > threshold)) << (8 * y + 2 * f);
            }
        to[i * words + w] = word;
      }
    }
  }
  // The last of a head's blocks of threads sees to its reference deviation, and the last of all notes what has codes now:
  // until then the others look at what had.
  const auto is_last = [&](int* ticket, unsigned of) {
    __syncthreads();
    if (threadIdx.x == 0) {
      last = add_released(ticket, 1) == int(of) - 1;
      if (last) *ticket = 0;
    }
    __syncthreads();
    return last;
  };
  int* tickets = a.tickets + int64_t(entry) * (a.kv_heads + 1);
  if (!values) {
    if (!is_last(tickets + 1 + head, gridDim.x)) return;
    if (threadIdx.x == 0) from = INT_MAX;
    __syncthreads();
    for (int64_t block = c.first_block + threadIdx.x; block < c.last_block; block += threads)
      if (is_changed(codes, a, c, block)) atomicMin(&from, int(block));
    __syncthreads();
    if (from < c.last_block) refer(codes, a, c, head, from, c.last_block);
  }
  if (!is_last(tickets, a.kv_heads + (a.means ? gridDim.x * a.kv_heads : 0))) return;
  for (int64_t block = c.first_block + threadIdx.x; block < c.last_block; block += threads)
    codes.coded[codes.place(a.k, c.sequence, block)] = uint8_t(wanted_rows(c, block, a.open_rows));
  if (threadIdx.x == 0 && !codes.by_page) codes.lengths[c.sequence] = c.length;
}

template <int parts>
cudaError_t launch(const Codes& codes, const Appended& a, cudaStream_t stream) {
  const size_t shared = size_t(block_tokens) * a.head_dim * sizeof(float);
  if (const cudaError_t error =
          cudaFuncSetAttribute(encode<parts>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
      error != cudaSuccess)
    return error;
  const int64_t blocks = a.rows / block_tokens + 2;
  const dim3 grid(unsigned(blocks < 1024 ? blocks : 1024), unsigned(a.kv_heads * (a.means ? 2 : 1)), unsigned(a.batch));
  return cuda::launch(Start::after, encode<parts>, grid, threads, shared, stream, codes, a);
}

}  // namespace

cudaError_t launch_append(const Codes& codes, const Appended& a, cudaStream_t stream) {
  switch (words_of(a.head_dim)) {
    case 1: return launch<2>(codes, a, stream);
    case 2: return launch<4>(codes, a, stream);
    case 3: return launch<6>(codes, a, stream);
    default: return launch<8>(codes, a, stream);
  }
}

}  // namespace adamas::cuda
