#include "host.h"

#include <dlfcn.h>

#include "ggml-cpu.h"

#include <cstdio>
#include <cstring>

namespace adamas_ggml {
namespace {

Host found{};

// ggml is usually in the global scope, as a library that the executable needs. A host that was itself loaded
// privately (Python's ctypes) has it loaded all the same: RTLD_NOLOAD finds it by name and loads nothing.
void* symbol(const char* name) {
  if (void* address = dlsym(RTLD_DEFAULT, name)) return address;
  for (const char* library : {"libggml-base.so.0", "libggml-base.so", "libggml.so.0", "libggml.so"})
    if (void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
      void* address = dlsym(handle, name);
      dlclose(handle);
      if (address) return address;
    }
  return nullptr;
}

// Of the CPU back end, which the engine loads out of the global scope as it loads us: it is the library that the CPU
// device's own functions lie in. By now the device is registered.
void* symbol_of_cpu(const char* name) {
  if (void* address = dlsym(RTLD_DEFAULT, name)) return address;
  const auto device_of = reinterpret_cast<decltype(ggml_backend_dev_by_type)*>(symbol("ggml_backend_dev_by_type"));
  ggml_backend_dev_t cpu = device_of ? device_of(GGML_BACKEND_DEVICE_TYPE_CPU) : nullptr;
  Dl_info library;
  if (!cpu || !dladdr(reinterpret_cast<void*>(cpu->iface.get_name), &library)) return nullptr;
  void* handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) return nullptr;
  void* address = dlsym(handle, name);
  dlclose(handle);
  return address;
}

template <class Function>
bool look_up(Function& function, const char* name) {
  function = reinterpret_cast<Function>(symbol(name));
  return function != nullptr;
}

}  // namespace

bool find_host(std::string& why) {
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
      !look_up(h.buft_is_host, "ggml_backend_buft_is_host") || !look_up(h.type_size, "ggml_type_size") ||
      !look_up(h.blck_size, "ggml_blck_size") || !look_up(h.graph_n_nodes, "ggml_graph_n_nodes") ||
      !look_up(h.graph_node, "ggml_graph_node")) {
    why = "this engine's ggml lacks functions that version " ADAMAS_GGML_VERSION " has";
    return false;
  }
  // A fork may keep the version and still number its operations differently; these are the ones that we read.
  struct Operation {
    enum ggml_op op;
    const char* name;
  };
  for (const auto& [op, name] :
       {Operation{GGML_OP_FLASH_ATTN_EXT, "FLASH_ATTN_EXT"}, Operation{GGML_OP_SET_ROWS, "SET_ROWS"},
        Operation{GGML_OP_MUL_MAT, "MUL_MAT"}, Operation{GGML_OP_RESHAPE, "RESHAPE"}, Operation{GGML_OP_VIEW, "VIEW"},
        Operation{GGML_OP_PERMUTE, "PERMUTE"}, Operation{GGML_OP_TRANSPOSE, "TRANSPOSE"}}) {
    const char* theirs = h.op_name(op);
    if (!theirs || std::strcmp(theirs, name) != 0) {
      why = std::string("this engine's ggml calls operation ") + std::to_string(op) + " '" + (theirs ? theirs : "nothing") +
            "', not '" + name + "': it is not the ggml that we were built against";
      return false;
    }
  }
  look_up(h.log, "ggml_log_internal");
  found = h;
  return true;
}

const Host& host() { return found; }

ggml_from_float_t store_function(enum ggml_type type) {
  static const auto traits =
      reinterpret_cast<decltype(ggml_get_type_traits_cpu)*>(symbol_of_cpu("ggml_get_type_traits_cpu"));
  return traits ? traits(type)->from_float : nullptr;
}

void say(enum ggml_log_level level, const std::string& sentence) {
  if (found.log)
    found.log(level, "adamas: %s\n", sentence.c_str());
  else
    std::fprintf(stderr, "adamas: %s\n", sentence.c_str());
}

}  // namespace adamas_ggml
