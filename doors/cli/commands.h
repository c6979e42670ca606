// The commands: each takes what its flags said and returns the exit code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "failure.h"
#include "settings.h"

namespace cli {

struct InfoOptions {
  bool json = false;
};
int info(Settings& settings, const InfoOptions& options);

struct CheckOptions {
  std::string model;           // empty: none, which only a GPU's self-test can do without
  std::string device = "cpu";  // whose kernels the self-test tests
  std::int64_t context = 0;    // 0: the one that the model was made for
  bool json = false;
};
int check(Settings& settings, const CheckOptions& options);

struct ExplainOptions {
  std::string model, file, ask;
  std::string lead;          // the first words of the answer, given to the model
  std::int64_t tokens = 64;  // of the answer, at most
  std::int64_t context = 0;  // 0: as many tokens as are needed
  std::int64_t threads = 0;  // 0: one a processor, at most 8
  std::string html, json;    // where to
};
int explain(Settings& settings, const ExplainOptions& options);

// `command`: the tool and its arguments. Does not return when the tool starts.
int run(Settings& settings, const std::vector<std::string>& command);

}  // namespace cli
