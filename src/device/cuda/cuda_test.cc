// Steps on a GPU beside the device `reference`: codes bit for bit, selections, outputs. Skipped where there is no GPU; there
// the same tests run on a CPU, fewer of them.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "adamas/adamas.h"
#include "core/testing.h"
#include "device/cuda/layout.h"

namespace adamas::cuda {
namespace {

using testing::store_row;

#ifdef ADAMAS_FEW_RUNS
constexpr int random_steps = 14, twin_runs = 2, graph_runs = 31;
#else
constexpr int random_steps = 200, twin_runs = 1000, graph_runs = 150;
#endif

void expect_ok(adamas_status status) { ASSERT_EQ(status, ADAMAS_OK) << adamas_last_error(); }

// Memory of the GPU between guards that nobody may write to.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&base_, bytes + 2 * guard), cudaSuccess);
    EXPECT_EQ(cudaMemset(base_, 0xA5, bytes + 2 * guard), cudaSuccess);
  }
  Memory(const void* from, size_t bytes) : Memory(bytes) { put(from, bytes); }
  Memory(const Memory&) = delete;
  ~Memory() {
    std::vector<unsigned char> all(bytes_ + 2 * guard);
    EXPECT_EQ(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t i = 0; i < guard; i++) {
      if (all[i] == 0xA5 && all[guard + bytes_ + i] == 0xA5) continue;
      ADD_FAILURE() << "a guard was written to, of " << bytes_ << " bytes";
      break;
    }
    cudaFree(base_);
  }
  void put(const void* from, size_t bytes) {
    EXPECT_EQ(cudaMemcpy(get(), from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  template <class T>
  void put(const std::vector<T>& from) {
    put(from.data(), from.size() * sizeof(T));
  }
  template <class T>
  std::vector<T> copy() const {
    std::vector<T> to(bytes_ / sizeof(T));
    EXPECT_EQ(cudaMemcpy(to.data(), get(), bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return to;
  }
  template <class T = void>
  T* get() const {
    return reinterpret_cast<T*>(static_cast<char*>(base_) + guard);
  }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t guard = 4096;
  size_t bytes_;
  void* base_ = nullptr;
};

template <class T>
std::unique_ptr<Memory> on_gpu(const std::vector<T>& from) {
  return std::make_unique<Memory>(from.data(), std::max<size_t>(1, from.size()) * sizeof(T));
}

struct Shape {
  int q_heads = 8, kv_heads = 2, head_dim = 128;
  DType dtype = DType::f16;
  int64_t sequences = 1, capacity = 2048, rows = 1;
  int page_tokens = 0;  // 0: not paged
  bool hnd = true;      // heads before tokens
  float softcap = 0;
  bool alibi = false, sink_logits = false, by_page = false, causal = true;
  enum Mask { none, padded, holes, biased } mask = none;
  DType mask_dtype = DType::f32;
  uint64_t seed = 1;
  std::vector<std::pair<const char*, const char*>> settings;

  std::string text() const {
    std::string t = std::to_string(q_heads) + "/" + std::to_string(kv_heads) + "x" + std::to_string(head_dim) + " " +
                    adamas_dtype_name(int32_t(dtype)) + " " + std::to_string(sequences) + "x" + std::to_string(rows) +
                    " rows, " + std::to_string(capacity) + " tokens, pages " + std::to_string(page_tokens) +
                    (by_page ? " by page" : "") + (hnd ? " HND" : " NHD") + (softcap > 0 ? " softcap" : "") +
                    (alibi ? " alibi" : "") + (sink_logits ? " sink-logits" : "") + (causal ? "" : " not causal") +
                    " mask " + std::to_string(mask) + " " + adamas_dtype_name(int32_t(mask_dtype)) + " seed " +
                    std::to_string(seed);
    for (auto [name, value] : settings) t += std::string(" ") + name + "=" + value;
    return t;
  }
};

// K, V and queries on the host and on the GPU, a cache and a plan of each device.
class Pair {
 public:
  explicit Pair(const Shape& shape) : s(shape), random(shape.seed) {
    expect_ok(adamas_config_init(&config));
    config.min_context = 0;  // or short rows would be dense
    for (auto [name, value] : s.settings) expect_ok(adamas_config_set(&config, name, value));
    const int64_t row = row_bytes(s.dtype, s.head_dim),
                  pages_each = s.page_tokens == 0 ? 0 : (s.capacity + s.page_tokens - 1) / s.page_tokens;
    const int64_t rows = s.page_tokens == 0 ? s.sequences * s.capacity : s.sequences * pages_each * s.page_tokens;
    k.resize(size_t(rows * s.kv_heads * row));
    v.resize(k.size());
    view.dtype = int32_t(s.dtype);
    const int64_t piece = s.page_tokens == 0 ? s.capacity : s.page_tokens;
    view.stride_head = s.hnd ? piece * row : row;
    view.stride_token = s.hnd ? row : s.kv_heads * row;
    view.stride_sequence = view.stride_page = piece * s.kv_heads * row;
    if (s.page_tokens != 0) {
      table.resize(size_t(s.sequences * pages_each));
      std::iota(table.begin(), table.end(), 0);
      std::shuffle(table.begin(), table.end(), random);
      view.stride_sequence = 0;
      host_pages = {sizeof host_pages, s.page_tokens, int64_t(table.size()), table.data(), pages_each};
      gpu_table = on_gpu(table);
      gpu_pages = host_pages;
      gpu_pages.table = gpu_table->get<int32_t>();
    }
    fill();
    gpu_k = on_gpu(k), gpu_v = on_gpu(v);
    for (const int32_t device : {ADAMAS_DEVICE_REFERENCE, ADAMAS_DEVICE_CUDA}) {
      const bool by_page = s.by_page && s.page_tokens % 64 == 0 && s.page_tokens > 0;
      const adamas_cache_params params{
          sizeof params, 0, s.kv_heads, s.head_dim, s.sequences,
          s.capacity,    0, device,     by_page,    by_page ? int64_t(table.size()) * s.page_tokens / 64 : 0,
          nullptr,       0};
      expect_ok(adamas_cache_create(&config, &params, &caches[device == ADAMAS_DEVICE_CUDA]));
      const adamas_plan_params plan{sizeof plan, s.q_heads, s.kv_heads, s.head_dim,
                                    s.capacity,  1,         device,     s.sequences * s.rows};
      expect_ok(adamas_plan_create(&config, &plan, &plans[device == ADAMAS_DEVICE_CUDA]));
    }
    size_t bytes = 0;
    expect_ok(adamas_plan_workspace(plans[1], &bytes));
    workspace = std::make_unique<Memory>(bytes);
    const size_t heads = size_t(s.sequences * s.rows * s.q_heads);
    out[0].resize(heads * size_t(s.head_dim)), lse[0].resize(heads), mass[0].resize(heads), noise[0].resize(heads);
    gpu_out = std::make_unique<Memory>(out[0].size() * 4), gpu_lse = std::make_unique<Memory>(heads * 4);
    gpu_mass = std::make_unique<Memory>(heads * 4), gpu_noise = std::make_unique<Memory>(heads * 4);
    gpu_lengths = std::make_unique<Memory>(size_t(s.sequences) * 8);
    gpu_stats = std::make_unique<Memory>(sizeof(adamas_step_stats));
    std::normal_distribution<float> normal;
    for (int h = 0; h < s.q_heads; h++) {
      slopes.push_back(std::exp2(-8.0f * float(h + 1) / float(s.q_heads)));
      logits.push_back(normal(random));
    }
    gpu_slopes = on_gpu(slopes), gpu_logits = on_gpu(logits);
    if (s.mask != Shape::none) fill_mask(), gpu_mask = on_gpu(mask);
  }
  ~Pair() {
    for (adamas_cache* cache : caches) adamas_cache_destroy(cache);
    for (adamas_plan* plan : plans) adamas_plan_destroy(plan);
  }

  // Keys of drifting centres, some of which queries look for; values of all sizes.
  void fill() {
    std::normal_distribution<float> normal;
    std::vector<float> row(size_t(s.head_dim)), centre(size_t(s.head_dim));
    directions.resize(size_t(s.kv_heads));
    for (int g = 0; g < s.kv_heads; g++) {
      directions[size_t(g)].resize(size_t(s.head_dim));
      for (float& x : directions[size_t(g)]) x = normal(random);
    }
    for (int64_t b = 0; b < s.sequences; b++)
      for (int g = 0; g < s.kv_heads; g++) {
        const float spread = g % 2 == 0 ? 0.3f : 1.5f;
        for (float& x : centre) x = spread * normal(random);
        for (int64_t t = 0; t < s.capacity; t++) {
          for (float& x : centre) x += 0.02f * normal(random);
          const bool wanted = random() % 40 == 0;
          for (int d = 0; d < s.head_dim; d++)
            row[size_t(d)] = centre[size_t(d)] + normal(random) + (wanted ? 1.2f * directions[size_t(g)][size_t(d)] : 0);
          store_row(reinterpret_cast<std::byte*>(k.data()) + offset(b, g, t), s.dtype, row.data(), s.head_dim);
          for (float& x : row) x = normal(random);
          store_row(reinterpret_cast<std::byte*>(v.data()) + offset(b, g, t), s.dtype, row.data(), s.head_dim);
        }
      }
  }
  // A value for each token of each row: padding on the left, as batches of prompts have it; or ranges and tokens hidden
  // anywhere, and with `biased` numbers on others.
  void fill_mask() {
    constexpr float hidden = -std::numeric_limits<float>::infinity();
    const int64_t bytes = row_bytes(s.mask_dtype, 1);
    mask.resize(size_t(s.sequences * s.rows * s.capacity * bytes));
    std::vector<float> values(size_t(s.capacity));
    for (int64_t b = 0; b < s.sequences; b++) {
      const int64_t padding = int64_t(random() % uint64_t(s.capacity / 2));
      for (int64_t r = 0; r < s.rows; r++) {
        std::fill(values.begin(), values.end(), 0.0f);
        if (s.mask == Shape::padded) {
          std::fill_n(values.begin(), padding, hidden);
        } else {
          for (float& x : values)
            x = random() % 20 == 0                             ? hidden
                : s.mask == Shape::biased && random() % 3 == 0 ? float(random() % 17) / 4 - 3
                                                               : 0;
          for (int i = 0; i < 3; i++) {
            const int64_t from = int64_t(random() % uint64_t(s.capacity)), count = int64_t(random() % 300);
            std::fill_n(values.begin() + from, std::min(count, s.capacity - from), hidden);
          }
        }
        store_row(reinterpret_cast<std::byte*>(mask.data()) + (b * s.rows + r) * s.capacity * bytes, s.mask_dtype,
                  values.data(), int(s.capacity));
      }
    }
  }
  int64_t offset(int64_t b, int g, int64_t t) const {
    if (s.page_tokens == 0) return b * view.stride_sequence + g * view.stride_head + t * view.stride_token;
    const int32_t page = table[size_t(b * host_pages.stride + t / s.page_tokens)];
    return page * view.stride_page + g * view.stride_head + t % s.page_tokens * view.stride_token;
  }
  adamas_rows rows(bool gpu, bool values) const {
    adamas_rows r = view;
    r.data = gpu ? (values ? gpu_v : gpu_k)->get() : static_cast<const void*>((values ? v : k).data());
    if (s.page_tokens != 0) r.pages = gpu ? &gpu_pages : &host_pages;
    return r;
  }
  void append(int64_t b, int64_t first, int64_t count) {
    for (const bool gpu : {false, true}) {
      const adamas_rows keys = rows(gpu, false), values = rows(gpu, true);
      expect_ok(adamas_append(caches[gpu], b, first, count, &keys, &values));
    }
  }
  // Every sequence, from its first row on.
  void append_all(const std::vector<int64_t>& lengths) {
    for (size_t b = 0; b < lengths.size(); b++) append(int64_t(b), 0, lengths[b]);
  }
  void append_rows(const std::vector<int64_t>& lengths, int64_t count, cudaStream_t stream = nullptr) {
    adamas_append_params p{sizeof p,           s.sequences,       count,  nullptr, lengths.data(),
                           rows(false, false), rows(false, true), nullptr};
    expect_ok(adamas_append_rows(caches[0], &p));
    gpu_lengths->put(lengths);
    p.lengths = gpu_lengths->get<int64_t>();
    p.k = rows(true, false), p.v = rows(true, true);
    p.stream = stream;
    expect_ok(adamas_append_rows(caches[1], &p));
  }
  void new_queries(float size = 1) {
    std::normal_distribution<float> normal;
    q.clear();
    for (int64_t b = 0; b < s.sequences; b++)
      for (int64_t r = 0; r < s.rows; r++)
        for (int h = 0; h < s.q_heads; h++)
          for (int d = 0; d < s.head_dim; d++)
            q.push_back(size * (normal(random) + 0.6f * directions[size_t(h * s.kv_heads / s.q_heads)][size_t(d)]));
    gpu_q = on_gpu(q);
  }
  adamas_step_params params(bool gpu, const std::vector<int64_t>& lengths) {
    adamas_step_params p{};
    p.struct_size = sizeof p;
    p.threads = 1;
    p.batch = s.sequences;
    p.rows = s.rows;
    p.lengths = gpu ? gpu_lengths->get<int64_t>() : lengths.data();
    p.causal = s.causal;
    p.q_dtype = ADAMAS_F32;
    p.q = gpu ? gpu_q->get() : static_cast<const void*>(q.data());
    p.q_stride_head = p.out_stride_head = int64_t(s.head_dim) * 4;
    p.q_stride_row = p.out_stride_row = s.q_heads * p.q_stride_head;
    p.q_stride_batch = p.out_stride_batch = s.rows * p.q_stride_row;
    p.k = rows(gpu, false), p.v = rows(gpu, true);
    p.out = gpu ? gpu_out->get<float>() : out[0].data();
    p.lse = gpu ? gpu_lse->get<float>() : lse[0].data();
    p.mass = gpu ? gpu_mass->get<float>() : mass[0].data();
    p.noise = gpu ? gpu_noise->get<float>() : noise[0].data();
    if (config.policy == ADAMAS_POLICY_ADAMAS && config.budget != ADAMAS_BUDGET_AUTO && config.min_mass == 0)
      p.mass = nullptr;  // a GPU measures it for min_mass alone
    p.softcap = s.softcap;
    if (s.dtype == DType::f8_e4m3) p.k_scale = 1.25f, p.v_scale = 0.5f;
    if (s.alibi) p.slopes = gpu ? gpu_slopes->get<float>() : slopes.data();
    if (s.sink_logits) p.sink_logits = gpu ? gpu_logits->get<float>() : logits.data();
    if (s.mask != Shape::none) {
      p.mask = gpu ? gpu_mask->get() : mask.data();
      p.mask_dtype = int32_t(s.mask_dtype);
      p.mask_stride_row = s.capacity * row_bytes(s.mask_dtype, 1);
      p.mask_stride_batch = s.rows * p.mask_stride_row;
    }
    if (gpu) p.workspace = workspace->get(), p.workspace_bytes = workspace->bytes();
    return p;
  }
  void step_gpu(const std::vector<int64_t>& lengths, cudaStream_t stream = nullptr, adamas_step_stats* stats = nullptr) {
    gpu_lengths->put(lengths);
    adamas_step_params p = params(true, lengths);
    p.stream = stream;
    p.stats = stats;
    expect_ok(adamas_step(plans[1], caches[1], &p));
  }
  void fetch() {
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    out[1] = gpu_out->copy<float>(), lse[1] = gpu_lse->copy<float>(), mass[1] = gpu_mass->copy<float>(),
    noise[1] = gpu_noise->copy<float>();
  }
  std::vector<int64_t> selection(bool gpu, int h) {
    std::vector<int64_t> tokens(size_t(s.capacity));
    int64_t count = 0;
    expect_ok(adamas_selection(plans[gpu], h, tokens.data(), s.capacity, &count));
    tokens.resize(size_t(count));
    return tokens;
  }
  bool automatic() const { return config.policy == ADAMAS_POLICY_ADAMAS && config.budget == ADAMAS_BUDGET_AUTO; }

  // Both devices, and what they say of the same rows.
  void compare(const std::vector<int64_t>& lengths, bool same_codes = true) {
    adamas_step_params p = params(false, lengths);
    adamas_step_stats stats{}, zeros{};
    stats.struct_size = zeros.struct_size = sizeof stats;
    p.stats = &stats;
    expect_ok(adamas_step(plans[0], caches[0], &p));
    gpu_stats->put(&zeros, sizeof zeros);
    step_gpu(lengths, nullptr, gpu_stats->get<adamas_step_stats>());
    fetch();
    const std::vector<bool> apart = find_apart();
    const bool any_apart = std::find(apart.begin(), apart.end(), true) != apart.end();
    if (same_codes && !any_apart) compare_stats(stats, gpu_stats->copy<adamas_step_stats>()[0]);
    int64_t other = 0, selected = 0;
    const bool chosen = config.policy != ADAMAS_POLICY_FULL && config.policy != ADAMAS_POLICY_STREAMING;
    if (chosen && same_codes && lengths.back() > 0)
      for (int h = 0; h < s.q_heads; h++) {
        if (apart[apart.size() - size_t(s.q_heads - h)]) continue;
        const std::vector<int64_t> a = selection(false, h), b = selection(true, h);
        std::vector<int64_t> differ;
        std::set_symmetric_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(differ));
        other += int64_t(differ.size());
        selected += int64_t(a.size());
      }
    // With a list its end is where a sum in f32 puts it, with the oracle where a score's rounding does.
    if (automatic() || config.policy == ADAMAS_POLICY_ORACLE)
      EXPECT_LE(other, 4 + selected / 200) << s.text();
    else
      EXPECT_EQ(other, 0) << s.text();
    const double bound = automatic() ? 2e-2 : 1e-4;
    double worst = 0;
    for (size_t i = 0; i < out[0].size(); i++) {
      if (apart[i / size_t(s.head_dim)]) continue;
      const double difference = std::abs(double(out[0][i]) - double(out[1][i]));
      if (std::isnan(out[0][i]) != std::isnan(out[1][i]) || difference > worst)
        worst = std::isnan(difference) ? 1e9 : difference;
    }
    // Where a list ends a token later, that may weigh much more than its estimate said: seldom, and counted.
    const bool beyond = worst > bound && automatic() && other > 0;
    steps_beyond += beyond;
    EXPECT_TRUE(worst <= bound || beyond) << worst << " over " << bound << ": " << s.text();
    if (!beyond) worst_out = std::max(worst_out, worst);
    for (size_t i = 0; i < lse[0].size() && !beyond; i++) {
      if (apart[i] || lse[0][i] == lse[1][i] || (std::isnan(lse[0][i]) && std::isnan(lse[1][i]))) continue;
      EXPECT_NEAR(lse[0][i], lse[1][i], automatic() ? 1e-2 : 2e-4) << s.text() << " head " << i;
      worst_lse = std::max(worst_lse, std::abs(double(lse[0][i]) - double(lse[1][i])));
    }
    for (size_t i = 0; i < mass[0].size() && chosen && !beyond; i++) {
      if (apart[i] || (std::isnan(mass[0][i]) && std::isnan(mass[1][i]))) continue;
      EXPECT_NEAR(mass[0][i], mass[1][i], 1e-2) << s.text() << " head " << i;
    }
    for (size_t i = 0; i < noise[0].size() && same_codes; i++)
      EXPECT_NEAR(noise[0][i], noise[1][i], 1e-5 * std::abs(noise[0][i])) << s.text() << " head " << i;
  }
  // Heads whose mass was so close to min_mass that one device was content with it, and the other read more: few.
  std::vector<bool> find_apart() const {
    std::vector<bool> apart(mass[0].size());
    for (size_t i = 0; i < apart.size() && config.min_mass > 0; i++)
      apart[i] = std::abs(mass[0][i] - mass[1][i]) > 1e-2 && std::min(mass[0][i], mass[1][i]) < config.min_mass + 2e-3;
    EXPECT_LE(std::count(apart.begin(), apart.end(), true), 1 + std::ptrdiff_t(apart.size() / 20)) << s.text();
    return apart;
  }
  // Codes are made when rows are appended, on a GPU, and nothing is verified there.
  void compare_stats(const adamas_step_stats& reference, const adamas_step_stats& gpu) const {
    EXPECT_EQ(gpu.rows_sparse, reference.rows_sparse) << s.text();
    EXPECT_EQ(gpu.rows_dense, reference.rows_dense) << s.text();
    EXPECT_EQ(gpu.tokens_visible, reference.tokens_visible) << s.text();
    EXPECT_EQ(gpu.heads_sparse, reference.heads_sparse) << s.text();
    EXPECT_EQ(gpu.heads_guarded, reference.heads_guarded) << s.text();
    EXPECT_EQ(gpu.heads_widened, reference.heads_widened) << s.text();
    const int64_t other = automatic() ? 4 * s.q_heads * s.rows * s.sequences + reference.tokens_selected / 200 : 0;
    EXPECT_NEAR(double(gpu.tokens_selected), double(reference.tokens_selected), double(other)) << s.text();
    EXPECT_NEAR(double(gpu.rows_read), double(reference.rows_read), double(other)) << s.text();
    EXPECT_EQ(std::isnan(gpu.mass), std::isnan(reference.mass)) << s.text();
    if (!std::isnan(gpu.mass)) {
      EXPECT_NEAR(gpu.mass, reference.mass, 1e-2 * double(gpu.heads_sparse)) << s.text();
    }
    EXPECT_EQ(gpu.blocks_encoded, 0) << s.text();
    EXPECT_EQ(gpu.rows_stale, 0) << s.text();
  }
  // Every block's codes, but for hashes.
  void compare_codes(const std::vector<int64_t>& lengths) {
    const size_t hash = size_t(s.head_dim + 31) / 32 * 2 * 64 * 4 + size_t(s.head_dim) * 2;
    for (int64_t b = 0; b < s.sequences; b++)
      for (int g = 0; g < s.kv_heads; g++)
        for (int64_t block = 0; block < blocks_of(lengths[size_t(b)]); block++) {
          std::vector<unsigned char> bytes[2];
          for (const int gpu : {0, 1}) {
            size_t needed = 0;
            expect_ok(adamas_block_bytes(caches[gpu], b, g, block, nullptr, 0, &needed));
            bytes[gpu].resize(needed);
            expect_ok(adamas_block_bytes(caches[gpu], b, g, block, bytes[gpu].data(), needed, nullptr));
            std::fill_n(bytes[gpu].begin() + int64_t(hash), 256, 0);
          }
          ASSERT_EQ(bytes[0], bytes[1]) << s.text() << ": block " << block << " of sequence " << b << ", head " << g;
        }
  }

  const Shape s;
  std::mt19937_64 random;
  adamas_config config{};
  std::vector<char> k, v, mask;
  std::vector<int32_t> table;
  adamas_rows view{};
  adamas_pages host_pages{}, gpu_pages{};
  std::vector<std::vector<float>> directions;
  std::vector<float> q, slopes, logits;
  std::unique_ptr<Memory> gpu_k, gpu_v, gpu_table, gpu_q, gpu_out, gpu_lse, gpu_mass, gpu_noise, gpu_lengths, gpu_slopes,
      gpu_logits, gpu_stats, gpu_mask, workspace;
  adamas_cache* caches[2] = {};
  adamas_plan* plans[2] = {};
  std::vector<float> out[2], lse[2], mass[2], noise[2];
  double worst_out = 0, worst_lse = 0;
  int steps_beyond = 0;  // whose lists end apart, and outputs are farther from each other than others are
};

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (adamas_gpu_count() == 0) GTEST_SKIP() << "no GPU: " << adamas_gpu_reason();
  }
};

TEST(CudaLayout, EveryCodeHasItsPlace) {
  for (const int head_dim : head_dims) {
    std::vector<char> taken(size_t(code_bytes(head_dim)) * 4);
    for (int t = 0; t < block_tokens; t++)
      for (int d = 0; d < head_dim; d++) {
        const CodePlace at = code_place(head_dim, t, d);
        char& here = taken.at(size_t(at.word) * 16 + size_t(at.bit) / 2);
        ASSERT_EQ(here, 0);
        here = 1;
      }
  }
}

Shape random_shape(uint64_t seed) {
  std::mt19937_64 random(seed * 7919 + 13);
  const auto one_of = [&](const auto& list) { return list[random() % std::size(list)]; };
  constexpr std::pair<int, int> heads[] = {{4, 4}, {8, 2}, {9, 3}, {14, 2}, {8, 1}, {12, 1}, {2, 1}, {6, 2}, {32, 2}};
  Shape s;
  s.seed = seed;
  std::tie(s.q_heads, s.kv_heads) = one_of(heads);
  s.head_dim = head_dims[random() % head_dims.size()];
  constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3};
  s.dtype = one_of(dtypes);
  s.sequences = 1 + int64_t(random() % 3);
  s.capacity = 200 + int64_t(random() % 2500);
  s.rows = random() % 4 == 0 ? 1 + int64_t(random() % 4) : 1;
  constexpr int pages[] = {0, 0, 16, 32, 64, 128, 1};
  s.page_tokens = one_of(pages);
  s.by_page = s.page_tokens >= 64 && random() % 2 == 0;
  s.hnd = random() % 2 == 0;
  s.softcap = random() % 5 == 0 ? 20.0f : 0;
  s.alibi = random() % 6 == 0;
  s.sink_logits = random() % 5 == 0;
  switch (random() % 11) {
    case 9: s.settings = {{"policy", "quest"}, {"budget", "96"}}; break;
    case 10: s.settings = {{"policy", "oracle"}, {"budget", "96"}}; break;
    case 6: s.settings = {{"preset", "paper"}, {"dense_layers", "0"}, {"budget", "96"}}; break;
    case 7: s.settings = {{"estimator", "manhattan"}}; break;
    case 8: s.settings = {{"estimator", "manhattan"}, {"budget", "96"}}; break;
    case 0: s.settings = {{"budget", "128"}}; break;
    case 1: s.settings = {{"budget", "64"}, {"recent", "8"}}; break;
    case 2: s.settings = {{"share", "0.002"}}; break;
    case 3: s.settings = {{"policy", "streaming"}, {"budget", "100"}}; break;
    default: break;
  }
  if (random() % 8 == 0) s.settings = {{"policy", "full"}};
  if (random() % 6 == 0) s.settings.emplace_back("max_noise", "0");
  return s;
}

// Steps of random shapes, which change(shape) makes others; look(stats, pair) at what became of each.
template <class Change, class Look>
void compare_random_steps(int count, Change&& change, Look&& look) {
  double worst_list = 0, worst = 0, worst_lse = 0;
  int beyond = 0;
  for (uint64_t seed = 1; seed <= uint64_t(count) && !::testing::Test::HasFatalFailure(); seed++) {
    Shape shape = random_shape(seed);
    change(shape);
    Pair pair(shape);
    std::vector<int64_t> lengths;
    for (int64_t b = 0; b < pair.s.sequences; b++) lengths.push_back(1 + int64_t(pair.random() % uint64_t(pair.s.capacity)));
    pair.append_all(lengths);
    if (!pair.s.by_page) pair.compare_codes(lengths);
    for (int i = 0; i < 2; i++) {
      pair.new_queries(i == 0 ? 1.0f : 0.4f);
      pair.compare(lengths);
      look(pair.gpu_stats->copy<adamas_step_stats>()[0], pair);
    }
    double& of = pair.automatic() ? worst_list : worst;
    of = std::max(of, pair.worst_out);
    worst_lse = std::max(worst_lse, pair.worst_lse);
    beyond += pair.steps_beyond;
    if (::testing::Test::HasFailure()) break;
  }
  std::printf("farthest from the reference: lists %.2e, others %.2e, log-sum-exps %.2e; %d lists end apart, and matter\n",
              worst_list, worst, worst_lse, beyond);
  EXPECT_LE(beyond, count / 50);
}

TEST_F(Cuda, RandomStepsAreTheReferences) {
  compare_random_steps(
      random_steps, [](Shape&) {}, [](const auto&, const Pair&) {});
}

TEST_F(Cuda, StepsWithMasksAreTheReferences) {
  compare_random_steps(
      random_steps,
      [](Shape& s) {
        std::mt19937_64 random(s.seed * 31 + 5);
        constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16};
        s.mask = Shape::Mask(1 + random() % 3);
        s.mask_dtype = dtypes[random() % 3];
        s.causal = random() % 2 == 0;
      },
      [](const auto&, const Pair&) {});
}

// Until it has enough, at last all; with a mask, too.
TEST_F(Cuda, HeadsThatHaveNotEnoughReadMore) {
  int64_t more[2] = {}, all = 0;  // more: of lists, of fixed budgets, in steps of which no head reads all
  const auto settle = [](Shape& s) {
    std::mt19937_64 random(s.seed * 37 + 3);
    constexpr const char* masses[] = {"0.6", "0.9", "0.95", "0.99"};
    s.capacity += 1000;
    s.settings = {random() % 2 == 0 ? std::pair{"budget", "64"} : std::pair{"share", "0.005"}};
    if (random() % 3 == 0) s.settings.emplace_back("estimator", "manhattan");
    s.settings.emplace_back("min_mass", masses[random() % 4]);
    if (random() % 4 == 0) s.mask = Shape::Mask(1 + random() % 3);
  };
  compare_random_steps(random_steps, settle, [&](const adamas_step_stats& stats, const Pair& pair) {
    const bool any_all = std::count(pair.mass[1].begin(), pair.mass[1].end(), 1.0f) > 0;
    if (any_all || stats.rows_dense > 0)
      all += stats.heads_widened;
    else
      more[pair.automatic() ? 0 : 1] += stats.heads_widened;
  });
  EXPECT_GT(more[0], 0);
  EXPECT_GT(more[1], 0);
  EXPECT_GT(all, 0);
}

// Rows that come one by one, in drafts of which some are taken back, and all at once: the same codes.
TEST_F(Cuda, CodesDoNotDependOnHowRowsCame) {
  Shape s;
  s.sequences = 2, s.capacity = 400;
  Pair pair(s);
  std::vector<int64_t> lengths{37, 130};
  pair.append_all(lengths);
  for (int i = 0; i < 150; i++) {
    const int64_t rows = 1 + i % 5, back = i % 3 == 0 ? 2 : 0;
    for (int64_t& length : lengths) length = std::min(s.capacity, length + rows - back);
    pair.append_rows(lengths, rows);
    if (i % 10 == 0) pair.compare_codes(lengths);
  }
  pair.compare_codes(lengths);
  pair.new_queries();
  pair.compare(lengths);
}

TEST_F(Cuda, CutAndSharedSequences) {
  Shape s;
  s.sequences = 3, s.capacity = 600;
  Pair pair(s);
  const int64_t row = row_bytes(s.dtype, s.head_dim);
  for (std::vector<char>* rows : {&pair.k, &pair.v})  // sequence 2 has the rows of 0, as who shares them says
    std::memcpy(rows->data() + 2 * s.kv_heads * s.capacity * row, rows->data(), size_t(s.kv_heads * s.capacity * row));
  pair.gpu_k->put(pair.k), pair.gpu_v->put(pair.v);
  std::vector<int64_t> lengths{590, 300, 450};
  pair.append(0, 0, 590), pair.append(1, 0, 500);
  for (const int device : {0, 1}) {
    expect_ok(adamas_truncate(pair.caches[device], 1, 300));
    expect_ok(adamas_share(pair.caches[device], 0, 2, 450));
  }
  pair.new_queries();
  pair.compare(lengths, /*same_codes=*/false);  // a GPU's last blocks still have those of the rows that were cut
  lengths = {590, 301, 451};
  pair.append_rows(lengths, 1);
  pair.compare_codes(lengths);
  pair.compare(lengths);
  expect_ok(adamas_clear(pair.caches[1], -1));
  EXPECT_EQ(adamas_block_bytes(pair.caches[1], 0, 0, 0, nullptr, 0, nullptr), ADAMAS_INVALID_ARGUMENT);
}

// Rows that nobody told of are read densely.
TEST_F(Cuda, RowsWithoutCodesAreReadDensely) {
  for (const Shape::Mask mask : {Shape::none, Shape::padded}) {
    Shape s;
    s.capacity = 1000;
    s.mask = mask;
    s.settings = {{"budget", "64"}};
    Pair sparse(s);
    s.settings = {{"policy", "full"}};
    Pair full(s);
    const std::vector<int64_t> lengths{1000};
    sparse.append(0, 0, 300);
    sparse.new_queries();
    full.q = sparse.q, full.gpu_q = on_gpu(full.q);
    for (Pair* pair : {&sparse, &full}) pair->step_gpu(lengths), pair->fetch();
    for (size_t i = 0; i < full.out[1].size(); i++) ASSERT_NEAR(sparse.out[1][i], full.out[1][i], 1e-5) << i;
  }
}

// A graph is captured once and replayed while the context grows; its steps are those of calls.
TEST_F(Cuda, AGraphServesAGrowingContext) {
  Shape s;
  s.sequences = 2, s.capacity = 700;
  Pair pair(s);
  std::vector<int64_t> lengths{100, 500};
  pair.append_all(lengths);
  pair.new_queries();
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  adamas_append_params append{
      sizeof append, 2, 1, nullptr, pair.gpu_lengths->get<int64_t>(), pair.rows(true, false), pair.rows(true, true), stream};
  adamas_step_params step = pair.params(true, lengths);
  step.stream = stream;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  expect_ok(adamas_append_rows(pair.caches[1], &append));
  expect_ok(adamas_step(pair.plans[1], pair.caches[1], &step));
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int i = 0; i < graph_runs; i++) {
    for (int64_t& length : lengths) length++;
    pair.gpu_lengths->put(lengths);
    ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    append.lengths = lengths.data();
    adamas_append_params host{sizeof host, 2, 1, nullptr, lengths.data(), pair.rows(false, false), pair.rows(false, true),
                              nullptr};
    expect_ok(adamas_append_rows(pair.caches[0], &host));
    if (i % 30 != 0) continue;
    pair.fetch();
    const std::vector<float> replayed = pair.out[1];
    pair.compare(lengths);
    EXPECT_EQ(replayed, pair.out[1]) << "at " << lengths[0];
  }
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

// Masks lie on the GPU as well, and may change.
TEST_F(Cuda, AGraphServesOtherMasks) {
  Shape s;
  s.sequences = 2, s.capacity = 900, s.mask = Shape::padded, s.causal = false;
  Pair pair(s);
  std::vector<int64_t> lengths{900, 700};
  pair.append_all(lengths);
  pair.new_queries();
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  pair.gpu_lengths->put(lengths);
  adamas_step_params step = pair.params(true, lengths);
  step.stream = stream;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  expect_ok(adamas_step(pair.plans[1], pair.caches[1], &step));
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    pair.fetch();
    const std::vector<float> replayed = pair.out[1];
    pair.compare(lengths);
    EXPECT_EQ(replayed, pair.out[1]) << "mask " << i;
    pair.fill_mask();
    pair.gpu_mask->put(pair.mask);
  }
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

// Stats are added to, by calls and by replays; programs that were built against an older header have fewer fields.
TEST_F(Cuda, StatsAddUp) {
  Shape s;
  s.capacity = 700;
  Pair pair(s);
  const std::vector<int64_t> lengths{700};
  pair.append_all(lengths);
  pair.new_queries();
  adamas_step_stats stats{};
  stats.struct_size = sizeof stats;
  pair.gpu_stats->put(&stats, sizeof stats);
  auto* on_gpu = pair.gpu_stats->get<adamas_step_stats>();
  pair.step_gpu(lengths, nullptr, on_gpu);
  pair.fetch();
  const adamas_step_stats once = pair.gpu_stats->copy<adamas_step_stats>()[0];
  EXPECT_EQ(once.rows_sparse, 1);
  EXPECT_EQ(once.tokens_visible, 700 * s.q_heads);
  EXPECT_GT(once.tokens_selected, 0);
  EXPECT_LT(once.tokens_selected, once.tokens_visible);
  EXPECT_LT(once.rows_read, once.tokens_selected) << "a list serves the heads of its KV head";
  EXPECT_NEAR(once.mass, std::accumulate(pair.mass[1].begin(), pair.mass[1].end(), 0.0), 1e-6);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  adamas_step_params p = pair.params(true, lengths);
  p.stats = on_gpu;
  p.mass = nullptr;  // their sum is a stat all the same
  p.stream = stream;
  expect_ok(adamas_step(pair.plans[1], pair.caches[1], &p));
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; i++) ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
  adamas_step_stats all = pair.gpu_stats->copy<adamas_step_stats>()[0];
  EXPECT_EQ(all.rows_sparse, 4);
  EXPECT_EQ(all.tokens_selected, 4 * once.tokens_selected);
  EXPECT_EQ(all.rows_read, 4 * once.rows_read);
  EXPECT_DOUBLE_EQ(all.mass, 4 * once.mass);
  all.struct_size = offsetof(adamas_step_stats, rows_read);
  pair.gpu_stats->put(&all, sizeof all);
  pair.step_gpu(lengths, nullptr, on_gpu);
  pair.fetch();
  const adamas_step_stats older = pair.gpu_stats->copy<adamas_step_stats>()[0];
  EXPECT_EQ(older.tokens_selected, 5 * once.tokens_selected);
  EXPECT_EQ(older.rows_read, all.rows_read);
  EXPECT_EQ(older.mass, all.mass);
}

// Where a dense step takes less time it is dense, unless min_context is 0.
TEST_F(Cuda, ShortContextsAreDense) {
  for (const char* least : {"0", "1"}) {
    Shape s;
    s.capacity = 3000;
    s.settings = {{"min_context", least}};
    Pair pair(s);
    const std::vector<int64_t> lengths(size_t(s.sequences), 3000);
    pair.append_all(lengths);
    pair.new_queries();
    pair.step_gpu(lengths);
    pair.fetch();
    const bool all_read = std::all_of(pair.mass[1].begin(), pair.mass[1].end(), [](float x) { return x == 1; });
    EXPECT_EQ(all_read, least[0] == '1');
  }
}

// The same step a thousand times, and with other sequences beside it: the same bits.
TEST_F(Cuda, NothingDependsOnTheRunOrTheBatch) {
  for (const char* budget : {"auto", "128"}) {
    Shape s;
    s.sequences = 4, s.capacity = 3000;
    s.settings = {{"budget", budget}};
    Pair many(s);
    std::vector<int64_t> lengths{2900, 200, 1700, 3000};
    many.append_all(lengths);
    many.new_queries();
    many.step_gpu(lengths);
    many.fetch();
    const std::vector<float> first = many.out[1];
    for (int i = 0; i < twin_runs; i++) {
      many.step_gpu(lengths);
      if (i % 100 != 0 && i < twin_runs - 10) continue;
      many.fetch();
      ASSERT_EQ(many.out[1], first) << budget << ", run " << i;
    }
    Memory one_sequence(8), one_length(8);
    for (int64_t b = 0; b < 4; b++) {
      one_sequence.put(&b, 8), one_length.put(&lengths[size_t(b)], 8);
      adamas_step_params p = many.params(true, lengths);
      p.batch = 1;
      p.sequences = one_sequence.get<int64_t>();
      p.lengths = one_length.get<int64_t>();
      p.q = static_cast<const char*>(p.q) + b * p.q_stride_batch;
      expect_ok(adamas_step(many.plans[1], many.caches[1], &p));
      many.fetch();
      const size_t count = size_t(s.q_heads * s.head_dim);
      EXPECT_TRUE(
          std::equal(first.begin() + b * int64_t(count), first.begin() + (b + 1) * int64_t(count), many.out[1].begin()))
          << budget << ", sequence " << b;
    }
  }
}

// What no row of the step may see is not looked at, and a bad row spoils only who attends to it.
// With biases all that matters lies at the end: most slices of a list are empty.
TEST_F(Cuda, SlicesWithoutAListedToken) {
  for (const int64_t tokens : {int64_t{4000}, int64_t{9000}}) {
    Pair pair(Shape{.q_heads = 2, .kv_heads = 2, .capacity = tokens, .alibi = true, .settings = {}});
    const std::vector<int64_t> lengths{tokens};
    pair.append_all(lengths);
    pair.new_queries(2.0f);
    pair.compare(lengths);
    for (const float x : pair.out[1]) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST_F(Cuda, RowsThatAreNoNumbers) {
  Shape s;
  s.sequences = 2, s.capacity = 900;
  Pair pair(s);
  const float bad = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> row(size_t(s.head_dim), bad);
  for (int64_t t = 800; t < 900; t++)
    for (int g = 0; g < s.kv_heads; g++)
      for (std::vector<char>* rows : {&pair.k, &pair.v})
        store_row(reinterpret_cast<std::byte*>(rows->data()) + pair.offset(0, g, t), s.dtype, row.data(), s.head_dim);
  pair.gpu_k->put(pair.k), pair.gpu_v->put(pair.v);
  pair.append(0, 0, 800), pair.append(1, 0, 900);
  pair.new_queries();
  pair.compare({800, 900});
  for (const float x : pair.out[1]) ASSERT_FALSE(std::isnan(x));
  pair.append_rows({801, 900}, 1);  // now the newest row is one, and is read in any case
  pair.compare({801, 900});
  const size_t count = size_t(s.q_heads * s.head_dim);
  for (size_t i = 0; i < count; i++) ASSERT_TRUE(std::isnan(pair.out[1][i]));
  for (size_t i = count; i < 2 * count; i++) ASSERT_FALSE(std::isnan(pair.out[1][i]));
}

TEST_F(Cuda, WhatIsNotServedIsSaid) {
  Pair pair(Shape{});
  const std::vector<int64_t> lengths{10};
  pair.new_queries();
  const auto refused = [&](auto&& change, adamas_status status, const char* part) {
    adamas_step_params p = pair.params(true, lengths);
    change(p);
    EXPECT_EQ(adamas_step(pair.plans[1], pair.caches[1], &p), status);
    EXPECT_NE(std::string(adamas_last_error()).find(part), std::string::npos) << adamas_last_error();
  };
  refused([](auto& p) { p.verify = 1; }, ADAMAS_UNSUPPORTED, "verify");
  adamas_step_stats stats{};
  adamas_step_times times{};
  refused([&](auto& p) { p.stats = &stats; }, ADAMAS_INVALID_ARGUMENT, "memory that the GPU can write");
  refused([&](auto& p) { p.times = &times; }, ADAMAS_UNSUPPORTED, "times");
  refused([](auto& p) { p.mask = static_cast<const char*>(p.q) + 2; }, ADAMAS_UNSUPPORTED, "mask");
  refused([](auto& p) { p.workspace = nullptr; }, ADAMAS_INVALID_ARGUMENT, "workspace");
  refused([](auto& p) { p.workspace_bytes--; }, ADAMAS_OUT_OF_RANGE, "workspace");
  refused([](auto& p) { p.rows = 2; }, ADAMAS_OUT_OF_RANGE, "max_rows");
  refused([](auto& p) { p.k.dtype = p.v.dtype = ADAMAS_Q8_0; }, ADAMAS_UNSUPPORTED, "f16");
  refused([](auto& p) { p.k.stride_token += 2; }, ADAMAS_UNSUPPORTED, "16 bytes");
  adamas_cache_params few{sizeof few, 0, 2, 64, 2, 256, 0, ADAMAS_DEVICE_CUDA, 0, 7, nullptr, 0};
  adamas_cache* cache = nullptr;
  EXPECT_EQ(adamas_cache_create(&pair.config, &few, &cache), ADAMAS_UNSUPPORTED);
  EXPECT_NE(std::string(adamas_last_error()).find("blocks 7"), std::string::npos) << adamas_last_error();
  few.blocks = 8;
  expect_ok(adamas_cache_create(&pair.config, &few, &cache));
  adamas_cache_destroy(cache);
}

}  // namespace
}  // namespace adamas::cuda
