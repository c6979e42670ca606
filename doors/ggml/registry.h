// What the process's KV caches are, and whether somebody changed one where our back end could not see it.
//
// A cache's keys change in four ways:
//   SET_ROWS that we compute    rows are known, codes are marked row by row
//   SET_ROWS left to the CPU    while a cache is too short to go sparse we stay out of its graphs (speed)
//   other graph operations      a context shift turns the keys in place (ROPE)
//   no graph operation at all   state restore, slot load, sequence copy, clear: the buffer's own functions
// The last three raise the cache's `changes`; the next sparse step then forgets the codes and makes them anew. Graph
// operations show themselves when the scheduler asks what we support. For the buffer's functions we put our own in
// front (hooks.h). Beneath all that lie
// the core's hashes of every key row, checked whenever a row is read: they also find what nobody announced.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "nodes.h"

namespace adamas_ggml {

// What is known of one cache tensor, K or V of a layer.
struct Known {
  enum ggml_type type;
  int32_t layer;
  int64_t width, capacity, streams;
  ggml_backend_buffer_t buffer;

  const void* keys = nullptr;  // of a V cache: the data of the K cache beside it
  int64_t n_kv = 0;            // cells in view of the graph that is being built, or of the one before
  bool served = false;         // its attention is of a kind that we compute, with these heads
  Heads heads{};
  bool rotated = false;          // the rows that the engine writes come out of its rotation
  bool grew = false;             // a graph over less than the whole capacity was seen
  bool writes_followed = false;  // SET_ROWS of the graph that is being built is ours
  uint64_t changes = 1;
  const void* writer = nullptr;
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
