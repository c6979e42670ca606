// What the process's KV caches are, and whether somebody changed one where our back end could not see it.
//
// A cache's keys change in four ways:
//   SET_ROWS that we compute    rows are known, codes are marked row by row
//   SET_ROWS left to the CPU    while a cache is too short to go sparse we stay out of its graphs (speed)
//   other graph operations      a context shift turns the keys in place (ROPE)
//   no graph operation at all   state restore, slot load, sequence copy, clear: the buffer's own functions
// The last three raise the cache's `changes`; the next sparse step then forgets the codes and makes them anew. Graph
// operations show themselves when the scheduler asks what we support (claims.h). For the buffer's functions we put our own
// in front (hooks.h). Beneath all that lie the core's hashes of every key row, checked whenever a row is read: they also
// find what nobody announced.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "nodes.h"

namespace adamas_ggml {

// What belongs to the graph that is being planned, or was planned last: what its nodes have shown of one cache of keys. It
// only grows, to the larger of what two nodes show, and begins anew with the next graph. So a node that was shown already
// adds nothing, however often and in whatever order the scheduler asks.
struct Planned {
  // Who changes the keys. `left` is a SET_ROWS that we could compute and by what was shown so far do not: a later node may
  // make it ours. What was once ours stays it, for the scheduler takes us at our word and asks no more.
  enum class Writes { none, left, ours, unfollowed };

  bool served = false;  // Known::served when the graph began: what the graph itself teaches counts from the next one on
  int64_t n_kv = 0;     // cells that its attention sees; 0: not shown
  Writes writes = Writes::none;

  void show(int64_t cells) { n_kv = std::max(n_kv, cells); }
  void show(Writes by) { writes = std::max(writes, by); }
  // Computing the graph changes keys where we do not see it.
  bool unseen_writes() const { return writes == Writes::left || writes == Writes::unfollowed; }
};

// What is known of one cache tensor, K or V of a layer, from graph to graph.
struct Known {
  enum ggml_type type;
  int32_t layer;
  int64_t width, capacity, streams;
  ggml_backend_buffer_t buffer;

  const void* keys = nullptr;  // of a V cache: the data of the K cache beside it
  int64_t n_kv = 0;            // cells that the attention of an earlier graph saw
  bool served = false;         // its attention is of a kind that we compute, with these heads
  Heads heads{};
  bool rotated = false;  // the rows that the engine writes come out of its rotation
  bool grew = false;     // a graph over less than the whole capacity was seen
  uint64_t changes = 1;  // before the planned graph
  const void* writer = nullptr;
  Planned planned{};
};

class Registry {
 public:
  std::mutex mutex;  // held by who calls these

  // NULL while the cache has no memory (the engine's dry run that only measures) or lies on another device.
  Known* find_or_register(const CacheTensor& cache);
  Known* find(const void* data) {
    const auto known = caches_.find(data);
    return known != caches_.end() ? &known->second : nullptr;
  }
  // The scheduler begins to plan another graph with this cache in it.
  void begin_graph(const CacheTensor& cache);
  // A tensor was changed, or with NULL all that lies in the buffer.
  void note_change(ggml_backend_buffer_t buffer, const ggml_tensor* tensor);

 private:
  std::unordered_map<const void*, Known> caches_;  // by the data of their first row
};
Registry& registry();

// How a row of this cache of keys divides and what of it is rotated, once an attention over it was seen that we could
// compute.
std::optional<Heads> heads_of(const CacheTensor& cache);
// The data of the keys that an attention reads together with these values; NULL: none was seen.
const void* keys_beside(const CacheTensor& values);

// Changes of this cache that were not followed; a number to compare, not a count of rows.
uint64_t changes_of(const CacheTensor& cache);
// `writer` writes rows of this cache itself. A second writer's rows are unseen by the first.
void wrote(const CacheTensor& cache, const void* writer);

}  // namespace adamas_ggml
