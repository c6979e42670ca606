// Changes of a buffer that no graph operation makes: state restore, slot load, sequence copy, clear. The engine's own
// functions of the buffer make them; ours stand before these, say what changes, and call them.
#pragma once

#include "ggml-backend-impl.h"

namespace adamas_ggml {

// tensor: NULL when all of the buffer changes.
using Changed = void (*)(ggml_backend_buffer_t buffer, const ggml_tensor* tensor);

// Puts our functions before a buffer's own, which tell `changed`. False when they stand there already.
bool hook_buffer(ggml_backend_buffer_t buffer, Changed changed);

}  // namespace adamas_ggml
