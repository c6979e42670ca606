// Stage 3: a score for every token, from its codes, for all query heads of a KV head at once; beside it each block's centre
// score, and the sum of its estimated weights. estimate/estimate.h says what the numbers are.
//
// `dot` is a product on tensor cores: mma.m16n8k32 of unsigned codes (layout.h) and the signed 8-bit query. Rows are 16
// tokens. The columns are up to eight query heads; with fewer, the other columns take other tiles of tokens, so that the
// sums of one token stand in one thread whatever the number of heads. Even fields of a word are codes, odd ones four times
// as much: the query's bytes for the even ones are multiplied by 4, and so all sums are 4 sum q8 code. With -6 sum q8 as the
// start that is twice I.
//
// `manhattan` counts distances |c - k| of codes, which are linear in the key's code k but for two corrections:
//
//   c = 0: k    c = 1: k - 1 + 2 [k = 0]    c = 2: 2 - k + 2 [k = 3]    c = 3: 3 - k
//
// So the query's bytes are signs and twos, for three operands: codes, which of them are 0, which are 3. The sums are twice
// I.
//
// A block of threads scans a part of the context. Each warp has a ring of blocks in shared memory, filled ahead by
// asynchronous copies; the queries are rotated and quantised while the first of them are on their way.
#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int warps = 8, threads = 32 * warps;
constexpr int unknown = -1;  // the weight of a block before the last whose rows were never appended

// What a block of threads needs of its queries. M: the estimator is manhattan.
template <int W, bool M>
struct Queries {
  int8_t q8[8][64 * W];
  int8_t zeros[M ? 8 : 1][64 * W], threes[M ? 8 : 1][64 * W];
  int16_t q16[8][64 * W];
  int start[8];                       // of a sum
  float largest[8], rms[8], unit[8];  // unit: of a score, in logits or, where nothing else is done to them, in their log2
  double unit16[8];                   // of a product with q16
};

// Rotates and quantises a query head of a row, which the warp has in y.
template <int W, bool M>
__device__ void prepare_queries(const Step& s, float (&y)[2 * W], Queries<W, M>& to) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (s.rotated) rotate(s.head_dim, y);
  // The estimator `dot` takes the deviation for the noise alone, and floats will do.
  using Square = std::conditional_t<M, double, float>;
  float m = 0;
  Square squares = 0;
#pragma unroll
  for (int i = 0; i < 2 * W; i++) m = fmaxf(m, fabsf(y[i])), squares += Square(y[i]) * y[i];
  m = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(m)));  // as floats above 0 are ordered, so are their bits
  squares = sum_of_warp(squares);
  if (!(m > smallest_query)) m = 0;
  const float to_q8 = m > 0 ? __fdiv_rn(float(query_levels), m) : 0.0f, to_q16 = m > 0 ? __fdiv_rn(32767.0f, m) : 0.0f;
  const float rms = float(sqrt(squares / Square(s.head_dim)));
  const float threshold = s.query_threshold > 0 ? s.query_threshold : __fmul_rn(threshold_sigmas, rms);
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 2 * W; i++) {
    const int d = 32 * i + lane, odd = d / 16 % 2;
    to.q16[warp][d] = int16_t(__float2int_rn(__fmul_rn(y[i], to_q16)));
    if constexpr (M) {  // -32 times the distance, twice; fields that are odd have four times the code in them
      const bool real = d < s.head_dim;
      const int code = (y[i] > -threshold) + (y[i] > 0) + (y[i] > threshold), by = real ? odd ? 16 : 64 : 0;
      to.q8[warp][d] = int8_t(code < 2 ? -by : by);
      to.zeros[warp][d] = int8_t(code == 1 ? -2 * by : 0);
      to.threes[warp][d] = int8_t(code == 2 ? -2 * by : 0);
      if (real) sum += code == 1 ? 64 : code == 2 ? -128 : code == 3 ? -192 : 0;
    } else {
      const int q8 = __float2int_rn(__fmul_rn(y[i], to_q8));
      to.q8[warp][d] = int8_t(odd ? q8 : 4 * q8);
      sum -= 6 * q8;
    }
  }
  sum = __reduce_add_sync(~0u, sum);
  if (lane == 0) {
    to.start[warp] = M ? sum + 2 * __double2int_rn(mean_distance * distance_scale * s.head_dim) : sum;
    to.largest[warp] = m;
    to.rms[warp] = rms;
    // m / 32767, to the bit (tried on every mantissa), in three instructions.
    constexpr double inverse = 1.0 / 32767.0;
    const double quotient = double(m) * inverse;
    to.unit16[warp] = fma(fma(-quotient, 32767.0, double(m)), inverse, quotient);
  }
}

// u
template <bool M>
__device__ double unit_of(float largest, float rms, float reference) {
  return M ? double(distance_weight) * double(rms) * double(reference) / distance_scale
           : double(largest) / query_levels * double(level_sigmas) * double(reference);
}

template <int W, int G, bool M>
struct Shared {
  static constexpr int at_once = W <= 2 ? 2 : 1;  // blocks that a warp scores side by side: a chain of waits each
  static constexpr int stages = W == 4 ? 2 : W == 3 ? 3 : 5, block_words = 64 * W;  // of 16 bytes
  uint4 ring[warps][stages][block_words];
  Queries<W, M> queries;
  float bases[G][slice_blocks];
  float2 sums[G][slice_blocks];
  double highest[G][slice_blocks / span_blocks], lowest[G][slice_blocks / span_blocks];  // centre scores of a span
  float roundings[slice_blocks / span_blocks];
  int weights[slice_blocks];
  int places[slice_blocks];
};

// The centres of a span's blocks: a lane's part of two of them, which have its products, too.
template <int W>
struct Centres {
  uint4 x[2 * W][2];
  float scale[2];
  template <class Place>
  __device__ void load(const Step& s, int g, int base, int last, Place&& place) {
    const int row = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int64_t here = place(min(base + row + 8 * i, last - 1));
      const int16_t* from = s.codes.centre.at<int16_t>(here, g);
#pragma unroll
      for (int k = 0; k < 2 * W; k++)
        x[k][i] = __ldcs(reinterpret_cast<const uint4*>(from + min(32 * k + 8 * t, s.head_dim - 8)));
      scale[i] = __ldg(s.codes.centre_scale.at<float>(here, g));
    }
  }
};

// V: there is a mask, and what a row sees is known.
template <int W, int G, bool M, bool V>
__global__ void __launch_bounds__(threads, 2) scan(const __grid_constant__ Step s) {
  // G heads and `tiles` tiles in the columns of a product, in as many rounds as the block's four tiles take.
  constexpr int tiles = G == 1 ? 4 : 8 / G, rounds = tiles >= 4 ? 1 : 4 / tiles, in_round = 4 / rounds;
  using Memory = Shared<W, G, M>;
  constexpr int stages = Memory::stages, at_once = Memory::at_once;
  Memory& m = *reinterpret_cast<Memory*>(shared_memory());
  launch_next();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4, r8 = lane / 4;
  const int row = blockIdx.z, g = s.passes == 1 ? blockIdx.y : blockIdx.y / s.passes, pass = blockIdx.y - g * s.passes;
  const int first_head = g * s.group + pass * G, heads = min(G, s.group - pass * G);

  // What is small is asked for first, and looked at when the first copies are on their way: behind those it would wait for
  // all of them. After a row's length nothing waits for anything else.
  RawRow<2 * W> raw;
  if (warp < heads) raw.load(s.query(row, first_head + warp), s.q_dtype, s.head_dim);
  View view = V ? s.views[row] : see_all(s, row);
  const int blocks = blocks_in(view.tokens), each = blocks_of_split(blocks, gridDim.x);
  const int first = blockIdx.x * each, last = min(blocks, first + each);
  if (view.dense || first >= last) {
    if (!V && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) s.views[row] = view;
    if (blockIdx.x == 0 && int(threadIdx.x) < heads) s.tallies[row * s.q_heads + first_head + threadIdx.x].attended = 0;
    return;
  }
  const int64_t in_line = view.sequence * s.codes.blocks;
  if (s.codes.by_page) {
    for (int b = first + threadIdx.x; b < last; b += threads)
      m.places[b - first] = int(s.codes.place(s.k, view.sequence, b));
    __syncthreads();
  }
  const auto place = [&](int b) { return s.codes.by_page ? m.places[b - first] : in_line + b; };
  const int64_t newest = s.codes.place(s.k, view.sequence, blocks - 1),
                before = s.codes.place(s.k, view.sequence, max(0, blocks - 2));
  const int newest_coded = __ldg(s.codes.coded + newest);
  const Spread spread_newest = s.codes.spreads[newest * s.kv_heads + g],
               spread_before = s.codes.spreads[before * s.kv_heads + g];
  // A thread has a block's deviation, in reverse: the first warp has the queries to do.
  const int own = threads - 1 - int(threadIdx.x);
  const int64_t own_place = place(min(first + own, last - 1));
  const float own_sigma = __ldg(s.codes.sigma.at<float>(own_place, g));
  const int own_coded = __ldg(s.codes.coded + own_place);
  Centres<W> centres;
  centres.load(s, g, first + span_blocks * warp, last, place);
  const char* words = s.codes.words.at<char>(s.codes.by_page ? 0 : in_line, g) + lane * 16;
  const auto copy = [&](int b, int stage) {
    if (b < last) {
      const char* from = words + (s.codes.by_page ? m.places[b - first] : b) * s.codes.words.stride_block;
      uint4* to = &m.ring[warp][stage][lane];
#pragma unroll
      for (int i = 0; i < 2 * W; i++) copy16(to + i * 32, from + i * 512);
    }
    commit_copies();
  };
  int b = first + warp;
#pragma unroll
  for (int i = 0; i < stages - at_once; i++) copy(b + i * warps, i);

  if (warp < heads) {  // what has no head is garbage, and nobody looks at its products
    float y[2 * W];
    raw.tame(s.q_dtype, s.head_dim, y);
    prepare_queries(s, y, m.queries);
  }
  if (!V) find_estimated(s, view, newest_coded);
  const Spread spread = V                             ? s.spreads[row * s.kv_heads + g]
                        : view.coded_blocks == blocks ? spread_newest
                        : view.coded_blocks > 0       ? spread_before
                                                      : Spread{};
  const float reference = spread.reference;
  if (first + own < last) {
    const bool coded = first + own < view.coded_blocks;
    int weight =
        coded && reference > 0 ? __double2int_rn(fmin(32767.0, 32767.0 * (double(own_sigma) / double(reference)))) : 0;
    if (first + own + 1 < blocks && own_coded != block_tokens) weight = unknown;
    m.weights[own] = weight;
  }
  if (!V && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == threads - 1) s.views[row] = view;
  __syncthreads();
  const bool plain = s.softcap == 0 && s.slopes == nullptr;
  if (const int h = threads - 1 - int(threadIdx.x); h < heads) {
    const float rms = m.queries.rms[h];
    const double unit = unit_of<M>(m.queries.largest[h], rms, reference);
    m.queries.unit[h] = plain ? float(unit * s.scale * double(log2e)) : float(unit * s.scale);
    if (blockIdx.x == 0) {  // for what chooses
      const double scale = s.scale, squares = double(spread.squares) / spread_one * reference * reference;
      const float noise = float((M ? manhattan_distortion : distortion) * (double(rms) * rms * s.head_dim) *
                                (squares / (V ? s.sights[row].active : blocks)) * scale * scale);
      s.tallies[row * s.q_heads + first_head + h] = {unit, rms, noise, 0, 0, 0};
    }
  }

  // Centres: products of 16-bit numbers as four of bytes, a span of a warp at a time.
  for (int base = first + span_blocks * warp; base < last; base += span_blocks * warps) {
    if (base != first + span_blocks * warp) centres.load(s, g, base, last, place);
    int high[4] = {}, middle[4] = {}, low[4] = {};
#pragma unroll
    for (int k = 0; k < 2 * W; k++) {
      const int d = 32 * k + 8 * t;
      uint32_t h[4], l[4], q_high[2], q_low[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint4 x = d < s.head_dim ? centres.x[k][i] : uint4{};
        h[i] = __byte_perm(x.x, x.y, 0x7531), l[i] = __byte_perm(x.x, x.y, 0x6420);
        h[2 + i] = __byte_perm(x.z, x.w, 0x7531), l[2 + i] = __byte_perm(x.z, x.w, 0x6420);
        const uint2 q = *reinterpret_cast<const uint2*>(&m.queries.q16[r8][d + 4 * i]);
        q_high[i] = __byte_perm(q.x, q.y, 0x7531), q_low[i] = __byte_perm(q.x, q.y, 0x6420);
      }
      mma_ss(high, h[0], h[1], h[2], h[3], q_high[0], q_high[1]);
      mma_su(middle, h[0], h[1], h[2], h[3], q_low[0], q_low[1]);
      mma_us(middle, l[0], l[1], l[2], l[3], q_high[0], q_high[1]);
      mma_uu(low, l[0], l[1], l[2], l[3], q_low[0], q_low[1]);
    }
    double most[2] = {-INFINITY, -INFINITY}, least[2] = {INFINITY, INFINITY};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int h = 2 * t + k % 2, block = base + r8 + 8 * (k / 2);
      if (h >= heads || block >= last) continue;
      const double product = fma(double(high[k]), 65536.0, fma(double(middle[k]), 256.0, double(low[k]))),
                   c = block < view.coded_blocks ? product * (m.queries.unit16[h] * double(centres.scale[k / 2])) : 0;
      most[k % 2] = fmax(most[k % 2], c), least[k % 2] = fmin(least[k % 2], c);
      s.centres[s.blocks_at(row, first_head + h) + block] = c;
      m.bases[h][block - first] = plain ? float(c * s.scale * double(log2e)) : float(c * s.scale);
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
      for (int o = 4; o < 32; o *= 2) {
        most[k] = fmax(most[k], __shfl_xor_sync(~0u, most[k], o));
        least[k] = fmin(least[k], __shfl_xor_sync(~0u, least[k], o));
      }
      const int h = 2 * t + k, span = (base - first) / span_blocks;
      if (r8 == 0 && h < heads) m.highest[h][span] = most[k], m.lowest[h][span] = least[k];
    }
    float rounding = 0;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (base + r8 + 8 * i < view.coded_blocks) rounding = fmaxf(rounding, centres.scale[i]);
    rounding = max_of_warp(rounding);
    if (lane == 0) m.roundings[(base - first) / span_blocks] = rounding;
  }

  // This lane's column of the queries, and its columns of the products.
  const int query = G == 1 ? 0 : r8 % G, tile_of_query = G == 1 ? (r8 % 2 == 0 ? r8 / 2 : -1) : r8 / G;
  uint32_t q[in_round][4 * W], sides[2][M ? 4 * W : 1];
#pragma unroll
  for (int i = 0; i < 4 * W; i++) {
    const int at = 16 * i + 4 * t;
    const uint32_t word = *reinterpret_cast<const uint32_t*>(&m.queries.q8[query][at]);
#pragma unroll
    for (int j = 0; j < in_round; j++) q[j][i] = in_round == 1 || tile_of_query == j ? word : 0;
    if constexpr (M) {
      sides[0][i] = *reinterpret_cast<const uint32_t*>(&m.queries.zeros[query][at]);
      sides[1][i] = *reinterpret_cast<const uint32_t*>(&m.queries.threes[query][at]);
    }
  }
  constexpr int columns = G == 1 ? 1 : 2;
  int start[columns], head[columns], tile[columns];
  float unit[columns];
#pragma unroll
  for (int k = 0; k < columns; k++) {
    const int column = 2 * t + k;
    head[k] = G == 1 ? 0 : column % G, tile[k] = G == 1 ? t : column / G;
    start[k] = m.queries.start[head[k]];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < columns; k++) unit[k] = m.queries.unit[head[k]];
  uint32_t* scores[columns];
#pragma unroll
  for (int k = 0; k < columns; k++)
    scores[k] =
        reinterpret_cast<uint32_t*>(s.scores + s.blocks_at(row, first_head + min(head[k], heads - 1)) * block_tokens) +
        tile[k] * 8 + r8;
  const auto beyond = [](int stage) { return stage >= stages ? stage - stages : stage; };
  for (int stage = 0; b < last; b += at_once * warps, stage = beyond(stage + at_once)) {
    wait_for_copies<stages - 2 * at_once>();
    __syncwarp();
    // Lanes that have the same heads: over these a block's tokens are spread.
    constexpr int from = G == 1 ? 1 : G <= 4 ? 2 : 4;
    int v[at_once][columns][2 * rounds], most[at_once][columns];
    bool whole[at_once];
#pragma unroll
    for (int u = 0; u < at_once; u++) {
      uint32_t w[8][W];
      const uint32_t* mine = reinterpret_cast<const uint32_t*>(m.ring[warp][beyond(stage + u)]) + lane * W;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if constexpr (W == 4) {
          const uint4 x = *reinterpret_cast<const uint4*>(mine + i * 32 * W);
          w[i][0] = x.x, w[i][1] = x.y, w[i][2] = x.z, w[i][3] = x.w;
        } else if constexpr (W == 2) {
          const uint2 x = *reinterpret_cast<const uint2*>(mine + i * 32 * W);
          w[i][0] = x.x, w[i][1] = x.y;
        } else {
#pragma unroll
          for (int j = 0; j < W; j++) w[i][j] = mine[i * 32 * W + j];
        }
      }
      int c[rounds][4];
#pragma unroll
      for (int r = 0; r < rounds; r++) {
        c[r][0] = c[r][2] = start[0], c[r][1] = c[r][3] = start[columns - 1];
#pragma unroll
        for (int j = 0; j < in_round; j++) {
          const uint32_t *lo = w[2 * (r * in_round + j)], *hi = w[2 * (r * in_round + j) + 1];
#pragma unroll
          for (int i = 0; i < W; i++) {
            constexpr uint32_t even = 0x03030303, odd = even << 2;
            const uint32_t lo4 = lo[i] >> 4, hi4 = hi[i] >> 4;
            mma_us(c[r], lo[i] & even, hi[i] & even, lo[i] & odd, hi[i] & odd, q[j][4 * i], q[j][4 * i + 1]);
            mma_us(c[r], lo4 & even, hi4 & even, lo4 & odd, hi4 & odd, q[j][4 * i + 2], q[j][4 * i + 3]);
            if constexpr (M) {
              constexpr uint32_t low = 0x55555555, first = 0x01010101, second = first << 2;
              const uint32_t lo_high = lo[i] >> 1, hi_high = hi[i] >> 1;
#pragma unroll
              for (int side = 0; side < 2; side++) {
                const uint32_t a = (side == 0 ? ~(lo[i] | lo_high) : lo[i] & lo_high) & low,
                               b = (side == 0 ? ~(hi[i] | hi_high) : hi[i] & hi_high) & low;
                const auto of_tile = [&](int k) { return in_round == 1 || tile_of_query == j ? sides[side][k] : 0; };
                mma_us(c[r], a & first, b & first, a & second, b & second, of_tile(4 * i), of_tile(4 * i + 1));
                mma_us(c[r], a >> 4 & first, b >> 4 & first, a >> 4 & second, b >> 4 & second, of_tile(4 * i + 2),
                       of_tile(4 * i + 3));
              }
            }
          }
        }
      }
      const int here = min(b + u * warps, last - 1), weight = m.weights[here - first], b64 = here * block_tokens;
      whole[u] = b64 >= s.sinks && b64 + block_tokens <= view.estimated;
#pragma unroll
      for (int k = 0; k < columns; k++) {
        most[u][k] = hidden_score;
#pragma unroll
        for (int r = 0; r < rounds; r++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            int score = (c[r][2 * half + k] * weight + (1 << 15)) >> 16;
            if (!whole[u]) {
              const int token = b64 + (r * in_round + tile[k]) * 16 + 2 * r8 + half;
              if (token < s.sinks || token >= view.estimated) score = hidden_score;
            }
            v[u][k][2 * r + half] = score;
            most[u][k] = max(most[u][k], score);
          }
        if (head[k] < heads && b + u * warps < last)
#pragma unroll
          for (int r = 0; r < rounds; r++)
            __stcg(scores[k] + here * (block_tokens / 2) + r * in_round * 8,
                   __byte_perm(v[u][k][2 * r], v[u][k][2 * r + 1], 0x5410));
      }
    }
#pragma unroll
    for (int u = 0; u < at_once; u++) copy(b + (stages - at_once + u) * warps, beyond(stage + stages - at_once + u));
    // Estimated weights are added up relative to the block's own highest: nothing depends on other blocks.
    float top[at_once][columns], sum[at_once][columns] = {};
    if (plain) {
      if constexpr (G == 1) {
#pragma unroll
        for (int u = 0; u < at_once; u++) most[u][0] = __reduce_max_sync(~0u, most[u][0]);
      } else {
        unsigned both[at_once];
#pragma unroll
        for (int u = 0; u < at_once; u++) both[u] = __byte_perm(most[u][0], most[u][columns - 1], 0x5410);
#pragma unroll
        for (int o = from; o < 32; o *= 2)
#pragma unroll
          for (int u = 0; u < at_once; u++) both[u] = __vmaxs2(both[u], __shfl_xor_sync(~0u, both[u], o));
#pragma unroll
        for (int u = 0; u < at_once; u++) most[u][0] = int16_t(both[u]), most[u][columns - 1] = int16_t(both[u] >> 16);
      }
#pragma unroll
      for (int u = 0; u < at_once; u++)
#pragma unroll
        for (int k = 0; k < columns; k++) {
          const int highest = most[u][k];
          const float base = m.bases[head[k]][min(b + u * warps, last - 1) - first];
          top[u][k] = highest > hidden_score ? fmaf(float(highest), unit[k], base) : nothing;
#pragma unroll
          for (int i = 0; i < 2 * rounds; i++) {
            const float f = __int_as_float(0x4B400000 + v[u][k][i] - highest) - 12582912.0f;  // the float of an int
            const float e = exp2_fast(f * unit[k]);
            sum[u][k] += whole[u] || v[u][k][i] != hidden_score ? e : 0.0f;
          }
        }
    } else {
#pragma unroll 1
      for (int u = 0; u < at_once; u++) {
        const int here = min(b + u * warps, last - 1);
#pragma unroll
        for (int k = 0; k < columns; k++) {
          float logs[2 * rounds], highest = nothing, all = 0;
#pragma unroll
          for (int i = 0; i < 2 * rounds; i++) {
            const int token = here * block_tokens + (i / 2 * in_round + tile[k]) * 16 + 2 * r8 + i % 2;
            const int score = u == 0 ? v[0][k][i] : v[at_once - 1][k][i];
            float x = fmaf(float(score), unit[k], m.bases[head[k]][here - first]);
            if (s.softcap > 0) x = soft_capped(x, s.softcap);
            if (s.slopes != nullptr && head[k] < heads)
              x += __ldg(s.slopes + first_head + head[k]) * float(token - (view.tokens - 1));
            logs[i] = score == hidden_score ? nothing : x * log2e;
            highest = fmaxf(highest, logs[i]);
          }
#pragma unroll
          for (int o = from; o < 32; o *= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, o));
#pragma unroll
          for (int i = 0; i < 2 * rounds; i++) all += logs[i] == nothing ? 0.0f : exp2_fast(logs[i] - highest);
          if (u == 0)
            top[0][k] = highest, sum[0][k] = all;
          else
            top[at_once - 1][k] = highest, sum[at_once - 1][k] = all;
        }
      }
    }
    if constexpr (G == 1) {  // in whole numbers: one instruction instead of five in line
#pragma unroll
      for (int u = 0; u < at_once; u++)
        sum[u][0] = float(__reduce_add_sync(~0u, __float2int_rn(sum[u][0] * 0x1p24f))) * 0x1p-24f;
    } else {
#pragma unroll
      for (int o = from; o < 32; o *= 2)
#pragma unroll
        for (int u = 0; u < at_once; u++)
#pragma unroll
          for (int k = 0; k < columns; k++) sum[u][k] += __shfl_xor_sync(~0u, sum[u][k], o);
    }
#pragma unroll
    for (int u = 0; u < at_once; u++)
#pragma unroll
      for (int k = 0; k < columns; k++) {
        const int here = b + u * warps;
        if (r8 != k || tile[k] != 0 || head[k] >= heads || here >= last) continue;
        const float2 both = make_float2(m.weights[here - first] == unknown ? INFINITY : top[u][k], sum[u][k]);
        s.sums[s.blocks_at(row, first_head + head[k]) + here] = both;
        m.sums[head[k]][here - first] = both;
      }
  }
  __syncthreads();
  // Half a warp has a span.
  const int n = last - first, padded = (n + span_blocks - 1) / span_blocks * span_blocks;
  for (int i = threadIdx.x; i - lane < heads * padded; i += threads) {
    const int h = min(i / padded, heads - 1), at = i % padded;
    const float2 own_sum = at < n ? m.sums[h][at] : make_float2(nothing, 0.0f);
    const float highest = max_of_lanes<span_blocks>(own_sum.x);
    const float sum = sum_of_lanes<span_blocks>(own_sum.y * exp2_fast(own_sum.x - highest));
    if (lane % span_blocks != 0 || i >= heads * padded) continue;
    const int span = at / span_blocks;
    s.spans[s.spans_at(row, first_head + h) + first / span_blocks + span] = {m.highest[h][span], m.lowest[h][span], highest,
                                                                             sum, m.roundings[span]};
  }
}

template <int W, int G, bool M, bool V>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  constexpr int shared = sizeof(Shared<W, G, M>);
  static const cudaError_t error =
      cudaFuncSetAttribute(scan<W, G, M, V>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned(s.splits), unsigned(s.kv_heads * s.passes), unsigned(s.query_rows));
  return cuda::launch(Start::after, scan<W, G, M, V>, grid, threads, shared, stream, s);
}
template <int W, int G, bool V = false>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  return s.manhattan ? launch<W, G, true, V>(s, stream) : launch<W, G, false, V>(s, stream);
}
template <int W>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  if (s.seen != nullptr) return launch<W, 8, true>(s, stream);
  return s.group == 1 ? launch<W, 1>(s, stream) : s.group <= 4 ? launch<W, 4>(s, stream) : launch<W, 8>(s, stream);
}

}  // namespace

cudaError_t launch_scan(const Step& s, cudaStream_t stream) {
  switch (words_of(s.head_dim)) {
    case 1: return launch<1>(s, stream);
    case 2: return launch<2>(s, stream);
    case 3: return launch<3>(s, stream);
    default: return launch<4>(s, stream);
  }
}

}  // namespace adamas::cuda
