// adamas bench: how fast a model decodes without us and with each setting, over the depth of the context; with --kernel how
// fast each stage of a step is, without a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/cases.h"
#include "kernel/measure.h"

namespace cli {

struct BenchOptions {
  std::string model;
  std::vector<std::int64_t> depths;  // empty: the command's own
  std::int64_t tokens = 64;          // decoded at each depth
  std::int64_t repeat = 0;           // runs, or steps, of which the median counts; 0: the command's own
  int threads = 0;
  bool json = false;
  std::string plot;                         // an SVG file; empty: none
  std::vector<std::string> settings_files;  // which the cases are made of
  bool kernel = false;
  std::vector<std::string> shapes;          // of --kernel: "9/3x64"
  std::string device = "cpu";               // of --kernel: where the step runs
  std::vector<std::int64_t> batches = {1};  // of a GPU: sequences of a step
  std::int64_t prompt_rows = 0;             // of --kernel: so many query rows at once; 0: a token is decoded
  bool host = false;                        // of a GPU: K and V lie in the host's memory
};

// `cases`: full_case() first.
int bench(BenchOptions options, const std::vector<Case>& cases);
int bench_kernel(BenchOptions options, const std::vector<Case>& cases);
int bench_prompt(const BenchOptions& options, const std::vector<kernel::Shape>& shapes);
int bench_gpu(const BenchOptions& options, const std::vector<kernel::Shape>& shapes,
              const std::vector<kernel::Setting>& settings);

}  // namespace cli
