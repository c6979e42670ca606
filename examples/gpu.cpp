// Serving on a GPU: two sequences with K and V in pages of the GPU's memory decode a hundred tokens with one CUDA graph.
//
// A graph is captured once, with its pointers and sizes, and replayed for every token. That works although contexts grow:
// what changes from token to token (lengths, page ids, rows, queries) lies in the GPU's memory and is read there when the
// graph runs. So the host's part of a token is a few small copies and one launch.
//
// By hand: g++ -std=c++20 -O2 gpu.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -ladamas -lcudart
#include <adamas/adamas.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

namespace {

constexpr int q_heads = 32, kv_heads = 8, head_dim = 128, group = q_heads / kv_heads;  // a layer of an 8B model
constexpr int sequences = 2, page_tokens = 64, new_tokens = 100;
constexpr int64_t prompts[sequences] = {16384, 16300};  // tokens; the first one ends with its page
constexpr int64_t pages_each = 258, page_count = sequences * pages_each, capacity = pages_each * page_tokens;
constexpr size_t query_size = size_t{sequences} * q_heads * head_dim;
constexpr int64_t element = sizeof(__half), row = head_dim * element;  // bytes

// K and V of a page lie side by side, as many engines have them: f16 [pages, 2, page_tokens, kv_heads, head_dim].
constexpr int64_t token_size = kv_heads * head_dim, half_page = page_tokens * token_size, page_size = 2 * half_page;
constexpr int64_t place(int64_t page, int64_t token) { return page * page_size + token % page_tokens * token_size; }

void must(adamas_status status) {
  if (status == ADAMAS_OK) return;
  std::fprintf(stderr, "%s: %s\n", adamas_status_name(status), adamas_last_error());
  std::exit(1);
}
void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* allocate(size_t count) {
  void* memory = nullptr;
  must(cudaMalloc(&memory, count * sizeof(T)));
  return static_cast<T*>(memory);
}

// What a policy needs for one layer.
struct Attention {
  adamas_cache* cache = nullptr;  // codes of the keys, an eighth of their bytes, and means of the values
  adamas_plan* plan = nullptr;    // what launches are made for: a graph serves every length up to the plan's
  char* workspace = nullptr;      // a step's scratch memory: one is enough for all layers of a model
  size_t workspace_bytes = 0;
  float* out = allocate<float>(query_size);  // [sequences, q_heads, head_dim]

  explicit Attention(adamas_policy policy) {
    adamas_config config;
    must(adamas_config_init(&config));
    config.policy = policy;
    adamas_cache_params shape{};
    shape.struct_size = sizeof shape;
    shape.kv_heads = kv_heads, shape.head_dim = head_dim;
    shape.sequences = sequences, shape.capacity = capacity;
    shape.device = ADAMAS_DEVICE_CUDA;
    // Codes go by the page id of their keys: a page that is shared, moved to another table or used again takes them along.
    shape.by_page = 1, shape.blocks = page_count;
    must(adamas_cache_create(&config, &shape, &cache));
    adamas_plan_params most{};
    most.struct_size = sizeof most;
    most.q_heads = q_heads, most.kv_heads = kv_heads, most.head_dim = head_dim;
    most.max_tokens = capacity, most.max_rows = sequences, most.max_threads = 1;
    most.device = ADAMAS_DEVICE_CUDA;
    must(adamas_plan_create(&config, &most, &plan));
    must(adamas_plan_workspace(plan, &workspace_bytes));
    workspace = allocate<char>(workspace_bytes);
  }
  Attention(const Attention&) = delete;
  ~Attention() {
    adamas_plan_destroy(plan), adamas_cache_destroy(cache);
    cudaFree(workspace), cudaFree(out);
  }
  void step(adamas_step_params params) {
    params.out = out;
    params.workspace = workspace, params.workspace_bytes = workspace_bytes;
    must(adamas_step(plan, cache, &params));
  }
};

double median(std::vector<double> of) {
  std::sort(of.begin(), of.end());
  return of[of.size() / 2];
}

}  // namespace

int main() {
  if (adamas_gpu_count() == 0) {
    std::printf("no GPU: %s\n", adamas_gpu_reason());
    return 77;  // the test counts as skipped
  }
  cudaStream_t stream = nullptr;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto to_gpu = [&](void* to, const void* from, size_t bytes) {
    must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
  };

  // What a model would compute: K and V of all tokens, here in whole pages one after another, and queries. A query head
  // looks for four tokens of its sequence: it is the sum of their keys, and noise. So these weigh most in its softmax.
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<__half> rows(size_t(page_count * page_size)), q(query_size);
  for (__half& x : rows) x = __float2half(normal(random));
  const auto make_queries = [&](const int64_t* lengths) {
    for (int64_t head = 0; head < sequences * q_heads; head++) {
      const int64_t s = head / q_heads, kv_head = head % q_heads / group;
      float query[head_dim];
      for (float& x : query) x = normal(random);
      for (int i = 0; i < 4; i++) {
        const int64_t t = int64_t(random()) % lengths[s];
        const __half* key = &rows[size_t(place(s * pages_each + t / page_tokens, t) + kv_head * head_dim)];
        for (int d = 0; d < head_dim; d++) query[d] += 1.2f * __half2float(key[d]);
      }
      std::transform(query, query + head_dim, &q[size_t(head * head_dim)], [](float x) { return __float2half(x); });
    }
  };

  // The engine's memory: a pool of pages, any of which may be any sequence's, and a table that says which: [sequences,
  // pages_each]. Here it is whole from the beginning; an engine may write an id when a sequence comes to that page, since
  // ids of tokens to come are not looked at. The pool begins as NaNs: a row that is read before it was written would show.
  auto* pool = allocate<__half>(rows.size());
  auto* q_on_gpu = allocate<__half>(query_size);
  auto* table_on_gpu = allocate<int32_t>(page_count);
  auto* lengths_on_gpu = allocate<int64_t>(sequences);
  must(cudaMemsetAsync(pool, 0xFF, rows.size() * element, stream));
  std::vector<int32_t> table(page_count);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), random);
  to_gpu(table_on_gpu, table.data(), page_count * sizeof(int32_t));
  // Writes tokens [t, t + count) of a sequence, all of one page: K, and V half a page behind it.
  const auto write = [&](int64_t s, int64_t t, int64_t count) {
    const int64_t entry = s * pages_each + t / page_tokens;
    must(cudaMemcpy2DAsync(pool + place(table[size_t(entry)], t), half_page * element, &rows[size_t(place(entry, t))],
                           half_page * element, count * token_size * element, 2, cudaMemcpyHostToDevice, stream));
  };

  // The same in Adamas' words. Data and table are the GPU's; the structs are read during calls alone. Strides are in bytes.
  const adamas_pages pages{sizeof(adamas_pages), page_tokens, page_count, table_on_gpu, pages_each};
  const adamas_rows k{pool, ADAMAS_F16, /*stride_sequence*/ 0, row, token_size * element, &pages, page_size * element};
  adamas_rows v = k;
  v.data = pool + half_page;
  adamas_append_params append{sizeof append, sequences, /*rows*/ 1, /*sequences*/ nullptr, lengths_on_gpu, k, v, stream};
  adamas_step_params step{};
  step.struct_size = sizeof step;
  step.threads = 1;
  step.batch = sequences, step.rows = 1;
  step.lengths = lengths_on_gpu;
  step.q = q_on_gpu, step.q_dtype = ADAMAS_F16;  // [sequences, q_heads, head_dim]
  step.q_stride_head = row;
  step.q_stride_batch = step.q_stride_row = q_heads * row;
  step.k = k, step.v = v;
  step.out_stride_head = head_dim * sizeof(float);
  step.out_stride_batch = step.out_stride_row = q_heads * step.out_stride_head;
  step.stream = stream;
  Attention sparse(ADAMAS_POLICY_ADAMAS), full(ADAMAS_POLICY_FULL);

  // The prompts, whose attention is the engine's own. One call makes the codes of both.
  int64_t lengths[sequences];
  std::copy_n(prompts, sequences, lengths);
  for (int64_t s = 0; s < sequences; s++)
    for (int64_t t = 0; t < lengths[s]; t += page_tokens) write(s, t, std::min<int64_t>(page_tokens, lengths[s] - t));
  to_gpu(lengths_on_gpu, lengths, sizeof lengths);
  append.rows = *std::max_element(lengths, lengths + sequences);  // the newest ones, or as many as there are
  must(adamas_append_rows(sparse.cache, &append));
  must(cudaStreamSynchronize(stream));  // the copies above are of memory that changes now

  // A token of both sequences as a graph: Adamas is told of the newest row, then attends to it and all before. A model has
  // its layers around this. Nothing runs yet.
  const auto capture = [&](auto&& work) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    work();
    must(cudaStreamEndCapture(stream, &graph));
    must(cudaGraphInstantiate(&executable, graph, 0));
    must(cudaGraphDestroy(graph));
    return executable;
  };
  append.rows = 1;
  cudaGraphExec_t decode = capture([&] { must(adamas_append_rows(sparse.cache, &append)), sparse.step(step); });
  cudaGraphExec_t decode_full = capture([&] { full.step(step); });  // reads K and V, and needs no codes

  // Replays a graph; its microseconds on the GPU. In a model other layers come between two steps of this one and leave
  // nothing of it in the GPU's cache. The memset does that; meanwhile the host queues the graph, so that no launch is timed.
  constexpr size_t others_bytes = size_t{1} << 28;
  auto* others = allocate<char>(others_bytes);
  cudaEvent_t begin = nullptr, end = nullptr;
  must(cudaEventCreate(&begin)), must(cudaEventCreate(&end));
  const auto replay = [&](cudaGraphExec_t graph) {
    must(cudaMemsetAsync(others, 0, others_bytes, stream));
    must(cudaEventRecord(begin, stream));
    must(cudaGraphLaunch(graph, stream));
    must(cudaEventRecord(end, stream));
    must(cudaStreamSynchronize(stream));  // an engine waits here, too: for the token that it sampled
    float milliseconds = 0;
    must(cudaEventElapsedTime(&milliseconds, begin, end));
    return 1e3 * double(milliseconds);
  };
  std::vector<double> sparse_us, full_us;
  for (int i = 0; i < new_tokens; i++) {
    for (int64_t s = 0; s < sequences; s++) write(s, lengths[s]++, 1);
    make_queries(lengths);
    to_gpu(q_on_gpu, q.data(), query_size * element);
    to_gpu(lengths_on_gpu, lengths, sizeof lengths);
    sparse_us.push_back(replay(decode));
  }

  // The last step once more, over every token; and how many of them Adamas read in full. The query heads of a KV head read
  // theirs together; which ones is known of the last sequence.
  for (int i = 0; i < new_tokens; i++) full_us.push_back(replay(decode_full));
  std::vector<float> ours(query_size), exact(query_size);
  must(cudaMemcpy(ours.data(), sparse.out, query_size * sizeof(float), cudaMemcpyDeviceToHost));
  must(cudaMemcpy(exact.data(), full.out, query_size * sizeof(float), cudaMemcpyDeviceToHost));
  double apart = 0, size = 0;
  for (size_t i = 0; i < query_size; i++) apart += std::pow(double(ours[i]) - exact[i], 2), size += std::pow(exact[i], 2);
  const double difference = std::sqrt(apart / size);
  int64_t read = 0, tokens = 0;
  for (int h = 0; h < q_heads; h += group) must(adamas_selection(sparse.plan, h, nullptr, 0, &tokens)), read += tokens;
  const double share = double(read) / double(kv_heads * lengths[sequences - 1]);

  std::printf("%s: %d/%d heads x %d, f16, pages of %d tokens; %lld and %lld tokens in the end\n", adamas_gpu_name(0),
              q_heads, kv_heads, head_dim, page_tokens, (long long)lengths[0], (long long)lengths[1]);
  std::printf("append and step   %6.1f us, %.2f%% of the tokens read in full\n", median(sparse_us), 100 * share);
  std::printf("policy full       %6.1f us, relative difference of outputs %.4f\n", median(full_us), difference);

  must(cudaGraphExecDestroy(decode)), must(cudaGraphExecDestroy(decode_full));
  must(cudaEventDestroy(begin)), must(cudaEventDestroy(end)), must(cudaStreamDestroy(stream));
  for (void* memory : {(void*)pool, (void*)q_on_gpu, (void*)table_on_gpu, (void*)lengths_on_gpu, (void*)others})
    must(cudaFree(memory));
  return difference < 0.02 && share < 0.2 ? 0 : 1;  // where tokens have no codes, all of them are read
}
