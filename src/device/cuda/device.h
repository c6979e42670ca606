// The device `cuda`: codes and steps in a GPU's memory. Everything that a pointer of a call names lies there, lengths and
// page tables included, and a call puts work into a stream and returns: a captured graph serves growing contexts.
//
// What is known of a sequence on the GPU is its length, and of each place how many of its rows have codes; which rows those
// are follows (blocks.h says it for the CPU): whole blocks, and of the last one whole groups of `open_rows`. No hashes are
// kept.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "adamas/adamas.h"
#include "core/status.h"

namespace adamas::cuda {

// The GPUs that can be used, by name; why there are none, where there are none.
std::vector<std::string> gpu_names();
std::string why_none();

// Codes of one layer.
class Cache {
 public:
  virtual ~Cache() = default;
  const adamas_config config;
  const adamas_cache_params params;

  // The newest rows of each of a batch of sequences; see adamas_append_rows.
  virtual Status append(const adamas_append_params& p) = 0;
  // Rows [first, first + count) of one sequence, in the default stream.
  virtual Status append(int64_t sequence, int64_t first, int64_t count, const adamas_rows& k, const adamas_rows& v) = 0;
  virtual Status truncate(int64_t sequence, int64_t length) = 0;
  virtual Status clear(int64_t sequence) = 0;
  virtual Status share(int64_t from, int64_t to, int64_t length) = 0;
  virtual Status length(int64_t sequence, int64_t& tokens) const = 0;
  // One block in the order of docs/codes.md, without hashes: [bytes of adamas_block_bytes].
  virtual Status copy_block(int64_t sequence, int32_t kv_head, int64_t block, std::byte* to) const = 0;
  virtual int64_t bytes() const = 0;

 protected:
  Cache(const adamas_config& config, const adamas_cache_params& params) : config(config), params(params) {}
};

// Steps of one shape.
class Plan {
 public:
  virtual ~Plan() = default;
  const adamas_config config;
  const adamas_plan_params params;

  virtual size_t workspace_bytes() const = 0;
  virtual Status step(Cache& cache, const adamas_step_params& p) = 0;
  // Of the last step's last row: waits for it.
  virtual Status selection(int32_t q_head, std::vector<int64_t>& tokens) const = 0;

 protected:
  Plan(const adamas_config& config, const adamas_plan_params& params) : config(config), params(params) {}
};

Status make_cache(const adamas_config& config, const adamas_cache_params& params, std::unique_ptr<Cache>& cache);
Status make_plan(const adamas_config& config, const adamas_plan_params& params, std::unique_ptr<Plan>& plan);

}  // namespace adamas::cuda
