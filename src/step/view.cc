#include "step/view.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "cache/cache.h"
#include "core/rows.h"

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

int64_t tokens_of(const adamas_step_params& p, int64_t row, int64_t length) {
  return p.causal != 0 ? std::max<int64_t>(0, length - p.rows + row + 1) : length;
}

const std::byte* mask_of(const adamas_step_params& p, int64_t batch, int64_t row) {
  return p.mask != nullptr ? at(p.mask, batch * p.mask_stride_batch + row * p.mask_stride_row) : nullptr;
}

}  // namespace

ViewRoom::ViewRoom(int64_t blocks)
    : bits(make_array<uint64_t>(blocks)),
      blocks(make_array<int32_t>(blocks)),
      bias(make_array<float>(blocks * block_tokens)) {}

UncodedRoom::UncodedRoom(int64_t blocks)
    : partial(make_array<PartialBlock>(blocks)),
      always(make_array<int32_t>(blocks * block_tokens)),
      has_hidden_rows(make_array<uint8_t>(blocks)) {}

View find_visible(const adamas_step_params& p, int64_t batch, int64_t row, int64_t length, ViewRoom& room) {
  View view{.tokens = tokens_of(p, row, length), .bits = room.bits.get(), .blocks = room.blocks.get()};
  bool biased = false;
  const std::byte* mask = mask_of(p, batch, row);
  const auto dtype = static_cast<DType>(p.mask_dtype);
  const auto block_sight = [&](int64_t b) { return sight(mask + row_bytes(dtype, b * block_tokens), dtype); };
  for (int64_t b = 0; b < blocks_of(view.tokens); b++) {
    const int64_t first = b * block_tokens;
    const int in_block = int(std::min<int64_t>(block_tokens, view.tokens - first));
    uint64_t bits = bits_between(0, in_block);
    float* bias = room.bias.get() + first;
    if (mask != nullptr) {
      const Sight seen = in_block == block_tokens ? block_sight(b) : Sight::some;
      if (seen == Sight::none) bits = 0;
      if (seen == Sight::some) {
        bits = 0;
        for (int t = 0; t < in_block; t++) {
          bias[t] = load_f32(mask, dtype, first + t);
          const bool shown = bias[t] != -std::numeric_limits<float>::infinity();
          bits |= uint64_t(shown) << t;
          biased |= shown && bias[t] != 0;
        }
      }
    } else if (p.slopes != nullptr) {
      for (int t = 0; t < in_block; t++) bias[t] = float(first + t - (view.tokens - 1));
      biased = true;
    }
    room.bits[b] = bits;
    view.visible += ~bits == 0 ? block_tokens : std::popcount(bits);  // most blocks are whole
    if (bits != 0) room.blocks[view.active++] = int32_t(b);
  }
  if (!biased) return view;
  if (mask != nullptr)  // rare: else nobody reads the zeros
    for (int64_t b = 0; b < view.tokens / block_tokens; b++)
      if (block_sight(b) == Sight::all) std::fill_n(room.bias.get() + b * block_tokens, block_tokens, 0.0f);
  view.bias = room.bias.get();
  return view;
}

PromptRow find_seen(const adamas_step_params& p, int64_t batch, int64_t row, int64_t length, uint64_t* bits) {
  const int64_t tokens = tokens_of(p, row, length);
  PromptRow seen{bits, blocks_of(tokens), false, mask_of(p, batch, row), static_cast<DType>(p.mask_dtype), tokens - 1};
  seen.biased = seen.mask == nullptr && p.slopes != nullptr;
  for (int64_t b = 0; b < seen.blocks; b++) {
    const int64_t first = b * block_tokens;
    bits[b] = bits_between(0, tokens - first);
    if (seen.mask == nullptr) continue;
    const std::byte* of_block = seen.mask + row_bytes(seen.mask_dtype, first);
    const Sight sees = ~bits[b] == 0 ? sight(of_block, seen.mask_dtype) : Sight::some;
    if (sees == Sight::none) bits[b] = 0;
    if (sees == Sight::some)
      for_each_bit(bits[b], [&](int t) {
        const float bias = load_f32(of_block, seen.mask_dtype, t);
        if (bias == -std::numeric_limits<float>::infinity())
          bits[b] &= ~(uint64_t{1} << t);
        else
          seen.biased |= bias != 0;
      });
  }
  return seen;
}

Uncoded find_uncoded(const View& view, const Cache& cache, int64_t sequence, const adamas_config& config,
                     UncodedRoom& room) {
  Uncoded uncoded{.partial = room.partial.get(), .always = room.always.get()};
  const int64_t first_recent = view.before + view.visible + view.behind - config.recent;
  int64_t rank = view.before;
  bool any_hidden_rows = false;
  for (int64_t i = 0; i < view.active; i++) {
    const int32_t b = view.blocks[i];
    const uint64_t visible = view.bits[b], coded = cache.coded(sequence, b);
    room.has_hidden_rows[i] = (coded & ~visible) != 0;
    any_hidden_rows |= room.has_hidden_rows[i] != 0;
    const int64_t next = rank + (~visible == 0 ? block_tokens : std::popcount(visible));  // most blocks are whole
    uint64_t always = visible & ~coded;
    if (rank < config.sinks || next > first_recent)
      for_each_bit(visible, [&, r = rank](int t) mutable {
        if (r < config.sinks || r >= first_recent) always |= uint64_t{1} << t;
        r++;
      });
    if (~visible != 0 || always != 0) room.partial[uncoded.partial_count++] = {i, visible, always};
    for_each_bit(always, [&](int t) { room.always[uncoded.always_count++] = b * block_tokens + t; });
    rank = next;
  }
  if (any_hidden_rows) uncoded.has_hidden_rows = room.has_hidden_rows.get();
  return uncoded;
}

}  // namespace adamas
