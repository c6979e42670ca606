// What a GGUF file says about its model, read by ggml's own reader.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "output.h"

namespace cli {

struct Gguf {
  Json values;  // every key whose value is one number, one string, or an array of few numbers
  std::vector<std::string> tensors;
};

// The reader aborts on some hostile files, so it works in a child process. Throws a Failure with a sentence when the
// file is not whole, or when there is no reader.
Gguf read_gguf(const std::string& path);

}  // namespace cli
