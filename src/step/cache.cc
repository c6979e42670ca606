#include "step/cache.h"

#include <algorithm>

#include "baselines/quest.h"

namespace adamas {

Coding coding_of(const adamas_config& config) {
  return config.preset == ADAMAS_PRESET_PAPER ? Coding::paper : Coding::by_block;
}

bool wants_values(const adamas_config& config) {
  return config.policy == ADAMAS_POLICY_ADAMAS && (config.tail != 0 || config.sketch != 0);
}

Cache::Store::Store(BlockLayout layout, int64_t blocks)
    : layout(layout), records(make_array<std::byte>(product(blocks, int64_t(layout.record_bytes())))),
      centre_scale(make_array<float>(blocks)), sigma(make_array<float>(blocks)) {}

Codes Cache::Store::codes(int64_t first_block) const {
  return {records.get() + first_block * int64_t(layout.record_bytes()), centre_scale.get() + first_block,
          sigma.get() + first_block, layout};
}

Cache::Cache(const adamas_config& config, const adamas_cache_params& params)
    : config(config), params(params), blocks_(blocks_of(params.capacity)),
      all_marks_(wants_values(config) ? keys_mark | values_mark : keys_mark) {
  const int64_t blocks = product(params.sequences, params.kv_heads, blocks_);
  keys_ = Store({params.head_dim, Coded::keys}, blocks);
  if (has_values()) values_ = Store({params.head_dim, Coded::values}, blocks);
  if (config.policy == ADAMAS_POLICY_QUEST)
    quest_ = make_array<float>(product(blocks, block_tokens / quest_page, 2, params.head_dim));
  live_.assign(product(params.sequences, blocks_), 0);
  marked_.assign(live_.size(), 0);
  lengths_.assign(params.sequences, 0);
}

void Cache::append(int64_t sequence, int64_t first, int64_t count) {
  for (int64_t b = first / block_tokens; b < blocks_of(first + count); b++) {
    live_[sequence * blocks_ + b] |= bits_between(first - b * block_tokens, first + count - b * block_tokens);
    marked_[sequence * blocks_ + b] = all_marks_;
  }
  lengths_[sequence] = std::max(lengths_[sequence], first + count);
}

void Cache::truncate(int64_t sequence, int64_t length) {
  for (int64_t b = length / block_tokens; b < blocks_; b++) {  // rows that only a step has seen may lie past the length
    uint64_t& live = live_[sequence * blocks_ + b];
    const uint64_t kept = live & bits_between(0, length - b * block_tokens);
    if (kept != live) marked_[sequence * blocks_ + b] = all_marks_;
    live = kept;
  }
  lengths_[sequence] = std::min(lengths_[sequence], length);
}

void Cache::clear(int64_t sequence) {
  for (int64_t s = 0; s < params.sequences; s++)
    if (sequence == s || sequence == -1) truncate(s, 0);
}

void Cache::invalidate() { std::fill(marked_.begin(), marked_.end(), all_marks_); }

void Cache::encode(Coded coded, const adamas_rows& view, int64_t sequence, int64_t block, int kv_head, float* scratch) {
  const bool keys = coded == Coded::keys;
  if (!(marked_[sequence * blocks_ + block] & (keys ? keys_mark : values_mark))) return;
  const uint64_t live = live_[sequence * blocks_ + block];
  Rows rows = rows_of(view, sequence, kv_head);
  rows.data += block * block_tokens * rows.stride;
  if (keys && quest_) {
    const int pages = block_tokens / quest_page;
    float* bounds = quest_.get() + (first_block(sequence, kv_head) + block) * pages * 2 * params.head_dim;
    for (int p = 0; p < pages; p++, bounds += 2 * params.head_dim)
      adamas::quest_bounds(rows, params.head_dim, p * quest_page, live >> (p * quest_page) & 0xFFFF, bounds,
                           bounds + params.head_dim);
  }
  const Codes codes = keys ? this->codes(sequence, kv_head) : values(sequence, kv_head);
  encode_block(rows, params.head_dim, live, block == 0, keys ? coding_of(config) : Coding::by_block, !rotated(coded), codes.block(block),
               scratch);
}

Codes Cache::codes(int64_t sequence, int kv_head) const { return keys_.codes(first_block(sequence, kv_head)); }
Codes Cache::values(int64_t sequence, int kv_head) const { return values_.codes(first_block(sequence, kv_head)); }

const float* Cache::quest_bounds(int64_t sequence, int kv_head) const {
  const int64_t pages = blocks_ * (block_tokens / quest_page);
  return quest_.get() + (sequence * params.kv_heads + kv_head) * pages * 2 * params.head_dim;
}

int64_t Cache::bytes() const {
  const int64_t blocks = params.sequences * params.kv_heads * blocks_;
  const int64_t quest = quest_ ? blocks * (block_tokens / quest_page) * 2 * params.head_dim * 4 : 0;
  return blocks * (keys_.block_bytes() + values_.block_bytes()) + quest + int64_t(live_.size()) * 9;
}

}  // namespace adamas
