#include "self_test.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "device_memory.h"
#include "f16.h"

namespace cli {
namespace {

// ---- data ----------------------------------------------------------------------------------------------------------

struct Data {
  std::vector<adamas::f16> k, v;    // [kv_heads, tokens, head_dim]; or [pages, kv_heads, page_tokens, head_dim]
  std::vector<float> q;             // [q_heads, head_dim]
  std::vector<float> slopes;        // [q_heads] or none
  double score = 0, value = 0;      // no score and no value of V is larger
  std::int64_t page_tokens = 0;     // 0: not paged
  std::vector<std::int32_t> table;  // [pages] ids, in the order of their tokens
};

// A power of two per head, falling, as ALiBi defines them for a power of two of heads.
std::vector<float> slopes_of(const AttentionShape& shape) {
  std::vector<float> slopes;
  if (shape.alibi > 0)
    for (std::int64_t h = 0; h < shape.q_heads; ++h)
      slopes.push_back(
          static_cast<float>(std::exp2(-shape.alibi * static_cast<double>(h + 1) / static_cast<double>(shape.q_heads))));
  return slopes;
}

double longest_row(std::span<const float> values, std::int64_t head_dim) {
  double longest = 0;
  for (auto dims = static_cast<std::size_t>(head_dim); !values.empty(); values = values.subspan(dims)) {
    double squares = 0;
    for (const float value : values.first(dims)) squares += double{value} * value;
    longest = std::max(longest, std::sqrt(squares));
  }
  return longest;
}

Data random_data(const AttentionShape& shape, std::int64_t tokens) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto values = [&](std::int64_t rows, float spread) {
    std::vector<float> all(static_cast<std::size_t>(rows * shape.head_dim));
    for (float& value : all) value = cut_to_f16(spread * normal(random));
    return all;
  };
  const std::vector<float> k = values(shape.kv_heads * tokens, 1), v = values(shape.kv_heads * tokens, 1);
  Data data;
  data.q = values(shape.q_heads, 3);  // scores with a deviation of 3: some tokens matter, most do not
  std::ranges::transform(k, std::back_inserter(data.k), to_f16);
  std::ranges::transform(v, std::back_inserter(data.v), to_f16);
  data.slopes = slopes_of(shape);
  data.score =
      longest_row(data.q, shape.head_dim) * longest_row(k, shape.head_dim) / std::sqrt(static_cast<double>(shape.head_dim));
  if (!data.slopes.empty()) data.score += double{data.slopes.front()} * static_cast<double>(tokens);
  for (const float value : v) data.value = std::max(data.value, std::abs(double{value}));
  return data;
}

// The same rows of K and V in pages that lie in any order; places without a token hold no numbers.
Data in_pages(Data data, const AttentionShape& shape, std::int64_t tokens, std::int64_t page_tokens) {
  data.page_tokens = page_tokens;
  data.table.resize(static_cast<std::size_t>((tokens + page_tokens - 1) / page_tokens));
  std::iota(data.table.begin(), data.table.end(), 0);
  std::shuffle(data.table.begin(), data.table.end(), std::mt19937(2));
  for (std::vector<adamas::f16>* rows : {&data.k, &data.v}) {
    std::vector<adamas::f16> paged(
        data.table.size() * static_cast<std::size_t>(shape.kv_heads * page_tokens * shape.head_dim), {0x7E00});
    auto row = rows->begin();
    for (std::int64_t head = 0; head < shape.kv_heads; ++head)
      for (std::int64_t token = 0; token < tokens; ++token, row += shape.head_dim) {
        const std::int64_t page = data.table[static_cast<std::size_t>(token / page_tokens)];
        const std::int64_t place = (page * shape.kv_heads + head) * page_tokens + token % page_tokens;
        std::copy_n(row, shape.head_dim, paged.begin() + place * shape.head_dim);
      }
    *rows = std::move(paged);
  }
  return data;
}

// ---- one step over all tokens --------------------------------------------------------------------------------------

// The program's own memory, in which the devices of the host work.
class HostMemory final : public DeviceMemory {
 public:
  void* room(std::size_t bytes) override { return rooms_.emplace_back(bytes).data(); }
  void fetch() override {}

 protected:
  const void* read_place(const void* from, std::size_t bytes) override { return bytes > 0 ? from : nullptr; }
  void* write_place(void* to, std::size_t bytes) override { return bytes > 0 ? to : nullptr; }

 private:
  std::vector<std::vector<std::byte>> rooms_;
};

// What a device does not tell of is empty.
struct Stepped {
  std::vector<float> out;                             // [q_heads, head_dim]
  std::vector<float> lse, mass, noise;                // [q_heads]
  std::vector<std::vector<std::int64_t>> selections;  // [q_heads]
  std::vector<std::int64_t> counts;                   // rows_sparse, heads_guarded
  std::vector<std::byte> codes, hashes;               // of all blocks
};

// Of every block what `adamas_block_bytes` gives. A GPU keeps no hashes, and by page codes are the engine's to read.
void add_codes(Stepped& stepped, const adamas::Cache& cache, const AttentionShape& shape, std::int64_t tokens) {
  if (cache.params().by_page) return;
  // docs/codes.md: the codes, 2 bits a dimension, and the centre are before the hashes
  const std::int64_t before = (shape.head_dim + 31) / 32 * 2 * ADAMAS_BLOCK_TOKENS * 4 + shape.head_dim * 2;
  for (std::int32_t head = 0; head < shape.kv_heads; ++head)
    for (std::int64_t block = 0; block * ADAMAS_BLOCK_TOKENS < tokens; ++block) {
      const std::vector<std::byte> bytes = cache.block_bytes(0, head, block);
      const auto hashes = bytes.begin() + before, behind = hashes + std::int64_t{ADAMAS_BLOCK_TOKENS} * 4;
      stepped.codes.insert(stepped.codes.end(), bytes.begin(), hashes);
      stepped.codes.insert(stepped.codes.end(), behind, bytes.end());
      if (cache.params().device != ADAMAS_DEVICE_CUDA) stepped.hashes.insert(stepped.hashes.end(), hashes, behind);
    }
}

Stepped step(const AttentionShape& shape, const Data& data, std::int64_t tokens, const adamas::Config& config,
             adamas_device device) {
  const auto heads = static_cast<std::int32_t>(shape.q_heads);
  const auto kv_heads = static_cast<std::int32_t>(shape.kv_heads);
  const auto head_dim = static_cast<std::int32_t>(shape.head_dim);
  const auto threads = static_cast<std::int32_t>(std::clamp(std::thread::hardware_concurrency(), 1u, 64u));
  const bool gpu = device == ADAMAS_DEVICE_CUDA, paged = data.page_tokens > 0;
  const std::unique_ptr<DeviceMemory> memory = gpu ? gpu_memory() : std::make_unique<HostMemory>();
  const auto page_count = std::ssize(data.table);
  adamas::Cache cache({.kv_heads = kv_heads,
                       .head_dim = head_dim,
                       .capacity = tokens,
                       .device = device,
                       .by_page = paged,
                       .blocks = page_count * data.page_tokens / ADAMAS_BLOCK_TOKENS},
                      config);
  adamas::Plan plan({.q_heads = heads,
                     .kv_heads = kv_heads,
                     .head_dim = head_dim,
                     .max_tokens = tokens,
                     .max_threads = threads,
                     .device = device},
                    config);

  const adamas_pages pages{sizeof pages, static_cast<std::int32_t>(data.page_tokens), page_count, memory->reads(data.table),
                           page_count};
  const auto view = [&](const std::vector<adamas::f16>& rows) {
    const std::int64_t head = (paged ? data.page_tokens : tokens) * head_dim, all_heads = kv_heads * head;
    const adamas::f16* at = memory->reads(rows);
    return paged ? adamas::RowsView::paged(at, all_heads, head, head_dim, pages)
                 : adamas::RowsView(at, {.sequence = all_heads, .head = head, .token = head_dim});
  };
  const adamas::RowsView k = view(data.k), v = view(data.v);
  cache.append({.count = tokens}, k, v);

  // On a GPU a fixed budget estimates no mass, and only the policy adamas has selections.
  const auto of_heads = [&] { return std::vector<float>(static_cast<std::size_t>(heads)); };
  Stepped stepped{.out = std::vector<float>(data.q.size()),
                  .lse = of_heads(),
                  .mass = gpu && config.budget != ADAMAS_BUDGET_AUTO ? std::vector<float>() : of_heads(),
                  .noise = of_heads(),
                  .selections = {},
                  .counts = {},
                  .codes = {},
                  .hashes = {}};
  const std::vector<std::int64_t> lengths{tokens};
  std::vector<adamas_step_stats> stats(1);
  stats.front().struct_size = sizeof stats.front();
  adamas_step_params params{};
  params.struct_size = sizeof params;
  params.threads = threads;
  params.batch = params.rows = 1;
  params.lengths = memory->reads(lengths);
  params.causal = 1;
  params.q_dtype = ADAMAS_F32;
  params.q = memory->reads(data.q);
  params.q_stride_head = params.out_stride_head = head_dim * static_cast<std::int64_t>(sizeof(float));
  params.k = cache.native("k", k, tokens);
  params.v = cache.native("v", v, tokens);
  params.out = memory->writes(stepped.out);
  params.lse = memory->writes(stepped.lse);
  params.mass = memory->writes(stepped.mass);
  params.noise = memory->writes(stepped.noise);
  params.softcap = static_cast<float>(shape.softcap);
  params.slopes = memory->reads(data.slopes);
  params.stats = memory->writes(stats);
  adamas::detail::check(adamas_plan_workspace(plan.get(), &params.workspace_bytes));
  params.workspace = memory->room(params.workspace_bytes);
  adamas::detail::check(adamas_step(plan.get(), cache.get(), &params));
  memory->fetch();
  stepped.counts = {stats.front().rows_sparse, stats.front().heads_guarded};
  for (std::int32_t head = 0; head < heads && (!gpu || config.policy == adamas::Policy::adamas); ++head)
    stepped.selections.push_back(plan.selection(head));
  add_codes(stepped, cache, shape, tokens);
  return stepped;
}

// ---- the comparison ------------------------------------------------------------------------------------------------

struct Bounds {
  double out, lse, mass;
};

// Relative. A noise follows from a sum of squares, which a GPU adds up as integers.
double noise_bound(adamas_device device) { return device == ADAMAS_DEVICE_CUDA ? 1e-5 : 0; }

// Where the same tokens are attended to: docs/numerics.md, attend. Masses are made of estimates in any case.
Bounds bounds_of_rounding(const AttentionShape& shape, const Data& data, std::int64_t tokens) {
  const double relative =
      (2 * static_cast<double>(shape.head_dim + 8) * data.score + static_cast<double>(tokens) + 16) * 0x1p-24;
  return {relative * data.value, relative + 1e-6 * data.score, 0.02};
}

// Weights of estimates are within 4%, and with them the sum that a list's threshold follows from: a list may differ at its
// end. As tests/bits/bits.cc has them, for values of about 1.
constexpr Bounds bounds_of_estimates{0.1, 0.06, 0.02};

void compare(Deviation& worst, std::span<const float> values, std::span<const float> expected, double bound) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Deviation here{std::isfinite(values[i]) ? std::abs(double{values[i]} - expected[i]) : INFINITY, bound};
    if (worst.bound == 0 || here.error * worst.bound > worst.error * here.bound) worst = here;
  }
}

// Whether a device tells of something, and of something else.
template <class T>
bool differs(const std::vector<T>& told, const std::vector<T>& expected) {
  return !told.empty() && told != expected;
}

// What is not as it should be; empty: nothing.
std::string difference(const Stepped& kernels, const Stepped& reference, const Bounds& bounds, double noise,
                       bool same_tokens, Deviation& worst) {
  compare(worst, kernels.out, reference.out, bounds.out);
  compare(worst, kernels.lse, reference.lse, bounds.lse);
  Deviation mass;
  compare(mass, kernels.mass, reference.mass, bounds.mass);
  const auto same_noise = [&](float one, float other) { return std::abs(one - other) <= noise * std::abs(other); };
  if (differs(kernels.codes, reference.codes) || differs(kernels.hashes, reference.hashes))
    return "codes of K or means of V are others";
  if (!std::ranges::equal(kernels.noise, reference.noise, same_noise)) return "the noise of the estimates is another";
  if (differs(kernels.counts, reference.counts)) return "other heads are read in full";
  if (same_tokens && differs(kernels.selections, reference.selections)) return "other tokens are selected";
  if (!worst.within()) return "the output is off by more than its bound";
  if (!mass.within()) return "the mass is off by more than its bound";
  return "";
}

}  // namespace

SelfTest self_test(const AttentionShape& shape, adamas::Config config, const std::vector<Kernels>& kernels,
                   std::int64_t page_tokens) {
  // Long enough for a selection to mean something; shorter for very many KV heads, to stay within a second and 100 MiB.
  const std::int64_t tokens = std::clamp<std::int64_t>((1 << 23) / (shape.kv_heads * shape.head_dim), 64, 4096);
  config.policy = adamas::Policy::adamas;
  config.min_context = 0;
  config.dense_layers = 0;
  config.min_mass = 0;  // which one device may just reach, and another just miss
  const adamas::Config automatic = config;
  const bool with_rest = config.budget == ADAMAS_BUDGET_AUTO;
  config.budget = std::min(adamas_budget_tokens(config.budget), tokens / 2);
  config.sinks = std::min(config.sinks, config.budget / 2);
  config.recent = std::min(config.recent, config.budget / 2);
  adamas::Config alone = config, everything = config;
  alone.max_noise = 0;  // every head selects
  everything.budget = tokens;
  // Kernels of their own on a GPU; on a CPU the same ones as with such a budget.
  if (kernels.front().device == ADAMAS_DEVICE_CUDA) everything.policy = adamas::Policy::full;

  SelfTest test{.shape = shape,
                .page_tokens = page_tokens,
                .tokens = tokens,
                .budget = config.budget,
                .dense = {},
                .sparse = {},
                .list = {},
                .failure = {}};
  const Data data = random_data(shape, tokens);
  const Data given = page_tokens > 0 ? in_pages(data, shape, tokens, page_tokens) : data;
  const std::string in_use = adamas::isa_in_use();
  const auto compare_devices = [&](const char* what, const adamas::Config& with, const Bounds& bounds, bool same_tokens,
                                   Deviation& worst) {
    const Stepped reference = step(shape, data, tokens, with, ADAMAS_DEVICE_REFERENCE);
    for (const auto& [device, name] : kernels) {
      if (device == ADAMAS_DEVICE_CPU) adamas::force_isa(name);
      const std::string why =
          difference(step(shape, given, tokens, with, device), reference, bounds, noise_bound(device), same_tokens, worst);
      if (test.failure.empty() && !why.empty()) test.failure = fmt::format("{} with {}: {}", what, name, why);
    }
    adamas::force_isa(in_use);
  };
  const Bounds rounding = bounds_of_rounding(shape, data, tokens);
  compare_devices("all tokens", everything, rounding, true, test.dense);
  compare_devices("a fixed budget", alone, rounding, true, test.sparse);
  if (with_rest) compare_devices("a list and a rest", automatic, bounds_of_estimates, false, test.list);
  return test;
}

}  // namespace cli
