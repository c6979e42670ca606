// Blocks of threads of a CUDA kernel on one thread of a CPU: every thread of a block is a fiber, which gives way where it
// has to wait for others. What kernels compute is tested with it where there is no GPU; what they race for is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct EmulatedIndex {
  unsigned x = 0, y = 0, z = 0;
};
// What the fiber that runs now sees.
extern EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace adamas::on_cpu {

inline constexpr int warp_lanes = 32;
inline constexpr size_t most_shared = 227 * 1024;

extern unsigned char shared[most_shared];

// Runs all blocks of a grid, one after another. Ends the process where threads wait for each other for ever.
void run_grid(EmulatedIndex grid, EmulatedIndex block, const std::function<void()>& thread);

// Until all threads of the block that have not ended are here. Returns whether `any` was true in one of them.
bool wait_for_block(bool any = false);

// Until all lanes of the warp that have not ended are here: what each of them brought, [lane][slot_bytes].
inline constexpr size_t slot_bytes = 64;
const unsigned char* wait_for_warp(const void* own, size_t bytes);

// The values of all lanes of a warp.
template <class T>
class Lanes {
 public:
  explicit Lanes(const T& own) : slots_(wait_for_warp(&own, sizeof own)) { static_assert(sizeof(T) <= slot_bytes); }
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, slots_ + size_t(lane) * slot_bytes, sizeof value);
    return value;
  }

 private:
  const unsigned char* slots_;
};
inline int lane_index() { return int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % warp_lanes); }

}  // namespace adamas::on_cpu
