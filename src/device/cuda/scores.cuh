// What the scores of a query head stand for, of all of its blocks: how the kernels that choose tokens begin.
#pragma once

#include "device/cuda/common.cuh"

namespace adamas::cuda {

// What is rare stands apart: instructions that are jumped over have to be fetched, too.
__device__ static ADAMAS_NOINLINE double capped_softly(double score, double softcap) {
  return softcap * tanh(score / softcap);
}
__device__ static ADAMAS_NOINLINE double uncapped(double capped, double softcap) {
  return capped > -softcap ? softcap * atanh(fmin(capped / softcap, 1 - 1e-9)) : -INFINITY;
}
__device__ inline double capped(double score, double softcap) { return softcap > 0 ? capped_softly(score, softcap) : score; }

// The largest of a warp's numbers, from which a rounded one mostly tells.
__device__ inline double highest_of_warp(double x) {
  const float rounded = float(x);
  const int bits = __float_as_int(rounded), ordered = bits ^ (bits >> 31 & 0x7FFFFFFF);
  unsigned first = __ballot_sync(~0u, ordered == __reduce_max_sync(~0u, ordered));
  double most = __shfl_sync(~0u, x, __ffs(first) - 1);
  while (first &= first - 1) most = fmax(most, __shfl_sync(~0u, x, __ffs(first) - 1));
  return most;
}

// C_b, as a division gives it: by a multiplication, unless that is close to a half.
__device__ static ADAMAS_NOINLINE int offset_by_division(double above, double unit) {
  return int(rint(fmax(double(lowest_centre), above / unit)));
}
__device__ inline int offset_of(double above, double unit, double inverse) {
  const double quotient = fmax(double(lowest_centre), above * inverse), rounded = rint(quotient);
  if (fabs(fabs(quotient - rounded) - 0.5) > 1e-6) return int(rounded);
  return offset_by_division(above, unit);
}
__device__ inline int offset_of(const Head& head, double centre) {
  return head.anew ? 0 : offset_of(centre - head.c_max, head.u, head.per_centre);
}

// log2 of an estimate that no token of this score or a higher one stays below, by more than floats and C_b are rounded.
// largest_centre: log2 of what the largest of the centres' magnitudes stands for.
__device__ inline float reached_from(const Head& head, int score, float largest_centre) {
  const float at = float(capped(head.unit * score + head.highest, head.softcap) * double(log2e));
  return at - 1.5f * head.unit2 - 1e-6f * (fabsf(at) + 2 * largest_centre);
}

// The lowest score whose estimate reaches a logit.
__device__ inline int score_reaching(const Head& head, double logit) {
  if (head.softcap > 0) logit = uncapped(logit, head.softcap);
  const double units = ceil((logit - head.highest) * head.per_unit);
  return units > hidden_score + 1 ? int(fmin(units, always_score - 1.0)) : hidden_score + 1;
}

// The highest score of at most twice the weight of one.
__device__ inline int low_top_of(const Head& head, int score) {
  const double cap = head.softcap, limit = capped(head.unit * score + head.highest, cap) + double(ln2);
  double units = always_score;
  if (cap == 0)
    units = (limit - head.highest) * head.per_unit;
  else if (limit < cap)
    units = (uncapped(limit, cap) - head.highest) * head.per_unit;
  return int(fmin(floor(units + 1e-6), double(always_score)));
}

// What a score of 0 of a block stands for: log2 of its weight, or with a softcap the estimate.
__device__ inline float base_of(const Step& s, const Head& head, double centre) {
  if (head.anew) return 0;
  return s.softcap > 0 ? float(centre * s.scale) : float(centre * s.scale * double(log2e) - double(head.top));
}

// log2 of the weight that a score stands for.
__device__ inline float weight_of(const Head& head, float base, int score) {
  if (head.softcap == 0) return fmaf(float(score), head.unit2, base);
  const float x = fmaf(float(score), float(head.unit), base);
  return fmaf(soft_capped(x, head.softcap), log2e, -head.top);
}

// What a slice has of a head, besides its vectors A, E, M: partials of Step.
enum Sum { sum_max, sum_listed, sum_low, sum_low_estimated, sum_low_with_mean, sum_rest, sum_beside_hidden };

// What is measured of the estimates, by which the rest counts: rest/rest.h. estimates_top: of the head; top: log2 of the
// largest weight.
__device__ inline float factor_of(float estimates_top, float top, float low, float low_estimated) {
  const float expected = exp2f(fminf(estimates_top - top, highest_weight * log2e)), measured = low / low_estimated;
  return isfinite(measured) ? fminf(measured, highest_factor * expected) : expected;
}

// What the scan says of all of a head's blocks.
struct Summary {
  double c_max, c_min;
  float top, sum,
      rounding;  // of estimated weights: log2 of the highest, the sum relative to it; the largest unit of a centre
  __device__ float largest_centre(float scale) const { return scale * log2e * float(fmax(fabs(c_max), fabs(c_min))); }
};

// A warp's.
__device__ inline Summary read_spans(const Span* of, int count) {
  const int lane = threadIdx.x % 32;
  Summary all{-INFINITY, INFINITY, nothing, 0, 0};
#pragma unroll 4
  for (int i = lane; i < count; i += 32) {
    const double2 c = __ldcg(reinterpret_cast<const double2*>(of + i));
    const float4 rest = __ldcg(reinterpret_cast<const float4*>(&of[i].top));
    all.c_max = fmax(all.c_max, c.x), all.c_min = fmin(all.c_min, c.y), all.rounding = fmaxf(all.rounding, rest.z);
    const float higher = fmaxf(all.top, rest.x);
    all.sum = fmaf(all.sum, exp2_fast(all.top - higher), rest.y * exp2_fast(rest.x - higher));
    all.top = higher;
  }
  const float top = max_of_warp(all.top);
  all.sum = sum_of_warp(all.sum * exp2_fast(all.top - top));
  all.top = top;
  all.c_max = highest_of_warp(all.c_max), all.c_min = -highest_of_warp(-all.c_min);
  all.rounding = max_of_warp(all.rounding);
  return all;
}

// u where no block has a deviation. rounding: of a centre.
__device__ static ADAMAS_NOINLINE double unit_of_flat(double between_centres, float rms, int head_dim, float rounding) {
  const double unit = fmax(between_centres / 16384.0, double(rms) * sqrt(double(head_dim)) * double(rounding));
  return unit > 0 ? unit : flat_unit;
}

// How a head is read, and what its scores stand for. Where biases move its estimates, or its centres lie too far apart for
// 16 bits, its scores have to be made anew.
__device__ inline Head begin_head(const Step& s, int row, const Tally& found, const Summary& all) {
  Head head{};
  head.noise = __ldcg(&found.noise);
  head.reading = reads_list;
  if (all.top == INFINITY)
    head.reading = reads_short, head.noise = 0;  // nobody knows what is in a block that was never coded
  if (s.max_noise > 0 && head.noise > s.max_noise) head.reading = reads_noisy;
  const double scale = s.scale;
  double unit = __ldcg(&found.unit);
  if (!(unit > 0)) unit = unit_of_flat(all.c_max - all.c_min, __ldcg(&found.rms), s.head_dim, all.rounding);
  head.unit = scale * unit;
  head.highest = scale * all.c_max;
  head.softcap = s.softcap;
  head.top = all.top;
  head.per_unit = 1 / head.unit;
  head.c_max = all.c_max, head.u = unit, head.per_centre = head.per_unit * scale;
  head.anew = s.biased(row) || (all.c_min - all.c_max) * head.per_centre < lowest_centre;
  head.unit2 = float(head.unit * double(log2e));
  head.mass = __int_as_float(0x7FC00000);  // it follows from the rest, or nobody knows
  return head;
}

// Scores anew, relative to the highest estimate: list/rescale.h. `room` has a place for each warp. All
// threads of a block call it. Returns what the scores stand for from now on; by value, or the head would have to lie in
// memory wherever it is looked at.
template <int threads>
__device__ ADAMAS_NOINLINE Head rescale(const Step& s, View view, int row, int h, double* room, Head head) {
  const int64_t at = s.blocks_at(row, h);
  int16_t* scores = s.scores + at * block_tokens;
  const double* centres = s.centres + at;
  const int count = blocks_in(view.tokens) * block_tokens, warp = threadIdx.x / 32;
  const double origin = capped(head.highest, head.softcap), slope = s.slope(h), scale = s.scale;
  const auto estimate = [&](int token, int score) {
    const double c = __ldcg(centres + token / block_tokens);
    const int offset = offset_of(c - head.c_max, head.u, head.per_centre);
    const double centre = __dsub_rn(__dmul_rn(scale, c), __dmul_rn(head.unit, double(offset)));
    double e = capped(__dadd_rn(__dmul_rn(head.unit, double(score + offset)), centre), head.softcap) - origin;
    if (s.biased(row)) e = __dadd_rn(e, __dmul_rn(slope, double(s.distance_of(view, row, token))));
    return e > -1e30 ? float(fmin(e, 1e30)) : -1e30f;
  };
  float top = -INFINITY;
  for (int t = threadIdx.x; t < count; t += threads)
    if (const int score = __ldcg(scores + t); score != hidden_score) top = fmaxf(top, estimate(t, score));
  const double most = highest_of_warp(double(top));
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[warp] = most;
  __syncthreads();
  top = float(highest_of_warp(room[min(int(threadIdx.x % 32), threads / 32 - 1)]));
  const double unit = fmax(head.unit, lightest / always_score);
  for (int t = threadIdx.x; t < count; t += threads)
    if (const int score = __ldcg(scores + t); score != hidden_score)
      __stcg(scores + t, short(int16_t(rint(fmax((double(estimate(t, score)) - double(top)) / unit, -32767.0)))));
  head.unit = unit;
  head.per_unit = 1 / unit;
  head.unit2 = float(unit * double(log2e));
  head.highest = isfinite(top) ? origin + double(top) : origin;
  head.softcap = 0;
  head.top = float(head.highest * double(log2e));
  __syncthreads();
  return head;
}

}  // namespace adamas::cuda
