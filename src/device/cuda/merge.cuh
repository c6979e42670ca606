// What the slices of a list leave, put together: the factor, the lean, out, lse, mass. rest/rest.h says what the sums are.
#pragma once

#include "device/cuda/scores.cuh"

namespace adamas::cuda {

// What the vectors of a head count.
struct Merged {
  float highest;                 // that of slices are relative to
  float factor, leaning, share;  // of M, of E, of all
};

// A warp's: a lane has every 32nd slice. Stores what is told of the head, where `tells`.
__device__ inline Merged merge_sums(const Step& s, const View& view, int row, int h, const float* sums, int slices,
                                    bool tells) {
  const int lane = threadIdx.x % 32, stride = 3 * s.head_dim + partial_sums;
  const int64_t index = int64_t(row) * s.q_heads + h;
  const bool scored = s.chosen();
  const int reading = scored ? __ldcg(&s.heads[index].reading) : view.dense ? reads_short : reads_list;
  const float estimates_top = scored ? __ldcg(&s.heads[index].top) : 0.0f;
  const bool rest = scored && s.automatic && !reads_all(reading);
  float top = -INFINITY;
#pragma unroll 1
  for (int i = lane; i < slices; i += 32) top = fmaxf(top, __ldcg(sums + i * stride + sum_max));
  top = max_of_warp(top);
  Merged merged{top == -INFINITY ? 0.0f : top, 0, 0, 0};
  float listed = 0, low = 0, low_estimated = 0, with_mean = 0, others = 0, beside = 0;
#pragma unroll 1
  for (int i = lane; i < slices; i += 32) {
    const float4 first = __ldcg(reinterpret_cast<const float4*>(sums + i * stride)),
                 second = __ldcg(reinterpret_cast<const float4*>(sums + i * stride) + 1);
    const float scale = exp2f(first.x - merged.highest);
    listed = fmaf(first.y, scale, listed);
    if (!rest) continue;
    low = fmaf(first.z, scale, low), low_estimated += first.w;
    with_mean = fmaf(second.x, scale, with_mean), others += second.y, beside += second.z;
  }
  listed = sum_of_warp(listed);
  if (rest) {
    low = sum_of_warp(low), low_estimated = sum_of_warp(low_estimated), with_mean = sum_of_warp(with_mean);
    others = sum_of_warp(others), beside = sum_of_warp(beside);
    merged.factor = factor_of(estimates_top, merged.highest, low, low_estimated);
    others = others > 0 ? others * merged.factor : 0.0f;
    beside = beside > 0 ? beside * merged.factor : 0.0f;
    merged.leaning = with_mean > 0 ? lean * others / with_mean : 0.0f;
  }
  const float attended = listed + others, all = attended > 0 ? attended + beside : attended;
  float lse = all == 0 ? -INFINITY : (top + log2f(all)) * ln2;
  merged.share = attended != 0 ? 1.0f / attended : 0.0f;
  if (s.sink_logits != nullptr) {
    const float logit = s.sink_logits[h];
    if (lse == -INFINITY) {
      lse = logit;
    } else {
      const float most = fmaxf(lse, logit), with = most + logf(expf(lse - most) + expf(logit - most));
      merged.share *= expf(lse - with);
      lse = isnan(merged.share) ? merged.share : with;
    }
  }
  if (lane != 0 || !tells) return merged;
  if (s.lse != nullptr) s.lse[index] = lse;
  if (s.mass != nullptr)
    s.mass[index] = reads_all(reading) ? 1.0f
                    : rest             ? listed / (listed + others + beside)
                    : scored           ? __ldcg(&s.heads[index].mass)
                                       : __int_as_float(0x7FC00000);
  if (s.noise != nullptr) s.noise[index] = scored ? __ldcg(&s.heads[index].noise) : 0.0f;
  return merged;
}

// The heads [first_head, first_head + heads) of a row, at most one for each warp: warps take turns with the slices of one,
// and a lane has four dimensions at a time. All threads of a block call it. D: head_dim at most.
template <int D, int warps>
__device__ void merge(const Step& s, const View& view, int row, int first_head, int heads, int slices,
                      float (&vectors)[warps][3][D]) {
  constexpr int chunks = (D + 127) / 128;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, turns = warps / heads, own = warp % heads, turn = warp / heads;
  const int h = first_head + own, dims = s.head_dim, stride = 3 * dims + partial_sums;
  const float* partials = s.partials + (int64_t(row) * s.q_heads + h) * s.slices * stride;
  const bool may_rest = s.chosen() && s.automatic;
  Merged merged{};
  if (turn < turns) {
    merged = merge_sums(s, view, row, h, partials + 3 * dims, slices, turn == 0);
#pragma unroll
    for (int c = 0; c < chunks; c++) {
      const int d = 4 * (32 * c + lane);
      if (d >= dims) break;
      float4 x[3] = {};
#pragma unroll 4
      for (int slice = turn; slice < slices; slice += turns) {
        const float* of = partials + slice * stride;
        const float scale = exp2f(__ldcg(of + 3 * dims + sum_max) - merged.highest);
#pragma unroll
        for (int i = 0; i < 3; i++) {
          if (i != 0 && !may_rest) break;
          const float4 more = __ldcg(reinterpret_cast<const float4*>(of + i * dims + d));
          const float by = i == 2 ? 1.0f : scale;
          x[i].x = fmaf(more.x, by, x[i].x), x[i].y = fmaf(more.y, by, x[i].y);
          x[i].z = fmaf(more.z, by, x[i].z), x[i].w = fmaf(more.w, by, x[i].w);
        }
      }
#pragma unroll
      for (int i = 0; i < 3; i++) *reinterpret_cast<float4*>(&vectors[warp][i][d]) = x[i];
    }
  }
  __syncthreads();
  if (turn != 0) return;
  char* out = s.out + row / s.rows * s.out_stride_batch + row % s.rows * s.out_stride_row + h * s.out_stride_head;
#pragma unroll
  for (int d = lane; d < dims; d += 32) {
    float sum[3] = {};
    for (int w = warp; w < turns * heads; w += heads)
#pragma unroll
      for (int i = 0; i < 3; i++) sum[i] += vectors[w][i][d];
    // Not all heads of a row have a rest: of what has none the factors are 0.
    const float value = may_rest ? fmaf(sum[1], merged.leaning, fmaf(sum[2], merged.factor, sum[0])) : sum[0];
    reinterpret_cast<float*>(out)[d] = merged.share == 0 ? 0.0f : value * (merged.share * s.v_scale);
  }
}

}  // namespace adamas::cuda
