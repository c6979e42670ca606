// The work itself: rows stored into the engine's cache, and attention over it.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "nodes.h"

namespace adamas_ggml {

struct CacheDeleter {
  void operator()(adamas_cache* cache) const { adamas_cache_destroy(cache); }
};
using CachePointer = std::unique_ptr<adamas_cache, CacheDeleter>;
struct PlanDeleter {
  void operator()(adamas_plan* plan) const { adamas_plan_destroy(plan); }
};

// What one ggml_backend_t (the engine makes one a context) keeps between graphs.
class Compute {
 public:
  int threads = 1;

  enum ggml_status set_rows(const ggml_tensor* node);
  enum ggml_status attention(const ggml_tensor* node);

 private:
  struct Codes {  // of one K tensor, for as long as it looks the same
    CachePointer cache;
    adamas_rows keys;
    enum ggml_type type;
    Heads heads;
    int64_t capacity, streams;
    int32_t layer;
    uint64_t changes;
  };
  struct Plan {
    adamas_config config;  // a layer may have its own
    int64_t q_heads, kv_heads, head_dim;
    std::unique_ptr<adamas_plan, PlanDeleter> plan;
    int64_t tokens = 0;
    int threads = 0;
  };

  void drop_stale_settings();  // codes and plans of other settings are dropped
  Codes* codes_for(const CacheTensor& cache, Heads heads);
  Codes* written_codes(const Write& write);
  adamas_plan* plan_for(const Attention& a);
  enum ggml_status fail(const ggml_tensor* node, const std::string& why);

  adamas_config config_{};                        // of codes_ and plans_
  std::unordered_map<const void*, Codes> codes_;  // by the data of the K tensor
  std::deque<Plan> plans_;                        // one for each shape and settings
  std::vector<int64_t> sequences_, lengths_;
  std::vector<float> slopes_, mass_, noise_;
};

}  // namespace adamas_ggml
