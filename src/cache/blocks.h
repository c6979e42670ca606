// Which rows a block has, where it lies, and who shares it. Bookkeeping alone: no row is read here, and no code is made.
//
// Blocks lie in a pool, each at its place, and a sequence has a table of places: of its first 64 tokens, of the next 64, and
// so on. Sequences that begin alike share places (share). A sequence whose rows change gets a place of its own first, so
// that nobody else's change with them; a place that nobody has any more is free, and forgets its rows.
//
// A row is live once it was appended (or seen by a step). A block whose rows that are to have codes changed is marked, and
// encoded when it is next needed: appending, truncating, overwriting and repairing are that one operation.
//
// All live rows have codes, but for the newest few: of a sequence's last block only whole groups of `open_rows` are encoded,
// and the up to 15 fresh rows after them are read as they are. Encoding that block anew for every token would cost a tenth
// of a step at 8K. So what a block's codes are made of follows from its own live rows and from being a sequence's last
// block; sharers always agree on it.
//
// By page, an engine owns the places (place_pages): it says where a sequence's blocks lie, and the sequence's rows are then
// its first `length` tokens, whatever was there before. Nothing is shared or freed here: the engine's table says that.
#pragma once

#include <cstdint>
#include <vector>

#include "codes/layout.h"

namespace adamas {

class Blocks {
 public:
  struct Shape {
    int64_t sequences, blocks;  // blocks: of a sequence, at most
    int64_t pool;               // places
    int open_rows;
    uint8_t marks;  // what a changed block needs
    bool by_page;
  };
  explicit Blocks(const Shape& shape);

  // Rows [first, first + count) were written. There has to be room for them (fits).
  void append(int64_t sequence, int64_t first, int64_t count);
  // Rows from `length` on are gone. What needs a place for that and finds none is gone as well: it is encoded again when a
  // step sees it.
  void truncate(int64_t sequence, int64_t length);
  // `to` becomes the first `length` tokens of `from`.
  void share(int64_t from, int64_t to, int64_t length);
  // Every block's rows may have changed.
  void invalidate();
  // The visible rows of a block become live. There has to be room for them (fits).
  void mark_live(int64_t sequence, int64_t block, uint64_t visible) {
    if ((visible & ~live_[place(sequence, block)]) != 0) grow(sequence, block, visible);
  }
  // By page: the sequence has `length` tokens, and they lie in these pages of so many blocks.
  void place_pages(int64_t sequence, const int32_t* pages, int64_t blocks_of_page, int64_t length);

  // Whether there are places for rows [first, end) of a sequence, written or seen: for blocks that have none, and for shared
  // ones that change.
  bool fits(int64_t sequence, int64_t first, int64_t end, bool written) const;

  // Where a sequence's blocks lie. They lie in line, at first_place and after it, until something is shared or freed pieces
  // are used again: then nothing has to be looked up.
  Places places(int64_t sequence) const { return table_.data() + sequence * shape_.blocks; }
  bool in_line(int64_t sequence) const { return strays_[sequence] == 0; }
  int64_t first_place(int64_t sequence) const { return sequence * shape_.blocks; }
  int64_t length(int64_t sequence) const { return lengths_[sequence]; }
  uint64_t live(int64_t sequence, int64_t block) const { return live_[place(sequence, block)]; }
  // The rows that a block's codes are made from, and those that they are to be made from.
  uint64_t coded(int64_t sequence, int64_t block) const { return coded_[place(sequence, block)]; }
  uint64_t wanted(int64_t sequence, int64_t block) const { return wanted_[place(sequence, block)]; }
  uint8_t marks(int64_t sequence, int64_t block) const { return marks_[place(sequence, block)]; }
  void mark_encoded(int64_t sequence, int64_t block, uint8_t marks) {
    const int32_t at = place(sequence, block);
    marks_[at] &= uint8_t(~marks);
    coded_[at] = wanted_[at];
  }
  int64_t used() const { return used_; }  // places
  const Shape& shape() const { return shape_; }
  int64_t bytes() const;  // of all this

 private:
  int32_t put(int64_t sequence, int64_t block, int32_t at);
  int32_t place(int64_t sequence, int64_t block) const { return table_[sequence * shape_.blocks + block]; }
  bool owned(int64_t sequence, int64_t block) const;
  // It would need a place of its own to change, and there is none.
  bool stuck(int64_t sequence, int64_t block) const { return !owned(sequence, block) && used_ == shape_.pool; }
  int32_t find_free(int64_t from) const;
  int32_t own(int64_t sequence, int64_t block);
  void release(int64_t sequence, int64_t block);
  uint64_t rows_to_encode(int64_t sequence, int64_t block) const;
  bool settle(int64_t sequence, int64_t block);
  void settle_last(int64_t sequence);
  void grow(int64_t sequence, int64_t block, uint64_t rows);

  const Shape shape_;
  const int32_t nowhere_;       // the place of a block that has none: one more than the pool has, always empty
  std::vector<int32_t> table_;  // [sequences, blocks]
  std::vector<uint64_t> live_, coded_, wanted_;  // [pool + 1]
  std::vector<uint8_t> marks_;                   // [pool + 1]
  std::vector<uint8_t> first_;                   // [pool + 1] by page: whether it is a sequence's first block
  std::vector<int32_t> users_;                   // [pool + 1] sequences that have it in their tables
  std::vector<uint64_t> taken_;                  // [pool / 64] bit p of word w: place 64 w + p has users
  std::vector<int64_t> lengths_, last_;          // [sequences] last: the last block with live rows; -1: none
  std::vector<int64_t> strays_;                  // [sequences] blocks that do not lie in line
  int64_t used_ = 0;
};

}  // namespace adamas
