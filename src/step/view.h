// What one query row sees of its sequence.
#pragma once

#include <cstdint>

#include "adamas/adamas.h"
#include "core/memory.h"
#include "core/shape.h"
#include "prompt/prompt.h"

namespace adamas {

class Cache;

// Made once, by find_visible, and constant from then on.
struct View {
  int64_t tokens = 0;               // in view, before the mask
  int64_t visible = 0;              // of them, after it
  int64_t before = 0, behind = 0;   // visible tokens of the same context that lie elsewhere
  const uint64_t* bits = nullptr;   // [blocks of tokens] bit t of word b says that the row sees token 64 b + t
  const int32_t* blocks = nullptr;  // [active] blocks with a visible token, ascending
  int64_t active = 0;
  const float* bias = nullptr;  // [tokens]; NULL: no visible token has a bias other than 0

  // Scores lie active block after active block: the token at a position.
  int32_t token_at(int64_t position) const {
    return blocks[position / block_tokens] * block_tokens + int32_t(position % block_tokens);
  }
};

struct ViewRoom {
  explicit ViewRoom(int64_t blocks);

  Array<uint64_t> bits;   // [blocks]
  Array<int32_t> blocks;  // [blocks]
  Array<float> bias;      // [blocks * 64]
};

// Row `row` of sequence `batch` of a step, of whose tokens `length` are in view.
View find_visible(const adamas_step_params& p, int64_t batch, int64_t row, int64_t length, ViewRoom& room);

// The same as one of many: its bits [blocks of its tokens], and where its biases are.
PromptRow find_seen(const adamas_step_params& p, int64_t batch, int64_t row, int64_t length, uint64_t* bits);

// An active block whose scores codes do not tell alone.
struct PartialBlock {
  int64_t index;     // into the view's blocks
  uint64_t visible;  // the other tokens are hidden
  uint64_t always;   // must be attended to
};

// What codes do not say of a view: which of their tokens are hidden, and which must be attended to (sinks, recent and fresh
// ones). Made once, by find_uncoded, when codes are up to date.
struct Uncoded {
  const PartialBlock* partial = nullptr;  // [partial_count]
  int64_t partial_count = 0;
  const int32_t* always = nullptr;  // [always_count] visible tokens that must be attended to, ascending
  int64_t always_count = 0;
  const uint8_t* has_hidden_rows =
      nullptr;  // [active] a block's codes are of rows, too, that the query does not see; NULL: no block's are
};

struct UncodedRoom {
  explicit UncodedRoom(int64_t blocks);

  Array<PartialBlock> partial;     // [blocks]
  Array<int32_t> always;           // [blocks * 64]
  Array<uint8_t> has_hidden_rows;  // [blocks]
};

Uncoded find_uncoded(const View& view, const Cache& cache, int64_t sequence, const adamas_config& config, UncodedRoom& room);

}  // namespace adamas
