#include "registry.h"

#include "hooks.h"
#include "host.h"

namespace adamas_ggml {
namespace {

void changed(ggml_backend_buffer_t buffer, const ggml_tensor* tensor) {
  const std::lock_guard lock(registry().mutex);
  registry().note_change(buffer, tensor);
}

}  // namespace

// Never destroyed: buffers are freed after our library's destructors have run.
Registry& registry() {
  static Registry* const all = new Registry;
  return *all;
}

void Registry::note_change(ggml_backend_buffer_t buffer, const ggml_tensor* tensor) {
  if (tensor) {
    const ggml_tensor* root = tensor->view_src ? tensor->view_src : tensor;
    if (Known* known = find(root->data)) ++known->changes;
  } else {
    for (auto& [data, known] : caches_)
      if (known.buffer == buffer) ++known.changes;
  }
}

Known* Registry::find_or_register(const CacheTensor& cache) {
  const ggml_tensor* root = cache.root;
  if (!root->data || !root->buffer || !host().buft_is_host(root->buffer->buft)) return nullptr;
  const Known fresh{.type = root->type,
                    .layer = cache.layer,
                    .width = root->ne[0],
                    .capacity = root->ne[1],
                    .streams = root->ne[2],
                    .buffer = root->buffer};
  const auto [entry, inserted] = caches_.try_emplace(root->data, fresh);
  Known& known = entry->second;
  const bool same = known.type == fresh.type && known.layer == fresh.layer && known.width == fresh.width &&
                    known.capacity == fresh.capacity && known.streams == fresh.streams && known.buffer == fresh.buffer;
  if (!same) {
    const uint64_t changes = known.changes + 1;
    known = fresh;
    known.changes = changes;
  }
  // A buffer that does not carry our functions is new, even where the address is an old one's.
  if (hook_buffer(root->buffer, changed)) note_change(root->buffer, nullptr);
  return &known;
}

void Registry::begin_graph(const CacheTensor& cache) {
  Known* known = find_or_register(cache);
  if (!known) return;
  known->changes += known->planned.unseen_writes();
  if (known->planned.n_kv > 0) known->n_kv = known->planned.n_kv;
  known->planned = {.served = known->served};
}

std::optional<Heads> heads_of(const CacheTensor& cache) {
  const std::lock_guard lock(registry().mutex);
  const Known* known = registry().find_or_register(cache);
  if (!known || !known->served) return std::nullopt;
  Heads heads = known->heads;
  heads.rotated = known->rotated ? ADAMAS_ROTATED_KEYS : 0;
  return heads;
}

const void* keys_beside(const CacheTensor& values) {
  const std::lock_guard lock(registry().mutex);
  const Known* known = registry().find_or_register(values);
  return known ? known->keys : nullptr;
}

uint64_t changes_of(const CacheTensor& cache) {
  const std::lock_guard lock(registry().mutex);
  const Known* known = registry().find_or_register(cache);
  return known ? known->changes + known->planned.unseen_writes() : 0;
}

void wrote(const CacheTensor& cache, const void* writer) {
  const std::lock_guard lock(registry().mutex);
  Known* known = registry().find_or_register(cache);
  if (!known || known->writer == writer) return;
  if (known->writer) ++known->changes;
  known->writer = writer;
}

}  // namespace adamas_ggml
