#include "watch.h"

#include <cstring>
#include <mutex>
#include <unordered_map>

#include "host.h"
#include "settings.h"
#include "stats.h"

namespace adamas_ggml {
namespace {

struct Known {
  enum ggml_type type;
  int32_t layer;
  int64_t width, capacity, streams;
  ggml_backend_buffer_t buffer;

  const void *keys = nullptr;    // of a V cache: the data of the K cache beside it
  int64_t n_kv = 0;              // cells in view of the graph that is being built, or of the one before
  bool served = false;           // its attention is of a kind that we compute, with these heads
  Heads heads{};
  bool rotated = false;          // the rows that the engine writes come out of its rotation
  bool grew = false;             // a graph over less than the whole capacity was seen
  bool writes_followed = false;  // SET_ROWS of the graph that is being built is ours
  uint64_t changes = 1;
  const void *writer = nullptr;
};

// Never destroyed: buffers are freed after our library's destructors have run.
struct Watch {
  std::mutex mutex;
  std::unordered_map<const void *, Known> caches;                                // by the data of their first row
  std::unordered_map<ggml_backend_buffer_t, ggml_backend_buffer_i> their;        // the functions that ours stand before
};
Watch &watch() {
  static Watch *const w = new Watch;
  return *w;
}

// ---- the buffer's functions: note, then do as the engine would ----

ggml_backend_buffer_i theirs_noting(ggml_backend_buffer_t buffer, const ggml_tensor *tensor) {
  Watch &w = watch();
  const std::lock_guard lock(w.mutex);
  if (tensor) {
    const ggml_tensor *root = tensor->view_src ? tensor->view_src : tensor;
    if (const auto known = w.caches.find(root->data); known != w.caches.end()) ++known->second.changes;
  } else {
    for (auto &[data, known] : w.caches)
      if (known.buffer == buffer) ++known.changes;
  }
  return w.their.at(buffer);
}

void noting_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor *tensor, const void *data, size_t offset, size_t size) {
  theirs_noting(buffer, tensor).set_tensor(buffer, tensor, data, offset, size);
}
void noting_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor *tensor, uint8_t value, size_t offset, size_t size) {
  theirs_noting(buffer, tensor).memset_tensor(buffer, tensor, value, offset, size);
}
void noting_set_tensor_2d(ggml_backend_buffer_t buffer, ggml_tensor *tensor, const void *data, size_t offset, size_t size,
                          size_t copies, size_t stride_tensor, size_t stride_data) {
  theirs_noting(buffer, tensor).set_tensor_2d(buffer, tensor, data, offset, size, copies, stride_tensor, stride_data);
}
bool noting_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor *from, ggml_tensor *to) {
  return theirs_noting(buffer, to).cpy_tensor(buffer, from, to);
}
void noting_clear(ggml_backend_buffer_t buffer, uint8_t value) { theirs_noting(buffer, nullptr).clear(buffer, value); }

bool hook_buffer(Watch &w, ggml_backend_buffer_t buffer) {
  if (!buffer || !buffer->iface.set_tensor || buffer->iface.set_tensor == noting_set_tensor) return false;
  w.their[buffer] = buffer->iface;
  buffer->iface.set_tensor = noting_set_tensor;
  if (buffer->iface.memset_tensor) buffer->iface.memset_tensor = noting_memset_tensor;
  if (buffer->iface.set_tensor_2d) buffer->iface.set_tensor_2d = noting_set_tensor_2d;
  if (buffer->iface.cpy_tensor) buffer->iface.cpy_tensor = noting_cpy_tensor;
  if (buffer->iface.clear) buffer->iface.clear = noting_clear;
  return true;
}

// ---- the questions ----

// NULL while the cache has no memory (the engine's dry run that only measures) or lies on another device.
Known *find_or_register(Watch &w, const CacheTensor &cache) {
  const ggml_tensor *root = cache.root;
  if (!root->data || !root->buffer || !host().buft_is_host(root->buffer->buft)) return nullptr;
  const Known fresh{.type = root->type, .layer = cache.layer, .width = root->ne[0], .capacity = root->ne[1],
                    .streams = root->ne[2], .buffer = root->buffer};
  const auto [entry, inserted] = w.caches.try_emplace(root->data, fresh);
  Known &known = entry->second;
  const bool same = known.type == fresh.type && known.layer == fresh.layer && known.width == fresh.width &&
                    known.capacity == fresh.capacity && known.streams == fresh.streams && known.buffer == fresh.buffer;
  if (!same) {
    const uint64_t changes = known.changes + 1;
    known = fresh;
    known.changes = changes;
  }
  // A buffer that does not carry our functions is new, even where the address is an old one's.
  if (hook_buffer(w, root->buffer))
    for (auto &[data, other] : w.caches)
      if (other.buffer == root->buffer) ++other.changes;
  return &known;
}

bool is_zero(const ggml_tensor *root) {
  const auto *bytes = static_cast<const unsigned char *>(root->data);
  for (size_t i = 0; i < root->nb[1]; ++i)
    if (bytes[i]) return false;
  return true;
}

// At start the engine plans graphs over the whole empty cache. With -fa auto it then asks whether attention would run on the
// layer's own device, and turns flash attention off if not. We answer those as if we were not there.
bool dry_run(Known &known, const ggml_tensor *root, int64_t n_kv) {
  if (n_kv < known.capacity) known.grew = true;
  return !known.grew && is_zero(root);
}

// Attention over n_kv cells is ours where it can be sparse. A budget that covers them all is dense attention: the engine's own,
// to the bit. (The policy `full` asks for ours by name.)
bool long_enough(int32_t layer, int64_t n_kv) {
  const adamas_config &c = config_of(layer);
  return n_kv >= c.min_context && (c.policy == ADAMAS_POLICY_FULL || n_kv > (c.budget == ADAMAS_BUDGET_AUTO ? ADAMAS_AUTO_TOKENS : c.budget));
}

// The engine's dry run that only measures has caches without memory, and its log is off: what is said once is not said there.
bool only_measured(const CacheTensor &cache) { return cache && !cache.root->data; }

bool claims_attention(Watch &w, const ggml_tensor *node) {
  if (only_measured(cache_of(node->src[1]))) return false;
  Attention a;
  Reason reason = read_attention(node, a);
  if (reason != Reason::none) return note_left(reason), false;
  if (!a.cache) return long_enough(0, a.n_kv) || (note_left(Reason::short_context), false);
  Known *k = find_or_register(w, a.cache);
  if (!k) return false;
  if (a.cache.layer < config().dense_layers) return note_left(Reason::dense_layer), false;
  k->served = true;
  k->heads = {a.head_dim, a.kv_heads, k->rotated ? ADAMAS_ROTATED_KEYS : 0};
  if (const CacheTensor values = cache_of(a.v); values && !values.keys)
    if (Known *v = find_or_register(w, values)) v->keys = a.cache.root->data;
  if (dry_run(*k, a.cache.root, a.n_kv)) return false;
  k->n_kv = a.n_kv;
  if (!long_enough(a.cache.layer, a.n_kv)) return note_left(Reason::short_context), false;
  if (config().rows == ADAMAS_ROWS_DECODE && a.rows >= prompt_rows) return note_left(Reason::batch), false;
  if (!k->writes_followed) return note_left(Reason::unseen_writes), false;
  return true;
}

// Writes are ours when the attention that reads them will be, so that one split of the graph holds K, V and attention,
// and decoding in a short context has no split at all. Of a prompt they are ours from the start: it is encoded while it is read.
// Row by row it makes no difference who stores them.
bool claims_write(Watch &w, const ggml_tensor *node) {
  Write write;
  const bool readable = read_write(node, write);
  const CacheTensor cache = cache_of(node);
  if (!cache) return readable;
  Known *known = find_or_register(w, cache);
  if (!known) return false;
  known->rotated = rotated(write.rows);
  if (cache.keys) {
    known->writes_followed = readable && known->served && known->n_kv > 0 &&
                             (long_enough(cache.layer, known->n_kv) || write.rows->ne[1] >= prompt_rows);
    if (!known->writes_followed) ++known->changes;
    return known->writes_followed;
  }
  if (!readable || !known->keys) return false;
  const auto keys = w.caches.find(known->keys);
  return keys != w.caches.end() && keys->second.writes_followed;
}

}  // namespace

bool claims(const ggml_tensor *node) {
  Watch &w = watch();
  switch (node->op) {
    case GGML_OP_FLASH_ATTN_EXT: {
      const std::lock_guard lock(w.mutex);
      return claims_attention(w, node);
    }
    case GGML_OP_SET_ROWS: {
      const std::lock_guard lock(w.mutex);
      return claims_write(w, node);
    }
    case GGML_OP_PERMUTE: {
      // K on its way to the attention of the graph that is being built: the scheduler shows it to us between
      // its first and its last question about this graph's SET_ROWS, so these know how long the context is now.
      if (const CacheTensor cache = cache_of(node); cache && cache.keys && node->view_src) {
        const std::lock_guard lock(w.mutex);
        if (Known *known = find_or_register(w, cache); known && !dry_run(*known, cache.root, node->ne[1])) known->n_kv = node->ne[1];
      }
      return true;
    }
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_TRANSPOSE:
      return true;
    case GGML_OP_MUL_MAT:
      if (node->src[0] && node->src[0]->view_src)
        if (const CacheTensor cache = cache_of(node->src[0]); cache.keys && !only_measured(cache)) {
          const std::lock_guard lock(w.mutex);
          note_left(Reason::flash_off);
        }
      return false;
    default:
      if (node->view_src)
        if (const CacheTensor cache = cache_of(node); cache && cache.keys) {
          const std::lock_guard lock(w.mutex);
          if (Known *known = find_or_register(w, cache)) ++known->changes;
        }
      return false;
  }
}

std::optional<Heads> heads_of(const CacheTensor &cache) {
  Watch &w = watch();
  const std::lock_guard lock(w.mutex);
  const Known *known = find_or_register(w, cache);
  return known && known->served ? std::optional(known->heads) : std::nullopt;
}

const void *keys_beside(const CacheTensor &values) {
  Watch &w = watch();
  const std::lock_guard lock(w.mutex);
  const Known *known = find_or_register(w, values);
  return known ? known->keys : nullptr;
}

uint64_t changes_of(const CacheTensor &cache) {
  Watch &w = watch();
  const std::lock_guard lock(w.mutex);
  const Known *known = find_or_register(w, cache);
  return known ? known->changes : 0;
}

void wrote(const CacheTensor &cache, const void *writer) {
  Watch &w = watch();
  const std::lock_guard lock(w.mutex);
  Known *known = find_or_register(w, cache);
  if (!known || known->writer == writer) return;
  if (known->writer) ++known->changes;
  known->writer = writer;
}

}  // namespace adamas_ggml
