// The memory that a device works in: a CPU's is the program's own, a GPU's has copies of what is read there and of what
// comes back.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace cli {

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  // Where the device reads what `from` holds; and what `to` holds, where it writes to that and `fetch` brings it back.
  // nullptr of what is empty. Both vectors stay as they are until then.
  template <class T>
  const T* reads(const std::vector<T>& from) {
    return static_cast<const T*>(read_place(from.data(), from.size() * sizeof(T)));
  }
  template <class T>
  T* writes(std::vector<T>& to) {
    return static_cast<T*>(write_place(to.data(), to.size() * sizeof(T)));
  }
  // Room of the device's own.
  virtual void* room(std::size_t bytes) = 0;
  // Waits for the device; what it wrote is in the program's memory then.
  virtual void fetch() = 0;

 protected:
  virtual const void* read_place(const void* from, std::size_t bytes) = 0;
  virtual void* write_place(void* to, std::size_t bytes) = 0;
};

// Of the GPU that is current. What CUDA refuses is thrown as a Failure, here and in each call.
std::unique_ptr<DeviceMemory> gpu_memory();

}  // namespace cli
