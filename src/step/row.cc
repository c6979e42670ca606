// What a query row may see, its queries and its output.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "step/row.h"

namespace adamas {
namespace {

// What a block of 64 mask values says, when they are all 0 or all -inf: most blocks are. Bits is the type of a value's bits.
enum class Sight { all, none, some };
template <class Bits>
Sight sight(const std::byte* mask, Bits minus_infinity) {
  Bits nonzero = 0, other = 0;
  for (int t = 0; t < block_tokens; t++) {
    Bits bits;
    std::memcpy(&bits, mask + t * sizeof(Bits), sizeof(Bits));
    nonzero |= bits;
    other |= bits ^ minus_infinity;
  }
  return nonzero == 0 ? Sight::all : other == 0 ? Sight::none : Sight::some;
}

Sight sight(const std::byte* mask, DType dtype) {
  switch (dtype) {
    case DType::f16: return sight<uint16_t>(mask, 0xFC00);
    case DType::bf16: return sight<uint16_t>(mask, 0xFF80);
    default: return sight<uint32_t>(mask, 0xFF800000);
  }
}

}  // namespace

void look(Row& row) {
  Plan& plan = row.plan;
  const adamas_step_params& p = row.p;
  const int64_t length = p.lengths != nullptr ? p.lengths[row.batch] : row.cache.length(row.sequence);
  row.tokens = p.causal != 0 ? std::max<int64_t>(0, length - p.rows + row.row + 1) : length;
  row.visible = row.active = 0;
  row.biased = false;
  const std::byte* mask =
      p.mask != nullptr ? at(p.mask, row.batch * p.mask_stride_batch + row.row * p.mask_stride_row) : nullptr;
  const auto dtype = static_cast<DType>(p.mask_dtype);
  const auto block_sight = [&](int64_t b) { return sight(mask + row_bytes(dtype, b * block_tokens), dtype); };
  for (int64_t b = 0; b < blocks_of(row.tokens); b++) {
    const int64_t first = b * block_tokens;
    const int in_block = int(std::min<int64_t>(block_tokens, row.tokens - first));
    uint64_t bits = bits_between(0, in_block);
    float* bias = plan.bias.get() + first;
    if (mask != nullptr) {
      const Sight seen = in_block == block_tokens ? block_sight(b) : Sight::some;
      if (seen == Sight::none) bits = 0;
      if (seen == Sight::some) {
        bits = 0;
        for (int t = 0; t < in_block; t++) {
          bias[t] = load_f32(mask, dtype, first + t);
          const bool shown = bias[t] != -std::numeric_limits<float>::infinity();
          bits |= uint64_t(shown) << t;
          row.biased |= shown && bias[t] != 0;
        }
      }
    } else if (p.slopes != nullptr) {
      for (int t = 0; t < in_block; t++) bias[t] = float(first + t - (row.tokens - 1));
      row.biased = true;
    }
    plan.visible[b] = bits;
    row.visible += ~bits == 0 ? block_tokens : std::popcount(bits);  // most blocks are whole
    if (bits != 0) plan.active[row.active++] = int32_t(b);
  }
  if (mask != nullptr && row.biased)  // rare: else nobody reads the zeros
    for (int64_t b = 0; b < row.tokens / block_tokens; b++)
      if (block_sight(b) == Sight::all) std::fill_n(plan.bias.get() + b * block_tokens, block_tokens, 0.0f);
}

void load_query(Row& row, int h) {
  const std::byte* from =
      at(row.p.q, row.batch * row.p.q_stride_batch + row.row * row.p.q_stride_row + h * row.p.q_stride_head);
  with_dtype(static_cast<DType>(row.p.q_dtype), [&]<class T>(T) {
    for (int d = 0; d < row.head_dim(); d++) row.q(h)[d] = element(reinterpret_cast<const T*>(from), d);
  });
}

void finish(Row& row, int h) {
  SoftmaxState& state = *row.states(h);
  if (row.p.sink_logits != nullptr) state.merge_logit(row.p.sink_logits[h], row.head_dim());
  auto* out = reinterpret_cast<std::byte*>(row.p.out) + row.batch * row.p.out_stride_batch +
              row.row * row.p.out_stride_row + h * row.p.out_stride_head;
  const float inverse = state.sum > 0 ? 1.0f / state.sum : 0.0f;
  for (int d = 0; d < row.head_dim(); d++) {
    const float value = state.sum == 0 ? 0.0f : state.out[d] * (std::isnan(state.sum) ? state.sum : inverse);
    std::memcpy(out + d * sizeof(float), &value, sizeof value);
  }
  const int64_t index = (row.batch * row.p.rows + row.row) * row.plan.params.q_heads + h;
  if (row.p.lse != nullptr) row.p.lse[index] = state.lse();
  if (row.p.mass != nullptr) row.p.mass[index] = row.plan.heads[h].mass;
  if (row.p.noise != nullptr) row.p.noise[index] = row.plan.heads[h].noise;
}

}  // namespace adamas
