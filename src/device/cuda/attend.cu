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
constexpr int from_other_list = 1 << 30;  // of a token that only the heads that read all attend to

// What a slice has of a head, besides its vectors A, E, M.
enum Sum { sum_max, sum_listed, sum_low, sum_low_estimated, sum_low_with_mean, sum_rest, sum_beside_hidden };

// log2 of the weight that a score stands for.
__device__ float weight_of(const Head& head, float base, int score) {
  if (head.softcap == 0) return fmaf(float(score), head.unit2, base);
  const float x = fmaf(float(score), float(head.unit), base);
  return fmaf(head.softcap * tanhf(x / head.softcap), log2e, -head.top);
}

__device__ void sync_list() { asm volatile("bar.sync 1, %0;" ::"n"(list_threads) : "memory"); }
__device__ void sync_means() { asm volatile("bar.sync 2, %0;" ::"n"(32 * mean_warps) : "memory"); }

template <int D, int G>  // D: head_dim at most
struct Shared {
  static constexpr int at_once = G == 8 ? 128 : 256, together = G < 4 ? G : 4;  // tokens; heads whose sums are in registers
  Head heads[G];
  float q[G][D];
  uint64_t marks[slice_blocks], group[slice_blocks];  // of all heads; of those with a list
  int begin[slice_blocks + 1];
  float rest[G][slice_blocks];  // estimated weights of what is not listed
  int tokens[at_once];
  float weights[G][at_once];  // exact scores, then weights
  float low[G][at_once];      // estimated weights of the low tokens, -1 of others; then weights of low tokens with a mean
  float max[G], scale[G], sums[G][4];
  float outs[2][G][D];  // A and E
  float parts[4][together][D], mean_parts[mean_warps][together][D];
};

// A block of threads: a slice of a row, for the heads [first_head, first_head + heads) of a KV head.
template <class T, int D, int G>
struct Slice {
  using Memory = Shared<D, G>;
  static constexpr int at_once = Memory::at_once, together = Memory::together;
  static constexpr int lanes = D / 8, rows_of_warp = 32 / lanes;  // lanes that share a row, eight dimensions each

  const Step& s;
  Memory& m;
  View view;
  int row, g, first_head, heads, first, n;  // n blocks from `first` on
  bool rest, mixed;

  __device__ int lane() const { return threadIdx.x % 32; }
  __device__ int warp() const { return threadIdx.x / 32; }
  // This lane's place in a row, at its beginning where the row is shorter, and which of the warp's rows it is in.
  __device__ int dimension() const { return lane() % lanes * 8 < s.head_dim ? lane() % lanes * 8 : 0; }
  __device__ int row_of_warp() const { return lane() / lanes; }
  __device__ int64_t block_at(int h, int b) const { return s.blocks_at(row, first_head + h) + first + b; }
  __device__ bool lists(int h) const { return m.heads[h].reading == reads_list; }

  __device__ void mark_tokens(bool any_all, bool scored);
  __device__ void weigh_rest();
  __device__ void add_means(float* partials, int64_t head_stride);
  __device__ int list();
  __device__ void fill(int done, int count);
  __device__ void score(int count);
  __device__ void weigh(int count);
  template <bool low>
  __device__ void add_values(int count);
};

// Which tokens are read.
template <class T, int D, int G>
__device__ void Slice<T, D, G>::mark_tokens(bool any_all, bool scored) {
  for (int b = threadIdx.x; b < n; b += threads) {
    const int token = (first + b) * block_tokens;
    const uint64_t visible = bits_between(0, view.tokens - token);
    uint64_t listed = bits_between(0, s.sinks - token) | bits_between(view.estimated - token, block_tokens);
    if (scored) {
      uint64_t marks[G];
#pragma unroll
      for (int h = 0; h < G; h++) marks[h] = __ldcg(s.marks + block_at(min(h, heads - 1), b));
#pragma unroll
      for (int h = 0; h < G; h++) listed |= lists(min(h, heads - 1)) ? marks[h] : 0;
      // A list is of all query heads of its KV head, more than are attended to here when there are more than eight.
      const int group = s.q_heads / s.kv_heads;
      for (int h = g * group; h < (g + 1) * group && s.automatic && heads < group; h++)
        if (s.heads[row * s.q_heads + h].reading == reads_list) listed |= __ldcg(s.marks + s.blocks_at(row, h) + first + b);
    }
    m.group[b] = listed & visible;
    m.marks[b] = any_all ? visible : listed & visible;
  }
}

// What of a block is not listed weighs as the scan found; where something is, it is added up anew.
template <class T, int D, int G>
__device__ void Slice<T, D, G>::weigh_rest() {
  constexpr int ahead = 2, step = threads / 8;
  const int eighth = threadIdx.x % 8, all = heads * n;
  for (int base = int(threadIdx.x) / 8; base - lane() / 8 < all; base += ahead * step) {
    uint4 eight[ahead];
    float2 sum[ahead];
    float bases[ahead];
    int h[ahead], b[ahead];
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const int at = min(base + i * step, all - 1);
      h[i] = at / n, b[i] = at % n;
      const int64_t of = block_at(h[i], b[i]);
      sum[i] = __ldcg(s.sums + of);
      bases[i] = __ldcg(s.bases + of);
      eight[i] =
          m.group[b[i]] != 0 ? __ldcg(reinterpret_cast<const uint4*>(s.scores + of * block_tokens) + eighth) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const Head& head = m.heads[h[i]];
      const unsigned listed = unsigned(m.group[b[i]] >> 8 * eighth) & 0xFF;
      float rest = 0;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int v = reinterpret_cast<const int16_t*>(&eight[i])[j];
        rest += v != hidden_score && (listed >> j & 1) == 0 ? exp2_fast(weight_of(head, bases[i], v)) : 0.0f;
      }
      for (int o = 1; o < 8; o *= 2) rest += __shfl_xor_sync(~0u, rest, o);
      if (m.group[b[i]] == 0) rest = sum[i].y * exp2f(sum[i].x - head.top);
      if (eighth == 0 && base + i * step < all) m.rest[h[i]][b[i]] = lists(h[i]) ? rest : 0.0f;
    }
  }
}

// The means by what is not listed, and its sums: by warps of their own, while the others read the list.
template <class T, int D, int G>
__device__ void Slice<T, D, G>::add_means(float* partials, int64_t head_stride) {
  const int own = warp() - list_warps;
  for (int h = own; h < heads; h += mean_warps) {
    float sum = 0;
    for (int b = lane(); b < n; b += 32) sum += first + b == view.hidden_block ? 0.0f : m.rest[h][b];
    sum = sum_of_warp(sum);
    if (lane() != 0) continue;
    const int at = view.hidden_block - first;
    partials[h * head_stride + 3 * s.head_dim + sum_rest] = sum;
    partials[h * head_stride + 3 * s.head_dim + sum_beside_hidden] = at >= 0 && at < n ? m.rest[h][at] : 0.0f;
  }
  for (int h0 = 0; h0 < heads; h0 += together) {
    float sums[together][8] = {};
    constexpr int ahead = together == 1 ? 8 : 4, step = mean_warps * rows_of_warp;
    for (int base = own * rows_of_warp + row_of_warp(); base < n; base += ahead * step) {
      Eight<int16_t> raw[ahead];
      float scales[ahead];
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        const int64_t place = s.codes.place(s.k, view.sequence, first + min(base + i * step, n - 1));
        raw[i].load(s.codes.mean.at<int16_t>(place, g) + dimension());
        scales[i] = __ldg(s.codes.mean_scale.at<float>(place, g));
      }
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        const int b = min(base + i * step, n - 1);
        const bool counts = base + i * step < n && first + b != view.hidden_block;
        float x[8];
        to_f32(raw[i], x);
#pragma unroll
        for (int h = 0; h < together; h++) {
          const float weight = counts ? m.rest[min(h0 + h, heads - 1)][b] : 0.0f,
                      scaled = weight != 0 ? weight * scales[i] : 0.0f;
#pragma unroll
          for (int j = 0; j < 8; j++) sums[h][j] = fmaf(scaled, x[j], sums[h][j]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < together; h++)
#pragma unroll
      for (int j = 0; j < 8; j++) {
        for (int o = lanes; o < 32; o *= 2) sums[h][j] += __shfl_xor_sync(~0u, sums[h][j], o);
        if (row_of_warp() == 0) m.mean_parts[own][h][8 * (lane() % lanes) + j] = sums[h][j];
      }
    sync_means();
    for (int i = threadIdx.x - list_threads; i < together * D; i += 32 * mean_warps) {
      const int h = i / D, d = i % D;
      if (h0 + h >= heads || d >= s.head_dim) continue;
      float sum = 0;
      for (int w = 0; w < mean_warps; w++) sum += m.mean_parts[w][h][d];
      partials[(h0 + h) * head_stride + 2 * s.head_dim + d] = sum;
    }
    sync_means();
  }
}

// Where each block's tokens begin in the list; how many there are.
template <class T, int D, int G>
__device__ int Slice<T, D, G>::list() {
  if (warp() == 0) {
    int before = 0;
    for (int base = 0; base < n; base += 32) {
      const int b = base + lane(), own = b < n ? __popcll(m.marks[b]) : 0;
      int sum = own;
      for (int o = 1; o < 32; o *= 2) {
        const int v = __shfl_up_sync(~0u, sum, o);
        if (lane() >= o) sum += v;
      }
      if (b < n) m.begin[b] = before + sum - own;
      before += __shfl_sync(~0u, sum, 31);
    }
    if (lane() == 0) m.begin[n] = before;
  }
  sync_list();
  return m.begin[n];
}

// The list's tokens [done, done + count).
template <class T, int D, int G>
__device__ void Slice<T, D, G>::fill(int done, int count) {
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
}

// Exact scores, eight lanes a token; and beside them, which tokens are low, and what was estimated of these.
template <class T, int D, int G>
__device__ void Slice<T, D, G>::score(int count) {
  constexpr int chunks = D / 64, ahead = 2, step = 4 * list_warps;
  const int part = lane() % 8;
  for (int base = 4 * warp(); base < count; base += ahead * step) {
    Eight<T> raw[ahead][chunks];
    int token[ahead], v[ahead], offset[ahead];
    float bases[ahead];
    const int mine = min(part, heads - 1);  // the head whose score this lane finishes
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      token[i] = m.tokens[min(base + i * step + lane() / 8, count - 1)];
      const int t = token[i] & ~from_other_list;
      const char* k = s.k.row(view.sequence, g, t);
#pragma unroll
      for (int c = 0; c < chunks; c++) {
        const int at = 8 * (part + 8 * c);
        raw[i][c].load(k + (at < s.head_dim ? at : 0) * int(sizeof(T)));
      }
      if (rest) {
        const int64_t of = s.blocks_at(row, first_head + mine) + t / block_tokens;
        v[i] = __ldcg(s.scores + of * block_tokens + t % block_tokens);
        offset[i] = __ldcg(s.offsets + of);
        bases[i] = __ldcg(s.bases + of);
      }
    }
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      float sum[G] = {};
#pragma unroll
      for (int c = 0; c < chunks; c++) {
        const int at = 8 * (part + 8 * c);  // past head_dim the query is 0
        float x[8];
        to_f32(raw[i][c], x);
        if (at >= s.head_dim)
          for (int j = 0; j < 8; j++) x[j] = 0;
#pragma unroll
        for (int h = 0; h < G; h++)
#pragma unroll
          for (int j = 0; j < 8; j++) sum[h] = fmaf(x[j], m.q[h][at + j], sum[h]);
      }
#pragma unroll
      for (int h = 0; h < G; h++)
        for (int o = 1; o < 8; o *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], o);
      const int at = base + i * step + lane() / 8;
      float own = sum[0];
#pragma unroll
      for (int h = 1; h < G; h++) own = part == h ? sum[h] : own;
      if (part >= heads || at >= count) continue;
      const Head& head = m.heads[part];
      const float x = s.score_of(own, first_head + part, view.tokens - 1 - (token[i] & ~from_other_list));
      const bool not_ours = mixed && (token[i] & from_other_list) != 0 && lists(part);
      m.weights[part][at] = not_ours ? -INFINITY : x * log2e;
      if (!rest) continue;
      const int score = v[i] + offset[i];
      const bool low = v[i] != hidden_score && score >= head.bound && score <= head.low_top && lists(part) && !not_ours;
      m.low[part][at] = low ? exp2_fast(weight_of(head, bases[i], v[i])) : -1.0f;
    }
  }
  sync_list();
}

// Weights, relative to the largest score so far.
template <class T, int D, int G>
__device__ void Slice<T, D, G>::weigh(int count) {
  for (int h = warp(); h < heads; h += list_warps) {
    float most = -INFINITY;
    for (int i = lane(); i < count; i += 32) most = fmaxf(most, m.weights[h][i]);
    const float before = m.max[h], top = fmaxf(before, max_of_warp(most));
    const float scale = before == top ? 1.0f : exp2f(before - top), reference = top == -INFINITY ? 0.0f : top;
    float sum = 0, low = 0, estimated = 0, with_mean = 0;
    for (int i = lane(); i < count; i += 32) {
      const float weight = exp2f(m.weights[h][i] - reference);
      m.weights[h][i] = weight;
      sum += weight;
      if (!rest) continue;
      const float of = m.low[h][i];
      const bool has_mean = m.tokens[i] / block_tokens != view.hidden_block;
      if (of >= 0) low += weight, estimated += of, with_mean += has_mean ? weight : 0.0f;
      m.low[h][i] = of >= 0 && has_mean ? weight : 0.0f;
    }
    sum = sum_of_warp(sum);
    if (rest) low = sum_of_warp(low), estimated = sum_of_warp(estimated), with_mean = sum_of_warp(with_mean);
    __syncwarp();  // all have read the old maximum
    if (lane() == 0) {
      m.max[h] = top, m.scale[h] = scale;
      m.sums[h][0] = fmaf(m.sums[h][0], scale, sum);
      m.sums[h][1] = fmaf(m.sums[h][1], scale, low);
      m.sums[h][2] += estimated;
      m.sums[h][3] = fmaf(m.sums[h][3], scale, with_mean);
    }
  }
  sync_list();
}

// The values by their weights; or those of the low tokens, less their blocks' means, by theirs.
template <class T, int D, int G>
template <bool low>
__device__ void Slice<T, D, G>::add_values(int count) {
  constexpr int ahead = low ? 2 : 4, step = list_warps * rows_of_warp;
  for (int h0 = 0; h0 < heads; h0 += together) {
    const float(*weights)[at_once] = low ? m.low : m.weights;
    float sums[together][8] = {};
    for (int base = warp() * rows_of_warp + row_of_warp(); base < count; base += ahead * step) {
      Eight<T> raw[ahead];
      Eight<int16_t> means[ahead];
      float scales[ahead];
      int at[ahead];
      bool any = !low;
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        at[i] = min(base + i * step, count - 1);
        for (int h = 0; h < together && low; h++) any |= weights[min(h0 + h, heads - 1)][at[i]] != 0;
      }
      if (!any) continue;
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        const int token = m.tokens[at[i]] & ~from_other_list;
        raw[i].load(s.v.row(view.sequence, g, token) + dimension() * int(sizeof(T)));
        if (!low) continue;
        const int64_t place = s.codes.place(s.k, view.sequence, token / block_tokens);
        means[i].load(s.codes.mean.at<int16_t>(place, g) + dimension());
        scales[i] = __ldg(s.codes.mean_scale.at<float>(place, g));
      }
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        if (base + i * step >= count) continue;
        float x[8];
        to_f32(raw[i], x);
        if (low) {
          float mean[8];
          to_f32(means[i], mean);
#pragma unroll
          for (int j = 0; j < 8; j++) x[j] = fmaf(-scales[i], mean[j], x[j]);
        }
#pragma unroll
        for (int h = 0; h < together; h++) {
          const float weight = weights[min(h0 + h, heads - 1)][at[i]];
          if ((mixed || low) && weight == 0) continue;  // not this head's, whatever it is
#pragma unroll
          for (int j = 0; j < 8; j++) sums[h][j] = fmaf(weight, x[j], sums[h][j]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < together; h++)
#pragma unroll
      for (int j = 0; j < 8; j++)
        for (int o = lanes; o < 32; o *= 2) sums[h][j] += __shfl_xor_sync(~0u, sums[h][j], o);
    for (int half = 0; half < 2; half++) {
      if (warp() / 4 == half && row_of_warp() == 0)
#pragma unroll
        for (int h = 0; h < together; h++)
#pragma unroll
          for (int j = 0; j < 8; j++) {
            float& to = m.parts[warp() % 4][h][8 * (lane() % lanes) + j];
            to = half == 0 ? sums[h][j] : to + sums[h][j];
          }
      sync_list();
    }
    for (int i = threadIdx.x; i < together * D; i += list_threads) {
      const int h = i / D, d = i % D;
      if (h0 + h >= heads) break;
      float& out = m.outs[low][h0 + h][d];
      out = fmaf(out, m.scale[h0 + h], m.parts[0][h][d] + m.parts[1][h][d] + m.parts[2][h][d] + m.parts[3][h][d]);
    }
    sync_list();
  }
}

template <class T, int D, int G>
__global__ void __launch_bounds__(threads, 2) attend(const __grid_constant__ Step s) {
  using Memory = Shared<D, G>;
  extern __shared__ __align__(16) unsigned char memory[];
  Memory& m = *reinterpret_cast<Memory*>(memory);
  launch_next();
  const int group = s.q_heads / s.kv_heads, row = blockIdx.z, lists_of_kv_head = s.lists / s.kv_heads;
  const int g = blockIdx.y / lists_of_kv_head, most = (group + lists_of_kv_head - 1) / lists_of_kv_head;
  const int first_head = g * group + blockIdx.y % lists_of_kv_head * most, heads = min(most, (g + 1) * group - first_head);

  for (int i = threadIdx.x; i < G * D; i += threads) {
    const int h = i / D, d = i % D;
    m.q[h][d] = h < heads && d < s.head_dim ? load_element(s.query(row, first_head + h), s.q_dtype, d) : 0.0f;
  }
  for (int i = threadIdx.x; i < 2 * G * D; i += threads) (&m.outs[0][0][0])[i] = 0;
  wait_for_previous();
  const bool scored = s.policy == ADAMAS_POLICY_ADAMAS;
  if (threadIdx.x < G) {
    Head head{};
    head.reading = reads_short;
    if (scored && int(threadIdx.x) < heads) head = s.heads[row * s.q_heads + first_head + threadIdx.x];
    m.heads[threadIdx.x] = head;
    m.max[threadIdx.x] = -INFINITY;
    for (int i = 0; i < 4; i++) m.sums[threadIdx.x][i] = 0;
  }
  const View view = scored ? s.views[row] : see(s, row);
  const int blocks = blocks_in(view.tokens), slices = slices_of(blocks, s.lists), each = (blocks + slices - 1) / slices;
  const int slice = blockIdx.x;
  if (slice >= slices) return;
  const int first = min(blocks, slice * each), last = min(blocks, first + each);
  if (!scored && !view.dense && int(threadIdx.x) < heads) m.heads[threadIdx.x].reading = reads_list;
  __syncthreads();
  bool any_list = false, any_all = false;
  for (int h = 0; h < heads; h++) {
    any_list |= m.heads[h].reading == reads_list;
    any_all |= m.heads[h].reading != reads_list;
  }
  Slice<T, D, G> of{
      s, m, view, row, g, first_head, heads, first, last - first, scored && s.automatic && any_list, any_all && any_list};
  of.mark_tokens(any_all, scored);
  __syncthreads();
  if (of.rest) of.weigh_rest();
  __syncthreads();

  const int64_t stride = 3 * s.head_dim + partial_sums, head_stride = s.slices * stride;
  float* partials = s.partials + (int64_t(row) * s.q_heads + first_head) * head_stride + slice * stride;
  if (of.warp() >= list_warps) {
    if (of.rest) of.add_means(partials, head_stride);
    return;
  }
  const int listed = of.list();
  for (int done = 0; done < listed; done += Memory::at_once) {
    const int count = min(Memory::at_once, listed - done);
    of.fill(done, count);
    of.score(count);
    of.weigh(count);
    of.template add_values<false>(count);
    if (of.rest) of.template add_values<true>(count);
  }
  for (int i = threadIdx.x; i < heads * D; i += list_threads) {
    const int h = i / D, d = i % D;
    if (d >= s.head_dim) continue;
    partials[h * head_stride + d] = m.outs[0][h][d];
    if (of.rest) partials[h * head_stride + s.head_dim + d] = m.outs[1][h][d];
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

constexpr int combine_threads = 128, most_scales = 64;

// The slices of a head, in their order.
__global__ void __launch_bounds__(combine_threads) combine(const __grid_constant__ Step s) {
  __shared__ float scales[most_scales];
  launch_next();
  const int h = blockIdx.x, row = blockIdx.y;
  wait_for_previous();
  const bool scored = s.policy == ADAMAS_POLICY_ADAMAS;
  const View view = scored ? s.views[row] : see(s, row);
  const Head head = s.heads[row * s.q_heads + h];
  const int reading = scored ? head.reading : view.dense ? reads_short : reads_list;
  const bool rest = scored && s.automatic && reading == reads_list;
  const int slices = slices_of(blocks_in(view.tokens), s.lists), D = s.head_dim, stride = 3 * D + partial_sums;
  const float* partials = s.partials + (int64_t(row) * s.q_heads + h) * s.slices * stride;
  const float* sums = partials + 3 * D;

  // The first vectors are asked for before anything is known of them.
  constexpr int ahead = 8;
  float vectors[ahead][3] = {};
  const auto load = [&](int base, int d) {
#pragma unroll
    for (int i = 0; i < ahead; i++) {
      const float* of = partials + min(base + i, slices - 1) * stride + min(d, D - 1);
      vectors[i][0] = __ldcg(of);
      if (rest) vectors[i][1] = __ldcg(of + D), vectors[i][2] = __ldcg(of + 2 * D);
    }
  };
  load(0, threadIdx.x);
  // A lane has every 32nd slice's sums.
  const int lane = threadIdx.x % 32;
  float top = -INFINITY;
  for (int i = lane; i < slices; i += 32) top = fmaxf(top, __ldcg(sums + i * stride + sum_max));
  top = max_of_warp(top);
  const float reference = top == -INFINITY ? 0.0f : top;
  float listed = 0, low = 0, low_estimated = 0, with_mean = 0, others = 0, beside = 0;
  for (int i = lane; i < slices; i += 32) {
    const float* of = sums + i * stride;
    const float scale = exp2f(__ldcg(of + sum_max) - reference);
    if (threadIdx.x < 32 && i < most_scales) scales[i] = scale;
    listed = fmaf(__ldcg(of + sum_listed), scale, listed);
    if (!rest) continue;
    low = fmaf(__ldcg(of + sum_low), scale, low);
    low_estimated += __ldcg(of + sum_low_estimated);
    with_mean = fmaf(__ldcg(of + sum_low_with_mean), scale, with_mean);
    others += __ldcg(of + sum_rest);
    beside += __ldcg(of + sum_beside_hidden);
  }
  listed = sum_of_warp(listed);
  if (rest) {
    low = sum_of_warp(low), low_estimated = sum_of_warp(low_estimated), with_mean = sum_of_warp(with_mean);
    others = sum_of_warp(others), beside = sum_of_warp(beside);
  }
  __syncthreads();
  const auto scale_of = [&](int i) {
    return i < most_scales ? scales[i] : exp2f(__ldcg(sums + i * stride + sum_max) - reference);
  };
  float factor = 0, leaning = 0;
  if (rest) {
    const float expected = exp2f(fminf(head.top - reference, highest_weight * log2e)), measured = low / low_estimated;
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
    for (int base = 0; base < slices; base += ahead) {
      if (base != 0 || d != int(threadIdx.x)) load(base, d);
#pragma unroll
      for (int i = 0; i < ahead; i++) {
        if (base + i >= slices) break;
        x = fmaf(vectors[i][0], scale_of(base + i), x);
        if (rest) x = fmaf(vectors[i][1], leaning * scale_of(base + i), fmaf(vectors[i][2], factor, x));
      }
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
  const cudaError_t error = with_element(s.k_dtype, [&](auto zero) { return launch<decltype(zero)>(s, stream); });
  if (error != cudaSuccess) return error;
  return launch_behind(combine, dim3(unsigned(s.q_heads), unsigned(s.query_rows)), combine_threads, 0, stream, s);
}

}  // namespace adamas::cuda
