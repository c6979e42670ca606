// adamas bench: how fast a model decodes without us and with each setting, over the depth of the context.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/cases.h"

namespace cli {

struct BenchOptions {
  std::string model;
  std::vector<std::int64_t> depths{0, 512, 8192};
  std::int64_t tokens = 64;  // decoded at each depth
  std::int64_t repeat = 1;   // runs, of which the median counts
  int threads = 0;
  bool json = false;
  std::string plot;  // an SVG file; empty: none
};

// `cases`: full_case() first.
int bench(const BenchOptions& options, const std::vector<Case>& cases);

}  // namespace cli
