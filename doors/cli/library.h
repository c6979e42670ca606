// A library of the engine, or our back end, looked up when a command needs it: the command starts without it. Never
// unloaded.
#pragma once

#include <dlfcn.h>
#include <fmt/format.h>

#include <string>

#include "failure.h"
#include "paths.h"

namespace cli {

class Library {
 public:
  // "libllama.so", in the engine's folder, else where the system looks; with the name of its interface as well, as an
  // installed engine has it. `use`: what the sentence says when it is not there.
  explicit Library(const std::string& name, const std::string& use = "") {
    for (const std::filesystem::path& folder : {engine_folder(), std::filesystem::path()})
      for (const char* suffix : {"", ".0"})
        if (handle_ == nullptr) handle_ = dlopen((folder / (name + suffix)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr)
      throw Failure(exit_failed,
                    fmt::format("the engine's library {} is not there, neither in {} nor where the system looks{}", name,
                                engine_folder().string(), use));
  }
  static Library of(const std::filesystem::path& file) {
    Library library;
    library.handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library.handle_ == nullptr) throw Failure(exit_failed, fmt::format("{} did not load: {}", file.string(), dlerror()));
    return library;
  }

  template <class Function>
  Function* get(const char* name) const {
    void* address = dlsym(handle_, name);
    if (address == nullptr) throw Failure(exit_failed, fmt::format("a library of another version has no {}", name));
    return reinterpret_cast<Function*>(address);
  }

 private:
  Library() = default;
  void* handle_ = nullptr;
};

// A member that holds a function of the engine under its own name: FUNCTION(base, ggml_version);
// NOLINTNEXTLINE(bugprone-macro-parentheses): it is a declaration
#define FUNCTION(library, name) decltype(::name)* name = library.get<decltype(::name)>(#name)

}  // namespace cli
