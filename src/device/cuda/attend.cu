// The list and the rest: a block of threads has a slice of the context, lists its marked tokens, reads their keys and values
// for all query heads of the list, and adds up the means of its blocks; `combine` merges the slices. rest/rest.h says what
// the sums are. All of it is linear in the values once three vectors are kept apart: the listed values by their weights
// (A), the low ones less their blocks' means (E), and the means by the weights of what is not listed (M).
//
// Dense rows and heads are lists of all tokens, the policy `streaming` one of its first and last.
#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int list_warps = 8, list_threads = 32 * list_warps, mean_warps = 4, threads = list_threads + 32 * mean_warps;
constexpr float lean = 0.5f, highest_factor = 5, highest_weight = 30 * log2e;  // rest/rest.h
constexpr int from_other_list = 1 << 30;  // of a token that only the heads that read all attend to

// What a slice has of a head, besides its vectors A, E, M.
enum Sum { sum_max, sum_listed, sum_low, sum_low_estimated, sum_low_with_mean, sum_rest, sum_beside_hidden };

// Eight elements of a row.
__device__ void load8(const char* from, float, float (&x)[8]) {
  const float4 a = __ldg(reinterpret_cast<const float4*>(from)), b = __ldg(reinterpret_cast<const float4*>(from) + 1);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ void load8(const char* from, __half, float (&x)[8]) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 two = __half22float2(reinterpret_cast<const __half2*>(&raw)[i]);
    x[2 * i] = two.x, x[2 * i + 1] = two.y;
  }
}
__device__ void load8(const char* from, __nv_bfloat16, float (&x)[8]) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 two = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(&raw)[i]);
    x[2 * i] = two.x, x[2 * i + 1] = two.y;
  }
}
__device__ void load8(const int16_t* from, float (&x)[8]) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = float(reinterpret_cast<const int16_t*>(&raw)[i]);
}

// log2 of the weight that a score stands for.
__device__ float weight_of(const Head& head, float base, int score) {
  if (head.softcap == 0) return fmaf(float(score), head.unit2, base);
  const float x = fmaf(float(score), float(head.unit), base);
  return fmaf(head.softcap * tanhf(x / head.softcap), log2e, -head.top);
}

__device__ uint64_t bits_between(int first, int last) {
  first = max(first, 0), last = min(last, block_tokens);
  return first >= last ? 0 : (~uint64_t{0} >> (block_tokens - (last - first))) << first;
}

__device__ void sync_list() { asm volatile("bar.sync 1, %0;" ::"n"(list_threads) : "memory"); }
__device__ void sync_means() { asm volatile("bar.sync 2, %0;" ::"n"(32 * mean_warps) : "memory"); }

template <int D, int G>  // D: head_dim at most
struct Shared {
  static constexpr int tokens_at_once = G == 8 ? 128 : 256, together = G < 4 ? G : 4;  // heads whose sums are in registers
  Head heads[G];
  float q[G][D];
  uint64_t marks[slice_blocks], group[slice_blocks];  // of all heads; of those with a list
  int begin[slice_blocks + 1];
  float rest[G][slice_blocks];  // estimated weights of what is not listed
  int tokens[tokens_at_once];
  float weights[G][tokens_at_once], low[G][tokens_at_once], low_scale[tokens_at_once];
  float max[G], scale[G], sums[G][5];
  float outs[2][G][D];  // A and E
  float parts[4][together][D], mean_parts[mean_warps][together][D];
};

template <class T, int D, int G>
__global__ void __launch_bounds__(threads, 2) attend(const __grid_constant__ Step s) {
  using Memory = Shared<D, G>;
  constexpr int at_once = Memory::tokens_at_once, together = Memory::together;
  constexpr int lanes = D / 8, rows_of_warp = 32 / lanes;  // lanes that share a row, eight dimensions each
  extern __shared__ __align__(16) unsigned char memory[];
  Memory& m = *reinterpret_cast<Memory*>(memory);
  launch_next();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int group = s.q_heads / s.kv_heads, row = blockIdx.z, of_kv_head = s.lists / s.kv_heads;
  const int g = blockIdx.y / of_kv_head, in_group = group / of_kv_head < 1 ? 1 : (group + of_kv_head - 1) / of_kv_head;
  const int first_head = g * group + blockIdx.y % of_kv_head * in_group, heads = min(in_group, (g + 1) * group - first_head);
  const int chunks = s.head_dim / 8;

  const char* q = s.q + row / s.rows * s.q_stride_batch + row % s.rows * s.q_stride_row;
  for (int i = threadIdx.x; i < G * D; i += threads) {
    const int h = i / D, d = i % D;
    m.q[h][d] = h < heads && d < s.head_dim ? load_element(q + (first_head + h) * s.q_stride_head, s.q_dtype, d) : 0.0f;
  }
  wait_for_previous();
  const bool scored = s.policy == ADAMAS_POLICY_ADAMAS;
  const View view = scored ? s.views[row] : look(s, row);
  const int blocks = blocks_in(view.tokens), slices = slices_of(blocks, s.lists);
  const int slice = blockIdx.x, each = (blocks + slices - 1) / slices;
  if (slice >= slices) return;
  const int first = min(blocks, slice * each), last = min(blocks, first + each), n = last - first;
  if (threadIdx.x < G) {
    Head head{};
    head.reading = reads_short;
    if (int(threadIdx.x) < heads) {
      if (scored) head = s.heads[row * s.q_heads + first_head + threadIdx.x];
      if (!scored && !view.dense) head.reading = reads_list;
    }
    m.heads[threadIdx.x] = head;
    m.max[threadIdx.x] = -INFINITY;
    for (int i = 0; i < 5; i++) m.sums[threadIdx.x][i] = 0;
  }
  for (int i = threadIdx.x; i < 2 * G * D; i += threads) (&m.outs[0][0][0])[i] = 0;
  __syncthreads();
  bool any_list = false, any_all = false;
  for (int h = 0; h < heads; h++) {
    any_list |= m.heads[h].reading == reads_list;
    any_all |= m.heads[h].reading != reads_list;
  }
  const bool rest = scored && s.automatic && any_list, mixed = any_all && any_list;
  // A list is of all query heads of its KV head, more than are attended to here when there are more than eight.
  const int first_of_list = s.automatic ? g * group : first_head,
            end_of_list = s.automatic ? (g + 1) * group : first_head + heads;

  // Which tokens.
  for (int b = threadIdx.x; b < n; b += threads) {
    const int token = (first + b) * block_tokens;
    const uint64_t visible = bits_between(0, view.tokens - token);
    uint64_t listed = bits_between(0, s.sinks - token) | bits_between(view.estimated - token, block_tokens);
    for (int h = first_of_list; h < end_of_list && scored; h++)
      if (s.heads[row * s.q_heads + h].reading == reads_list) listed |= __ldcg(s.marks + s.blocks_at(row, h) + first + b);
    m.group[b] = listed & visible;
    m.marks[b] = any_all ? visible : listed & visible;
  }
  if (rest) {
    // What of a block is not listed weighs as the scan found, or is added up anew.
    for (int i = threadIdx.x; i < heads * n; i += threads) {
      const int h = i / n, b = i % n;
      const float2 sum = __ldcg(s.sums + s.blocks_at(row, first_head + h) + first + b);
      m.rest[h][b] = m.heads[h].reading == reads_list ? sum.y * exp2f(sum.x - m.heads[h].top) : 0;
    }
    __syncthreads();
    for (int i = threadIdx.x / 8; i - int(threadIdx.x) % 32 / 8 < heads * n; i += threads / 8) {
      const int h = i < heads * n ? i / n : 0, b = i % n, eighth = threadIdx.x % 8;
      const bool needed = i < heads * n && m.group[b] != 0 && m.heads[h].reading == reads_list;
      if (!__any_sync(~0u, needed)) continue;
      float sum = 0;
      if (needed) {
        const int64_t at = s.blocks_at(row, first_head + h) + first + b;
        const uint4 eight = __ldcg(reinterpret_cast<const uint4*>(s.scores + at * block_tokens) + eighth);
        const float base = __ldcg(s.bases + at);
        const unsigned listed = unsigned(m.group[b] >> 8 * eighth) & 0xFF;
        for (int j = 0; j < 8; j++) {
          const int v = reinterpret_cast<const int16_t*>(&eight)[j];
          if (v != hidden && (listed >> j & 1) == 0) sum += exp2_fast(weight_of(m.heads[h], base, v));
        }
      }
      for (int o = 1; o < 8; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
      if (needed && eighth == 0) m.rest[h][b] = sum;
    }
  }
  __syncthreads();

  float* partials = s.partials + (int64_t(row) * s.q_heads + first_head) * s.slices * (3 * s.head_dim + partial_sums) +
                    int64_t(slice) * (3 * s.head_dim + partial_sums);
  const int64_t head_stride = int64_t(s.slices) * (3 * s.head_dim + partial_sums);
  const int chunk = lane % lanes, row_of_warp = lane / lanes;

  if (warp >= list_warps) {
    if (!rest) return;
    const int own = warp - list_warps;
    for (int h = own; h < heads; h += mean_warps) {
      float sum = 0;
      for (int b = lane; b < n; b += 32) sum += first + b == view.hidden_block ? 0.0f : m.rest[h][b];
      sum = sum_of_warp(sum);
      if (lane != 0) continue;
      const int at = view.hidden_block - first;
      partials[h * head_stride + 3 * s.head_dim + sum_rest] = sum;
      partials[h * head_stride + 3 * s.head_dim + sum_beside_hidden] = at >= 0 && at < n ? m.rest[h][at] : 0.0f;
    }
    for (int h0 = 0; h0 < heads; h0 += together) {
      float sums[together][8] = {};
      constexpr int ahead = 4, step = mean_warps * rows_of_warp;
      for (int base = own * rows_of_warp + row_of_warp; base < n; base += ahead * step) {
        float x[ahead][8], scales[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) {
          const int64_t place = s.codes.place(s.k, view.sequence, first + min(base + i * step, n - 1));
          load8(s.codes.mean.at<int16_t>(place, g) + (chunk < chunks ? 8 * chunk : 0), x[i]);
          scales[i] = __ldg(s.codes.mean_scale.at<float>(place, g));
        }
#pragma unroll
        for (int i = 0; i < ahead; i++) {
          const int b = base + i * step;
          if (b >= n || first + b == view.hidden_block) continue;
#pragma unroll
          for (int h = 0; h < together; h++) {
            if (h0 + h >= heads) break;
            const float weight = m.rest[h0 + h][b], scaled = weight != 0 ? weight * scales[i] : 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) sums[h][j] = fmaf(scaled, x[i][j], sums[h][j]);
          }
        }
      }
#pragma unroll
      for (int h = 0; h < together; h++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
          for (int o = lanes; o < 32; o *= 2) sums[h][j] += __shfl_xor_sync(~0u, sums[h][j], o);
          if (row_of_warp == 0) m.mean_parts[own][h][8 * chunk + j] = sums[h][j];
        }
      sync_means();
      for (int i = threadIdx.x - list_threads; i < together * s.head_dim; i += 32 * mean_warps) {
        const int h = i / s.head_dim, d = i % s.head_dim;
        if (h0 + h >= heads) break;
        float sum = 0;
        for (int w = 0; w < mean_warps; w++) sum += m.mean_parts[w][h][d];
        partials[(h0 + h) * head_stride + 2 * s.head_dim + d] = sum;
      }
      sync_means();
    }
    return;
  }

  // Where each block's tokens begin in the list.
  if (warp == 0) {
    int before = 0;
    for (int base = 0; base < n; base += 32) {
      const int b = base + lane, own = b < n ? __popcll(m.marks[b]) : 0;
      int sum = own;
      for (int o = 1; o < 32; o *= 2) {
        const int v = __shfl_up_sync(~0u, sum, o);
        if (lane >= o) sum += v;
      }
      if (b < n) m.begin[b] = before + sum - own;
      before += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) m.begin[n] = before;
  }
  sync_list();
  const int listed = m.begin[n];

  for (int done = 0; done < listed; done += at_once) {
    const int count = min(at_once, listed - done);
    for (int b = threadIdx.x; b < n; b += list_threads) {
      int at = m.begin[b] - done;
      const uint64_t others = ~m.group[b];
      for (uint64_t left = m.marks[b]; left != 0 && at < count; left &= left - 1, at++) {
        if (at < 0) continue;
        const int t = __ffsll(left) - 1;
        m.tokens[at] = ((first + b) * block_tokens + t) | (others >> t & 1 ? from_other_list : 0);
      }
    }
    sync_list();

    // Exact scores: eight lanes a token.
    const int part = lane % 8;
    for (int base = 4 * warp; base < count; base += 4 * list_warps) {
      const int i = base + lane / 8;
      const int token = m.tokens[min(i, count - 1)] & ~from_other_list;
      const char* k = s.k.row(view.sequence, g, token);
      float sum[G] = {};
#pragma unroll
      for (int c = 0; c < lanes / 8; c++) {
        const int at = part + 8 * c;
        if (at >= chunks) break;
        float x[8];
        load8(k + at * 8 * sizeof(T), T(), x);
#pragma unroll
        for (int h = 0; h < G; h++)
#pragma unroll
          for (int j = 0; j < 8; j++) sum[h] = fmaf(x[j], m.q[h][8 * at + j], sum[h]);
      }
#pragma unroll
      for (int h = 0; h < G; h++) {
        for (int o = 1; o < 8; o *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], o);
        if (part != h || i >= count || h >= heads) continue;
        float x = sum[h] * s.scale;
        if (s.softcap > 0) x = s.softcap * tanhf(x / s.softcap);
        if (s.slopes != nullptr) x += __ldg(s.slopes + first_head + h) * float(token - (view.tokens - 1));
        const bool not_ours = mixed && (m.tokens[i] & from_other_list) != 0 && m.heads[h].reading == reads_list;
        m.weights[h][i] = not_ours ? -INFINITY : x * log2e;
      }
    }
    sync_list();

    // Weights, relative to the largest score so far; the low ones' too.
    for (int h = warp; h < heads; h += list_warps) {
      const Head& head = m.heads[h];
      float most = -INFINITY;
      for (int i = lane; i < count; i += 32) most = fmaxf(most, m.weights[h][i]);
      const float before = m.max[h], top = fmaxf(before, max_of_warp(most));
      const float scale = before == top ? 1.0f : exp2f(before - top), reference = top == -INFINITY ? 0.0f : top;
      float sum = 0, low = 0, estimated = 0, with_mean = 0;
      for (int i = lane; i < count; i += 32) {
        const float weight = exp2f(m.weights[h][i] - reference);
        m.weights[h][i] = weight;
        sum += weight;
        float of_low = 0;
        if (rest && head.reading == reads_list && (m.tokens[i] & from_other_list) == 0) {
          const int token = m.tokens[i], block = token / block_tokens;
          const int64_t at = s.blocks_at(row, first_head + h) + block;
          const int v = __ldcg(s.scores + at * block_tokens + token % block_tokens), score = v + __ldcg(s.offsets + at);
          if (v != hidden && score >= head.bound && score <= head.low_top) {
            low += weight;
            estimated += exp2_fast(weight_of(head, __ldcg(s.bases + at), v));
            if (block != view.hidden_block) with_mean += weight, of_low = weight;
          }
        }
        m.low[h][i] = of_low;
      }
      sum = sum_of_warp(sum), low = sum_of_warp(low), estimated = sum_of_warp(estimated), with_mean = sum_of_warp(with_mean);
      if (lane == 0) {
        m.max[h] = top, m.scale[h] = scale;
        m.sums[h][0] = fmaf(m.sums[h][0], scale, sum);
        m.sums[h][1] = fmaf(m.sums[h][1], scale, low);
        m.sums[h][2] += estimated;
        m.sums[h][3] = fmaf(m.sums[h][3], scale, with_mean);
      }
    }
    sync_list();

    // Values, and of the low ones their differences from the means.
    for (int kind = 0; kind < (rest ? 2 : 1); kind++)
      for (int h0 = 0; h0 < heads; h0 += together) {
        float sums[together][8] = {};
        constexpr int ahead = 4, step = list_warps * rows_of_warp;
        const float(*weights)[at_once] = kind == 0 ? m.weights + h0 : m.low + h0;
        for (int base = warp * rows_of_warp + row_of_warp; base < count; base += ahead * step) {
          float x[ahead][8];
          bool needed[ahead];
#pragma unroll
          for (int i = 0; i < ahead; i++) {
            const int at = base + i * step;
            needed[i] = at < count;
            if (kind == 1 && needed[i]) {
              needed[i] = false;
              for (int h = 0; h < together && h0 + h < heads; h++) needed[i] |= weights[h][at] != 0;
            }
            if (!needed[i]) continue;
            const int token = m.tokens[at] & ~from_other_list;
            load8(s.v.row(view.sequence, g, token) + (chunk < chunks ? chunk : 0) * 8 * sizeof(T), T(), x[i]);
          }
#pragma unroll
          for (int i = 0; i < ahead; i++) {
            if (!needed[i]) continue;
            const int at = base + i * step;
            if (kind == 1) {
              const int64_t place = s.codes.place(s.k, view.sequence, m.tokens[at] / block_tokens);
              float mean[8];
              load8(s.codes.mean.at<int16_t>(place, g) + (chunk < chunks ? 8 * chunk : 0), mean);
              const float scale = __ldg(s.codes.mean_scale.at<float>(place, g));
#pragma unroll
              for (int j = 0; j < 8; j++) x[i][j] = fmaf(-scale, mean[j], x[i][j]);
            }
#pragma unroll
            for (int h = 0; h < together; h++) {
              if (h0 + h >= heads) break;
              const float weight = weights[h][at];
              if (mixed && weight == 0) continue;  // not this head's: whatever it is
#pragma unroll
              for (int j = 0; j < 8; j++) sums[h][j] = fmaf(weight, x[i][j], sums[h][j]);
            }
          }
        }
#pragma unroll
        for (int h = 0; h < together; h++)
#pragma unroll
          for (int j = 0; j < 8; j++)
            for (int o = lanes; o < 32; o *= 2) sums[h][j] += __shfl_xor_sync(~0u, sums[h][j], o);
        for (int half = 0; half < 2; half++) {
          if (warp / 4 == half && row_of_warp == 0)
#pragma unroll
            for (int h = 0; h < together; h++)
#pragma unroll
              for (int j = 0; j < 8; j++) {
                float& at = m.parts[warp % 4][h][8 * chunk + j];
                at = half == 0 ? sums[h][j] : at + sums[h][j];
              }
          sync_list();
        }
        for (int i = threadIdx.x; i < together * D; i += list_threads) {
          const int h = i / D, d = i % D;
          if (h0 + h >= heads) break;
          float& out = m.outs[kind][h0 + h][d];
          out = fmaf(out, m.scale[h0 + h], m.parts[0][h][d] + m.parts[1][h][d] + m.parts[2][h][d] + m.parts[3][h][d]);
        }
        sync_list();
      }
  }

  for (int i = threadIdx.x; i < heads * s.head_dim; i += list_threads) {
    const int h = i / s.head_dim, d = i % s.head_dim;
    partials[h * head_stride + d] = m.outs[0][h][d];
    if (rest) partials[h * head_stride + s.head_dim + d] = m.outs[1][h][d];
  }
  if (int(threadIdx.x) < heads) {
    float* to = partials + threadIdx.x * head_stride + 3 * s.head_dim;
    to[sum_max] = m.max[threadIdx.x];
    to[sum_listed] = m.sums[threadIdx.x][0];
    to[sum_low] = m.sums[threadIdx.x][1];
    to[sum_low_estimated] = m.sums[threadIdx.x][2];
    to[sum_low_with_mean] = m.sums[threadIdx.x][3];
  }
}

constexpr int combine_threads = 128;

// The slices of a head, in their order.
__global__ void __launch_bounds__(combine_threads) combine(const __grid_constant__ Step s) {
  launch_next();
  const int h = blockIdx.x, row = blockIdx.y;
  wait_for_previous();
  const bool scored = s.policy == ADAMAS_POLICY_ADAMAS;
  const View view = scored ? s.views[row] : look(s, row);
  const Head head = s.heads[row * s.q_heads + h];
  const int reading = scored ? head.reading : view.dense ? reads_short : reads_list;
  const bool rest = scored && s.automatic && reading == reads_list;
  const int slices = slices_of(blocks_in(view.tokens), s.lists), D = s.head_dim, stride = 3 * D + partial_sums;
  const float* partials = s.partials + (int64_t(row) * s.q_heads + h) * s.slices * stride;
  const float* sums = partials + 3 * D;

  float top = -INFINITY;
  for (int i = 0; i < slices; i++) top = fmaxf(top, sums[i * stride + sum_max]);
  const float reference = top == -INFINITY ? 0.0f : top;
  float listed = 0, low = 0, low_estimated = 0, with_mean = 0, others = 0, beside = 0;
  for (int i = 0; i < slices; i++) {
    const float* of = sums + i * stride;
    const float scale = exp2f(of[sum_max] - reference);
    listed = fmaf(of[sum_listed], scale, listed);
    if (!rest) continue;
    low = fmaf(of[sum_low], scale, low);
    low_estimated += of[sum_low_estimated];
    with_mean = fmaf(of[sum_low_with_mean], scale, with_mean);
    others += of[sum_rest];
    beside += of[sum_beside_hidden];
  }
  float factor = 0, leaning = 0;
  if (rest) {
    const float expected = exp2f(fminf(head.top - reference, highest_weight)), measured = low / low_estimated;
    factor = isfinite(measured) ? fminf(measured, highest_factor * expected) : expected;
    others = others > 0 ? others * factor : 0.0f;
    beside = beside > 0 ? beside * factor : 0.0f;
    leaning = with_mean > 0 ? lean * others / with_mean : 0.0f;
  }
  const float attended = listed + others, all = attended > 0 ? attended + beside : attended;
  float lse = all == 0 ? -INFINITY : (top + log2f(all)) * ln2, share = attended != 0 ? 1.0f / attended : 0.0f;
  if (s.sink_logits != nullptr) {
    const float logit = s.sink_logits[h];
    if (lse == -INFINITY) {
      lse = logit;
    } else {
      const float most = fmaxf(lse, logit), with = most + logf(expf(lse - most) + expf(logit - most));
      share *= expf(lse - with);
      lse = isnan(share) ? share : with;
    }
  }
  char* out = s.out + row / s.rows * s.out_stride_batch + row % s.rows * s.out_stride_row + h * s.out_stride_head;
  for (int d = threadIdx.x; d < D; d += combine_threads) {
    float x = 0;
    for (int i = 0; i < slices; i++) {
      const float* of = partials + i * stride;
      const float scale = exp2f(of[3 * D + sum_max] - reference);
      x = fmaf(of[d], scale, x);
      if (rest) x = fmaf(of[D + d], leaning * scale, fmaf(of[2 * D + d], factor, x));
    }
    reinterpret_cast<float*>(out)[d] = attended == 0 ? 0.0f : x * share;
  }
  if (threadIdx.x != 0) return;
  const int64_t index = int64_t(row) * s.q_heads + h;
  if (s.lse != nullptr) s.lse[index] = lse;
  if (s.mass != nullptr)
    s.mass[index] = reading != reads_list ? 1.0f : rest ? listed / (listed + others + beside) : __int_as_float(0x7FC00000);
  if (s.noise != nullptr) s.noise[index] = scored ? head.noise : 0.0f;
}

template <class T, int D, int G>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  constexpr int shared = sizeof(Shared<D, G>);
  static const cudaError_t error =
      cudaFuncSetAttribute(attend<T, D, G>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned(s.slices), unsigned(s.lists), unsigned(s.query_rows));
  if (s.policy == ADAMAS_POLICY_ADAMAS) return launch_behind(attend<T, D, G>, grid, threads, shared, stream, s);
  attend<T, D, G><<<grid, threads, shared, stream>>>(s);
  return cudaGetLastError();
}
template <class T, int D>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  const int of_kv_head = s.lists / s.kv_heads, group = s.q_heads / s.kv_heads;
  const int heads = (group + of_kv_head - 1) / of_kv_head;
  return heads == 1 ? launch<T, D, 1>(s, stream) : heads <= 4 ? launch<T, D, 4>(s, stream) : launch<T, D, 8>(s, stream);
}
template <class T>
cudaError_t launch(const Step& s, cudaStream_t stream) {
  return s.head_dim <= 64    ? launch<T, 64>(s, stream)
         : s.head_dim <= 128 ? launch<T, 128>(s, stream)
                             : launch<T, 256>(s, stream);
}

}  // namespace

cudaError_t launch_attend(const Step& s, cudaStream_t stream) {
  const cudaError_t error = s.k_dtype == ADAMAS_F32   ? launch<float>(s, stream)
                            : s.k_dtype == ADAMAS_F16 ? launch<__half>(s, stream)
                                                      : launch<__nv_bfloat16>(s, stream);
  if (error != cudaSuccess) return error;
  return launch_behind(combine, dim3(unsigned(s.q_heads), unsigned(s.query_rows)), combine_threads, 0, stream, s);
}

}  // namespace adamas::cuda
