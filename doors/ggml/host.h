// The engine that loaded us, found at run time: no ggml library is linked, so one that is missing, static or of
// another version costs a sentence and not a crash.
#pragma once

#include <string>

#include "ggml-backend-impl.h"

namespace adamas_ggml {

struct Host {
  const char* (*version)();
  const char* (*op_name)(enum ggml_op);
  ggml_backend_buffer_type_t (*cpu_buffer_type)();
  bool (*buft_is_host)(ggml_backend_buffer_type_t);
  size_t (*type_size)(enum ggml_type);   // bytes of a block of this type,
  int64_t (*blck_size)(enum ggml_type);  // and its elements: 1, or 32 of a quantised type
  int (*graph_n_nodes)(ggml_cgraph*);
  ggml_tensor* (*graph_node)(ggml_cgraph*, int);
  void (*log)(enum ggml_log_level, const char*, ...);  // may be NULL
};

// True when the process runs the ggml that this file was compiled against; else `why` is a sentence.
bool find_host(std::string& why);
const Host& host();

// The function by which the engine's own CPU back end stores f32 as this type, so that rows are the same bit for bit whoever
// stores them; NULL: it has none, or is not to be found.
ggml_from_float_t store_function(enum ggml_type type);

// One line: through the engine's log, so that its verbosity rules, or to stderr.
void say(enum ggml_log_level level, const std::string& sentence);

}  // namespace adamas_ggml
