// The codes of K caches and their life: made for the first step or batch that wants them, marked or made anew where rows are
// written, forgotten where keys changed unseen, dropped where a cache looks otherwise than it did.
#pragma once

#include <memory>
#include <unordered_map>

#include "nodes.h"

namespace adamas_ggml {

struct CacheDeleter {
  void operator()(adamas_cache* cache) const { adamas_cache_destroy(cache); }
};
using CachePointer = std::unique_ptr<adamas_cache, CacheDeleter>;
// Without codes as yet. NULL: adamas_last_error() has the sentence; so too below.
CachePointer make_cache(int32_t layer, Heads heads, int64_t sequences, int64_t capacity);

class Codes {
 public:
  adamas_cache* codes_for(const CacheTensor& cache, Heads heads);
  // Rows were written to a cache. False: adamas_last_error() has the sentence.
  bool wrote(const Write& write);
  // A step found keys of its cache changed, and nobody had said so. It made its own codes anew; the other layers of the same
  // model have changed too.
  void forget_others(const adamas_cache* own);
  void clear() { coded_.clear(); }

 private:
  struct Coded {  // one K tensor, for as long as it looks the same
    CachePointer cache;
    adamas_rows keys;
    enum ggml_type type;
    Heads heads;
    int64_t capacity, streams;
    int32_t layer;
    uint64_t changes;
  };
  Coded* coded_for(const CacheTensor& cache, Heads heads);
  Coded* coded_by(const Write& write);
  std::unordered_map<const void*, Coded> coded_;  // by the data of the K tensor
};

}  // namespace adamas_ggml
