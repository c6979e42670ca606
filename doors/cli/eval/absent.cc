#include "options.h"
#include "../failure.h"

namespace cli {
namespace {

[[noreturn]] void absent() {
  throw Failure(exit_failed,
                "this adamas was built without llama.cpp, which `eval` runs; build it with -DADAMAS_GGML_DIR=...");
}

}  // namespace

int perplexity(const EvalOptions&, const PerplexityOptions&) { absent(); }
int retrieval(const EvalOptions&, const RetrievalOptions&) { absent(); }
int recall(const EvalOptions&, const RecallOptions&) { absent(); }

}  // namespace cli
