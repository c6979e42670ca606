#include "nodes.h"

#include <cmath>
#include <cstring>
#include <string_view>

#include "host.h"
#include "settings.h"

namespace adamas_ggml {
namespace {

constexpr int64_t most = INT32_MAX;  // of any length; products of two of them fit 64 bits

bool sane(const ggml_tensor* t) {
  for (int i = 0; i < GGML_MAX_DIMS; ++i)
    if (t->ne[i] < 1 || t->ne[i] > most) return false;
  return true;
}

bool is_read(enum ggml_type type) {
  adamas_dtype dtype;
  return dtype_of(type, dtype) || type == GGML_TYPE_I32 || type == GGML_TYPE_I64;
}

// Elements are adjacent: nb[0] of a tensor is that of one block of its type.
bool is_packed(const ggml_tensor* t) {
  return is_read(t->type) && t->nb[0] == host().type_size(t->type) && t->ne[0] % host().blck_size(t->type) == 0;
}

// Bytes from a tensor's first element to the end of its last; false when that is no number.
bool extent(const ggml_tensor* t, size_t& bytes) {
  if (!is_packed(t)) return false;
  bytes = row_bytes(t->type, t->ne[0]);
  for (int i = 1; i < GGML_MAX_DIMS; ++i) {
    size_t step;
    if (__builtin_mul_overflow(static_cast<size_t>(t->ne[i] - 1), t->nb[i], &step) ||
        __builtin_add_overflow(bytes, step, &bytes))
      return false;
  }
  return bytes <= PTRDIFF_MAX;
}

bool is_supported_head_dim(int64_t head_dim) {
  for (int32_t i = 0; i < adamas_head_dim_count(); ++i)
    if (adamas_head_dim(i) == head_dim) return true;
  return false;
}

// K is whole streams of its cache, from row 0: row t of the view is row t of the stream, as SET_ROWS counts them.
bool in_streams(Attention& a) {
  const ggml_tensor* root = a.cache.root;
  size_t bytes, root_bytes;
  if (root->nb[1] == 0 || root->nb[2] == 0 || !extent(a.k, bytes) || !extent(root, root_bytes)) return false;
  if (a.k->nb[1] != root->nb[1] || a.k->view_offs % root->nb[2] != 0 || a.n_kv > a.cache.capacity()) return false;
  a.first_stream = static_cast<int64_t>(a.k->view_offs / root->nb[2]);
  return (a.batch == 1 || a.k->nb[3] == root->nb[2]) && a.first_stream + a.batch <= a.cache.streams() &&
         a.k->view_offs <= root_bytes && bytes <= root_bytes - a.k->view_offs;
}

// What is no cache goes as a cache of layer 0 does.
bool exact() { return config_of(0).policy == ADAMAS_POLICY_FULL; }

}  // namespace

const char* sentence(Reason reason) {
  switch (reason) {
    case Reason::flash_off: return "flash attention is off, so nothing reaches this back end: run the engine with -fa on";
    case Reason::not_a_cache: return "attention over something that is not a KV cache is left to the engine";
    case Reason::types:
      return "attention over a KV cache of a type that is not served is left to the engine (-ctk q8_0 -ctv q8_0 is)";
    case Reason::no_stores:
      return "this engine's CPU back end does not show how it stores rows (ggml_get_type_traits_cpu), so all attention is "
             "left to it";
    case Reason::head_dim: return "attention with this head_dim is left to the engine; 'adamas check' lists what is served";
    case Reason::layout: return "attention with a layout or option that is not served is left to the engine";
    case Reason::dense_layer: return "the first layers are left to the engine, as ADAMAS_DENSE_LAYERS asks";
    case Reason::short_context:
      return "while the context is below ADAMAS_MIN_CONTEXT or within the budget, attention is left to the engine";
    case Reason::batch: return "prompts are left to the engine, as ADAMAS_PROMPT=engine asks";
    case Reason::unseen_writes:
      return "attention over a KV cache that is written in a way not followed here is left to the engine";
    default: return "";
  }
}

bool surprising(Reason reason) {
  return reason != Reason::dense_layer && reason != Reason::short_context && reason != Reason::batch;
}

bool dtype_of(enum ggml_type type, adamas_dtype& dtype) {
  switch (type) {
    case GGML_TYPE_F32: dtype = ADAMAS_F32; return true;
    case GGML_TYPE_F16: dtype = ADAMAS_F16; return true;
    case GGML_TYPE_BF16: dtype = ADAMAS_BF16; return true;
    case GGML_TYPE_Q8_0: dtype = ADAMAS_Q8_0; return true;
    case GGML_TYPE_Q5_0: dtype = ADAMAS_Q5_0; return true;
    case GGML_TYPE_Q5_1: dtype = ADAMAS_Q5_1; return true;
    case GGML_TYPE_Q4_0: dtype = ADAMAS_Q4_0; return true;
    case GGML_TYPE_Q4_1: dtype = ADAMAS_Q4_1; return true;
    case GGML_TYPE_IQ4_NL: dtype = ADAMAS_IQ4_NL; return true;
    default: return false;
  }
}

size_t row_bytes(enum ggml_type type, int64_t elements) {
  return is_read(type) ? static_cast<size_t>(elements / host().blck_size(type)) * host().type_size(type) : 0;
}

bool rotated(const ggml_tensor* rows) {
  for (int i = 0; rows && i < 8; ++i) {  // a graph may come from anywhere: no circle is followed for ever
    switch (rows->op) {
      case GGML_OP_VIEW:
      case GGML_OP_RESHAPE:
      case GGML_OP_PERMUTE:
      case GGML_OP_TRANSPOSE:
      case GGML_OP_CONT: rows = rows->src[0]; continue;
      case GGML_OP_MUL_MAT: {
        if (!rows->src[0]) return false;
        // The scheduler may put a copy with a longer name in its place.
        const std::string_view matrix(rows->src[0]->name, strnlen(rows->src[0]->name, GGML_MAX_NAME));
        return matrix.find("attn_inp_k_rot") != matrix.npos || matrix.find("attn_inp_v_rot") != matrix.npos;
      }
      default: return false;
    }
  }
  return false;
}

CacheTensor cache_of(const ggml_tensor* tensor) {
  CacheTensor cache;
  if (!tensor) return cache;
  const ggml_tensor* root = tensor->view_src ? tensor->view_src : tensor;
  const char* name = root->name;
  if (std::strncmp(name, "cache_", 6) != 0 || (name[6] != 'k' && name[6] != 'v') || std::strncmp(name + 7, "_l", 2) != 0)
    return cache;
  int32_t layer = 0;
  const char* digit = name + 9;
  if (*digit == 0) return cache;
  for (; *digit; ++digit) {
    if (*digit < '0' || *digit > '9' || layer > 99999) return cache;
    layer = 10 * layer + (*digit - '0');
  }
  if (!sane(root) || root->ne[3] != 1) return cache;
  cache.root = root;
  cache.layer = layer;
  cache.keys = name[6] == 'k';
  return cache;
}

Reason read_attention(const ggml_tensor* node, Attention& a) {
  a.q = node->src[0];
  a.k = node->src[1];
  a.v = node->src[2];
  a.mask = node->src[3];
  a.sinks = node->src[4];
  a.out = node;
  if (node->op != GGML_OP_FLASH_ATTN_EXT || !a.q || !a.k || !a.v) return Reason::layout;
  for (int i = 5; i < GGML_MAX_SRC; ++i)
    if (node->src[i]) return Reason::layout;
  for (const ggml_tensor* t : {a.q, a.k, a.v, a.out})
    if (!sane(t)) return Reason::layout;

  a.cache = cache_of(a.k);
  if (!a.cache.keys || a.k == a.cache.root) a.cache = {};
  if (!a.cache && !exact()) return Reason::not_a_cache;
  adamas_dtype dtype;
  if (!dtype_of(a.k->type, dtype) || !dtype_of(a.v->type, dtype) || (a.cache && a.k->type != a.cache.root->type) ||
      a.q->type != GGML_TYPE_F32 || node->type != GGML_TYPE_F32)
    return Reason::types;
  if (!store_function(a.k->type) || !store_function(a.v->type)) return Reason::no_stores;

  a.head_dim = a.q->ne[0];
  a.rows = a.q->ne[1];
  a.q_heads = a.q->ne[2];
  a.batch = a.q->ne[3];
  a.n_kv = a.k->ne[1];
  a.kv_heads = a.k->ne[2];
  if (a.k->ne[0] != a.head_dim || a.v->ne[0] != a.head_dim || !is_supported_head_dim(a.head_dim)) return Reason::head_dim;
  if (a.v->ne[1] != a.n_kv || a.v->ne[2] != a.kv_heads || a.k->ne[3] != a.batch || a.v->ne[3] != a.batch ||
      a.q_heads % a.kv_heads != 0)
    return Reason::layout;
  if (a.head_dim % host().blck_size(a.k->type) != 0 || a.head_dim % host().blck_size(a.v->type) != 0)
    return Reason::head_dim;
  if (!is_packed(a.q) || !is_packed(a.k) || !is_packed(a.v)) return Reason::layout;

  // out [batch, rows, q_heads, head_dim], packed
  if (node->ne[0] != a.head_dim || node->ne[1] != a.q_heads || node->ne[2] != a.rows || node->ne[3] != a.batch ||
      node->nb[0] != 4 || node->nb[1] != 4 * static_cast<size_t>(a.head_dim) ||
      node->nb[2] != node->nb[1] * static_cast<size_t>(a.q_heads) ||
      node->nb[3] != node->nb[2] * static_cast<size_t>(a.rows))
    return Reason::layout;

  a.first_stream = 0;
  if (a.cache && !in_streams(a)) return Reason::layout;

  if (a.mask && (a.mask->type != GGML_TYPE_F16 || !sane(a.mask) || a.mask->nb[0] != 2 || a.mask->ne[0] < a.n_kv ||
                 a.mask->ne[1] < a.rows || a.mask->ne[2] != 1 || (a.mask->ne[3] != 1 && a.mask->ne[3] != a.batch)))
    return Reason::layout;
  if (a.sinks && (a.sinks->type != GGML_TYPE_F32 || !sane(a.sinks) || a.sinks->ne[0] != a.q_heads || a.sinks->nb[0] != 4))
    return Reason::layout;

  float options[3];
  std::memcpy(options, node->op_params, sizeof options);
  a.scale = options[0];
  a.max_bias = options[1];
  a.softcap = options[2];
  if (!std::isfinite(a.scale) || a.scale == 0 || !std::isfinite(a.max_bias) || !std::isfinite(a.softcap) || a.softcap < 0 ||
      (a.max_bias > 0 && !a.mask))
    return Reason::layout;
  return Reason::none;
}

bool read_write(const ggml_tensor* node, Write& w) {
  w.rows = node->src[0];
  w.indices = node->src[1];
  w.out = node;
  w.cache = cache_of(node);
  if (node->op != GGML_OP_SET_ROWS || !w.rows || !w.indices || node == w.cache.root || (!w.cache && !exact())) return false;
  if (!sane(node) || !sane(w.rows) || !sane(w.indices)) return false;
  adamas_dtype dtype;
  if (w.rows->type != GGML_TYPE_F32 || !dtype_of(node->type, dtype) || !store_function(node->type) ||
      (w.indices->type != GGML_TYPE_I64 && w.indices->type != GGML_TYPE_I32))
    return false;
  if (!is_packed(node) || !is_packed(w.rows) || !is_packed(w.indices) || node->nb[1] < row_bytes(node->type, node->ne[0]))
    return false;
  if (w.rows->ne[0] != node->ne[0] || w.rows->ne[2] != node->ne[2] || w.rows->ne[3] != node->ne[3] ||
      w.indices->ne[0] != w.rows->ne[1] || w.rows->ne[2] % w.indices->ne[1] != 0 || w.rows->ne[3] % w.indices->ne[2] != 0 ||
      w.indices->ne[3] != 1)
    return false;
  // The view of a cache counts the rows of all streams one after the other.
  const ggml_tensor* root = w.cache.root;
  return !root || (node->ne[2] == 1 && node->ne[3] == 1 && node->type == root->type && node->view_offs == 0 &&
                   node->ne[0] == root->ne[0] && node->nb[1] == root->nb[1] && node->ne[1] == root->ne[1] * root->ne[2] &&
                   root->nb[2] == root->nb[1] * static_cast<size_t>(root->ne[1]));
}

bool addressable(const ggml_tensor* t) {
  size_t bytes;
  if (!t->data || !sane(t) || !extent(t, bytes)) return false;
  ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
  if (!buffer) return true;  // memory of a ggml_context: nobody knows its size
  if (!host().buft_is_host(buffer->buft)) return false;
  if (!buffer->iface.get_base) return true;
  const auto base = reinterpret_cast<uintptr_t>(buffer->iface.get_base(buffer));
  const auto data = reinterpret_cast<uintptr_t>(t->data);
  return data >= base && data - base <= buffer->size && bytes <= buffer->size - (data - base);
}

}  // namespace adamas_ggml
