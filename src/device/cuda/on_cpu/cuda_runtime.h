// As much of CUDA's runtime and of its functions for kernels as the device `cuda` takes, on a CPU: threads.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "threads.h"

#define __host__
#define __device__
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __align__(n) alignas(n)

using std::isfinite;
using std::isnan;

struct int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- functions of one thread ---------------------------------------------------------------------------

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __double2int_rn(double x) {
  return std::isnan(x) ? 0 : int(std::clamp(std::nearbyint(x), double(INT_MIN), double(INT_MAX)));
}
inline int __float2int_rn(float x) { return __double2int_rn(double(x)); }
inline unsigned long long __double2ull_rn(double x) { return static_cast<unsigned long long>(std::nearbyint(x)); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
  const uint64_t both = uint64_t{y} << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= unsigned(both >> 8 * (which >> 4 * i & 7) & 0xFF) << 8 * i;
  return out;
}
inline unsigned __vmaxs2(unsigned a, unsigned b) {
  const auto high = [](unsigned x, unsigned y, int at) { return std::max(int16_t(x >> at), int16_t(y >> at)); };
  return unsigned(uint16_t(high(a, b, 16))) << 16 | uint16_t(high(a, b, 0));
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcg(T* to, const std::type_identity_t<T>& value) {
  *to = value;
}
template <class T, class U>
T atomicAdd(T* at, U more) {
  const T before = *at;
  *at += T(more);
  return before;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> other) {
  const T before = *at;
  *at = std::min(before, other);
  return before;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> other) {
  const T before = *at;
  *at = std::max(before, other);
  return before;
}
inline unsigned atomicXor(unsigned* at, unsigned bits) {
  const unsigned before = *at;
  *at ^= bits;
  return before;
}

// ---- functions of a warp and of a block ----------------------------------------------------------------

inline void __syncthreads() { adamas::on_cpu::wait_for_block(); }
inline int __syncthreads_or(int any) { return adamas::on_cpu::wait_for_block(any != 0); }
inline void __syncwarp() { adamas::on_cpu::Lanes<int>(0); }
template <class T>
T __shfl_sync(unsigned, T own, int from, int width = 32) {
  const adamas::on_cpu::Lanes<T> lanes(own);
  return lanes[adamas::on_cpu::lane_index() / width * width + from % width];
}
template <class T>
T __shfl_xor_sync(unsigned, T own, int by) {
  const adamas::on_cpu::Lanes<T> lanes(own);
  return lanes[adamas::on_cpu::lane_index() ^ by];
}
template <class T>
T __shfl_up_sync(unsigned, T own, int by) {
  const adamas::on_cpu::Lanes<T> lanes(own);
  const int lane = adamas::on_cpu::lane_index();
  return lanes[lane >= by ? lane - by : lane];
}
inline unsigned __ballot_sync(unsigned, bool own) {
  const adamas::on_cpu::Lanes<bool> lanes(own);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= unsigned(lanes[i]) << i;
  return bits;
}
inline bool __any_sync(unsigned mask, bool own) { return __ballot_sync(mask, own) != 0; }
template <class Merge>
int reduce_lanes(int own, Merge&& merge) {
  const adamas::on_cpu::Lanes<int> lanes(own);
  int all = lanes[0];
  for (int i = 1; i < 32; i++) all = merge(all, lanes[i]);
  return all;
}
inline int __reduce_add_sync(unsigned, int own) {
  return reduce_lanes(own, [](int a, int b) { return int(unsigned(a) + unsigned(b)); });
}
inline int __reduce_min_sync(unsigned, int own) {
  return reduce_lanes(own, [](int a, int b) { return std::min(a, b); });
}
inline int __reduce_max_sync(unsigned, int own) {
  return reduce_lanes(own, [](int a, int b) { return std::max(a, b); });
}

// ---- the runtime ---------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation, cudaErrorInsufficientDriver, cudaErrorStreamCaptureImplicit };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum { cudaLaunchAttributeProgrammaticStreamSerialization };
enum { cudaStreamCaptureModeThreadLocal };

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
// What is captured is done when the graph is launched.
struct EmulatedGraph {
  std::vector<std::function<void()>> work;
};
struct EmulatedStream {
  EmulatedGraph* captures = nullptr;
};
using cudaStream_t = EmulatedStream*;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = EmulatedGraph*;
struct cudaLaunchAttribute {
  int id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaDeviceProp {
  char name[256];
};

inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"a CPU"};
  return cudaSuccess;
}
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
  cudaMemoryType type;
};
inline std::map<uintptr_t, size_t> emulated_memory;  // bytes from an address on
inline cudaError_t cudaMalloc(void** to, size_t bytes) {
  *to = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  emulated_memory[reinterpret_cast<uintptr_t>(*to)] = bytes;
  return *to != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* memory) {
  emulated_memory.erase(reinterpret_cast<uintptr_t>(memory));
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* of) {
  const auto at = reinterpret_cast<uintptr_t>(of);
  const auto next = emulated_memory.upper_bound(at);
  const auto before = next == emulated_memory.begin() ? next : std::prev(next);
  const bool is = before != emulated_memory.end() && before->first <= at && at - before->first < before->second;
  attributes->type = is ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline int streams_that_capture = 0;  // while one does, nobody may use the default stream
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (streams_that_capture > 0) return cudaErrorStreamCaptureImplicit;
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < height; i++)
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new EmulatedStream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int) {
  stream->captures = new EmulatedGraph;
  streams_that_capture++;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->captures, nullptr);
  streams_that_capture--;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned) {
  *exec = new EmulatedGraph(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& work : exec->work) work();
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, int, int) {
  return cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  if (config->dynamicSmemBytes > adamas::on_cpu::most_shared) return cudaErrorMemoryAllocation;
  const dim3 grid = config->gridDim, block = config->blockDim;
  const auto work = [grid, block, kernel, all = std::tuple<std::decay_t<Parameters>...>(arguments...)] {
    adamas::on_cpu::run_grid({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, [&] { std::apply(kernel, all); });
  };
  if (config->stream != nullptr && config->stream->captures != nullptr)
    config->stream->captures->work.push_back(work);
  else
    work();
  return cudaSuccess;
}
