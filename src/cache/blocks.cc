#include "cache/blocks.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <new>
#include <utility>

#include "core/memory.h"

namespace adamas {
namespace {

int32_t place_limit(int64_t pool) {
  if (pool >= std::numeric_limits<int32_t>::max()) throw std::bad_alloc();
  return int32_t(pool);
}

}  // namespace

Blocks::Blocks(const Shape& shape)
    : shape_(shape),
      nowhere_(place_limit(shape.pool)),
      table_(product(shape.sequences, shape.blocks), nowhere_),
      live_(shape.pool + 1),
      coded_(shape.pool + 1),
      wanted_(shape.pool + 1),
      marks_(shape.pool + 1),
      first_(shape.by_page ? shape.pool + 1 : 0),
      users_(shape.pool + 1),
      taken_((shape.pool + 63) / 64),
      lengths_(shape.sequences),
      last_(shape.sequences, -1),
      strays_(shape.sequences) {}

int64_t Blocks::bytes() const {
  return int64_t(table_.size() * sizeof table_[0] + users_.size() * sizeof users_[0] + 3 * live_.size() * sizeof live_[0] +
                 marks_.size() + first_.size());
}

bool Blocks::owned(int64_t sequence, int64_t block) const { return shape_.by_page || users_[place(sequence, block)] == 1; }

// Gives a block another place. Returns the one that it had.
int32_t Blocks::put(int64_t sequence, int64_t block, int32_t at) {
  int32_t& now = table_[sequence * shape_.blocks + block];
  const auto strays = [&](int32_t place) { return place != nowhere_ && place != first_place(sequence) + block; };
  strays_[sequence] += strays(at) - strays(now);
  return std::exchange(now, at);
}

// The first free place from here on, round the pool; nowhere when all are taken.
int32_t Blocks::find_free(int64_t from) const {
  if (used_ == shape_.pool) return nowhere_;
  const int64_t words = int64_t(taken_.size());
  for (int64_t i = 0, word = from / 64; i <= words; i++, word = (word + 1) % words) {
    uint64_t free = ~taken_[word];
    if (i == 0) free &= ~uint64_t{0} << from % 64;
    if (free == 0) continue;
    if (const int64_t found = word * 64 + std::countr_zero(free); found < shape_.pool) return int32_t(found);
  }
  return nowhere_;
}

// The place of a block that nobody else has: its own, or a free one, after the block before it where that can be. What lies
// side by side is read as one stream; as long as nothing is shared, all of a sequence does.
int32_t Blocks::own(int64_t sequence, int64_t block) {
  if (owned(sequence, block)) return place(sequence, block);
  const int64_t before = block > 0 ? place(sequence, block - 1) : nowhere_;
  const int32_t free = find_free((before != nowhere_ ? before + 1 : first_place(sequence) + block) % shape_.pool);
  if (free == nowhere_) throw std::bad_alloc();  // nobody asked whether it fits
  used_++;
  taken_[free / 64] |= uint64_t{1} << free % 64;
  users_[free] = 1;
  marks_[free] = 0;
  if (const int32_t shared = put(sequence, block, free); shared != nowhere_) {
    users_[shared]--;
    live_[free] = live_[shared];
    wanted_[free] = wanted_[shared];
    marks_[free] = shape_.marks;
  }
  return free;
}

void Blocks::release(int64_t sequence, int64_t block) {
  const int32_t at = put(sequence, block, nowhere_);
  if (at == nowhere_ || --users_[at] > 0) return;
  used_--;
  taken_[at / 64] &= ~(uint64_t{1} << at % 64);
  live_[at] = coded_[at] = wanted_[at] = 0;
}

// The rows of a block that are to have codes: a function of the sequence's live rows. All of them when there is no whole
// group yet.
uint64_t Blocks::rows_to_encode(int64_t sequence, int64_t block) const {
  const uint64_t rows = live(sequence, block);
  if (block != last_[sequence] || shape_.open_rows == 1) return rows;
  const int end = 64 - std::countl_zero(rows);
  const uint64_t whole = rows & bits_between(0, end - end % shape_.open_rows);
  return whole != 0 ? whole : rows;
}

// Marks a block if other rows are to have codes than before. False: it is stuck.
bool Blocks::settle(int64_t sequence, int64_t block) {
  if (block < 0) return true;
  const uint64_t rows = rows_to_encode(sequence, block);
  if (rows == wanted(sequence, block)) return true;
  if (stuck(sequence, block)) return false;
  const int32_t at = own(sequence, block);
  wanted_[at] = rows;
  if (rows != coded_[at]) marks_[at] = shape_.marks;
  return true;
}

void Blocks::grow(int64_t sequence, int64_t block, uint64_t rows) {
  live_[own(sequence, block)] |= rows;
  const int64_t last = last_[sequence];
  if (block > last) {
    last_[sequence] = block;
    if (!settle(sequence, last)) throw std::bad_alloc();  // nobody asked whether it fits
  }
  settle(sequence, block);
}

void Blocks::append(int64_t sequence, int64_t first, int64_t count) {
  for (int64_t b = first / block_tokens; b < blocks_of(first + count); b++) {
    const uint64_t rows = bits_between(first - b * block_tokens, first + count - b * block_tokens);
    grow(sequence, b, rows);
    if (const int32_t at = own(sequence, b); (coded_[at] & rows) != 0) marks_[at] = shape_.marks;  // written again
  }
  lengths_[sequence] = shape_.by_page ? first + count : std::max(lengths_[sequence], first + count);
}

void Blocks::truncate(int64_t sequence, int64_t length) {
  if (shape_.by_page)  // the rows that a cut block has left follow with the next table
    for (int64_t b = blocks_of(length); b < shape_.blocks; b++) put(sequence, b, nowhere_);
  // Rows that only a step has seen may lie past the length.
  for (int64_t b = length / block_tokens; b < shape_.blocks && !shape_.by_page; b++) {
    const uint64_t rows = live(sequence, b), kept = rows & bits_between(0, length - b * block_tokens);
    if (kept == rows) continue;
    if (kept == 0 || stuck(sequence, b)) {
      release(sequence, b);
      continue;
    }
    live_[own(sequence, b)] = kept;
    settle(sequence, b);
  }
  settle_last(sequence);
  lengths_[sequence] = std::min(lengths_[sequence], length);
}

// After blocks were cut.
void Blocks::settle_last(int64_t sequence) {
  int64_t& last = last_[sequence];
  for (;; release(sequence, last)) {
    while (last >= 0 && live(sequence, last) == 0) last--;
    if (settle(sequence, last)) return;
  }
}

void Blocks::share(int64_t from, int64_t to, int64_t length) {
  if (from != to) {
    truncate(to, 0);
    for (int64_t b = 0; b < blocks_of(length); b++) {
      const int32_t at = place(from, b);
      put(to, b, at);
      if (at == nowhere_) continue;
      users_[at]++;
      last_[to] = b;
    }
    lengths_[to] = lengths_[from];
  }
  truncate(to, length);
}

void Blocks::invalidate() { std::fill_n(marks_.begin(), shape_.pool, shape_.marks); }

void Blocks::place_pages(int64_t sequence, const int32_t* pages, int64_t blocks_of_page, int64_t length) {
  const int64_t before = std::exchange(last_[sequence], blocks_of(length) - 1);
  for (int64_t b = 0; b <= std::max(before, last_[sequence]); b++) {
    if (b > last_[sequence]) {
      put(sequence, b, nowhere_);
      continue;
    }
    const auto at = int32_t(pages[b / blocks_of_page] * blocks_of_page + b % blocks_of_page);
    put(sequence, b, at);
    live_[at] = bits_between(0, length - b * block_tokens);
    if (std::exchange(first_[at], b == 0) != (b == 0)) marks_[at] = shape_.marks;
    settle(sequence, b);
  }
}

bool Blocks::fits(int64_t sequence, int64_t first, int64_t end, bool written) const {
  if (shape_.by_page || shape_.pool >= shape_.sequences * shape_.blocks) return true;
  int64_t lacking = 0;
  for (int64_t b = first / block_tokens; b < blocks_of(end); b++) {
    const uint64_t rows = bits_between(first - b * block_tokens, end - b * block_tokens);
    if (written || (rows & ~live(sequence, b)) != 0) lacking += !owned(sequence, b);
  }
  if (const int64_t last = last_[sequence]; last >= 0 && last < blocks_of(end) - 1) lacking += !owned(sequence, last);
  return lacking <= shape_.pool - used_;
}

}  // namespace adamas
