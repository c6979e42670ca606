#include "failure.h"
#include "gguf.h"

namespace cli {

Gguf read_gguf(const std::string&) {
  throw Failure(exit_failed,
                "this adamas was built without llama.cpp, whose reader of models `check` uses; "
                "build it with -DADAMAS_GGML_DIR=...");
}

}  // namespace cli
