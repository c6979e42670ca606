#include "codes.h"

#include "claims.h"
#include "registry.h"
#include "settings.h"
#include "stats.h"
#include "writes.h"

namespace adamas_ggml {
namespace {

// K or V of every stream of a cache.
adamas_rows rows_of(const CacheTensor& cache, Heads heads) {
  const ggml_tensor* root = cache.root;
  adamas_dtype dtype = ADAMAS_F32;
  dtype_of(root->type, dtype);
  return {root->data,
          dtype,
          static_cast<int64_t>(root->nb[2]),
          static_cast<int64_t>(row_bytes(root->type, heads.head_dim)),
          static_cast<int64_t>(root->nb[1]),
          nullptr,
          0};
}

bool forget(adamas_cache* cache) {
  note_forgotten();
  return adamas_clear(cache, -1) == ADAMAS_OK;
}

}  // namespace

CachePointer make_cache(int32_t layer, Heads heads, int64_t sequences, int64_t capacity) {
  const adamas_cache_params params{.struct_size = sizeof(adamas_cache_params),
                                   .layer = layer,
                                   .kv_heads = static_cast<int32_t>(heads.kv_heads),
                                   .head_dim = static_cast<int32_t>(heads.head_dim),
                                   .sequences = sequences,
                                   .capacity = capacity,
                                   .rotated = heads.rotated,
                                   .device = ADAMAS_DEVICE_CPU,
                                   .by_page = 0,
                                   .blocks = 0,
                                   .memory = nullptr,
                                   .origin = 0};
  adamas_cache* cache = nullptr;
  adamas_cache_create(&config_of(layer), &params, &cache);  // NULL on an error
  return CachePointer(cache);
}

adamas_cache* Codes::codes_for(const CacheTensor& cache, Heads heads) {
  const Coded* coded = coded_for(cache, heads);
  return coded ? coded->cache.get() : nullptr;
}

Codes::Coded* Codes::coded_for(const CacheTensor& of, Heads heads) {
  const ggml_tensor* root = of.root;
  Coded& coded = coded_[root->data];
  const uint64_t changes = changes_of(of);
  if (coded.cache && coded.type == root->type && coded.heads == heads && coded.capacity == of.capacity() &&
      coded.streams == of.streams() && coded.layer == of.layer) {
    // Forgotten and not only invalidated: rows that the change left behind, hidden by the mask, must not live on in the
    // centre of a block. What the step shows is encoded on sight.
    if (coded.changes != changes && !forget(coded.cache.get())) return nullptr;
    coded.changes = changes;
    return &coded;
  }
  coded.cache.reset();
  CachePointer cache = make_cache(of.layer, heads, of.streams(), of.capacity());
  if (!cache) return nullptr;
  coded = {std::move(cache), rows_of(of, heads), root->type, heads, of.capacity(), of.streams(), of.layer, changes};
  return &coded;
}

// The codes that a write of keys makes stale, or that a write of values completes: codes of batches are made when the values
// come. NULL: there are none.
Codes::Coded* Codes::coded_by(const Write& w) {
  const bool batch = w.indices->ne[0] >= prompt_rows;
  if (batch && w.cache.keys) {
    const int32_t policy = config_of(w.cache.layer).policy;
    const std::optional<Heads> heads = heads_of(w.cache);
    if (heads && (policy == ADAMAS_POLICY_ADAMAS || policy == ADAMAS_POLICY_QUEST)) return coded_for(w.cache, *heads);
  }
  if (!batch && !w.cache.keys) return nullptr;
  const auto known = coded_.find(w.cache.keys ? w.cache.root->data : keys_beside(w.cache));
  const bool same = known != coded_.end() && known->second.cache && known->second.capacity == w.cache.capacity() &&
                    known->second.streams == w.cache.streams();
  return same ? &known->second : nullptr;
}

bool Codes::wrote(const Write& w) {
  const Coded* coded = coded_by(w);
  if (!coded) return true;            // the first sparse step encodes what it sees
  const bool encode = !w.cache.keys;  // K and V of a batch are both there
  const adamas_rows values = rows_of(w.cache, coded->heads);
  const int64_t count = w.indices->ne[0], capacity = w.cache.capacity();
  for (int64_t i = 0, run; i < count; i += run) {
    const int64_t first = index_at(w.indices, i);
    for (run = 1; i + run < count && index_at(w.indices, i + run) == first + run && (first + run) % capacity != 0;) ++run;
    if (adamas_append(coded->cache.get(), first / capacity, first % capacity, run, encode ? &coded->keys : nullptr,
                      encode ? &values : nullptr) != ADAMAS_OK)
      return false;
  }
  return true;
}

void Codes::forget_others(const adamas_cache* own) {
  for (auto& [data, coded] : coded_)
    if (coded.cache && coded.cache.get() != own) forget(coded.cache.get());
}

}  // namespace adamas_ggml
