#include "compute.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "claims.h"
#include "host.h"
#include "settings.h"
#include "stats.h"
#include "registry.h"

namespace adamas_ggml {
namespace {

// The struct has no padding.
bool same(const adamas_config& a, const adamas_config& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

template <class Byte>
Byte* at(Byte* data, const ggml_tensor* t, int64_t i, int64_t b, int64_t c) {
  return data + static_cast<size_t>(i) * t->nb[1] + static_cast<size_t>(b) * t->nb[2] + static_cast<size_t>(c) * t->nb[3];
}

int64_t index_at(const ggml_tensor* indices, int64_t i, int64_t b = 0, int64_t c = 0) {
  const auto* bytes =
      at(static_cast<const char*>(indices->data), indices, b, c, 0) + static_cast<size_t>(i) * indices->nb[0];
  if (indices->type == GGML_TYPE_I32) {
    int32_t index;
    std::memcpy(&index, bytes, sizeof index);
    return index;
  }
  int64_t index;
  std::memcpy(&index, bytes, sizeof index);
  return index;
}

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
                                   .memory = nullptr};
  adamas_cache* cache = nullptr;
  adamas_cache_create(&config_of(layer), &params, &cache);  // NULL on an error, whose sentence is the last one
  return CachePointer(cache);
}

// ALiBi as ggml defines it: a geometric series over the largest power of two of heads, the rest from the one twice as
// fine, at its odd places.
void alibi_slopes(int64_t heads, float max_bias, std::vector<float>& slopes) {
  const int64_t power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  const float base = std::exp2(-max_bias / static_cast<float>(power));
  const float finer = std::exp2(-max_bias / 2.0f / static_cast<float>(power));
  slopes.resize(static_cast<size_t>(heads));
  for (int64_t h = 0; h < heads; ++h)
    slopes[static_cast<size_t>(h)] =
        h < power ? std::pow(base, static_cast<float>(h + 1)) : std::pow(finer, static_cast<float>(2 * (h - power) + 1));
}

}  // namespace

enum ggml_status Compute::fail(const ggml_tensor* node, const std::string& why) {
  say(GGML_LOG_LEVEL_ERROR, std::string(host().op_name(node->op)) + " '" +
                                std::string(node->name, strnlen(node->name, GGML_MAX_NAME)) + "': " + why);
  return GGML_STATUS_FAILED;
}

enum ggml_status Compute::set_rows(const ggml_tensor* node) {
  Write w;
  if (!read_write(node, w)) return fail(node, "not a write that this back end computes");
  if (!addressable(w.rows) || !addressable(w.indices) || !addressable(node) || (w.cache && node->data != w.cache.root->data))
    return fail(node, "a tensor lies outside its memory");

  const int64_t count = w.indices->ne[0];
  for (int64_t c = 0; c < w.indices->ne[2]; ++c)
    for (int64_t b = 0; b < w.indices->ne[1]; ++b)
      for (int64_t i = 0; i < count; ++i)
        if (const int64_t to = index_at(w.indices, i, b, c); to < 0 || to >= node->ne[1])
          return fail(node, "row " + std::to_string(to) + " of " + std::to_string(node->ne[1]));

  const ggml_from_float_t store = store_function(node->type);
  for (int64_t c = 0; c < w.rows->ne[3]; ++c)
    for (int64_t b = 0; b < w.rows->ne[2]; ++b)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t to = index_at(w.indices, i, b % w.indices->ne[1], c % w.indices->ne[2]);
        store(reinterpret_cast<const float*>(at(static_cast<const char*>(w.rows->data), w.rows, i, b, c)),
              at(static_cast<char*>(node->data), node, to, b, c), node->ne[0]);
      }
  if (!w.cache) return GGML_STATUS_SUCCESS;
  if (w.cache.keys) wrote(w.cache, this);
  Codes* codes = written_codes(w);
  if (!codes) return GGML_STATUS_SUCCESS;  // the first sparse step encodes what it sees
  const bool encode = !w.cache.keys;       // K and V of a batch are both there
  const adamas_rows values = rows_of(w.cache, codes->heads);
  const int64_t capacity = w.cache.capacity();
  for (int64_t i = 0; i < count;) {
    const int64_t first = index_at(w.indices, i);
    int64_t run = 1;
    while (i + run < count && index_at(w.indices, i + run) == first + run && (first + run) % capacity != 0) ++run;
    if (adamas_append(codes->cache.get(), first / capacity, first % capacity, run, encode ? &codes->keys : nullptr,
                      encode ? &values : nullptr) != ADAMAS_OK)
      return fail(node, adamas_last_error());
    i += run;
  }
  return GGML_STATUS_SUCCESS;
}

// The codes that a write of keys makes stale, or that a write of values completes: codes of batches are made when the values
// come. NULL: there are none.
Compute::Codes* Compute::written_codes(const Write& w) {
  const bool batch = w.indices->ne[0] >= prompt_rows;
  if (batch && w.cache.keys) {
    drop_stale_settings();
    const int32_t policy = config_of(w.cache.layer).policy;
    const std::optional<Heads> heads = heads_of(w.cache);
    if (heads && (policy == ADAMAS_POLICY_ADAMAS || policy == ADAMAS_POLICY_QUEST)) return codes_for(w.cache, *heads);
  }
  if (!batch && !w.cache.keys) return nullptr;
  const auto known = codes_.find(w.cache.keys ? w.cache.root->data : keys_beside(w.cache));
  const bool same = known != codes_.end() && known->second.cache && known->second.capacity == w.cache.capacity() &&
                    known->second.streams == w.cache.streams();
  return same ? &known->second : nullptr;
}

void Compute::drop_stale_settings() {
  if (same(config_, config())) return;
  codes_.clear();
  plans_.clear();
  config_ = config();
}

Compute::Codes* Compute::codes_for(const CacheTensor& of, Heads heads) {
  const ggml_tensor* root = of.root;
  Codes& codes = codes_[root->data];
  const uint64_t changes = changes_of(of);
  if (codes.cache && codes.type == root->type && codes.heads == heads && codes.capacity == of.capacity() &&
      codes.streams == of.streams() && codes.layer == of.layer) {
    // Forgotten and not only invalidated: rows that the change left behind, hidden by the mask, must not live on in the
    // centre of a block. What the step shows is encoded on sight.
    if (codes.changes != changes) {
      if (adamas_clear(codes.cache.get(), -1) != ADAMAS_OK) return nullptr;
      codes.changes = changes;
      note_forgotten();
    }
    return &codes;
  }
  codes.cache.reset();
  CachePointer cache = make_cache(of.layer, heads, of.streams(), of.capacity());
  if (!cache) return nullptr;
  codes = {std::move(cache), rows_of(of, heads), root->type, heads, of.capacity(), of.streams(), of.layer, changes};
  return &codes;
}

adamas_plan* Compute::plan_for(const Attention& a) {
  const adamas_config& settings = config_of(a.cache.layer);
  auto known = std::find_if(plans_.begin(), plans_.end(), [&](const Plan& plan) {
    return plan.q_heads == a.q_heads && plan.kv_heads == a.kv_heads && plan.head_dim == a.head_dim &&
           same(plan.config, settings);
  });
  if (known == plans_.end()) {
    plans_.emplace_back();
    known = std::prev(plans_.end());
    known->config = settings;
    known->q_heads = a.q_heads;
    known->kv_heads = a.kv_heads;
    known->head_dim = a.head_dim;
  }
  Plan& p = *known;
  if (p.plan && p.tokens >= a.capacity() && p.threads >= threads) return p.plan.get();
  const adamas_plan_params params{.struct_size = sizeof(adamas_plan_params),
                                  .q_heads = static_cast<int32_t>(a.q_heads),
                                  .kv_heads = static_cast<int32_t>(a.kv_heads),
                                  .head_dim = static_cast<int32_t>(a.head_dim),
                                  .max_tokens = std::max(p.tokens, a.capacity()),
                                  .max_threads = std::max(p.threads, threads),
                                  .device = ADAMAS_DEVICE_CPU};
  adamas_plan* plan = nullptr;
  p.plan.reset();
  if (adamas_plan_create(&settings, &params, &plan) != ADAMAS_OK) return nullptr;
  p.plan.reset(plan);
  p.tokens = params.max_tokens;
  p.threads = params.max_threads;
  return plan;
}

enum ggml_status Compute::attention(const ggml_tensor* node) {
  Attention a;
  if (const Reason reason = read_attention(node, a); reason != Reason::none) return fail(node, sentence(reason));
  for (const ggml_tensor* t : {a.q, a.k, a.v, a.mask, a.sinks, a.out, a.cache.root})
    if (t && !addressable(t)) return fail(node, "a tensor lies outside its memory");
  if (a.cache && static_cast<char*>(a.k->data) != static_cast<char*>(a.cache.root->data) + a.k->view_offs)
    return fail(node, "K is not where its cache says");

  drop_stale_settings();
  Heads heads{a.head_dim, a.kv_heads};
  adamas_cache* cache = nullptr;
  CachePointer empty;  // exact attention over what is no cache looks at no codes
  if (a.cache) {
    if (const std::optional<Heads> known = heads_of(a.cache)) heads.rotated = known->rotated;
    if (const Codes* codes = codes_for(a.cache, heads)) cache = codes->cache.get();
  } else {
    empty = make_cache(a.cache.layer, heads, a.batch, a.n_kv);
    cache = empty.get();
  }
  adamas_plan* plan = cache ? plan_for(a) : nullptr;
  if (!plan) return fail(node, adamas_last_error());

  sequences_.resize(static_cast<size_t>(a.batch));
  for (int64_t b = 0; b < a.batch; ++b) sequences_[static_cast<size_t>(b)] = a.first_stream + b;
  lengths_.assign(static_cast<size_t>(a.batch), a.n_kv);
  if (a.max_bias > 0) alibi_slopes(a.q_heads, a.max_bias, slopes_);

  adamas_dtype k_dtype, v_dtype;
  dtype_of(a.k->type, k_dtype);
  dtype_of(a.v->type, v_dtype);
  const auto stride = [](size_t bytes) { return static_cast<int64_t>(bytes); };
  // V [sequences, ...] is addressed by stream, and its view begins with the first stream in the batch.
  const int64_t v_stream = a.batch > 1 ? stride(a.v->nb[3]) : 0;

  adamas_step_stats stats{};
  stats.struct_size = sizeof stats;
  adamas_step_params p{};
  p.struct_size = sizeof p;
  p.threads = threads;
  p.batch = a.batch;
  p.rows = a.rows;
  p.sequences = sequences_.data();
  p.lengths = lengths_.data();
  p.q_dtype = ADAMAS_F32;
  p.q = a.q->data;
  p.q_stride_batch = stride(a.q->nb[3]);
  p.q_stride_row = stride(a.q->nb[1]);
  p.q_stride_head = stride(a.q->nb[2]);
  p.k = {a.cache ? a.cache.root->data : a.k->data,
         k_dtype,
         stride(a.cache ? a.cache.root->nb[2] : a.k->nb[3]),
         stride(a.k->nb[2]),
         stride(a.k->nb[1]),
         nullptr,
         0};
  p.v = {reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(a.v->data) -
                                       static_cast<uintptr_t>(v_stream * a.first_stream)),
         v_dtype,
         v_stream,
         stride(a.v->nb[2]),
         stride(a.v->nb[1]),
         nullptr,
         0};
  p.out = static_cast<float*>(a.out->data);
  p.out_stride_batch = stride(a.out->nb[3]);
  p.out_stride_row = stride(a.out->nb[2]);
  p.out_stride_head = stride(a.out->nb[1]);
  p.scale = a.scale;
  p.softcap = a.softcap;
  if (a.mask) {
    p.mask = a.mask->data;
    p.mask_dtype = ADAMAS_F16;
    p.mask_stride_batch = a.mask->ne[3] > 1 ? stride(a.mask->nb[3]) : 0;
    p.mask_stride_row = stride(a.mask->nb[1]);
  }
  p.verify = 1;
  // Against changes that nobody announced (registry.h), which is none that we know of.
  p.verify_rows = ADAMAS_VERIFY_ROWS;
  p.slopes = a.max_bias > 0 ? slopes_.data() : nullptr;
  p.sink_logits = a.sinks ? static_cast<const float*>(a.sinks->data) : nullptr;
  if (config().stats || observed()) {
    mass_.resize(static_cast<size_t>(a.batch * a.rows * a.q_heads));
    noise_.resize(mass_.size());
    p.mass = mass_.data();
    p.noise = noise_.data();
  }
  p.stats = &stats;
  if (adamas_step(plan, cache, &p) != ADAMAS_OK) return fail(node, adamas_last_error());
  note_step(stats, a.cache.layer, static_cast<int32_t>(a.q_heads), heads.rotated);
  observe({a.cache.layer, static_cast<int32_t>(a.q_heads), static_cast<int32_t>(a.kv_heads),
           static_cast<int32_t>(a.head_dim), plan, &p, &stats});

  // A key changed and nobody said so. This step saw it and made its own codes anew; the other layers of the same model have
  // changed too.
  if (stats.rows_stale > 0)
    for (auto& [data, other] : codes_)
      if (other.cache && other.cache.get() != cache) {
        adamas_clear(other.cache.get(), -1);
        note_forgotten();
      }
  return GGML_STATUS_SUCCESS;
}

}  // namespace adamas_ggml
