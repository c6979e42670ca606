#include "host.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace adamas_ggml {
namespace {

Host found{};

// ggml is usually in the global scope, as a library that the executable needs. A host that was itself loaded
// privately (Python's ctypes) has it loaded all the same: RTLD_NOLOAD finds it by name and loads nothing.
void *symbol(const char *name) {
  if (void *address = dlsym(RTLD_DEFAULT, name)) return address;
  for (const char *library : {"libggml-base.so.0", "libggml-base.so"})
    if (void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
      void *address = dlsym(handle, name);
      dlclose(handle);
      if (address) return address;
    }
  return nullptr;
}

template <class Function>
bool look_up(Function &function, const char *name) {
  function = reinterpret_cast<Function>(symbol(name));
  return function != nullptr;
}

}  // namespace

bool find_host(std::string &why) {
  Host h{};
  if (!look_up(h.version, "ggml_version")) {
    why = "this process has no ggml_version(): the engine must be built with shared libraries (GGML_BACKEND_DL=ON)";
    return false;
  }
  if (std::strcmp(h.version(), ADAMAS_GGML_VERSION) != 0) {
    why = std::string("built for ggml " ADAMAS_GGML_VERSION ", this engine runs ggml ") + h.version() +
          ": build it again with -DADAMAS_GGML_DIR set to the ggml folder of this engine's sources";
    return false;
  }
  if (!look_up(h.op_name, "ggml_op_name") || !look_up(h.cpu_buffer_type, "ggml_backend_cpu_buffer_type") ||
      !look_up(h.buft_is_host, "ggml_backend_buft_is_host") || !look_up(h.graph_n_nodes, "ggml_graph_n_nodes") ||
      !look_up(h.graph_node, "ggml_graph_node")) {
    why = "this engine's ggml lacks functions that version " ADAMAS_GGML_VERSION " has";
    return false;
  }
  // A fork may keep the version and still number its operations differently; these are the ones that we read.
  struct Operation {
    enum ggml_op op;
    const char *name;
  };
  for (const auto &[op, name] : {Operation{GGML_OP_FLASH_ATTN_EXT, "FLASH_ATTN_EXT"},
                                 Operation{GGML_OP_SET_ROWS, "SET_ROWS"},
                                 Operation{GGML_OP_MUL_MAT, "MUL_MAT"},
                                 Operation{GGML_OP_RESHAPE, "RESHAPE"},
                                 Operation{GGML_OP_VIEW, "VIEW"},
                                 Operation{GGML_OP_PERMUTE, "PERMUTE"},
                                 Operation{GGML_OP_TRANSPOSE, "TRANSPOSE"}}) {
    const char *theirs = h.op_name(op);
    if (!theirs || std::strcmp(theirs, name) != 0) {
      why = std::string("this engine's ggml calls operation ") + std::to_string(op) + " '" +
            (theirs ? theirs : "nothing") + "', not '" + name + "': it is not the ggml that we were built against";
      return false;
    }
  }
  look_up(h.log, "ggml_log_internal");
  found = h;
  return true;
}

const Host &host() { return found; }

void say(enum ggml_log_level level, const std::string &sentence) {
  if (found.log)
    found.log(level, "adamas: %s\n", sentence.c_str());
  else
    std::fprintf(stderr, "adamas: %s\n", sentence.c_str());
}

}  // namespace adamas_ggml
