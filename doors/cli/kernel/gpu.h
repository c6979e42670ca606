// Steps of one attention layer on a GPU, measured: graphs of many steps, replayed. Layers take turns, and each is larger
// than the second cache together with the others; so K, V and codes come from memory as they do in a model.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../eval/progress.h"
#include "measure.h"
#include "shape.h"

namespace cli::kernel {

// A kernel of a step: what the step takes with it, less what it takes without it and those behind it.
struct GpuKernel {
  std::string name;
  double seconds;
};

struct GpuMeasured {
  std::string name;
  std::vector<double> seconds;  // of a step, in each replay
  std::vector<GpuKernel> kernels;
  double listed;  // tokens whose K and V are read, a KV head
  double bytes;   // codes, centres and means, and the rows that are read
  double step() const { return median(seconds); }
};

// Another library's full attention at the same shape.
struct OtherAttention {
  std::string name;
  double seconds;
};

struct GpuPlace {
  Shape shape;
  std::int64_t tokens, batch;
  std::int64_t replays;
  bool host;  // K and V lie in the host's memory
};

struct GpuPoint {
  GpuPlace place;
  int layers;
  double bandwidth;               // of a copy in the GPU's memory: bytes read and written in a second
  std::vector<GpuMeasured> ours;  // settings as they were given, the dense one last
  std::vector<OtherAttention> others;
  // The fastest full attention that was measured.
  double full() const {
    double least = ours.back().step();
    for (const OtherAttention& other : others) least = std::min(least, other.seconds);
    return least;
  }
};

// Bytes of the GPU's memory that are free; what a place needs, with so few layers as serve.
double free_gpu_memory();
double gpu_memory_of(const GpuPlace& place);
GpuPoint measure_on_gpu(const GpuPlace& place, const std::vector<Setting>& settings, Progress& progress);

// PyTorch's scaled_dot_product_attention by each of its back ends, and FlashInfer's, where `python` has them; `why`: what it
// has not.
std::vector<OtherAttention> measure_others(const GpuPlace& place, int layers, std::string& why);

}  // namespace cli::kernel
