#include "commands.h"

namespace cli {

int explain(Settings&, const ExplainOptions&) {
  throw Failure(exit_failed,
                "this adamas was built without llama.cpp, which `explain` runs; build it with -DADAMAS_GGML_DIR=...");
}

}  // namespace cli
