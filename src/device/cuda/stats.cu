// What a step did, added up where stats are wanted: one kernel counts what each head attends to, one adds the sums to the
// caller's struct. Both run behind the step, in its stream: nothing waits, and each replay of a graph adds its own.
#include <cstddef>

#include "device/cuda/common.cuh"

namespace adamas::cuda {
namespace {

constexpr int threads = 256;

// The tokens that are attended to where these are marked. All threads of a block call it.
__device__ int count_of(const Step& s, const View& view, int row, const uint64_t* marks) {
  int count = 0;
  for (int b = threadIdx.x; b < blocks_in(view.tokens); b += threads) count += __popcll(attended(s, view, row, b, marks[b]));
  return sum_of_block(count);
}

// Of each query head, and of each list.
__global__ void __launch_bounds__(threads) count_selected(const __grid_constant__ Step s) {
  const int h = blockIdx.x, row = blockIdx.y, g = h / s.group;
  const int64_t index = int64_t(row) * s.q_heads + h;
  const View view = s.chosen() ? s.views[row] : see(s, row);
  if (view.dense) return;
  int selected = min(sight_of(s, view, row).visible, s.budget);  // of the policy streaming
  if (s.chosen()) {
    const int reading = s.heads[index].reading, listed_by = s.automatic ? g * s.group : h;
    if (reads_all(reading) && h != listed_by) return;
    const int listed = count_of(s, view, row, s.marks + s.blocks_at(row, listed_by));
    if (h == g * s.group && threadIdx.x == 0) s.listed[int64_t(row) * s.kv_heads + g] = listed;
    selected = reading == reads_widened ? count_of(s, view, row, s.own_marks + s.blocks_at(row, h)) : listed;
  }
  if (threadIdx.x == 0) s.selected[index] = selected;
}

// The fields of adamas_step_stats that a step on a GPU changes, in the struct's order.
enum Count {
  rows_sparse,
  rows_dense,
  tokens_visible,
  tokens_selected,
  rows_read,
  heads_sparse,
  heads_guarded,
  heads_widened
};
constexpr int counts = 8;
static_assert(offsetof(adamas_step_stats, rows_sparse) == 8 &&
              offsetof(adamas_step_stats, heads_widened) == 8 + 8 * heads_widened &&
              offsetof(adamas_step_stats, mass) == 8 + 8 * counts);

// A thread has rows of the step, and a warp adds up: in one order, so that twin steps add the same.
__global__ void __launch_bounds__(32) add_up(const __grid_constant__ Step s, adamas_step_stats* stats) {
  long long sums[counts] = {};
  double mass = 0;
  for (int row = threadIdx.x; row < s.query_rows; row += 32) {
    const View view = s.chosen() ? s.views[row] : see(s, row);
    const int64_t first = int64_t(row) * s.q_heads;
    const int visible = sight_of(s, view, row).visible;
    const auto reading = [&](int h) {
      return view.dense ? int(reads_short) : s.chosen() ? s.heads[first + h].reading : reads_list;
    };
    bool dense = true;
    for (int h = 0; h < s.q_heads; h++) dense &= reading(h) == reads_short;
    sums[rows_dense] += dense, sums[rows_sparse] += !dense;
    if (dense) continue;
    sums[tokens_visible] += int64_t(visible) * s.q_heads;
    sums[heads_sparse] += s.q_heads;
    for (int g = 0; g < s.kv_heads; g++) {
      bool any_all = false, any_list = false;
      for (int h = g * s.group; h < (g + 1) * s.group; h++) {
        const bool all = reads_all(reading(h)), widened = is_widened(reading(h));
        const int selected = all ? visible : s.selected[first + h];
        sums[tokens_selected] += selected;
        if (!all && (!s.automatic || widened)) sums[rows_read] += selected;
        sums[heads_guarded] += reading(h) == reads_noisy, sums[heads_widened] += widened;
        mass += double(s.mass[first + h]);
        any_all |= all, any_list |= !all || widened;
      }
      if (s.automatic && any_list) sums[rows_read] += s.listed[int64_t(row) * s.kv_heads + g];  // for all heads of it
      if (any_all) sums[rows_read] += visible;
    }
  }
#pragma unroll
  for (long long& sum : sums) sum = sum_of_warp(sum);
  mass = sum_of_warp(mass);
  if (threadIdx.x != 0) return;
  // A program that was built against an older header has fewer fields, and anything else is no such struct.
  const uint32_t size = stats->struct_size;
  if (size < offsetof(adamas_step_stats, tokens_visible) || size > sizeof(adamas_step_stats)) return;
  auto* to = reinterpret_cast<int64_t*>(&stats->rows_sparse);
#pragma unroll
  for (int i = 0; i < counts; i++)
    if (8 + 8 * (i + 1) <= size) to[i] += sums[i];
  if (offsetof(adamas_step_stats, mass) + sizeof mass <= size) stats->mass += mass;
}

}  // namespace

cudaError_t launch_count(const Step& s, adamas_step_stats* stats, cudaStream_t stream) {
  const dim3 heads(unsigned(s.q_heads), unsigned(s.query_rows));
  if (const cudaError_t error = launch(Start::after, count_selected, heads, threads, 0, stream, s); error != cudaSuccess)
    return error;
  return launch(Start::after, add_up, dim3(1), 32, 0, stream, s, stats);
}

}  // namespace adamas::cuda
