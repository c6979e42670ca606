#include "step/cache.h"

#include <algorithm>

#include "baselines/quest.h"

namespace adamas {

Coding coding_of(const adamas_config& config) {
  return config.preset == ADAMAS_PRESET_PAPER ? Coding::paper : Coding::by_block;
}

Cache::Cache(const adamas_config& config, const adamas_cache_params& params)
    : config(config), params(params), blocks_(blocks_of(params.capacity)), layout_{params.head_dim} {
  const int64_t blocks = product(params.sequences, params.kv_heads, blocks_);
  records_ = make_array<std::byte>(product(blocks, int64_t(layout_.record_bytes())));
  centre_scale_ = make_array<float>(blocks);
  sigma_ = make_array<float>(blocks);
  if (config.policy == ADAMAS_POLICY_QUEST)
    quest_ = make_array<float>(product(blocks, block_tokens / quest_page, 2, params.head_dim));
  live_.assign(product(params.sequences, blocks_), 0);
  marked_.assign(live_.size(), 0);
  lengths_.assign(params.sequences, 0);
}

void Cache::append(int64_t sequence, int64_t first, int64_t count) {
  for (int64_t b = first / block_tokens; b < blocks_of(first + count); b++) {
    live_[sequence * blocks_ + b] |= bits_between(first - b * block_tokens, first + count - b * block_tokens);
    marked_[sequence * blocks_ + b] = 1;
  }
  lengths_[sequence] = std::max(lengths_[sequence], first + count);
}

void Cache::truncate(int64_t sequence, int64_t length) {
  for (int64_t b = length / block_tokens; b < blocks_; b++) {  // rows that only a step has seen may lie past the length
    uint64_t& live = live_[sequence * blocks_ + b];
    const uint64_t kept = live & bits_between(0, length - b * block_tokens);
    if (kept != live) marked_[sequence * blocks_ + b] = 1;
    live = kept;
  }
  lengths_[sequence] = std::min(lengths_[sequence], length);
}

void Cache::clear(int64_t sequence) {
  for (int64_t s = 0; s < params.sequences; s++)
    if (sequence == s || sequence == -1) truncate(s, 0);
}

void Cache::invalidate() { std::fill(marked_.begin(), marked_.end(), 1); }

void Cache::encode(const adamas_rows& k, int64_t sequence, int64_t block, int kv_head, float* scratch) {
  Rows rows = rows_of(k, sequence, kv_head);
  const uint64_t live = live_[sequence * blocks_ + block];
  if (quest_) {
    const int pages = block_tokens / quest_page;
    float* bounds = quest_.get() +
                    ((sequence * params.kv_heads + kv_head) * blocks_ + block) * pages * 2 * params.head_dim;
    for (int p = 0; p < pages; p++, bounds += 2 * params.head_dim)
      adamas::quest_bounds(rows, params.head_dim, block * block_tokens + p * quest_page,
                           live >> (p * quest_page) & 0xFFFF, bounds, bounds + params.head_dim);
  }
  rows.data += block * block_tokens * rows.stride;
  encode_block(rows, params.head_dim, live, block == 0, coding_of(config), codes(sequence, kv_head).block(block), scratch);
}

Codes Cache::codes(int64_t sequence, int kv_head) const {
  const int64_t first = (sequence * params.kv_heads + kv_head) * blocks_;
  return {records_.get() + first * int64_t(layout_.record_bytes()), centre_scale_.get() + first, sigma_.get() + first,
          layout_};
}

const float* Cache::quest_bounds(int64_t sequence, int kv_head) const {
  const int64_t pages = blocks_ * (block_tokens / quest_page);
  return quest_.get() + (sequence * params.kv_heads + kv_head) * pages * 2 * params.head_dim;
}

int64_t Cache::bytes() const {
  const int64_t blocks = params.sequences * params.kv_heads * blocks_;
  const int64_t quest = quest_ ? blocks * (block_tokens / quest_page) * 2 * params.head_dim * 4 : 0;
  return blocks * (int64_t(layout_.record_bytes()) + 8) + quest + int64_t(live_.size()) * 9;
}

}  // namespace adamas
