// The device `cuda` of a library that was built without nvcc.
#include "device/cuda/device.h"

namespace adamas::cuda {

std::vector<std::string> gpu_names() { return {}; }
std::string why_none() { return "this library was built without CUDA"; }

Status make_cache(const adamas_config&, const adamas_cache_params&, std::unique_ptr<Cache>&) {
  return unsupported("device cuda: " + why_none());
}
Status make_plan(const adamas_config&, const adamas_plan_params&, std::unique_ptr<Plan>&) {
  return unsupported("device cuda: " + why_none());
}

}  // namespace adamas::cuda
