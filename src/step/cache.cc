#include "step/cache.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "baselines/quest.h"
#include "device/device.h"

namespace adamas {
namespace {

// Fresh rows are always attended to, so they need room in a fixed budget; the baselines choose by codes alone.
int open_rows(const adamas_config& config) {
  constexpr int rows = 16;
  const bool has_room = has_rest(config) || config.budget - config.sinks - config.recent >= 4 * rows;
  return config.policy == ADAMAS_POLICY_ADAMAS && coding_of(config) == Coding::by_block && has_room ? rows : 1;
}

}  // namespace

Coding coding_of(const adamas_config& config) {
  return config.preset == ADAMAS_PRESET_PAPER ? Coding::paper : Coding::by_block;
}

Cache::Cache(const adamas_config& config, const adamas_cache_params& params)
    : config(config),
      params(params),
      blocks_(blocks_of(params.capacity)),
      all_marks_(has_rest(config) ? keys_mark | values_mark : keys_mark),
      open_rows_(open_rows(config)),
      layout_{params.head_dim} {
  const int64_t heads = product(params.sequences, params.kv_heads);
  codes_ = make_array<std::byte>(product(heads, layout_.head_bytes(blocks_)));
  centre_scale_ = make_array<float>(product(heads, blocks_));
  sigma_ = make_array<float>(product(heads, blocks_));
  if (has_means()) {
    mean_ = make_array<int16_t>(product(heads, blocks_, params.head_dim));
    mean_scale_ = make_array<float>(product(heads, blocks_));
  }
  if (config.policy == ADAMAS_POLICY_QUEST)
    quest_ = make_array<float>(product(heads, blocks_, block_tokens / quest_page, 2, params.head_dim));
  live_.assign(product(params.sequences, blocks_), 0);
  coded_.assign(live_.size(), 0);
  marked_.assign(live_.size(), 0);
  lengths_.assign(params.sequences, 0);
  last_.assign(params.sequences, -1);
  next_verified_.assign(params.sequences, 0);
}

// The rows of a block that are to have codes: a function of the sequence's live rows. All of them when there is no whole
// group yet.
uint64_t Cache::rows_to_encode(int64_t sequence, int64_t block) const {
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

void Cache::encode_keys(const adamas_rows& k, int64_t sequence, int64_t block, int kv_head, float* scratch) {
  if (!keys_marked(sequence, block)) return;
  const uint64_t coded = rows_to_encode(sequence, block);
  const Rows rows = rows_of(k, sequence, kv_head).from(block * block_tokens);
  if (quest_) {
    const int pages = block_tokens / quest_page;
    float* bounds = quest_.get() + (head(sequence, kv_head) * blocks_ + block) * pages * 2 * params.head_dim;
    for (int p = 0; p < pages; p++, bounds += 2 * params.head_dim)
      adamas::quest_bounds(rows, params.head_dim, p * quest_page, coded >> (p * quest_page) & 0xFFFF, bounds,
                           bounds + params.head_dim);
  }
  device_of(params.device)
      .encode_block(rows, params.head_dim, coded, block == 0, coding_of(config), params.rotated == 0,
                    codes(sequence, kv_head).block(block), scratch);
}

void Cache::encode_values(const adamas_rows& v, int64_t sequence, int64_t block, int kv_head, float* scratch) {
  if (!(marked_[sequence * blocks_ + block] & values_mark)) return;
  const Means means = this->means(sequence, kv_head);
  device_of(params.device)
      .encode_mean(rows_of(v, sequence, kv_head).from(block * block_tokens), params.head_dim,
                   rows_to_encode(sequence, block), block == 0, means.mean + block * params.head_dim, means.scale + block,
                   scratch);
}

Codes Cache::codes(int64_t sequence, int kv_head) const {
  const int64_t h = head(sequence, kv_head);
  return {codes_.get() + h * layout_.head_bytes(blocks_), blocks_, centre_scale_.get() + h * blocks_,
          sigma_.get() + h * blocks_, layout_};
}

Means Cache::means(int64_t sequence, int kv_head) const {
  const int64_t first = head(sequence, kv_head) * blocks_;
  return {mean_.get() + first * params.head_dim, mean_scale_.get() + first};
}

const float* Cache::quest_bounds(int64_t sequence, int kv_head) const {
  const int64_t pages = blocks_ * (block_tokens / quest_page);
  return quest_.get() + head(sequence, kv_head) * pages * 2 * params.head_dim;
}

int64_t Cache::bytes() const {
  const int64_t heads = params.sequences * params.kv_heads;
  const int64_t quest = quest_ ? heads * blocks_ * (block_tokens / quest_page) * 2 * params.head_dim * 4 : 0;
  const int64_t keys = layout_.head_bytes(blocks_) + blocks_ * int64_t(2 * sizeof(float));
  const int64_t means = mean_ ? blocks_ * int64_t(layout_.centre_bytes() + sizeof(float)) : 0;
  return heads * (keys + means) + quest + int64_t(live_.size()) * 17;
}

}  // namespace adamas
