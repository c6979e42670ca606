// The codes of one layer's keys and the means of its values, for every sequence and KV head: which blocks need them
// (blocks.h), and where they lie (store.h).
#pragma once

#include <vector>

#include "cache/blocks.h"
#include "cache/store.h"
#include "codes/codes.h"
#include "core/config.h"

namespace adamas {

class Cache {
 public:
  Cache(const adamas_config& config, const adamas_cache_params& params);

  // What of a block is to be made anew.
  static constexpr uint8_t keys_mark = 1, values_mark = 2;

  Blocks blocks;

  void share(int64_t from, int64_t to, int64_t length);
  // By page, what the rows' own table says of a sequence; otherwise nothing.
  void place(int64_t sequence, const adamas_rows& rows, int64_t length);
  // The end of the rows that encoding a sequence's blocks up to that of row `length` - 1 may read.
  int64_t rows_end(int64_t sequence, int64_t length) const;

  // Makes the codes of one block and head from the rows of K, or the mean from those of V, unless they are right. Different
  // blocks, heads and kinds may be encoded at the same time.
  void encode_keys(const adamas_rows& k, int64_t sequence, int64_t block, int kv_head, float* scratch);
  void encode_values(const adamas_rows& v, int64_t sequence, int64_t block, int kv_head, float* scratch);
  void mark_encoded(int64_t sequence, int64_t block, bool values_too) {
    blocks.mark_encoded(sequence, block, values_too ? keys_mark | values_mark : keys_mark);
  }

  Codes codes(int64_t sequence, int kv_head) const { return store_.codes(kv_head, where(sequence)); }
  Means means(int64_t sequence, int kv_head) const { return store_.means(kv_head, where(sequence)); }  // has_means
  bool has_means() const { return blocks.shape().marks != keys_mark; }
  QuestBounds quest_bounds(int64_t sequence, int kv_head) const { return store_.bounds(kv_head, where(sequence)); }

  // What is kept of a block, kind after kind.
  void copy_block(int64_t sequence, int kv_head, int64_t block, std::byte* to) const {
    store_.copy(kv_head, blocks.places(sequence)[block], to);
  }

  int64_t length(int64_t sequence) const { return blocks.length(sequence); }
  uint64_t coded(int64_t sequence, int64_t block) const { return blocks.coded(sequence, block); }
  bool marked(int64_t sequence, int64_t block) const { return blocks.marks(sequence, block) != 0; }
  bool keys_marked(int64_t sequence, int64_t block) const { return (blocks.marks(sequence, block) & keys_mark) != 0; }
  int64_t bytes() const;  // of all places
  // Where the rotating check of a sequence's row hashes goes on.
  int64_t& next_verified(int64_t sequence) { return next_verified_[sequence]; }

  const adamas_config config;
  const adamas_cache_params params;

 private:
  // Of its whole sequence, whose first tokens this cache may not have.
  bool is_first(int64_t block) const { return block == 0 && params.origin == 0; }
  Where where(int64_t sequence) const {
    if (blocks.in_line(sequence)) return {nullptr, blocks.first_place(sequence)};
    return {blocks.places(sequence), 0};
  }

  Store store_;
  std::vector<int64_t> next_verified_;  // [sequences]
};

Coding coding_of(const adamas_config& config);
// Of a sequence's last block whole groups of so many rows have codes.
int open_rows(const adamas_config& config);

// Places of a cache's pool: as many as were asked for, or as every sequence needs when it is full.
int64_t pool_of(const adamas_cache_params& params);

}  // namespace adamas
