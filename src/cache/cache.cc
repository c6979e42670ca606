#include "cache/cache.h"

#include <algorithm>
#include <bit>

#include "device/device.h"

namespace adamas {
namespace {

Rows rows_of_block(const adamas_rows& rows, int64_t sequence, int64_t block, int kv_head) {
  return rows_of(rows, sequence, kv_head, (block + 1) * block_tokens).from(block * block_tokens);
}

}  // namespace

// Fresh rows are always attended to, so they need room in a fixed budget; the baselines choose by codes alone.
int open_rows(const adamas_config& config) {
  constexpr int rows = 16;
  const bool has_room = has_rest(config) || config.budget - config.sinks - config.recent >= 4 * rows;
  return config.policy == ADAMAS_POLICY_ADAMAS && coding_of(config) == Coding::by_block && has_room ? rows : 1;
}

Coding coding_of(const adamas_config& config) {
  return config.preset == ADAMAS_PRESET_PAPER ? Coding::paper : Coding::by_block;
}

int64_t pool_of(const adamas_cache_params& params) {
  return params.blocks != 0 ? params.blocks : product(params.sequences, blocks_of(params.capacity));
}

Cache::Cache(const adamas_config& config, const adamas_cache_params& params)
    : blocks({params.sequences, blocks_of(params.capacity), pool_of(params), open_rows(config),
              uint8_t(has_rest(config) ? keys_mark | values_mark : keys_mark), params.by_page != 0}),
      config(config),
      params(params),
      store_(config, params, pool_of(params)),
      next_verified_(params.sequences) {}

void Cache::share(int64_t from, int64_t to, int64_t length) {
  blocks.share(from, to, length);
  if (from != to) next_verified_[to] = 0;
}

void Cache::place(int64_t sequence, const adamas_rows& rows, int64_t length) {
  if (params.by_page == 0) return;
  blocks.place_pages(sequence, rows.pages->table + sequence * rows.pages->stride, rows.pages->page_tokens / block_tokens,
                     length);
}

int64_t Cache::rows_end(int64_t sequence, int64_t length) const {
  if (length == 0 || params.by_page != 0) return length;
  const int64_t block = (length - 1) / block_tokens;
  return std::max(length, block * block_tokens + 64 - std::countl_zero(blocks.live(sequence, block)));
}

void Cache::encode_keys(const adamas_rows& k, int64_t sequence, int64_t block, int kv_head, float* scratch) {
  if (!keys_marked(sequence, block)) return;
  const uint64_t rows_of_codes = blocks.wanted(sequence, block);
  const Rows rows = rows_of_block(k, sequence, block, kv_head);
  if (config.policy == ADAMAS_POLICY_QUEST) {
    float* bounds = quest_bounds(sequence, kv_head).of(block);
    for (int p = 0; p < block_tokens / quest_page; p++, bounds += 2 * params.head_dim)
      adamas::quest_bounds(rows, params.head_dim, p * quest_page, rows_of_codes >> (p * quest_page) & 0xFFFF, bounds,
                           bounds + params.head_dim);
  }
  device_of(params.device)
      .encode_block(rows, params.head_dim, rows_of_codes, is_first(block), coding_of(config), params.rotated == 0,
                    codes(sequence, kv_head).block(block), scratch);
}

void Cache::encode_values(const adamas_rows& v, int64_t sequence, int64_t block, int kv_head, float* scratch) {
  if ((blocks.marks(sequence, block) & values_mark) == 0) return;
  const Means to = means(sequence, kv_head);
  device_of(params.device)
      .encode_mean(rows_of_block(v, sequence, block, kv_head), params.head_dim, blocks.wanted(sequence, block),
                   is_first(block), to.mean_of(block), to.scale_of(block), scratch);
}

int64_t Cache::bytes() const {
  int64_t of_block = 0;
  for (const Kind& kind : kinds_of(config, params.head_dim)) of_block += kind.bytes;
  return blocks.shape().pool * params.kv_heads * of_block + blocks.bytes();
}

}  // namespace adamas
