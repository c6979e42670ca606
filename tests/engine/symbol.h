// The engine's libraries, opened at run time as Python's ctypes would: out of the global scope. So these tests build before
// the engine is there, and the back end has to find ggml where dlsym(RTLD_DEFAULT) does not.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

struct Library {
  explicit Library(const std::string& path) : handle(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!handle) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
  }
  template <class Function>
  Function* symbol(const char* name) const {
    void* address = dlsym(handle, name);
    if (!address) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
    return reinterpret_cast<Function*>(address);
  }
  void* handle;
};

// SYMBOL(library, f): f of the library, with the type that the header gives it.
#define SYMBOL(library, name) (library).symbol<decltype(::name)>(#name)
