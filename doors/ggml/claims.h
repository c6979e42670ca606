// Which nodes of the engine's graphs we take.
#pragma once

#include <cstdint>

#include "adamas/adamas.h"
#include "nodes.h"

namespace adamas_ggml {

// The scheduler's question: do we compute this node? Called for every node of every graph that the engine builds.
bool claims(const ggml_tensor* node);

// So many rows of a sequence at once are a prompt: encoded when they are written, and read by the engine with
// ADAMAS_ROWS=decode. Fewer are decoding, one row of each sequence where several share the cells (unified KV), or drafted
// tokens, or a short prompt on top of a long context: encoded by the step that first looks at them, and sparse.
inline constexpr int64_t prompt_rows = ADAMAS_BLOCK_TOKENS;

}  // namespace adamas_ggml
