// Without nvcc there is no GPU to work on.
#include "device_memory.h"
#include "failure.h"

namespace cli {

std::unique_ptr<DeviceMemory> gpu_memory() { throw Failure(exit_failed, "this adamas was built without the device cuda"); }

}  // namespace cli
