// SET_ROWS: rows stored where their indices say.
#pragma once

#include <string>

#include "nodes.h"

namespace adamas_ggml {

int64_t index_at(const ggml_tensor* indices, int64_t i, int64_t b = 0, int64_t c = 0);

// Bit for bit as the engine stores them. All or, when an index is out of range, none: then a sentence, else "".
std::string store_rows(const Write& write);

}  // namespace adamas_ggml
