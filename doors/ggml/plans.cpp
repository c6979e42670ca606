#include "plans.h"

#include <algorithm>

#include "settings.h"

namespace adamas_ggml {

adamas_plan* Plans::plan_for(const Attention& a, int threads) {
  const adamas_config& settings = config_of(a.cache.layer);
  auto known = std::find_if(plans_.begin(), plans_.end(), [&](const Plan& plan) {
    return plan.q_heads == a.q_heads && plan.kv_heads == a.kv_heads && plan.head_dim == a.head_dim &&
           same(plan.config, settings);
  });
  if (known == plans_.end()) known = plans_.insert(known, Plan{settings, a.q_heads, a.kv_heads, a.head_dim, nullptr});
  Plan& p = *known;
  if (p.plan && p.tokens >= a.capacity() && p.threads >= threads) return p.plan.get();
  const adamas_plan_params params{.struct_size = sizeof(adamas_plan_params),
                                  .q_heads = static_cast<int32_t>(a.q_heads),
                                  .kv_heads = static_cast<int32_t>(a.kv_heads),
                                  .head_dim = static_cast<int32_t>(a.head_dim),
                                  .max_tokens = std::max(p.tokens, a.capacity()),
                                  .max_threads = std::max(p.threads, threads),
                                  .device = ADAMAS_DEVICE_CPU,
                                  .max_rows = 0};
  adamas_plan* plan = nullptr;
  p.plan.reset();
  if (adamas_plan_create(&settings, &params, &plan) != ADAMAS_OK) return nullptr;
  p.plan.reset(plan);
  p.tokens = params.max_tokens;
  p.threads = params.max_threads;
  return plan;
}

}  // namespace adamas_ggml
