// Without the engine's headers there is nothing to build a graph with.
#include "ggml_attention.h"

namespace cli::kernel {

std::unique_ptr<GgmlAttention> load_ggml_attention(const Shape&, int, std::string& why_not) {
  why_not = "this adamas was built without -DADAMAS_GGML_DIR=...";
  return nullptr;
}

}  // namespace cli::kernel
