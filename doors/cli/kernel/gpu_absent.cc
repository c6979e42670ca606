// Without nvcc there is nothing to measure on a GPU.
#include "../failure.h"
#include "gpu.h"

namespace cli::kernel {

double free_gpu_memory() { throw Failure(exit_failed, "bench: this adamas was built without the device cuda"); }
double gpu_memory_of(const GpuPlace&) { return 0; }
GpuPoint measure_on_gpu(const GpuPlace& place, const std::vector<Setting>&, Progress&) {
  free_gpu_memory();
  return {place, 0, 0, {}, {}};
}

}  // namespace cli::kernel
