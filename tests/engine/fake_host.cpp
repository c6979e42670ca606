// A host program with a ggml of its own making: fake_host LIBRARY VERSION. "none": without ggml_version().
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace {
const char* version = "";
}

#ifndef ADAMAS_HOST_WITHOUT_GGML
extern "C" __attribute__((visibility("default"))) const char* ggml_version(void) { return version; }
#endif

int main(int count, char** arguments) {
  if (count != 3) return 2;
  version = std::strcmp(arguments[2], "same") == 0 ? ADAMAS_GGML_VERSION : arguments[2];
  for (int i = 0; i < 2; ++i) {
    void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      std::printf("dlopen: %s\n", dlerror());
      return 1;
    }
    auto init = reinterpret_cast<void* (*)()>(dlsym(library, "ggml_backend_init"));
    if (!init) return 1;
    std::puts(init() ? "taken" : "refused");
    dlclose(library);
  }
  return 0;
}
