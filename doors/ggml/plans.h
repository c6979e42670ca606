// The scratch memory of steps: a plan for each shape and settings that attention was asked with.
#pragma once

#include <deque>
#include <memory>

#include "nodes.h"

namespace adamas_ggml {

class Plans {
 public:
  // One with room for this attention. NULL: adamas_last_error() has the sentence.
  adamas_plan* plan_for(const Attention& a, int threads);
  void clear() { plans_.clear(); }

 private:
  struct Deleter {
    void operator()(adamas_plan* plan) const { adamas_plan_destroy(plan); }
  };
  struct Plan {
    adamas_config config;  // a layer may have its own
    int64_t q_heads, kv_heads, head_dim;
    std::unique_ptr<adamas_plan, Deleter> plan;
    int64_t tokens = 0;
    int threads = 0;
  };
  std::deque<Plan> plans_;
};

}  // namespace adamas_ggml
