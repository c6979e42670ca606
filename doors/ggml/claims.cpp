#include "claims.h"

#include "registry.h"
#include "settings.h"
#include "stats.h"

namespace adamas_ggml {
namespace {

bool is_zero(const ggml_tensor* root) {
  const auto* bytes = static_cast<const unsigned char*>(root->data);
  for (size_t i = 0; i < root->nb[1]; ++i)
    if (bytes[i]) return false;
  return true;
}

// At start the engine plans graphs over the whole empty cache. With -fa auto it then asks whether attention would run on the
// layer's own device, and turns flash attention off if not. We answer those as if we were not there.
bool dry_run(Known& known, const ggml_tensor* root, int64_t n_kv) {
  if (n_kv < known.capacity) known.grew = true;
  return !known.grew && is_zero(root);
}

// Attention over n_kv cells is ours where it can be sparse. A budget that covers them all is dense attention: the engine's
// own, to the bit. (The policy `full` asks for ours by name.)
bool long_enough(int32_t layer, int64_t n_kv) {
  const adamas_config& c = config_of(layer);
  return n_kv >= c.min_context && (c.policy == ADAMAS_POLICY_FULL || n_kv > adamas_budget_tokens(c.budget));
}

// The engine's dry run that only measures has caches without memory, and its log is off: what is said once is not said
// there.
bool only_measured(const CacheTensor& cache) { return cache && !cache.root->data; }

bool claims_attention(Registry& caches, const ggml_tensor* node) {
  if (only_measured(cache_of(node->src[1]))) return false;
  Attention a;
  Reason reason = read_attention(node, a);
  if (reason != Reason::none) return note_left(reason), false;
  if (!a.cache) return long_enough(0, a.n_kv) || (note_left(Reason::short_context), false);
  Known* k = caches.find_or_register(a.cache);
  if (!k) return false;
  if (a.cache.layer < config().dense_layers) return note_left(Reason::dense_layer), false;
  k->served = true;
  k->heads = {a.head_dim, a.kv_heads, k->rotated ? ADAMAS_ROTATED_KEYS : 0};
  if (const CacheTensor values = cache_of(a.v); values && !values.keys)
    if (Known* v = caches.find_or_register(values)) v->keys = a.cache.root->data;
  if (dry_run(*k, a.cache.root, a.n_kv)) return false;
  k->n_kv = a.n_kv;
  if (!long_enough(a.cache.layer, a.n_kv)) return note_left(Reason::short_context), false;
  if (config().rows == ADAMAS_ROWS_DECODE && a.rows >= prompt_rows) return note_left(Reason::batch), false;
  if (!k->writes_followed) return note_left(Reason::unseen_writes), false;
  return true;
}

// Writes are ours when the attention that reads them will be, so that one split of the graph holds K, V and attention,
// and decoding in a short context has no split at all. Of a prompt they are ours from the start: it is encoded while it is
// read. Row by row it makes no difference who stores them.
bool claims_write(Registry& caches, const ggml_tensor* node) {
  Write write;
  const bool readable = read_write(node, write);
  const CacheTensor cache = cache_of(node);
  if (!cache) return readable;
  Known* known = caches.find_or_register(cache);
  if (!known) return false;
  known->rotated = rotated(write.rows);
  if (cache.keys) {
    known->writes_followed = readable && known->served && known->n_kv > 0 &&
                             (long_enough(cache.layer, known->n_kv) || write.rows->ne[1] >= prompt_rows);
    if (!known->writes_followed) ++known->changes;
    return known->writes_followed;
  }
  if (!readable || !known->keys) return false;
  const Known* keys = caches.find(known->keys);
  return keys && keys->writes_followed;
}

}  // namespace

bool claims(const ggml_tensor* node) {
  Registry& caches = registry();
  switch (node->op) {
    case GGML_OP_FLASH_ATTN_EXT: {
      const std::lock_guard lock(caches.mutex);
      return claims_attention(caches, node);
    }
    case GGML_OP_SET_ROWS: {
      const std::lock_guard lock(caches.mutex);
      return claims_write(caches, node);
    }
    case GGML_OP_PERMUTE: {
      // K on its way to the attention of the graph that is being built: the scheduler shows it to us between
      // its first and its last question about this graph's SET_ROWS, so these know how long the context is now.
      if (const CacheTensor cache = cache_of(node); cache && cache.keys && node->view_src) {
        const std::lock_guard lock(caches.mutex);
        if (Known* known = caches.find_or_register(cache); known && !dry_run(*known, cache.root, node->ne[1]))
          known->n_kv = node->ne[1];
      }
      return true;
    }
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_TRANSPOSE: return true;
    case GGML_OP_MUL_MAT:
      if (node->src[0] && node->src[0]->view_src)
        if (const CacheTensor cache = cache_of(node->src[0]); cache.keys && !only_measured(cache)) {
          const std::lock_guard lock(caches.mutex);
          note_left(Reason::flash_off);
        }
      return false;
    default:
      if (node->view_src)
        if (const CacheTensor cache = cache_of(node); cache && cache.keys) {
          const std::lock_guard lock(caches.mutex);
          if (Known* known = caches.find_or_register(cache)) ++known->changes;
        }
      return false;
  }
}

}  // namespace adamas_ggml
