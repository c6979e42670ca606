// What every call of the C ABI does at the door: its arguments are checked, exceptions stay inside, and a sentence says what
// was wrong.
#pragma once

#include <bit>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "cache/cache.h"
#include "capi/structs.h"
#include "core/config.h"
#include "device/cuda/device.h"
#include "step/step.h"

// Of the host, or of a GPU.
struct adamas_cache {
  std::optional<adamas::Cache> host;
  adamas::Array<float> encode_room;
  std::unique_ptr<adamas::cuda::Cache> gpu;

  const adamas_config& config() const { return gpu ? gpu->config : host->config; }
  const adamas_cache_params& params() const { return gpu ? gpu->params : host->params; }
};

struct adamas_plan {
  std::optional<adamas::Plan> host;
  std::unique_ptr<adamas::cuda::Plan> gpu;

  const adamas_config& config() const { return gpu ? gpu->config : host->config; }
  const adamas_plan_params& params() const { return gpu ? gpu->params : host->params; }
};

namespace adamas {

inline constexpr int max_threads = 512;
inline constexpr int max_heads = 65536;

inline thread_local std::string last_error;

inline adamas_status report(Status status) {
  last_error = std::move(status.sentence);
  return status.code;
}

// Runs a call and keeps every exception on this side.
template <class Call>
adamas_status guarded(const char* name, Call&& call) noexcept {
  try {
    Status status = call();
    if (!status.ok()) status.sentence = std::string(name) + ": " + status.sentence;
    return report(std::move(status));
  } catch (const std::bad_alloc&) {
    last_error.clear();  // the sentence must not need memory that is not there
    try {
      last_error = std::string(name) + ": out of memory";
    } catch (...) {
    }
    return ADAMAS_OUT_OF_MEMORY;
  } catch (...) {
    return ADAMAS_INTERNAL;
  }
}

#define ADAMAS_TRY(expression)                                        \
  do {                                                                \
    if (Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

inline Status check_pointer(const void* pointer, const char* name) {
  return pointer != nullptr ? Status{} : invalid(std::string(name) + " is NULL");
}

inline Status check_range(int64_t value, int64_t lowest, int64_t highest, const char* name) {
  if (value >= lowest && value <= highest) return {};
  return invalid(std::string(name) + ": " + std::to_string(value) + "; its range is " + std::to_string(lowest) + " to " +
                 std::to_string(highest));
}

inline Status check_head_dim(int64_t head_dim) {
  if (is_head_dim(head_dim)) return {};
  return unsupported("head_dim " + std::to_string(head_dim) + "; supported: " + head_dim_list());
}

// The offset of the last element fits into 63 bits.
inline Status check_stride(int64_t stride, int64_t count, const char* name) {
  int64_t offset;
  if (!__builtin_mul_overflow(stride, count, &offset) && offset < (int64_t{1} << 60) && offset > -(int64_t{1} << 60))
    return {};
  return invalid(std::string(name) + ": " + std::to_string(stride) + " bytes times " + std::to_string(count) +
                 " is past any address");
}

// Of the first `count` dtypes.
inline Status check_dtype(int32_t dtype, int32_t count, const char* name) {
  if (dtype >= 0 && dtype < count) return {};
  std::string list;
  for (int32_t i = 0; i < count; i++)
    list += (i == 0 ? "" : ", ") + std::string(dtype_names[i]) + " (" + std::to_string(i) + ")";
  return invalid(std::string(name) + ": dtype " + std::to_string(dtype) + "; there are " + list);
}
inline constexpr int32_t plain_dtypes = ADAMAS_BF16 + 1;  // not quantised

// Page ids of the tokens [first, end) of a sequence, before anything is read there.
inline Status check_page_ids(const adamas_rows& rows, int64_t sequence, int64_t first, int64_t end, const char* name) {
  if (rows.pages == nullptr) return {};
  const adamas_pages& pages = *rows.pages;
  const int32_t* table = pages.table + sequence * pages.stride;
  for (int64_t i = first / pages.page_tokens; i * pages.page_tokens < end; i++)
    if (table[i] < 0 || table[i] >= pages.count)
      return out_of_range(std::string(name) + ": page " + std::to_string(i) + " of sequence " + std::to_string(sequence) +
                          " is " + std::to_string(table[i]) + ", of " + std::to_string(pages.count) + " pages");
  return {};
}

inline Status check_pages(const adamas_rows& rows, const adamas_cache_params& cache, const char* name) {
  constexpr int32_t most_tokens = 1 << 20;
  const adamas_pages& pages = *rows.pages;
  ADAMAS_TRY(check_size(&pages));
  ADAMAS_TRY(check_range(pages.page_tokens, 1, most_tokens, "page_tokens"));
  if (!std::has_single_bit(uint32_t(pages.page_tokens)))
    return unsupported("page_tokens " + std::to_string(pages.page_tokens) + "; it is a power of two");
  ADAMAS_TRY(check_range(pages.count, 0, std::numeric_limits<int32_t>::max(), "pages.count"));
  ADAMAS_TRY(check_pointer(pages.table, "pages.table"));
  ADAMAS_TRY(check_stride(pages.stride, cache.sequences, "pages.stride"));
  ADAMAS_TRY(check_stride(rows.stride_page, pages.count, name));
  return check_stride(rows.stride_token, pages.page_tokens, name);
}

inline Status check_rows(const adamas_rows& rows, const adamas_cache_params& cache, const char* name) {
  ADAMAS_TRY(check_pointer(rows.data, name));
  ADAMAS_TRY(check_dtype(rows.dtype, dtype_count, name));
  if (is_quantised(rows.dtype) && cache.head_dim % quantised_block != 0)
    return unsupported(std::string(name) + ": head_dim " + std::to_string(cache.head_dim) + " in " +
                       dtype_names[rows.dtype] +
                       ", whose rows are blocks of 32 elements: head_dim has to be a multiple of 32");
  ADAMAS_TRY(check_stride(rows.stride_head, cache.kv_heads, name));
  if (rows.pages != nullptr) return check_pages(rows, cache, name);
  ADAMAS_TRY(check_stride(rows.stride_sequence, cache.sequences, name));
  return check_stride(rows.stride_token, cache.capacity, name);
}

inline Status check_sequence(const adamas_cache_params& cache, int64_t sequence) {
  return check_range(sequence, 0, cache.sequences - 1, "sequence");
}

}  // namespace adamas
