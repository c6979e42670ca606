// What the process's KV caches are and whether somebody changed one where our back end could not see it.
//
// A cache's keys change in four ways:
//   SET_ROWS that we compute    rows are known, codes are marked row by row
//   SET_ROWS left to the CPU    while a cache is too short to go sparse we stay out of its graphs (speed)
//   other graph operations      a context shift turns the keys in place (ROPE)
//   no graph operation at all   state restore, slot load, sequence copy, clear: the buffer's own functions
// The last three raise the cache's `changes`; the next sparse step then forgets the codes and makes them anew. Graph
// operations show themselves when the scheduler asks what we support. For the buffer's functions we put our own in
// front (set_tensor, cpy_tensor, memset_tensor, clear), which note the change and call the engine's. Beneath all that lie the
// core's hashes of every key row, checked whenever a row is read: they also find what nobody announced.
#pragma once

#include <cstdint>
#include <optional>

#include "adamas/adamas.h"
#include "nodes.h"

namespace adamas_ggml {

// The scheduler's question: do we compute this node? Called for every node of every graph that the engine builds.
bool claims(const ggml_tensor *node);

// So many rows of a sequence at once are a prompt: encoded when they are written, and read by the engine with ADAMAS_ROWS=decode. Fewer
// are decoding, one row of each sequence where several share the cells (unified KV), or drafted tokens, or a short prompt on top of a
// long context: encoded by the step that first looks at them, and sparse.
inline constexpr int64_t prompt_rows = ADAMAS_BLOCK_TOKENS;

// How a row of this cache of keys divides and what of it is rotated, once an attention over it was seen that we could compute.
std::optional<Heads> heads_of(const CacheTensor &cache);
// The data of the keys that an attention reads together with these values; NULL: none was seen.
const void *keys_beside(const CacheTensor &values);

// Changes of this cache that were not followed; a number to compare, not a count of rows.
uint64_t changes_of(const CacheTensor &cache);
// `writer` writes rows of this cache itself. A second writer's rows are unseen by the first.
void wrote(const CacheTensor &cache, const void *writer);

}  // namespace adamas_ggml
