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
  std::string model;
  std::int64_t context = 0;  // 0: the one that the model was made for
  bool json = false;
};
int check(Settings& settings, const CheckOptions& options);

// `command`: the tool and its arguments. Does not return when the tool starts.
int run(Settings& settings, const std::vector<std::string>& command);

}  // namespace cli
