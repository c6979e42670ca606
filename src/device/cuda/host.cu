// Caches and plans of the device `cuda`: memory, checks of what can be served, launches.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "baselines/quest.h"
#include "cache/cache.h"
#include "core/config.h"
#include "device/cuda/common.cuh"
#include "device/cuda/device.h"
#include "step/scale.h"

namespace adamas::cuda {
namespace {

Status status_of(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  const std::string sentence = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) return out_of_memory(sentence);
  return {ADAMAS_INTERNAL, sentence};
}
#define ADAMAS_CUDA(call, what)                                                \
  do {                                                                         \
    if (Status status_ = status_of(call, what); !status_.ok()) return status_; \
  } while (false)

constexpr int64_t aligned = 256;
constexpr int64_t up(int64_t bytes) { return (bytes + aligned - 1) / aligned * aligned; }

struct FreeOnDevice {
  void operator()(void* p) const { cudaFree(p); }
};
using DeviceMemory = std::unique_ptr<void, FreeOnDevice>;

Status allocate(int64_t bytes, DeviceMemory& memory) {
  void* p = nullptr;
  ADAMAS_CUDA(cudaMalloc(&p, size_t(bytes)), "the GPU's memory");
  memory.reset(p);
  return status_of(cudaMemset(p, 0, size_t(bytes)), "the GPU's memory");
}

bool is_rows_dtype(int32_t dtype) {
  return dtype == ADAMAS_F32 || dtype == ADAMAS_F16 || dtype == ADAMAS_BF16 || dtype == ADAMAS_F8_E4M3;
}

Status check_rows(const adamas_rows& rows, const char* name) {
  if (!is_rows_dtype(rows.dtype)) return unsupported(std::string(name) + ": on a GPU rows are f32, f16, bf16 or f8_e4m3");
  const auto bits = reinterpret_cast<uintptr_t>(rows.data) | uintptr_t(rows.stride_head) | uintptr_t(rows.stride_token) |
                    (rows.pages != nullptr ? uintptr_t(rows.stride_page) : uintptr_t(rows.stride_sequence));
  if (bits % 16 != 0) return unsupported(std::string(name) + ": on a GPU its address and strides are multiples of 16 bytes");
  if (rows.stride_token != int32_t(rows.stride_token))
    return unsupported(std::string(name) + ": on a GPU tokens are less than 2 GB apart");
  return {};
}

Table table_of(const adamas_rows& rows) {
  Table t{};
  t.data = static_cast<const char*>(rows.data);
  t.stride_sequence = rows.stride_sequence;
  t.stride_head = rows.stride_head;
  t.stride_token = int32_t(rows.stride_token);
  t.stride_page = rows.stride_page;
  if (rows.pages == nullptr) return t;
  t.pages = rows.pages->table;
  t.stride_table = rows.pages->stride;
  t.page_count = int32_t(rows.pages->count);
  while (1 << t.page_bits < rows.pages->page_tokens) t.page_bits++;
  return t;
}

// K and V, which kernels read as one type.
Status check_rows(const adamas_rows& k, const adamas_rows& v) {
  if (Status status = check_rows(k, "k"); !status.ok()) return status;
  if (Status status = check_rows(v, "v"); !status.ok()) return status;
  return k.dtype == v.dtype ? Status{} : unsupported("on a GPU K and V have one dtype");
}

Status check_mask(const adamas_step_params& p) {
  if (p.mask == nullptr) return {};
  const auto bits = reinterpret_cast<uintptr_t>(p.mask) | uintptr_t(p.mask_stride_batch) | uintptr_t(p.mask_stride_row);
  const int64_t multiple = row_bytes(DType(p.mask_dtype), 1);
  if (bits % uint64_t(multiple) == 0) return {};
  return unsupported("mask: on a GPU its address and strides are multiples of its elements' " + std::to_string(multiple) +
                     " bytes");
}

// What kernels write to and a caller may have given from the host's memory, which they cannot reach.
Status check_writable(const void* memory, const char* name) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) cudaGetLastError();
  if (attributes.type != cudaMemoryTypeUnregistered) return {};
  return invalid(std::string(name) + " has to be memory that the GPU can write: its own, managed, or pinned");
}

__global__ void cut_to(Codes codes, int64_t first, int64_t sequences, int64_t length) {
  for (int64_t sequence = first; sequence < first + sequences; sequence++) {
    const int64_t kept = (length + block_tokens - 1) / block_tokens;
    for (int64_t b = kept + threadIdx.x + int64_t(blockIdx.x) * blockDim.x; b < codes.blocks;
         b += int64_t(gridDim.x) * blockDim.x)
      codes.coded[sequence * codes.blocks + b] = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0 && codes.lengths[sequence] > length) codes.lengths[sequence] = length;
  }
}

__global__ void set_length(Codes codes, int64_t sequence, int64_t length) { codes.lengths[sequence] = length; }

class DeviceCache final : public Cache {
 public:
  DeviceCache(const adamas_config& config, const adamas_cache_params& params) : Cache(config, params) {}

  Status make() {
    const int64_t pool = pool_of(params);
    codes_.blocks = blocks_of(params.capacity);
    if (const int64_t all = product(params.sequences, codes_.blocks); params.by_page == 0 && pool < all)
      return unsupported("blocks " + std::to_string(pool) + "; on a GPU every sequence has places of its own, " +
                         std::to_string(all) + " in all, unless codes lie by page");
    codes_.by_page = params.by_page != 0;
    means_ = has_rest(config);
    const auto kinds = kept_kinds();
    const int64_t spreads = product(pool, params.kv_heads * int64_t(sizeof(Spread))),
                  tickets = params.sequences * (1 + params.kv_heads) * int64_t(sizeof(int));
    int64_t total = up(pool) + up(params.sequences * int64_t(sizeof(int64_t))) + up(spreads) + up(tickets);
    for (const auto& k : kinds) total += params.memory != nullptr ? 0 : up(k.bytes * pool) * params.kv_heads;
    if (Status status = allocate(total, memory_); !status.ok()) return status;
    bytes_ = total;
    char* next = static_cast<char*>(memory_.get());
    const auto take = [&](int64_t bytes) { return std::exchange(next, next + up(bytes)); };
    codes_.coded = reinterpret_cast<uint8_t*>(take(pool));
    codes_.lengths = reinterpret_cast<int64_t*>(take(params.sequences * int64_t(sizeof(int64_t))));
    codes_.spreads = reinterpret_cast<Spread*>(take(spreads));
    tickets_ = reinterpret_cast<int*>(take(tickets));
    for (const auto& k : kinds) {
      if (k.bytes == 0) continue;
      Kind& kind = codes_.*k.kind;
      if (params.memory == nullptr) {
        kind = {next, k.bytes, up(k.bytes * pool)};
        next += up(k.bytes * pool) * params.kv_heads;
        continue;
      }
      const adamas_code_array& given = params.memory->*k.given;
      const int64_t multiple = k.bytes > 4 ? 16 : 4;
      if ((reinterpret_cast<uintptr_t>(given.data) | uintptr_t(given.stride_block) | uintptr_t(given.stride_head)) %
              multiple !=
          0)
        return unsupported("memory: on a GPU addresses and strides of codes, centres and means are multiples of 16 bytes");
      kind = {static_cast<char*>(given.data), given.stride_block, given.stride_head};
    }
    return status_of(cudaStreamSynchronize(nullptr), "the GPU's memory");
  }

  Status append(const adamas_append_params& p) override {
    Appended a = appended(p.k, p.v);
    if (Status status = check(p.k, p.v); !status.ok()) return status;
    if (p.batch > params.sequences)
      return out_of_range("batch " + std::to_string(p.batch) + " is above the cache's " + std::to_string(params.sequences) +
                          " sequences");
    a.batch = int(p.batch);
    a.rows = p.rows;
    a.sequences = p.sequences;
    a.lengths = p.lengths;
    return status_of(launch_append(codes_, a, static_cast<cudaStream_t>(p.stream)), "append");
  }

  Status append(int64_t sequence, int64_t first, int64_t count, const adamas_rows& k, const adamas_rows& v) override {
    if (Status status = check(k, v); !status.ok()) return status;
    Appended a = appended(k, v);
    a.one = true;
    a.batch = 1;
    a.sequence = sequence;
    a.first = first;
    a.rows = count;
    if (count == 0) return {};
    return status_of(launch_append(codes_, a, nullptr), "append");
  }

  Status truncate(int64_t sequence, int64_t length) override {
    if (codes_.by_page) return {};  // lengths are the engine's
    return cut(sequence, 1, length);
  }

  Status clear(int64_t sequence) override {
    if (codes_.by_page) return {};
    return cut(sequence < 0 ? 0 : sequence, sequence < 0 ? params.sequences : 1, 0);
  }

  // A thirteenth of K and V is copied.
  Status share(int64_t from, int64_t to, int64_t length) override {
    if (from == to) return truncate(to, length);
    const int64_t blocks = blocks_of(length), source = from * codes_.blocks, target = to * codes_.blocks;
    for (const auto& k : kept_kinds()) {
      const Kind& kind = codes_.*k.kind;
      for (int g = 0; g < params.kv_heads && k.bytes != 0; g++) {
        char* head = kind.data + g * kind.stride_head;
        const auto stride = size_t(kind.stride_block);
        ADAMAS_CUDA(cudaMemcpy2DAsync(head + target * kind.stride_block, stride, head + source * kind.stride_block, stride,
                                      size_t(k.bytes), size_t(blocks), cudaMemcpyDeviceToDevice, nullptr),
                    "share");
      }
    }
    ADAMAS_CUDA(cudaMemcpyAsync(codes_.spreads + target * params.kv_heads, codes_.spreads + source * params.kv_heads,
                                size_t(blocks * params.kv_heads) * sizeof(Spread), cudaMemcpyDeviceToDevice, nullptr),
                "share");
    if (Status status = cut(to, 1, length); !status.ok()) return status;
    ADAMAS_CUDA(
        cudaMemcpyAsync(codes_.coded + target, codes_.coded + source, size_t(blocks), cudaMemcpyDeviceToDevice, nullptr),
        "share");
    return status_of(launch(Start::after, set_length, dim3(1), 1, 0, nullptr, codes_, to, length), "share");
  }

  Status length(int64_t sequence, int64_t& tokens) const override {
    return status_of(cudaMemcpy(&tokens, codes_.lengths + sequence, sizeof tokens, cudaMemcpyDeviceToHost), "the length");
  }

  Status copy_block(int64_t sequence, int32_t kv_head, int64_t block, std::byte* to) const override {
    if (codes_.by_page) return unsupported("codes lie by page, where the engine can read them");
    const int64_t place = sequence * codes_.blocks + block;
    const int dims = params.head_dim;
    const auto read = [&](const Kind& kind, void* host, int64_t bytes) {
      return status_of(cudaMemcpy(host, kind.data + place * kind.stride_block + kv_head * kind.stride_head, size_t(bytes),
                                  cudaMemcpyDeviceToHost),
                       "the codes");
    };
    std::vector<uint32_t> words(size_t(code_bytes(dims)) / 4);
    if (Status status = read(codes_.words, words.data(), code_bytes(dims)); !status.ok()) return status;
    const BlockLayout layout{dims};
    std::memset(to, 0, layout.code_bytes());
    auto* high = reinterpret_cast<uint32_t*>(to);
    uint32_t* low = high + layout.code_words() / 2;
    for (int t = 0; t < block_tokens; t++)
      for (int d = 0; d < dims; d++) {
        const CodePlace at = code_place(dims, t, d);
        const uint32_t code = words[size_t(at.word)] >> at.bit & 3;
        const int word = d / chunk_dims * block_tokens + t;
        high[word] |= (code >> 1) << d % chunk_dims;
        low[word] |= (code & 1) << d % chunk_dims;
      }
    to += layout.code_bytes();
    if (Status status = read(codes_.centre, to, 2 * dims); !status.ok()) return status;
    to += 2 * dims;
    std::memset(to, 0, block_tokens * sizeof(uint32_t));  // no hashes
    to += block_tokens * sizeof(uint32_t);
    if (quest())
      if (Status status = read(codes_.bounds, to + 8, quest_block(dims) * 4); !status.ok()) return status;
    if (Status status = read(codes_.centre_scale, to, 4); !status.ok()) return status;
    if (Status status = read(codes_.sigma, to + 4, 4); !status.ok()) return status;
    if (!means_) return {};
    if (Status status = read(codes_.mean, to + 8, 2 * dims); !status.ok()) return status;
    return read(codes_.mean_scale, to + 8 + 2 * dims, 4);
  }

  int64_t bytes() const override { return bytes_; }
  const Codes& codes() const { return codes_; }

 private:
  Status cut(int64_t first, int64_t sequences, int64_t length) {
    return status_of(launch(Start::after, cut_to, dim3(16), 256, 0, nullptr, codes_, first, sequences, length), "rows");
  }
  bool quest() const { return config.policy == ADAMAS_POLICY_QUEST; }
  // What is kept of blocks: where, where a caller may want it, and its bytes; 0: not kept.
  struct KeptKind {
    Kind Codes::*kind;
    adamas_code_array adamas_code_memory::*given;
    int64_t bytes;
  };
  std::array<KeptKind, 7> kept_kinds() const {
    const int dims = params.head_dim;
    return {{{&Codes::words, &adamas_code_memory::codes, code_bytes(dims)},
             {&Codes::centre, &adamas_code_memory::centre, 2 * dims},
             {&Codes::centre_scale, &adamas_code_memory::centre_scale, 4},
             {&Codes::sigma, &adamas_code_memory::sigma, 4},
             {&Codes::mean, &adamas_code_memory::mean, means_ ? 2 * dims : 0},
             {&Codes::mean_scale, &adamas_code_memory::mean_scale, means_ ? 4 : 0},
             {&Codes::bounds, &adamas_code_memory::bounds, quest() ? quest_block(dims) * 4 : 0}}};
  }
  Status check(const adamas_rows& k, const adamas_rows& v) const { return means_ ? check_rows(k, v) : check_rows(k, "k"); }
  Appended appended(const adamas_rows& k, const adamas_rows& v) const {
    Appended a{};
    a.kv_heads = params.kv_heads;
    a.head_dim = params.head_dim;
    a.open_rows = open_rows(config);
    a.dtype = k.dtype;
    a.rotate = params.rotated == 0;
    a.means = means_;
    a.paper = coding_of(config) == Coding::paper;
    a.quest = quest();
    a.k = table_of(k);
    a.v = table_of(v);
    a.tickets = tickets_;
    return a;
  }

  Codes codes_{};
  int* tickets_ = nullptr;
  bool means_ = false;
  int64_t bytes_ = 0;
  DeviceMemory memory_;
};

// Tokens of a row below which reading all of K and V takes less time than a step that chooses: what its launches take is
// most of its cost. On an H200 one row is dense in 13 us and 0.23 a megabyte, and sparse in some 25 to 30 and 0.03; of more
// rows each adds less than that. So it pays from 85 MB on for one row, from 28 MB for each of eight (docs/gpu.md): 20,751
// tokens of 8 KV heads x 128 in f16, 5,187 of 32. kv_bytes: of a token's K and V.
constexpr int64_t dense_until(int64_t rows, int64_t kv_bytes) { return (65 + 20 * rows) * 1'000'000 / rows / kv_bytes; }
static_assert(dense_until(1, 8 * 128 * 2 * 2) == 20751 && dense_until(1, 32 * 128 * 2 * 2) == 5187);

class DevicePlan final : public Plan {
 public:
  DevicePlan(const adamas_config& config, const adamas_plan_params& params) : Plan(config, params) {
    const int group = params.q_heads / params.kv_heads;
    Step& s = shape_;
    s.group = group;
    s.q_heads = params.q_heads;
    s.kv_heads = params.kv_heads;
    s.head_dim = params.head_dim;
    s.max_blocks = int(blocks_of(params.max_tokens));
    s.policy = config.policy;
    s.automatic = has_rest(config);
    s.passes = (group + 7) / 8;
    const bool ranks = config.policy == ADAMAS_POLICY_QUEST || config.policy == ADAMAS_POLICY_ORACLE;
    const bool own_lists = ranks || (config.policy == ADAMAS_POLICY_ADAMAS && !s.automatic);
    const int at_once = s.automatic ? 4 : 8;  // heads that one kernel attends to
    s.lists_each = own_lists ? group : (group + at_once - 1) / at_once;
    s.lists = params.kv_heads * s.lists_each;
    s.at_once = (group + s.lists_each - 1) / s.lists_each;
    // Two blocks of threads for each multiprocessor of a large GPU, and one of those that choose. A plan of many rows has
    // fewer for each: what a slice costs in any case is most of its cost.
    s.most_slices = int(std::max<int64_t>(88, 264 / max_rows())) / s.lists;
    s.most_parts = std::clamp(132 / s.q_heads, 1, 32);
    s.slices = s.slices_of(s.max_blocks);
    s.budget = int(budget_of(config));
    s.sinks = int(config.sinks < params.max_tokens ? config.sinks : params.max_tokens);
    s.recent = int(config.recent < params.max_tokens ? config.recent : params.max_tokens);
    if (ranks) s.sinks = s.recent = 0;
    s.log2_share = float(std::log2(config.share));
    s.manhattan = config.estimator == ADAMAS_ESTIMATOR_MANHATTAN;
    s.query_threshold = coding_of(config) == Coding::paper ? paper_threshold : 0.0f;
    s.max_noise = config.max_noise;
    s.min_mass = config.min_mass;
  }

  size_t workspace_bytes() const override {
    Step s = shape_;
    return workspace(nullptr, s);
  }

  Status step(Cache& any, const adamas_step_params& p) override {
    auto& cache = static_cast<DeviceCache&>(any);
    if (Status status = check_mask(p); !status.ok()) return status;
    if (p.verify != 0)
      return unsupported("verify: on a GPU no hashes of rows are kept; rows that changed are appended again");
    if (p.stats != nullptr)
      if (Status status = check_writable(p.stats, "stats"); !status.ok()) return status;
    if (p.times != nullptr)
      return unsupported(
          "times: a step on a GPU does not wait, and its kernels overlap; adamas bench --kernel --device cuda "
          "measures steps");
    if (Status status = check_rows(p.k, p.v); !status.ok()) return status;
    if (p.batch * p.rows > max_rows())
      return out_of_range(std::to_string(p.batch) + " x " + std::to_string(p.rows) + " query rows; the plan's max_rows is " +
                          std::to_string(max_rows()));
    if (p.workspace == nullptr || reinterpret_cast<uintptr_t>(p.workspace) % aligned != 0)
      return invalid("workspace has to be memory of the GPU, at a multiple of 256 bytes");
    if (const size_t needed = workspace_bytes(); p.workspace_bytes < needed)
      return out_of_range("workspace has " + std::to_string(p.workspace_bytes) + " bytes; the plan needs " +
                          std::to_string(needed));
    if (p.batch == 0 || p.rows == 0) return {};
    Step s = shape_;
    workspace(static_cast<char*>(p.workspace), s);
    s.rows = int(p.rows);
    s.query_rows = int(p.batch * p.rows);
    s.min_context = config.min_context;
    if (s.min_context > 0) {
      const int64_t kv_bytes = 2 * s.kv_heads * row_bytes(DType(p.k.dtype), s.head_dim);
      s.min_context = std::max(s.min_context, dense_until(max_rows(), kv_bytes));
    }
    s.all_dense = config.policy == ADAMAS_POLICY_FULL || cache.params.layer < config.dense_layers;
    if (s.all_dense) s.policy = ADAMAS_POLICY_FULL;
    s.causal = p.causal != 0;
    s.rotated = cache.params.rotated == 0;
    s.scale = score_scale(p, s.head_dim);
    s.v_scale = value_scale(p);
    s.softcap = p.softcap;
    s.sequences = p.sequences;
    s.lengths = p.lengths;
    s.q = static_cast<const char*>(p.q);
    s.q_dtype = p.q_dtype;
    s.k_dtype = p.k.dtype;
    s.q_stride_batch = p.q_stride_batch;
    s.q_stride_row = p.q_stride_row;
    s.q_stride_head = p.q_stride_head;
    s.k = table_of(p.k);
    s.v = table_of(p.v);
    s.out = reinterpret_cast<char*>(p.out);
    s.out_stride_batch = p.out_stride_batch;
    s.out_stride_row = p.out_stride_row;
    s.out_stride_head = p.out_stride_head;
    s.lse = p.lse;
    if (p.mass != nullptr || (p.stats == nullptr && !widens())) s.mass = p.mass;  // or the workspace's
    s.noise = p.noise;
    s.slopes = p.slopes;
    s.sink_logits = p.sink_logits;
    s.mask = static_cast<const char*>(p.mask);
    s.mask_dtype = p.mask_dtype;
    s.mask_stride_batch = p.mask_stride_batch;
    s.mask_stride_row = p.mask_stride_row;
    if (p.mask == nullptr) s.seen = nullptr;
    s.codes = cache.codes();
    // Parts of the scan: two blocks of threads for each multiprocessor of a large GPU, none below a span.
    const int units = s.query_rows * s.kv_heads * s.passes, wanted = std::max(1, 264 / units);
    const int least = (s.max_blocks + slice_blocks - 1) / slice_blocks;
    s.splits = std::max(least, std::min(wanted, int(s.max_spans())));
    const auto stream = static_cast<cudaStream_t>(p.stream);
    if (s.seen != nullptr) ADAMAS_CUDA(launch_look(s, stream), "look");
    if (s.policy == ADAMAS_POLICY_ADAMAS) {
      ADAMAS_CUDA(launch_scan(s, stream), "scan");
      if (s.seen != nullptr) ADAMAS_CUDA(launch_hide(s, stream), "hide");
      if (s.automatic)
        ADAMAS_CUDA(launch_choose(s, stream), "choose");
      else
        ADAMAS_CUDA(launch_select(s, stream), "select");
    } else if (s.chosen()) {
      ADAMAS_CUDA(launch_rank(s, stream), "rank");
    }
    ADAMAS_CUDA(launch_attend(s, stream), "attend");
    if (widens() && !s.all_dense) ADAMAS_CUDA(launch_widen(s, stream), "min_mass");
    if (p.stats != nullptr) ADAMAS_CUDA(launch_count(s, p.stats, stream), "stats");
    last_ = s;
    stream_ = stream;
    return {};
  }

  Status selection(int32_t q_head, std::vector<int64_t>& tokens) const override {
    if (last_.query_rows == 0) return {};
    ADAMAS_CUDA(cudaStreamSynchronize(stream_), "selection");
    const Step& s = last_;
    const int row = s.query_rows - 1;
    View view{};
    Sight sight{};
    sight.sinks = s.sinks;
    std::vector<Head> heads(size_t(s.q_heads));
    if (!s.chosen()) return unsupported("on a GPU no selection is kept of the policies full and streaming");
    ADAMAS_CUDA(cudaMemcpy(&view, s.views + row, sizeof view, cudaMemcpyDeviceToHost), "selection");
    ADAMAS_CUDA(
        cudaMemcpy(heads.data(), s.heads + int64_t(row) * s.q_heads, heads.size() * sizeof(Head), cudaMemcpyDeviceToHost),
        "selection");
    const int group = s.q_heads / s.kv_heads, g = q_head / group;
    std::vector<uint64_t> marks(size_t(s.max_blocks)), seen(marks.size(), ~uint64_t{0});
    const auto is_in = [](const std::vector<uint64_t>& bits, int t) {
      return (bits[size_t(t / block_tokens)] >> t % block_tokens & 1) != 0;
    };
    if (s.seen != nullptr) {
      ADAMAS_CUDA(cudaMemcpy(seen.data(), s.seen + int64_t(row) * s.max_blocks, seen.size() * 8, cudaMemcpyDeviceToHost),
                  "selection");
      ADAMAS_CUDA(cudaMemcpy(&sight, s.sights + row, sizeof sight, cudaMemcpyDeviceToHost), "selection");
    }
    if (view.dense || heads[size_t(q_head)].reading >= reads_all_widened) {
      for (int t = 0; t < view.tokens; t++)
        if (is_in(seen, t)) tokens.push_back(t);
      return {};
    }
    const bool by_itself = heads[size_t(q_head)].reading == reads_widened;
    const int listed_by = s.automatic && !by_itself ? g * group : q_head;
    ADAMAS_CUDA(
        cudaMemcpy(marks.data(), (by_itself ? s.own_marks : s.marks) + (int64_t(row) * s.q_heads + listed_by) * s.max_blocks,
                   marks.size() * 8, cudaMemcpyDeviceToHost),
        "selection");
    for (int t = 0; t < view.tokens; t++)
      if (is_in(seen, t) && (t < sight.sinks || t >= view.estimated || is_in(marks, t))) tokens.push_back(t);
    return {};
  }

 private:
  bool widens() const { return config.policy == ADAMAS_POLICY_ADAMAS && config.min_mass > 0; }
  int64_t max_rows() const { return std::max<int64_t>(1, params.max_rows); }

  // Points to its parts from `base` on; its bytes.
  size_t workspace(char* base, Step& s) const {
    const int64_t rows = max_rows(), heads = rows * s.q_heads, blocks = heads * s.max_blocks;
    int64_t next = 0;
    const auto take = [&](auto*& to, int64_t count) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(base + next);
      next += up(count * int64_t(sizeof *to));
    };
    take(s.views, rows);
    take(s.sights, rows);
    take(s.seen, rows * s.max_blocks);
    take(s.flags, rows * s.max_blocks);
    take(s.spreads, rows * s.kv_heads);
    take(s.heads, heads);
    take(s.partials, heads * s.slices * (3 * s.head_dim + partial_sums));
    take(s.mass, heads);
    take(s.selected, heads);
    take(s.listed, rows * s.kv_heads);
    if (!s.chosen()) return size_t(next);
    take(s.marks, blocks);
    if (config.policy != ADAMAS_POLICY_ADAMAS) {
      take(s.keys, blocks * block_tokens);
      return size_t(next);
    }
    take(s.sums, blocks);
    take(s.centres, blocks);
    take(s.spans, heads * s.max_spans());
    take(s.tallies, heads);
    if (!s.automatic) {
      take(s.candidates, heads * s.candidate_room());
      take(s.offsets, blocks);
    }
    if (widens()) {
      take(s.keys, blocks * block_tokens);
      take(s.own_marks, blocks);
      take(s.low_marks, blocks);
      take(s.parts, blocks);
    }
    take(s.scores, blocks * block_tokens);
    return size_t(next);
  }

  Step shape_{};
  Step last_{};
  cudaStream_t stream_ = nullptr;
};

}  // namespace

std::vector<std::string> gpu_names() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  std::vector<std::string> names;
  for (int i = 0; i < count; i++) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) == cudaSuccess) names.emplace_back(properties.name);
  }
  return names;
}

std::string why_none() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) return "no NVIDIA driver, or an older one than this library's CUDA needs";
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count == 0 ? "no GPU" : "";
}

Status make_cache(const adamas_config& config, const adamas_cache_params& params, std::unique_ptr<Cache>& cache) {
  if (const std::string none = why_none(); !none.empty()) return unsupported("device cuda: " + none);
  auto made = std::make_unique<DeviceCache>(config, params);
  if (Status status = made->make(); !status.ok()) return status;
  cache = std::move(made);
  return {};
}

Status make_plan(const adamas_config& config, const adamas_plan_params& params, std::unique_ptr<Plan>& plan) {
  plan = std::make_unique<DevicePlan>(config, params);
  return {};
}

}  // namespace adamas::cuda
