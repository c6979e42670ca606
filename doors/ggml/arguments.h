// An attention node as the arguments of a step.
#pragma once

#include <vector>

#include "nodes.h"

namespace adamas_ggml {

class Arguments {
 public:
  // They point into the node's tensors and into this object: until the next call.
  adamas_step_params pack(const Attention& a, int threads);

 private:
  std::vector<int64_t> sequences_, lengths_;
  std::vector<float> slopes_, mass_, noise_;
};

}  // namespace adamas_ggml
