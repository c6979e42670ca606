// The C ABI: check, call, return a status; nothing else.
#include "adamas/adamas.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "capi/door.h"
#include "core/config_file.h"
#include "device/isa.h"

using namespace adamas;

namespace {

// Calls with(all settings) and gives them back, all or none.
template <class With>
Status change(adamas_config* config, With&& with) {
  ADAMAS_TRY(check_size(config));
  adamas_config all = whole(config);
  ADAMAS_TRY(with(all));
  const adamas_config unknown = default_config();
  const size_t size = config->struct_size;
  if (std::memcmp(reinterpret_cast<const char*>(&all) + size, reinterpret_cast<const char*>(&unknown) + size,
                  sizeof all - size) != 0)
    return unsupported("a setting that this program cannot hold: it was built against an older adamas.h");
  give(all, config);
  return {};
}

// Of codes that lie by page: the pages of K have to be whole blocks, and have places in the pool.
Status check_keys_by_page(const adamas_rows& k, const adamas_cache_params& cache) {
  if (cache.by_page == 0) return {};
  if (k.pages == nullptr) return invalid("codes lie by page, and k has no pages");
  if (k.pages->page_tokens % block_tokens != 0)
    return unsupported("page_tokens " + std::to_string(k.pages->page_tokens) +
                       "; codes lie by page, which takes a multiple of " + std::to_string(block_tokens));
  if (k.pages->count > cache.blocks / (k.pages->page_tokens / block_tokens))
    return out_of_range(std::to_string(k.pages->count) + " pages of " + std::to_string(k.pages->page_tokens) +
                        " tokens need more than the cache's " + std::to_string(cache.blocks) + " blocks");
  return {};
}

Status check_memory(const adamas_config& config, const adamas_cache_params& shape) {
  ADAMAS_TRY(check_size(shape.memory));
  for (const Kind& kind : kinds_of(config, shape.head_dim)) {
    if (kind.bytes == 0) continue;
    const adamas_code_array& array = shape.memory->*kind.array;
    const std::string name = std::string("memory.") + kind.name;
    ADAMAS_TRY(check_pointer(array.data, name.c_str()));
    if (((reinterpret_cast<uintptr_t>(array.data) | uintptr_t(array.stride_block) | uintptr_t(array.stride_head)) & 3) != 0)
      return invalid(name + ": its data and strides are multiples of 4");
    ADAMAS_TRY(check_stride(array.stride_block, pool_of(shape), name.c_str()));
    ADAMAS_TRY(check_stride(array.stride_head, shape.kv_heads, name.c_str()));
  }
  return {};
}

Status check_device(int32_t device) { return check_range(device, ADAMAS_DEVICE_CPU, ADAMAS_DEVICE_CUDA, "device"); }

// What concerns no row of the batch in particular.
Status check_shapes(const adamas_plan& plan, const adamas_cache& cache, const adamas_step_params& p) {
  const adamas_plan_params& shape = plan.params();
  const adamas_cache_params& codes = cache.params();
  if (codes.kv_heads != shape.kv_heads || codes.head_dim != shape.head_dim)
    return invalid("the cache has " + std::to_string(codes.kv_heads) + " kv_heads x " + std::to_string(codes.head_dim) +
                   ", the plan " + std::to_string(shape.kv_heads) + " x " + std::to_string(shape.head_dim));
  if (codes.device != shape.device) return invalid("the cache and the plan are of different devices");
  if (!same_steps(cache.config(), plan.config())) return invalid("the cache and the plan were made with different settings");
  ADAMAS_TRY(check_range(p.threads, 1, shape.max_threads, "threads"));
  ADAMAS_TRY(check_range(p.batch, 0, max_tokens, "batch"));
  ADAMAS_TRY(check_range(p.rows, 0, max_tokens, "rows"));
  if (p.batch == 0 || p.rows == 0) return {};
  if (p.sequences == nullptr && p.batch > codes.sequences)
    return out_of_range("batch " + std::to_string(p.batch) + " is above the cache's " + std::to_string(codes.sequences) +
                        " sequences");
  ADAMAS_TRY(check_dtype(p.q_dtype, plain_dtypes, "q"));
  ADAMAS_TRY(check_pointer(p.q, "q"));
  ADAMAS_TRY(check_stride(p.q_stride_batch, p.batch, "q_stride_batch"));
  ADAMAS_TRY(check_stride(p.q_stride_row, p.rows, "q_stride_row"));
  ADAMAS_TRY(check_stride(p.q_stride_head, shape.q_heads, "q_stride_head"));
  ADAMAS_TRY(check_pointer(p.out, "out"));
  ADAMAS_TRY(check_stride(p.out_stride_batch, p.batch, "out_stride_batch"));
  ADAMAS_TRY(check_stride(p.out_stride_row, p.rows, "out_stride_row"));
  ADAMAS_TRY(check_stride(p.out_stride_head, shape.q_heads, "out_stride_head"));
  ADAMAS_TRY(check_rows(p.k, codes, "k"));
  ADAMAS_TRY(check_rows(p.v, codes, "v"));
  ADAMAS_TRY(check_keys_by_page(p.k, codes));
  if (!(p.scale >= 0 && p.scale < std::numeric_limits<float>::infinity())) return invalid("scale is negative or not finite");
  for (const auto& [name, scale] : {std::pair{"k_scale", p.k_scale}, std::pair{"v_scale", p.v_scale}})
    if (!(scale >= 0 && scale < std::numeric_limits<float>::infinity()))
      return invalid(std::string(name) + " is negative or not finite");
  if (!(p.softcap >= 0 && p.softcap < std::numeric_limits<float>::infinity()))
    return invalid("softcap is negative or not finite");
  if (p.mask != nullptr) {
    ADAMAS_TRY(check_dtype(p.mask_dtype, plain_dtypes, "mask"));
    ADAMAS_TRY(check_stride(p.mask_stride_batch, p.batch, "mask_stride_batch"));
    ADAMAS_TRY(check_stride(p.mask_stride_row, p.rows, "mask_stride_row"));
  }
  return check_range(p.verify_rows, 0, max_tokens, "verify_rows");
}

// Lengths and page ids, which the host can read.
Status check_batch(const Plan& plan, const Cache& cache, const adamas_step_params& p) {
  for (int64_t b = 0; b < p.batch && p.rows > 0; b++) {
    const int64_t sequence = sequence_of(p, b);
    ADAMAS_TRY(check_sequence(cache.params, sequence));
    const int64_t length = length_of(p, cache, b), most = std::min(plan.params.max_tokens, cache.params.capacity);
    if (length < 0 || length > most)
      return out_of_range("length " + std::to_string(length) + " of batch entry " + std::to_string(b) +
                          "; its range is 0 to " + std::to_string(most) + ", the capacity of plan and cache");
  }
  for (int64_t b = 0; b < p.batch && p.rows > 0; b++) {
    const int64_t sequence = sequence_of(p, b), end = cache.rows_end(sequence, length_of(p, cache, b));
    ADAMAS_TRY(check_page_ids(p.k, sequence, 0, end, "k"));
    ADAMAS_TRY(check_page_ids(p.v, sequence, 0, end, "v"));
  }
  return {};
}

// Tokens of a sequence, wherever they are known.
Status find_length(const adamas_cache& cache, int64_t sequence, int64_t& tokens) {
  if (cache.gpu) return cache.gpu->length(sequence, tokens);
  tokens = cache.host->length(sequence);
  return {};
}

Status check_append(const adamas_cache_params& cache, const adamas_rows* k, const adamas_rows* v) {
  if (k != nullptr) ADAMAS_TRY(check_rows(*k, cache, "k"));
  if (v != nullptr) ADAMAS_TRY(check_rows(*v, cache, "v"));
  if (cache.by_page == 0) return {};
  if (k == nullptr) return invalid("codes lie by page: k is needed, for its pages");
  return check_keys_by_page(*k, cache);
}

// Rows [first, first + count) of a sequence of the host's, whose arguments were checked.
Status append(adamas_cache& cache, int64_t sequence, int64_t first, int64_t count, const adamas_rows* k,
              const adamas_rows* v) {
  Cache& c = *cache.host;
  if (first < 0 || count < 0 || first > c.params.capacity || count > c.params.capacity - first)
    return out_of_range("rows " + std::to_string(first) + " + " + std::to_string(count) + " are outside the capacity " +
                        std::to_string(c.params.capacity));
  if (count == 0) return {};
  // Rows of these blocks are read, and by page the table of all that are before.
  const int64_t begin = c.params.by_page != 0 ? 0 : first / block_tokens * block_tokens;
  const int64_t end = c.rows_end(sequence, first + count);
  if (k != nullptr) ADAMAS_TRY(check_page_ids(*k, sequence, begin, end, "k"));
  if (v != nullptr) ADAMAS_TRY(check_page_ids(*v, sequence, begin, end, "v"));
  if (!c.blocks.fits(sequence, first, first + count, true))
    return out_of_range("the cache has no place for these rows: " + std::to_string(c.blocks.used()) + " of its " +
                        std::to_string(c.blocks.shape().pool) + " blocks are in use");
  if (k != nullptr) c.place(sequence, *k, first + count);
  c.blocks.append(sequence, first, count);
  if (k != nullptr)
    encode_marked(c, *k, v, sequence, first / block_tokens, blocks_of(first + count), cache.encode_room.get());
  return {};
}

Status settings_of(adamas_config* config, const Variables& get) {
  ADAMAS_TRY(check_size(config));
  if (get("ADAMAS_DEVICE") != nullptr) return invalid("ADAMAS_DEVICE is called ADAMAS_ISA now: the instruction set");
  if (const char* isa = get("ADAMAS_ISA")) ADAMAS_TRY(force_isa(isa));
  return change(config, [&](adamas_config& all) { return from_variables(all, get); });
}

}  // namespace

extern "C" {

const char* adamas_version(void) {
#define ADAMAS_TEXT2(x) #x
#define ADAMAS_TEXT(x) ADAMAS_TEXT2(x)
  return ADAMAS_TEXT(ADAMAS_VERSION_MAJOR) "." ADAMAS_TEXT(ADAMAS_VERSION_MINOR) "." ADAMAS_TEXT(ADAMAS_VERSION_PATCH);
}

const char* adamas_last_error(void) { return last_error.c_str(); }

const char* adamas_status_name(adamas_status status) {
  switch (status) {
    case ADAMAS_OK: return "ok";
    case ADAMAS_INVALID_ARGUMENT: return "invalid argument";
    case ADAMAS_UNSUPPORTED: return "unsupported";
    case ADAMAS_OUT_OF_RANGE: return "out of range";
    case ADAMAS_OUT_OF_MEMORY: return "out of memory";
    case ADAMAS_INTERNAL: return "internal error";
  }
  return "unknown status";
}

adamas_status adamas_config_defaults(adamas_config* config) {
  return guarded("adamas_config_init", [&]() -> Status {
    ADAMAS_TRY(check_size(config));
    give(default_config(), config);
    return {};
  });
}

adamas_status adamas_config_set(adamas_config* config, const char* name, const char* value) {
  return guarded("adamas_config_set", [&]() -> Status {
    ADAMAS_TRY(check_pointer(name, "name"));
    ADAMAS_TRY(check_pointer(value, "value"));
    return change(config, [&](adamas_config& all) { return set(all, name, value); });
  });
}

adamas_status adamas_config_get(const adamas_config* config, const char* name, char* text, size_t size) {
  return guarded("adamas_config_get", [&]() -> Status {
    ADAMAS_TRY(check_size(config));
    ADAMAS_TRY(check_pointer(name, "name"));
    ADAMAS_TRY(check_pointer(text, "text"));
    std::string value;
    ADAMAS_TRY(get(whole(config), name, value));
    if (value.size() + 1 > size) return out_of_range("text needs " + std::to_string(value.size() + 1) + " bytes");
    std::memcpy(text, value.c_str(), value.size() + 1);
    return {};
  });
}

adamas_status adamas_config_from_environment(adamas_config* config) {
  return guarded("adamas_config_from_environment", [&] { return settings_of(config, std::getenv); });
}

adamas_status adamas_config_from_variables(adamas_config* config, adamas_variable_fn get, void* user) {
  return guarded("adamas_config_from_variables", [&]() -> Status {
    ADAMAS_TRY(check_pointer(reinterpret_cast<const void*>(get), "get"));
    return settings_of(config, [&](const char* name) { return get(user, name); });
  });
}

adamas_status adamas_config_load(adamas_config* config, const char* path, int32_t layer) {
  return guarded("adamas_config_load", [&]() -> Status {
    ADAMAS_TRY(check_pointer(path, "path"));
    ADAMAS_TRY(check_range(layer, -1, std::numeric_limits<int32_t>::max(), "layer"));
    return change(config, [&](adamas_config& all) { return load(all, path, layer); });
  });
}

adamas_status adamas_config_check(const adamas_config* config) {
  return guarded("adamas_config_check", [&]() -> Status {
    ADAMAS_TRY(check_size(config));
    return check(whole(config));
  });
}

int32_t adamas_setting_count(void) { return static_cast<int32_t>(settings().size()); }

adamas_status adamas_setting_describe(int32_t index, adamas_setting* setting) {
  return guarded("adamas_setting_describe", [&]() -> Status {
    ADAMAS_TRY(check_pointer(setting, "setting"));
    ADAMAS_TRY(check_range(index, 0, adamas_setting_count() - 1, "index"));
    *setting = settings()[index];
    return {};
  });
}

int32_t adamas_isa_count(void) { return static_cast<int32_t>(isa_names().size()); }

const char* adamas_isa_name(int32_t index) {
  static const std::vector<std::string> names = isa_names();
  return index >= 0 && index < static_cast<int32_t>(names.size()) ? names[index].c_str() : "";
}

const char* adamas_isa_in_use(void) {
  const std::string in_use = isa_in_use();
  for (int32_t i = 0; i < adamas_isa_count(); i++)
    if (in_use == adamas_isa_name(i)) return adamas_isa_name(i);
  return "";
}

adamas_status adamas_isa_force(const char* name) {
  return guarded("adamas_isa_force", [&]() -> Status {
    ADAMAS_TRY(check_pointer(name, "name"));
    return force_isa(name);
  });
}

int32_t adamas_head_dim_count(void) { return static_cast<int32_t>(head_dims.size()); }

int32_t adamas_head_dim(int32_t index) { return index >= 0 && index < adamas_head_dim_count() ? head_dims[index] : 0; }

int32_t adamas_dtype_count(void) { return dtype_count; }

const char* adamas_dtype_name(int32_t dtype) { return is_dtype(dtype) ? dtype_names[dtype] : ""; }

int32_t adamas_gpu_count(void) {
  int32_t count = 0;
  guarded("adamas_gpu_count", [&]() -> Status {
    count = int32_t(cuda::gpu_names().size());
    return {};
  });
  return count;
}

const char* adamas_gpu_name(int32_t index) {
  static thread_local std::string name;
  name.clear();
  guarded("adamas_gpu_name", [&]() -> Status {
    const std::vector<std::string> names = cuda::gpu_names();
    if (index >= 0 && index < int32_t(names.size())) name = names[index];
    return {};
  });
  return name.c_str();
}

const char* adamas_gpu_reason(void) {
  static thread_local std::string reason;
  guarded("adamas_gpu_reason", [&]() -> Status {
    reason = cuda::why_none();
    return {};
  });
  return reason.c_str();
}

adamas_status adamas_cache_create(const adamas_config* config, const adamas_cache_params* params, adamas_cache** cache) {
  return guarded("adamas_cache_create", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    *cache = nullptr;
    ADAMAS_TRY(check_size(config));
    const adamas_config all = whole(config);
    ADAMAS_TRY(check(all));
    ADAMAS_TRY(check_size(params));
    const adamas_cache_params shape = whole(params);
    ADAMAS_TRY(check_range(shape.layer, 0, std::numeric_limits<int32_t>::max(), "layer"));
    ADAMAS_TRY(check_range(shape.kv_heads, 1, max_heads, "kv_heads"));
    ADAMAS_TRY(check_head_dim(shape.head_dim));
    ADAMAS_TRY(check_range(shape.sequences, 1, max_tokens, "sequences"));
    ADAMAS_TRY(check_range(shape.capacity, 1, max_tokens, "capacity"));
    ADAMAS_TRY(check_range(shape.rotated, 0, ADAMAS_ROTATED_KEYS, "rotated"));
    ADAMAS_TRY(check_device(shape.device));
    ADAMAS_TRY(check_range(shape.by_page, 0, 1, "by_page"));
    ADAMAS_TRY(check_range(shape.blocks, shape.by_page, std::numeric_limits<int32_t>::max() - 1, "blocks"));
    ADAMAS_TRY(check_range(shape.origin, 0, int64_t{1} << 52, "origin"));
    if (shape.origin % block_tokens != 0)
      return invalid("origin " + std::to_string(shape.origin) + "; it is a multiple of " + std::to_string(block_tokens));
    if (shape.origin != 0 && shape.device == ADAMAS_DEVICE_CUDA)
      return unsupported("origin " + std::to_string(shape.origin) +
                         "; on a GPU a cache has the beginning of its sequences: 0");
    if (shape.memory != nullptr) ADAMAS_TRY(check_memory(all, shape));
    auto made = std::make_unique<adamas_cache>();
    if (shape.device == ADAMAS_DEVICE_CUDA) {
      ADAMAS_TRY(cuda::make_cache(all, shape, made->gpu));
    } else {
      made->host.emplace(all, shape);
      made->encode_room = make_array<float>(block_tokens * shape.head_dim);
    }
    *cache = made.release();
    return {};
  });
}

void adamas_cache_destroy(adamas_cache* cache) { delete cache; }

adamas_status adamas_cache_bytes(const adamas_cache* cache, uint64_t* bytes) {
  return guarded("adamas_cache_bytes", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_pointer(bytes, "bytes"));
    *bytes = static_cast<uint64_t>(cache->gpu ? cache->gpu->bytes() : cache->host->bytes());
    return {};
  });
}

adamas_status adamas_cache_places(const adamas_cache* cache, int64_t* used, int64_t* all) {
  return guarded("adamas_cache_places", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_pointer(used, "used"));
    ADAMAS_TRY(check_pointer(all, "all"));
    *used = cache->gpu ? 0 : cache->host->blocks.used();
    *all = pool_of(cache->params());
    return {};
  });
}

adamas_status adamas_code_records(const adamas_config* config, const adamas_cache_params* params, void* data,
                                  int64_t stride_block, int64_t stride_head, adamas_code_memory* memory, size_t* bytes) {
  return guarded("adamas_code_records", [&]() -> Status {
    ADAMAS_TRY(check_size(config));
    ADAMAS_TRY(check_size(params));
    const adamas_config all = whole(config);
    ADAMAS_TRY(check(all));
    ADAMAS_TRY(check_head_dim(params->head_dim));
    adamas_code_memory records{};
    records.struct_size = sizeof records;
    int64_t total = 0;
    for (const Kind& kind : kinds_of(all, params->head_dim)) {
      if (kind.bytes == 0) continue;
      auto* first = data != nullptr ? static_cast<std::byte*>(data) + total : nullptr;
      records.*kind.array = {first, stride_block, stride_head};
      total += kind.bytes;
    }
    if (memory != nullptr) *memory = records;
    if (bytes != nullptr) *bytes = size_t(total);
    return {};
  });
}

adamas_status adamas_append(adamas_cache* cache, int64_t sequence, int64_t first, int64_t count, const adamas_rows* k,
                            const adamas_rows* v) {
  return guarded("adamas_append", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    const adamas_cache_params& shape = cache->params();
    ADAMAS_TRY(check_sequence(shape, sequence));
    ADAMAS_TRY(check_append(shape, k, v));
    if (!cache->gpu) return append(*cache, sequence, first, count, k, v);
    ADAMAS_TRY(check_range(first, 0, shape.capacity, "first"));
    ADAMAS_TRY(check_range(count, 0, shape.capacity - first, "count"));
    ADAMAS_TRY(check_pointer(k, "k"));
    ADAMAS_TRY(check_pointer(v, "v"));
    return cache->gpu->append(sequence, first, count, *k, *v);
  });
}

adamas_status adamas_append_rows(adamas_cache* cache, const adamas_append_params* params) {
  return guarded("adamas_append_rows", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_size(params));
    const adamas_append_params p = whole(params);
    const adamas_cache_params& shape = cache->params();
    const adamas_rows* v = p.v.data != nullptr ? &p.v : nullptr;
    ADAMAS_TRY(check_range(p.batch, 0, max_tokens, "batch"));
    ADAMAS_TRY(check_range(p.rows, 0, shape.capacity, "rows"));
    if (p.batch == 0 || p.rows == 0) return {};
    ADAMAS_TRY(check_pointer(p.lengths, "lengths"));
    ADAMAS_TRY(check_append(shape, &p.k, v));
    if (cache->gpu) {
      ADAMAS_TRY(check_pointer(v, "v"));
      return cache->gpu->append(p);
    }
    for (int64_t b = 0; b < p.batch; b++) {
      const int64_t sequence = p.sequences != nullptr ? p.sequences[b] : b;
      ADAMAS_TRY(check_sequence(shape, sequence));
      ADAMAS_TRY(check_range(p.lengths[b], 0, shape.capacity, "length"));
    }
    for (int64_t b = 0; b < p.batch; b++) {
      const int64_t sequence = p.sequences != nullptr ? p.sequences[b] : b, count = std::min(p.rows, p.lengths[b]);
      if (shape.by_page == 0) cache->host->blocks.truncate(sequence, p.lengths[b]);
      ADAMAS_TRY(append(*cache, sequence, p.lengths[b] - count, count, &p.k, v));
    }
    return {};
  });
}

adamas_status adamas_truncate(adamas_cache* cache, int64_t sequence, int64_t length) {
  return guarded("adamas_truncate", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_sequence(cache->params(), sequence));
    ADAMAS_TRY(check_range(length, 0, cache->params().capacity, "length"));
    if (cache->gpu) return cache->gpu->truncate(sequence, length);
    cache->host->blocks.truncate(sequence, length);
    return {};
  });
}

adamas_status adamas_clear(adamas_cache* cache, int64_t sequence) {
  return guarded("adamas_clear", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    if (sequence != -1) ADAMAS_TRY(check_sequence(cache->params(), sequence));
    if (cache->gpu) return cache->gpu->clear(sequence);
    for (int64_t s = 0; s < cache->params().sequences; s++)
      if (sequence == s || sequence == -1) cache->host->blocks.truncate(s, 0);
    return {};
  });
}

adamas_status adamas_share(adamas_cache* cache, int64_t from, int64_t to, int64_t length) {
  return guarded("adamas_share", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_sequence(cache->params(), from));
    ADAMAS_TRY(check_sequence(cache->params(), to));
    if (cache->params().by_page != 0) return unsupported("codes lie by page: the engine's own table says what is shared");
    int64_t most = 0;
    ADAMAS_TRY(find_length(*cache, from, most));
    ADAMAS_TRY(check_range(length, 0, most, "length"));
    if (cache->gpu) return cache->gpu->share(from, to, length);
    cache->host->share(from, to, length);
    return {};
  });
}

adamas_status adamas_invalidate(adamas_cache* cache) {
  return guarded("adamas_invalidate", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    if (cache->gpu) return unsupported("on a GPU rows that changed are appended again");
    cache->host->blocks.invalidate();
    return {};
  });
}

adamas_status adamas_length(const adamas_cache* cache, int64_t sequence, int64_t* tokens) {
  return guarded("adamas_length", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_pointer(tokens, "tokens"));
    ADAMAS_TRY(check_sequence(cache->params(), sequence));
    return find_length(*cache, sequence, *tokens);
  });
}

adamas_status adamas_block_bytes(const adamas_cache* cache, int64_t sequence, int32_t kv_head, int64_t block, void* bytes,
                                 size_t size, size_t* needed) {
  return guarded("adamas_block_bytes", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    const adamas_cache_params& shape = cache->params();
    ADAMAS_TRY(check_sequence(shape, sequence));
    ADAMAS_TRY(check_range(kv_head, 0, shape.kv_heads - 1, "kv_head"));
    int64_t length = 0;
    ADAMAS_TRY(find_length(*cache, sequence, length));
    ADAMAS_TRY(check_range(block, 0, blocks_of(length) - 1, "block"));
    int64_t total = 0;
    for (const Kind& kind : kinds_of(cache->config(), shape.head_dim)) total += kind.bytes;
    if (needed != nullptr) *needed = size_t(total);
    if (bytes == nullptr) return {};
    if (cache->host && (cache->host->marked(sequence, block) || cache->host->coded(sequence, block) == 0))
      return invalid("block " + std::to_string(block) + " is not encoded yet");
    if (size < size_t(total))
      return out_of_range("bytes has room for " + std::to_string(size) + " of " + std::to_string(total));
    if (cache->gpu) return cache->gpu->copy_block(sequence, kv_head, block, static_cast<std::byte*>(bytes));
    cache->host->copy_block(sequence, kv_head, block, static_cast<std::byte*>(bytes));
    return {};
  });
}

adamas_status adamas_plan_create(const adamas_config* config, const adamas_plan_params* params, adamas_plan** plan) {
  return guarded("adamas_plan_create", [&]() -> Status {
    ADAMAS_TRY(check_pointer(plan, "plan"));
    *plan = nullptr;
    ADAMAS_TRY(check_size(config));
    const adamas_config all = whole(config);
    ADAMAS_TRY(check(all));
    ADAMAS_TRY(check_size(params));
    const adamas_plan_params shape = whole(params);
    ADAMAS_TRY(check_range(shape.kv_heads, 1, max_heads, "kv_heads"));
    ADAMAS_TRY(check_range(shape.q_heads, 1, max_heads, "q_heads"));
    if (shape.q_heads % shape.kv_heads != 0)
      return invalid("q_heads " + std::to_string(shape.q_heads) + " is not a multiple of kv_heads " +
                     std::to_string(shape.kv_heads));
    ADAMAS_TRY(check_head_dim(shape.head_dim));
    ADAMAS_TRY(check_range(shape.max_tokens, 1, max_tokens, "max_tokens"));
    ADAMAS_TRY(check_range(shape.max_threads, 1, max_threads, "max_threads"));
    ADAMAS_TRY(check_device(shape.device));
    ADAMAS_TRY(check_range(shape.max_rows, 0, max_tokens, "max_rows"));
    auto made = std::make_unique<adamas_plan>();
    if (shape.device == ADAMAS_DEVICE_CUDA)
      ADAMAS_TRY(cuda::make_plan(all, shape, made->gpu));
    else
      made->host.emplace(all, shape);
    *plan = made.release();
    return {};
  });
}

void adamas_plan_destroy(adamas_plan* plan) { delete plan; }

adamas_status adamas_plan_workspace(const adamas_plan* plan, size_t* bytes) {
  return guarded("adamas_plan_workspace", [&]() -> Status {
    ADAMAS_TRY(check_pointer(plan, "plan"));
    ADAMAS_TRY(check_pointer(bytes, "bytes"));
    *bytes = plan->gpu ? plan->gpu->workspace_bytes() : 0;
    return {};
  });
}

adamas_status adamas_step(adamas_plan* plan, adamas_cache* cache, const adamas_step_params* params) {
  return guarded("adamas_step", [&]() -> Status {
    ADAMAS_TRY(check_pointer(plan, "plan"));
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_size(params));
    adamas_step_params all = whole(params);
    if (all.stats != nullptr && !plan->gpu) ADAMAS_TRY(check_size(all.stats));  // a GPU's lie where the host cannot read
    if (all.times != nullptr && !plan->gpu) ADAMAS_TRY(check_size(all.times));
    ADAMAS_TRY(check_shapes(*plan, *cache, all));
    if (plan->gpu) return plan->gpu->step(*cache->gpu, all);
    ADAMAS_TRY(check_batch(*plan->host, *cache->host, all));
    adamas_step_stats stats{};
    adamas_step_times times{};
    const auto [stats_wanted, times_wanted] = std::pair(std::exchange(all.stats, &stats), all.times);
    if (times_wanted != nullptr) all.times = &times;
    ADAMAS_TRY(step(*plan->host, *cache->host, all));
    if (stats_wanted != nullptr) give(stats, stats_wanted);
    if (times_wanted != nullptr) give(times, times_wanted);
    return {};
  });
}

adamas_status adamas_selection(const adamas_plan* plan, int32_t q_head, int64_t* indices, int64_t size, int64_t* count) {
  return guarded("adamas_selection", [&]() -> Status {
    ADAMAS_TRY(check_pointer(plan, "plan"));
    ADAMAS_TRY(check_pointer(count, "count"));
    ADAMAS_TRY(check_range(q_head, 0, plan->params().q_heads - 1, "q_head"));
    int64_t written = 0;
    const auto emit = [&](int64_t token) {
      if (indices != nullptr && written < size) indices[written] = token;
      written++;
    };
    if (plan->gpu) {
      std::vector<int64_t> tokens;
      ADAMAS_TRY(plan->gpu->selection(q_head, tokens));
      for (const int64_t token : tokens) emit(token);
    } else if (const Plan& p = *plan->host; reads_all(p.results[q_head].reading)) {
      for (int64_t b = 0; b < blocks_of(p.last_view.tokens); b++)
        for_each_bit(p.last_view.bits[b], [&](int t) { emit(b * block_tokens + t); });
    } else {
      for (int64_t i = 0; i < p.results[q_head].selected; i++) emit(p.results[q_head].tokens[i]);
    }
    *count = written;
    if (indices != nullptr && written > size)
      return out_of_range("indices has room for " + std::to_string(size) + " of " + std::to_string(written) + " tokens");
    return {};
  });
}

}  // extern "C"
