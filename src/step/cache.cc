#include "step/cache.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "baselines/quest.h"

namespace adamas {
namespace {

// Fresh rows are always attended to, so they need room in the budget; the baselines choose by codes alone.
int open_rows(const adamas_config& config) {
  constexpr int rows = 16;
  const bool has_room = config.budget - config.sinks - config.recent >= 4 * rows;
  return config.policy == ADAMAS_POLICY_ADAMAS && coding_of(config) == Coding::by_block && has_room ? rows : 1;
}

}  // namespace

Coding coding_of(const adamas_config& config) {
  return config.preset == ADAMAS_PRESET_PAPER ? Coding::paper : Coding::by_block;
}

bool wants_values(const adamas_config& config) {
  return config.policy == ADAMAS_POLICY_ADAMAS && (config.tail != 0 || config.sketch != 0);
}

Cache::Store::Store(BlockLayout layout, int64_t heads, int64_t blocks)
    : layout(layout), blocks(blocks), memory(make_array<std::byte>(product(heads, layout.head_bytes(blocks)))),
      centre_scale(make_array<float>(product(heads, blocks))), sigma(make_array<float>(product(heads, blocks))) {}

Codes Cache::Store::codes(int64_t head) const {
  return {memory.get() + head * layout.head_bytes(blocks), blocks, centre_scale.get() + head * blocks, sigma.get() + head * blocks, layout};
}

Cache::Cache(const adamas_config& config, const adamas_cache_params& params)
    : config(config), params(params), blocks_(blocks_of(params.capacity)),
      all_marks_(wants_values(config) ? keys_mark | values_mark : keys_mark), open_rows_(open_rows(config)) {
  const int64_t heads = product(params.sequences, params.kv_heads);
  keys_ = Store({params.head_dim, Coded::keys}, heads, blocks_);
  if (has_values()) values_ = Store({params.head_dim, Coded::values}, heads, blocks_);
  if (config.policy == ADAMAS_POLICY_QUEST)
    quest_ = make_array<float>(product(heads, blocks_, block_tokens / quest_page, 2, params.head_dim));
  live_.assign(product(params.sequences, blocks_), 0);
  coded_.assign(live_.size(), 0);
  marked_.assign(live_.size(), 0);
  lengths_.assign(params.sequences, 0);
  last_.assign(params.sequences, -1);
}

// The rows of a block that are to have codes: a function of the sequence's live rows. All of them when there is no whole group yet.
uint64_t Cache::to_code(int64_t sequence, int64_t block) const {
  const uint64_t live = live_[sequence * blocks_ + block];
  if (block != last_[sequence] || open_rows_ == 1) return live;
  const int rows = 64 - std::countl_zero(live);
  const uint64_t whole = live & bits_between(0, rows - rows % open_rows_);
  return whole != 0 ? whole : live;
}

void Cache::grew(int64_t sequence, int64_t block) {
  if (block > last_[sequence]) mark_if_changed(sequence, std::exchange(last_[sequence], block));
  mark_if_changed(sequence, block);
}

void Cache::append(int64_t sequence, int64_t first, int64_t count) {
  for (int64_t b = first / block_tokens; b < blocks_of(first + count); b++) {
    const uint64_t rows = bits_between(first - b * block_tokens, first + count - b * block_tokens);
    live_[sequence * blocks_ + b] |= rows;
    if ((coded(sequence, b) & rows) != 0) marked_[sequence * blocks_ + b] = all_marks_;  // written again
    grew(sequence, b);
  }
  lengths_[sequence] = std::max(lengths_[sequence], first + count);
}

void Cache::truncate(int64_t sequence, int64_t length) {
  for (int64_t b = length / block_tokens; b < blocks_; b++) {  // rows that only a step has seen may lie past the length
    uint64_t& live = live_[sequence * blocks_ + b];
    live &= bits_between(0, length - b * block_tokens);
    mark_if_changed(sequence, b);
  }
  int64_t& last = last_[sequence];
  while (last >= 0 && live_[sequence * blocks_ + last] == 0) last--;
  mark_if_changed(sequence, last);
  lengths_[sequence] = std::min(lengths_[sequence], length);
}

void Cache::clear(int64_t sequence) {
  for (int64_t s = 0; s < params.sequences; s++)
    if (sequence == s || sequence == -1) truncate(s, 0);
}

void Cache::invalidate() { std::fill(marked_.begin(), marked_.end(), all_marks_); }

void Cache::encode(Coded kind, const adamas_rows& view, int64_t sequence, int64_t block, int kv_head, float* scratch) {
  const bool keys = kind == Coded::keys;
  if (!(marked_[sequence * blocks_ + block] & (keys ? keys_mark : values_mark))) return;
  const uint64_t coded = to_code(sequence, block);
  Rows rows = rows_of(view, sequence, kv_head);
  rows.data += block * block_tokens * rows.stride;
  if (keys && quest_) {
    const int pages = block_tokens / quest_page;
    float* bounds = quest_.get() + (head(sequence, kv_head) * blocks_ + block) * pages * 2 * params.head_dim;
    for (int p = 0; p < pages; p++, bounds += 2 * params.head_dim)
      adamas::quest_bounds(rows, params.head_dim, p * quest_page, coded >> (p * quest_page) & 0xFFFF, bounds,
                           bounds + params.head_dim);
  }
  const Codes codes = keys ? this->codes(sequence, kv_head) : values(sequence, kv_head);
  encode_block(rows, params.head_dim, coded, block == 0, keys ? coding_of(config) : Coding::by_block, !rotated(kind), codes.block(block),
               scratch);
}

Codes Cache::codes(int64_t sequence, int kv_head) const { return keys_.codes(head(sequence, kv_head)); }
Codes Cache::values(int64_t sequence, int kv_head) const { return values_.codes(head(sequence, kv_head)); }

const float* Cache::quest_bounds(int64_t sequence, int kv_head) const {
  const int64_t pages = blocks_ * (block_tokens / quest_page);
  return quest_.get() + head(sequence, kv_head) * pages * 2 * params.head_dim;
}

int64_t Cache::bytes() const {
  const int64_t heads = params.sequences * params.kv_heads;
  const int64_t quest = quest_ ? heads * blocks_ * (block_tokens / quest_page) * 2 * params.head_dim * 4 : 0;
  return heads * (keys_.head_bytes() + values_.head_bytes()) + quest + int64_t(live_.size()) * 17;
}

}  // namespace adamas
