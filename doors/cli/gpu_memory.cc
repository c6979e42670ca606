#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "device_memory.h"
#include "failure.h"

namespace cli {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Failure(exit_failed, fmt::format("{}: {}", what, cudaGetErrorString(error)));
}

class GpuMemory final : public DeviceMemory {
 public:
  void* room(std::size_t bytes) override {
    if (bytes == 0) return nullptr;
    void* place = nullptr;
    check(cudaMalloc(&place, bytes), "the GPU's memory");
    rooms_.emplace_back(place);
    check(cudaMemset(place, 0xFF, bytes), "the GPU's memory");  // what nobody writes is no number
    return place;
  }

  void fetch() override {
    check(cudaDeviceSynchronize(), "a step on the GPU");
    for (const Written& one : written_)
      check(cudaMemcpy(one.to, one.place, one.bytes, cudaMemcpyDeviceToHost), "a copy of the GPU's memory");
  }

 protected:
  const void* read_place(const void* from, std::size_t bytes) override {
    void* place = room(bytes);
    if (bytes > 0) check(cudaMemcpy(place, from, bytes, cudaMemcpyHostToDevice), "a copy to the GPU's memory");
    return place;
  }

  void* write_place(void* to, std::size_t bytes) override {
    void* place = const_cast<void*>(read_place(to, bytes));
    if (bytes > 0) written_.push_back({to, place, bytes});
    return place;
  }

 private:
  struct Free {
    void operator()(void* place) const { cudaFree(place); }
  };
  struct Written {
    void* to;
    const void* place;
    std::size_t bytes;
  };
  std::vector<std::unique_ptr<void, Free>> rooms_;
  std::vector<Written> written_;
};

}  // namespace

std::unique_ptr<DeviceMemory> gpu_memory() { return std::make_unique<GpuMemory>(); }

}  // namespace cli
