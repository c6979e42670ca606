// A query row's queries and its output.
#include <algorithm>
#include <cstring>

#include "hadamard/hadamard.h"
#include "step/row.h"

namespace adamas {

void load_query(const Row& row, int h) {
  const std::byte* from =
      at(row.p.q, row.batch * row.p.q_stride_batch + row.row * row.p.q_stride_row + h * row.p.q_stride_head);
  with_dtype(static_cast<DType>(row.p.q_dtype), [&]<class T>(T) {
    for (int d = 0; d < row.head_dim(); d++) row.q(h)[d] = element(reinterpret_cast<const T*>(from), d);
  });
}

void rotate_query(const float* q, const Cache& cache, float* y) {
  const int head_dim = cache.params.head_dim;
  for (int d = 0; d < head_dim; d++) y[d] = std::isnan(q[d]) ? 0.0f : std::clamp(q[d], -largest_key, largest_key);
  if (cache.params.rotated == 0) rotate(y, head_dim);
}

void finish(const Row& row, int h, SoftmaxState& state) {
  if (row.p.sink_logits != nullptr) state.merge_logit(row.p.sink_logits[h], row.head_dim());
  auto* out = reinterpret_cast<std::byte*>(row.p.out) + row.batch * row.p.out_stride_batch + row.row * row.p.out_stride_row +
              h * row.p.out_stride_head;
  const float inverse = (state.sum > 0 ? 1.0f / state.sum : 0.0f) * value_scale(row.p);
  for (int d = 0; d < row.head_dim(); d++) {
    const float value = state.sum == 0 ? 0.0f : state.out[d] * (std::isnan(state.sum) ? state.sum : inverse);
    std::memcpy(out + d * sizeof(float), &value, sizeof value);
  }
  const int64_t index = (row.batch * row.p.rows + row.row) * row.plan.params.q_heads + h;
  if (row.p.lse != nullptr) row.p.lse[index] = state.lse();
  if (row.p.mass != nullptr) row.p.mass[index] = row.plan.results[h].mass;
  if (row.p.noise != nullptr) row.p.noise[index] = row.plan.results[h].noise;
}

}  // namespace adamas
