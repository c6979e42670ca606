// The codes of one layer's keys and the means of its values, for every sequence and KV head, and what is known of their
// rows.
//
// A row is live once it was appended (or seen by a step). A block whose rows that are to have codes changed is marked, and
// encoded when it is next needed: appending, truncating, overwriting and repairing are that one operation.
//
// All live rows have codes, but for the newest few: of a sequence's last block only whole groups of `open_rows` are encoded,
// and the up to 15 fresh rows after them are read as they are. Encoding that block anew for every token would cost a tenth
// of a step at 8K.
#pragma once

#include <vector>

#include "codes/codes.h"
#include "core/config.h"
#include "core/memory.h"

namespace adamas {

class Cache {
 public:
  Cache(const adamas_config& config, const adamas_cache_params& params);

  void append(int64_t sequence, int64_t first, int64_t count);
  void truncate(int64_t sequence, int64_t length);
  void clear(int64_t sequence);
  void invalidate();

  // The visible rows of a block become live.
  void mark_live(int64_t sequence, int64_t block, uint64_t visible) {
    if (uint64_t& live = live_[sequence * blocks_ + block]; (visible & ~live) != 0) {
      live |= visible;
      grew(sequence, block);
    }
  }
  // Makes the codes of one block and head from the rows of K, or the mean from those of V, unless they are right. Different
  // blocks, heads and kinds may be encoded at the same time.
  void encode_keys(const adamas_rows& k, int64_t sequence, int64_t block, int kv_head, float* scratch);
  void encode_values(const adamas_rows& v, int64_t sequence, int64_t block, int kv_head, float* scratch);
  void mark_encoded(int64_t sequence, int64_t block, bool values_too) {
    marked_[sequence * blocks_ + block] &= values_too ? 0 : values_mark;
    coded_[sequence * blocks_ + block] = rows_to_encode(sequence, block);
  }

  Codes codes(int64_t sequence, int kv_head) const;
  Means means(int64_t sequence, int kv_head) const;  // when has_means
  bool has_means() const { return all_marks_ != keys_mark; }
  const float* quest_bounds(int64_t sequence, int kv_head) const;  // [pages, 2, head_dim]

  int64_t length(int64_t sequence) const { return lengths_[sequence]; }
  // The rows of a block that its codes are made from.
  uint64_t coded(int64_t sequence, int64_t block) const { return coded_[sequence * blocks_ + block]; }
  bool marked(int64_t sequence, int64_t block) const { return marked_[sequence * blocks_ + block] != 0; }
  bool keys_marked(int64_t sequence, int64_t block) const { return marked_[sequence * blocks_ + block] & keys_mark; }
  int64_t bytes() const;
  // Where the rotating check of a sequence's row hashes goes on.
  int64_t& next_verified(int64_t sequence) { return next_verified_[sequence]; }

  const adamas_config config;
  const adamas_cache_params params;

 private:
  static constexpr uint8_t keys_mark = 1, values_mark = 2;

  uint64_t rows_to_encode(int64_t sequence, int64_t block) const;
  void mark_if_changed(int64_t sequence, int64_t block) {
    if (block >= 0 && rows_to_encode(sequence, block) != coded(sequence, block))
      marked_[sequence * blocks_ + block] = all_marks_;
  }
  void grew(int64_t sequence, int64_t block);  // has new live rows

  int64_t head(int64_t sequence, int kv_head) const { return sequence * params.kv_heads + kv_head; }

  int64_t blocks_;  // of a sequence
  uint8_t all_marks_;
  int open_rows_;
  BlockLayout layout_;
  Array<std::byte> codes_;              // [sequences, kv_heads, head_bytes]
  Array<float> centre_scale_;           // [sequences, kv_heads, blocks]
  Array<float> sigma_;                  // [sequences, kv_heads, blocks]
  Array<int16_t> mean_;                 // [sequences, kv_heads, blocks, head_dim]; NULL when nobody asks for means
  Array<float> mean_scale_;             // [sequences, kv_heads, blocks]
  Array<float> quest_;                  // [sequences, kv_heads, pages, 2, head_dim], for the policy quest
  std::vector<uint64_t> live_, coded_;  // [sequences, blocks]
  std::vector<uint8_t> marked_;         // [sequences, blocks]
  std::vector<int64_t> lengths_, last_, next_verified_;  // [sequences]
};

Coding coding_of(const adamas_config& config);

}  // namespace adamas
