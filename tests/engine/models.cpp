// The engine's test of architectures takes its CPU back end for granted. Built as ours is, that is a library which somebody
// has to load before main begins; it is found in the working directory.
#include "ggml-backend.h"

namespace {
const bool loaded = (ggml_backend_load_all(), true);
}
