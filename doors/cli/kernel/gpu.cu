#include "gpu.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <memory>

#include "../failure.h"

namespace cli::kernel {
namespace {

constexpr double deviation = 4.3;     // of scores, as trained models have it
constexpr double turned_bytes = 3e8;  // of codes that lie between two uses of a layer, where memory allows it
constexpr int fewest_steps = 24;      // of a graph

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Failure(exit_failed, std::string("bench: ") + what + ": " + cudaGetErrorString(error));
}
void check(adamas_status status) {
  if (status != ADAMAS_OK) throw Failure(exit_failed, std::string("bench: ") + adamas_last_error());
}

struct Free {
  void operator()(void* p) const { cudaFree(p); }
};
template <class T>
using OnGpu = std::unique_ptr<T, Free>;
template <class T>
OnGpu<T> allocate(std::int64_t count) {
  void* p = nullptr;
  check(cudaMalloc(&p, static_cast<std::size_t>(std::max<std::int64_t>(1, count)) * sizeof(T)), "the GPU's memory");
  return OnGpu<T>(static_cast<T*>(p));
}
struct FreeOnHost {
  void operator()(void* p) const { cudaFreeHost(p); }
};
using OnHost = std::unique_ptr<__half, FreeOnHost>;
OnHost copy_to_host(const OnGpu<__half>& from, std::int64_t count) {
  void* p = nullptr;
  check(cudaMallocHost(&p, static_cast<std::size_t>(count) * sizeof(__half)), "the host's memory");
  OnHost to(static_cast<__half*>(p));
  check(cudaMemcpy(p, from.get(), static_cast<std::size_t>(count) * sizeof(__half), cudaMemcpyDeviceToHost), "a copy");
  return to;
}
struct Cache {
  adamas_cache* it = nullptr;
  ~Cache() { adamas_cache_destroy(it); }
};
struct Plan {
  adamas_plan* it = nullptr;
  ~Plan() { adamas_plan_destroy(it); }
};

// A number of a normal distribution, of its place alone.
__device__ float normal(std::uint64_t place) {
  std::uint64_t z = (place + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  const float u = float(std::uint32_t(z) + 1.0) * 2.3283064e-10f, turn = float(std::uint32_t(z >> 32)) * 2.3283064e-10f;
  return sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * turn);
}
__global__ void fill_rows(__half* to, std::int64_t count, std::uint64_t seed) {
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < count;
       i += std::int64_t(gridDim.x) * blockDim.x)
    to[i] = __float2half(normal(seed << 40 | std::uint64_t(i)));
}
// Query heads of a group share four fifths of their direction.
__global__ void fill_queries(__half* to, std::int64_t count, int group, int head_dim, float scale, std::uint64_t seed) {
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < count;
       i += std::int64_t(gridDim.x) * blockDim.x) {
    const std::uint64_t common = std::uint64_t(i / head_dim / group) * head_dim + i % head_dim;
    const float own = normal(seed << 40 | std::uint64_t(i));
    to[i] = __float2half(scale * (group == 1 ? own : 0.8f * normal(~seed << 40 | common) + 0.6f * own));
  }
}

double replay(cudaGraphExec_t graph, cudaStream_t stream, std::int64_t replays, std::vector<double>& seconds) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "an event");
  check(cudaEventCreate(&end), "an event");
  seconds.clear();
  for (std::int64_t i = -3; i < replays; i++) {
    check(cudaEventRecord(begin, stream), "an event");
    check(cudaGraphLaunch(graph, stream), "a graph");
    check(cudaEventRecord(end, stream), "an event");
    check(cudaStreamSynchronize(stream), "a step");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "an event");
    if (i >= 0) seconds.push_back(milliseconds * 1e-3);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return median(seconds);
}

double copy_bandwidth() {
  constexpr std::int64_t bytes = std::int64_t{1} << 30;
  const auto from = allocate<char>(bytes), to = allocate<char>(bytes);
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  cudaGraph_t graph;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a graph");
  check(cudaMemcpyAsync(to.get(), from.get(), bytes, cudaMemcpyDeviceToDevice, stream), "a copy");
  check(cudaStreamEndCapture(stream, &graph), "a graph");
  cudaGraphExec_t exec;
  check(cudaGraphInstantiate(&exec, graph, 0), "a graph");
  std::vector<double> seconds;
  const double once = replay(exec, stream, 7, seconds);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return 2.0 * double(bytes) / once;
}

double code_bytes(const GpuPlace& place) {
  return double(place.batch) * double(place.tokens) * place.shape.kv_heads *
         (double(place.shape.head_dim) * (0.25 + 4.0 / 64));
}
double row_bytes(const GpuPlace& place) { return 2.0 * double(place.batch * place.tokens * place.shape.row_bytes()); }

int layers_of(const GpuPlace& place) {
  const double each = code_bytes(place) + row_bytes(place);
  const int wanted = int(std::clamp(turned_bytes / code_bytes(place) + 1, 2.0, double(fewest_steps)));
  return std::max(2, std::min(wanted, int(free_gpu_memory() * 0.4 / each)));
}

}  // namespace

double free_gpu_memory() {
  std::size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all), "the GPU's memory");
  return double(free);
}

double gpu_memory_of(const GpuPlace& place) {  // with scores of two bytes a query head
  return 2 * (code_bytes(place) + row_bytes(place)) + double(place.batch) * double(place.tokens) * place.shape.q_heads * 3;
}

GpuPoint measure_on_gpu(const GpuPlace& place, const std::vector<Setting>& settings, Progress& progress) {
  const Shape& shape = place.shape;
  GpuPoint point{place, layers_of(place), copy_bandwidth(), {}, {}};
  const int layers = point.layers, steps = std::max(layers, (fewest_steps + layers - 1) / layers * layers);
  const std::int64_t rows = place.batch * place.tokens * shape.kv_heads * shape.head_dim,
                     queries = place.batch * shape.q_heads * shape.head_dim;
  std::vector<OnGpu<__half>> k, v;
  for (int i = 0; i < layers; i++) {
    k.push_back(allocate<__half>(rows)), v.push_back(allocate<__half>(rows));
    fill_rows<<<2048, 256>>>(k.back().get(), rows, std::uint64_t(2 * i));
    fill_rows<<<2048, 256>>>(v.back().get(), rows, std::uint64_t(2 * i + 1));
  }
  const auto q = allocate<__half>(steps * queries);
  fill_queries<<<1024, 256>>>(q.get(), steps * queries, shape.q_heads / shape.kv_heads, shape.head_dim, float(deviation),
                              1000);
  const auto out = allocate<float>(queries);
  const std::vector<std::int64_t> host_lengths(static_cast<std::size_t>(place.batch), place.tokens);
  const auto lengths = allocate<std::int64_t>(place.batch);
  check(cudaMemcpy(lengths.get(), host_lengths.data(), host_lengths.size() * 8, cudaMemcpyHostToDevice), "lengths");

  std::vector<OnHost> host_k, host_v;
  for (int i = 0; place.host && i < layers; i++) {
    host_k.push_back(copy_to_host(k[std::size_t(i)], rows));
    host_v.push_back(copy_to_host(v[std::size_t(i)], rows));
  }
  // What is sparse reads the host's rows, if there are any; what is dense reads them from both.
  struct Run {
    Setting setting;
    bool host;
  };
  std::vector<Run> runs;
  for (const Setting& setting : settings) runs.push_back({setting, place.host && &setting != &settings.back()});
  if (place.host) runs.insert(runs.end() - 1, {{settings.back().name + " over the bus", settings.back().config}, true});

  const auto view = [&](const __half* from) {
    adamas_rows of{};
    of.data = from;
    of.dtype = ADAMAS_F16;
    of.stride_token = shape.head_dim * 2;
    of.stride_head = place.tokens * of.stride_token;
    of.stride_sequence = shape.kv_heads * of.stride_head;
    return of;
  };
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  for (const auto& [setting, host] : runs) {
    const auto k_of = [&](int i) { return view(host ? host_k[std::size_t(i)].get() : k[std::size_t(i)].get()); };
    const auto v_of = [&](int i) { return view(host ? host_v[std::size_t(i)].get() : v[std::size_t(i)].get()); };
    const adamas_config config = setting.config.native();
    std::vector<Cache> caches(static_cast<std::size_t>(layers));
    for (int i = 0; i < layers; i++) {
      adamas_cache_params params{};
      params.struct_size = sizeof params;
      params.kv_heads = shape.kv_heads;
      params.head_dim = shape.head_dim;
      params.sequences = place.batch;
      params.capacity = place.tokens;
      params.device = ADAMAS_DEVICE_CUDA;
      check(adamas_cache_create(&config, &params, &caches[std::size_t(i)].it));
      if (config.policy == ADAMAS_POLICY_FULL) continue;
      adamas_append_params append{};
      append.struct_size = sizeof append;
      append.batch = place.batch;
      append.rows = place.tokens;
      append.lengths = lengths.get();
      append.k = k_of(i), append.v = v_of(i);
      check(adamas_append_rows(caches[std::size_t(i)].it, &append));
    }
    check(cudaDeviceSynchronize(), "append");
    Plan plan;
    adamas_plan_params params{};
    params.struct_size = sizeof params;
    params.q_heads = shape.q_heads;
    params.kv_heads = shape.kv_heads;
    params.head_dim = shape.head_dim;
    params.max_tokens = place.tokens;
    params.max_threads = 1;
    params.device = ADAMAS_DEVICE_CUDA;
    params.max_rows = place.batch;
    check(adamas_plan_create(&config, &params, &plan.it));
    std::size_t bytes = 0;
    check(adamas_plan_workspace(plan.it, &bytes));
    const auto workspace = allocate<char>(std::int64_t(bytes));
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a graph");
    for (int i = 0; i < steps; i++) {
      adamas_step_params p{};
      p.struct_size = sizeof p;
      p.threads = 1;
      p.batch = place.batch;
      p.rows = 1;
      p.lengths = lengths.get();
      p.q_dtype = ADAMAS_F16;
      p.q = q.get() + i * queries;
      p.q_stride_head = shape.head_dim * 2;
      p.q_stride_row = p.q_stride_batch = shape.q_heads * p.q_stride_head;
      p.k = k_of(i % layers), p.v = v_of(i % layers);
      p.out = out.get();
      p.out_stride_head = shape.head_dim * 4;
      p.out_stride_row = p.out_stride_batch = shape.q_heads * p.out_stride_head;
      p.stream = stream;
      p.workspace = workspace.get();
      p.workspace_bytes = bytes;
      check(adamas_step(plan.it, caches[std::size_t(i % layers)].it, &p));
    }
    cudaGraph_t graph;
    check(cudaStreamEndCapture(stream, &graph), "a graph");
    cudaGraphExec_t exec;
    check(cudaGraphInstantiate(&exec, graph, 0), "a graph");
    GpuMeasured measured{setting.name, {}, {}, 0, 0};
    const double all = replay(exec, stream, place.replays, measured.seconds);
    for (double& one : measured.seconds) one /= steps;

    double listed = 0;
    for (int h = 0; config.policy == ADAMAS_POLICY_ADAMAS && h < shape.q_heads; h++) {
      std::int64_t count = 0;
      check(adamas_selection(plan.it, h, nullptr, 0, &count));
      listed += double(count) / shape.q_heads;
    }
    const bool full = config.policy == ADAMAS_POLICY_FULL, own = config.budget != ADAMAS_BUDGET_AUTO;
    measured.listed = full ? double(place.tokens) : listed;
    const double lists = double(place.batch) * (own && !full ? shape.q_heads : shape.kv_heads);
    measured.bytes = lists * measured.listed * shape.head_dim * 4 +
                     (full ? 0 : code_bytes(place) - (own ? code_bytes(place) * (2.0 / 64) / (0.25 + 4.0 / 64) : 0));

    // Kernels are left out from the last on.
    std::size_t count = 0;
    check(cudaGraphGetNodes(graph, nullptr, &count), "a graph");
    std::vector<cudaGraphNode_t> nodes(count);
    check(cudaGraphGetNodes(graph, nodes.data(), &count), "a graph");
    const std::vector<const char*> names = full ? std::vector<const char*>{"attend", "combine"}
                                                : std::vector<const char*>{"scan", "choose", "attend", "combine"};
    double with = all;
    for (std::size_t i = names.size(); i-- > 0 && count == names.size() * std::size_t(steps);) {
      double without = 0;
      if (i > 0) {
        for (std::size_t j = i; j < count; j += names.size()) check(cudaGraphNodeSetEnabled(exec, nodes[j], 0), "a kernel");
        std::vector<double> seconds;
        without = replay(exec, stream, place.replays, seconds);
      }
      measured.kernels.insert(measured.kernels.begin(), {names[i], (with - without) / steps});
      with = without;
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    point.ours.push_back(std::move(measured));
    progress.advance(1, setting.name);
  }
  cudaStreamDestroy(stream);
  return point;
}

}  // namespace cli::kernel
