// The nodes of the engine's graph that concern us, read with every assumption checked. A graph may come from
// anywhere (RPC), so the same readers run when a node is claimed and again when it is computed.
#pragma once

#include <cstdint>

#include "adamas/adamas.h"
#include "ggml-backend-impl.h"

namespace adamas_ggml {

// Why an attention node stays with the engine, which computes it densely.
enum class Reason {
  none,
  flash_off,
  not_a_cache,
  types,
  no_stores,
  head_dim,
  layout,
  dense_layer,
  short_context,
  batch,
  unseen_writes,
  count
};
// A sentence for people, and whether it is a surprise (a warning) or how it should be.
const char* sentence(Reason reason);
bool surprising(Reason reason);

// A tensor "cache_k_l<layer>" or "cache_v_l<layer>", [streams, capacity, heads * head_dim].
struct CacheTensor {
  const ggml_tensor* root = nullptr;
  int32_t layer = 0;
  bool keys = false;

  int64_t capacity() const { return root->ne[1]; }
  int64_t streams() const { return root->ne[2]; }
  explicit operator bool() const { return root != nullptr; }
};
// The cache that `tensor` is, or is a view of.
CacheTensor cache_of(const ggml_tensor* tensor);

// How a row of a cache divides, and whether the engine rotates keys before it stores them: ADAMAS_ROTATED_KEYS.
struct Heads {
  int64_t head_dim, kv_heads, rotated = 0;
  bool operator==(const Heads&) const = default;
};

// The policy `full` is exact: it needs no codes and so follows no writes. With it K may be any tensor, and SET_ROWS may
// write anywhere.

// FLASH_ATTN_EXT: q [batch, q_heads, rows, head_dim], k and v [batch, kv_heads, n_kv, head_dim],
// mask [batch or 1, 1, rows or more, n_kv], out [batch, rows, q_heads, head_dim].
struct Attention {
  const ggml_tensor *q, *k, *v, *mask, *sinks, *out;
  CacheTensor cache;  // none: K is any tensor
  int64_t batch, rows, q_heads, kv_heads, head_dim, n_kv;
  int64_t first_stream;  // of the K cache; batch streams follow each other
  float scale, max_bias, softcap;

  int64_t capacity() const { return cache ? cache.capacity() : n_kv; }
};
Reason read_attention(const ggml_tensor* node, Attention& attention);

// SET_ROWS of f32 rows: out[c, b, indices[c % ., b % ., i]] = rows[c, b, i]. A cache has b = c = 0.
struct Write {
  const ggml_tensor *rows, *indices, *out;
  CacheTensor cache;  // none: out is any tensor
};
bool read_write(const ggml_tensor* node, Write& write);

// The engine multiplies what it quantises by a Hadamard matrix first; these rows are what came out of that.
bool rotated(const ggml_tensor* rows);

// Bytes of so many elements that lie side by side; 0: not a type that we read.
size_t row_bytes(enum ggml_type type, int64_t elements);

// All that the tensor's shape and strides address lies in memory that the host's processor can reach.
bool addressable(const ggml_tensor* tensor);

bool dtype_of(enum ggml_type type, adamas_dtype& dtype);

}  // namespace adamas_ggml
