// The work itself: rows stored into the engine's cache, and attention over it.
#pragma once

#include <string>

#include "arguments.h"
#include "codes.h"
#include "plans.h"

namespace adamas_ggml {

// What one ggml_backend_t (the engine makes one a context) keeps between graphs.
class Compute {
 public:
  int threads = 1;

  enum ggml_status set_rows(const ggml_tensor* node);
  enum ggml_status attention(const ggml_tensor* node);

 private:
  void drop_stale_settings();
  enum ggml_status fail(const ggml_tensor* node, const std::string& why);

  adamas_config config_{};  // of codes and plans
  Codes codes_;
  Plans plans_;
  Arguments arguments_;
};

}  // namespace adamas_ggml
