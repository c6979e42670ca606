#include "compute.h"

#include <cstring>
#include <optional>

#include "host.h"
#include "registry.h"
#include "settings.h"
#include "stats.h"
#include "writes.h"

namespace adamas_ggml {

enum ggml_status Compute::fail(const ggml_tensor* node, const std::string& why) {
  say(GGML_LOG_LEVEL_ERROR, std::string(host().op_name(node->op)) + " '" +
                                std::string(node->name, strnlen(node->name, GGML_MAX_NAME)) + "': " + why);
  return GGML_STATUS_FAILED;
}

// Codes and plans of other settings.
void Compute::drop_stale_settings() {
  if (same(config_, config())) return;
  codes_.clear();
  plans_.clear();
  config_ = config();
}

enum ggml_status Compute::set_rows(const ggml_tensor* node) {
  Write w;
  if (!read_write(node, w)) return fail(node, "not a write that this back end computes");
  if (!addressable(w.rows) || !addressable(w.indices) || !addressable(node) || (w.cache && node->data != w.cache.root->data))
    return fail(node, "a tensor lies outside its memory");
  if (const std::string why = store_rows(w); !why.empty()) return fail(node, why);
  if (!w.cache) return GGML_STATUS_SUCCESS;

  drop_stale_settings();
  if (w.cache.keys) wrote(w.cache, this);
  return codes_.wrote(w) ? GGML_STATUS_SUCCESS : fail(node, adamas_last_error());
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
    cache = codes_.codes_for(a.cache, heads);
  } else {
    empty = make_cache(a.cache.layer, heads, a.batch, a.n_kv);
    cache = empty.get();
  }
  adamas_plan* plan = cache ? plans_.plan_for(a, threads) : nullptr;
  if (!plan) return fail(node, adamas_last_error());

  adamas_step_stats stats{};
  stats.struct_size = sizeof stats;
  adamas_step_params p = arguments_.pack(a, threads);
  p.stats = &stats;
  if (adamas_step(plan, cache, &p) != ADAMAS_OK) return fail(node, adamas_last_error());
  note_step(stats, a.cache.layer, static_cast<int32_t>(a.q_heads), heads.rotated);
  observe({a.cache.layer, static_cast<int32_t>(a.q_heads), static_cast<int32_t>(a.kv_heads),
           static_cast<int32_t>(a.head_dim), plan, &p, &stats});
  if (stats.rows_stale > 0) codes_.forget_others(cache);
  return GGML_STATUS_SUCCESS;
}

}  // namespace adamas_ggml
