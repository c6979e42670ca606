#include "claims.h"

#include <unordered_set>

#include "registry.h"
#include "settings.h"
#include "stats.h"

namespace adamas_ggml {
namespace {

using Writes = Planned::Writes;

// Nodes of the graph that this thread is planning which stay with the engine: each is counted once, however often the
// scheduler asks about it. (A graph is planned by one thread.)
thread_local std::unordered_set<const ggml_tensor*> left;

bool leave(const ggml_tensor* node, Reason reason) {
  if (left.insert(node).second) note_left(reason);
  return false;
}

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
  if (const Reason reason = read_attention(node, a); reason != Reason::none) return leave(node, reason);
  if (!a.cache) return long_enough(0, a.n_kv) || leave(node, Reason::short_context);
  Known* k = caches.find_or_register(a.cache);
  if (!k) return false;
  if (a.cache.layer < config().dense_layers) return leave(node, Reason::dense_layer);
  k->served = true;
  k->heads = {a.head_dim, a.kv_heads};
  if (const CacheTensor values = cache_of(a.v); values && !values.keys)
    if (Known* v = caches.find_or_register(values)) v->keys = a.cache.root->data;
  if (dry_run(*k, a.cache.root, a.n_kv)) return false;
  k->planned.show(a.n_kv);
  if (config().rows == ADAMAS_ROWS_DECODE && a.rows >= prompt_rows)  // looks at no codes: whoever writes K
    return config().prompt != ADAMAS_PROMPT_ENGINE || leave(node, Reason::batch);
  if (!long_enough(a.cache.layer, a.n_kv)) return leave(node, Reason::short_context);
  return !k->planned.unseen_writes() || leave(node, Reason::unseen_writes);
}

// Writes are ours when the attention that reads them will be, so that one split of the graph holds K, V and attention,
// and decoding in a short context has no split at all. Of a prompt they are ours from the start: it is encoded while it is
// read. Row by row it makes no difference who stores them. Until the graph has shown how long its context is (a graph that
// only writes never does), it counts as long as the one before.
bool claims_write(Registry& caches, const ggml_tensor* node) {
  Write write;
  const bool readable = read_write(node, write);
  const CacheTensor cache = cache_of(node);
  if (!cache) return readable;
  Known* known = caches.find_or_register(cache);
  if (!known) return false;
  if (!cache.keys) {
    const Known* keys = readable && known->keys ? caches.find(known->keys) : nullptr;
    return keys && keys->planned.writes == Writes::ours;
  }
  known->rotated = rotated(write.rows);
  Planned& graph = known->planned;
  const int64_t n_kv = graph.n_kv > 0 ? graph.n_kv : known->n_kv;
  const bool ours =
      readable && graph.served && n_kv > 0 && (long_enough(cache.layer, n_kv) || write.rows->ne[1] >= prompt_rows);
  graph.show(ours ? Writes::ours : readable ? Writes::left : Writes::unfollowed);
  return graph.writes == Writes::ours;
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
    case GGML_OP_NONE:
      // The scheduler asks about each leaf of a graph once, before all nodes: that is how a graph begins.
      left.clear();
      if (const CacheTensor cache = cache_of(node); cache && cache.keys && node == cache.root) {
        const std::lock_guard lock(caches.mutex);
        caches.begin_graph(cache);
      }
      return true;
    case GGML_OP_PERMUTE:
      // K on its way to the attention: the scheduler shows it to us between its first and its last question about this
      // graph's SET_ROWS, so these know how long the context is now.
      if (const CacheTensor cache = cache_of(node); cache && cache.keys && node->view_src) {
        const std::lock_guard lock(caches.mutex);
        if (Known* known = caches.find_or_register(cache); known && !dry_run(*known, cache.root, node->ne[1]))
          known->planned.show(node->ne[1]);
      }
      return true;
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_TRANSPOSE: return true;
    case GGML_OP_MUL_MAT:
      if (node->src[0] && node->src[0]->view_src)
        if (const CacheTensor cache = cache_of(node->src[0]); cache.keys && !only_measured(cache))
          leave(node, Reason::flash_off);
      return false;
    default:
      if (node->view_src)
        if (const CacheTensor cache = cache_of(node); cache && cache.keys) {
          const std::lock_guard lock(caches.mutex);
          if (Known* known = caches.find_or_register(cache)) known->planned.show(Writes::unfollowed);
        }
      return false;
  }
}

}  // namespace adamas_ggml
