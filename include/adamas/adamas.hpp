// Adamas for C++20: adamas.h with RAII, spans and exceptions. Header only; link libadamas.
//
//   adamas::Cache cache({.kv_heads = 2, .head_dim = 64, .capacity = 4096});
//   adamas::Plan plan({.q_heads = 8, .kv_heads = 2, .head_dim = 64, .max_tokens = 4096});
//   cache.append({.count = 4096}, k, v);
//   plan.step(cache, {.q = q, .k = k, .v = v, .out = out});
//
// Memory is described by views. A view made of a vector, an array or a span is contiguous, in the order written beside
// it, and its size is checked against the shapes in play. Any other layout: a pointer and strides, in elements.
// Views and structs borrow: what they point to must live until the call returns.
//
// What adamas.h answers with a status is thrown here as adamas::Error, with the library's sentence. The exception is
// thrown by your translation unit: nothing is thrown across the C boundary.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <ranges>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "adamas.h"

namespace adamas {
inline namespace v0 {

// ---- words ------------------------------------------------------------------------------------------------------

enum class Status : std::int32_t {
  ok = ADAMAS_OK,
  invalid_argument = ADAMAS_INVALID_ARGUMENT,
  unsupported = ADAMAS_UNSUPPORTED,
  out_of_range = ADAMAS_OUT_OF_RANGE,
  out_of_memory = ADAMAS_OUT_OF_MEMORY,
  internal = ADAMAS_INTERNAL,
};

enum class Policy : std::int32_t {
  adamas = ADAMAS_POLICY_ADAMAS,
  full = ADAMAS_POLICY_FULL,
  quest = ADAMAS_POLICY_QUEST,
  streaming = ADAMAS_POLICY_STREAMING,
  oracle = ADAMAS_POLICY_ORACLE,
};

enum class Estimator : std::int32_t { dot = ADAMAS_ESTIMATOR_DOT, manhattan = ADAMAS_ESTIMATOR_MANHATTAN };
enum class Preset : std::int32_t { standard = ADAMAS_PRESET_DEFAULT, paper = ADAMAS_PRESET_PAPER };
enum class PromptMode : std::int32_t {
  dense = ADAMAS_PROMPT_DENSE,
  engine = ADAMAS_PROMPT_ENGINE,
  sparse = ADAMAS_PROMPT_SPARSE
};
enum class RowsMode : std::int32_t { decode = ADAMAS_ROWS_DECODE, all = ADAMAS_ROWS_ALL };

// An error of the library, or of the sizes that a view was given.
class Error : public std::runtime_error {
 public:
  Error(Status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}
  Status status() const noexcept { return status_; }

 private:
  Status status_;
};

// Storage of small floats: K, V, q and masks are read as they are, of 8 bits K and V alone.
struct f16 {
  std::uint16_t bits;
};
struct bf16 {
  std::uint16_t bits;
};
struct f8_e4m3 {
  std::uint8_t bits;
};

// The adamas_dtype of an element type. Specialise it for a 16-bit float type of your own.
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> : std::integral_constant<std::int32_t, ADAMAS_F32> {};
template <>
struct dtype_of<f16> : std::integral_constant<std::int32_t, ADAMAS_F16> {};
template <>
struct dtype_of<bf16> : std::integral_constant<std::int32_t, ADAMAS_BF16> {};
template <>
struct dtype_of<f8_e4m3> : std::integral_constant<std::int32_t, ADAMAS_F8_E4M3> {};
#if defined(__FLT16_MAX__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 13))
template <>
struct dtype_of<_Float16> : std::integral_constant<std::int32_t, ADAMAS_F16> {};
#endif

template <class T>
concept Element = requires {
  dtype_of<std::remove_cv_t<T>>::value;
};

template <class R>
concept ElementRange =
    std::ranges::contiguous_range<R> && std::ranges::sized_range<R> && Element<std::ranges::range_value_t<R>>;

namespace detail {

inline void check(adamas_status status) {
  if (status != ADAMAS_OK) throw Error(static_cast<Status>(status), adamas_last_error());
}

[[noreturn]] inline void reject(const std::string& sentence) { throw Error(Status::invalid_argument, sentence); }

// The values of a preset, from the library: it alone knows the defaults.
inline const adamas_config& preset_values(Preset preset) {
  const auto values_of = [](const char* name) {
    adamas_config config;
    check(adamas_config_init(&config));
    check(adamas_config_set(&config, "preset", name));
    return config;
  };
  static const adamas_config standard = values_of("default");
  static const adamas_config paper = values_of("paper");
  return preset == Preset::paper ? paper : standard;
}

// Sums and products of sizes, or the largest number when they do not fit: no range is that long.
inline constexpr std::int64_t no_size = std::numeric_limits<std::int64_t>::max();

inline void require_sizes(std::initializer_list<std::int64_t> sizes) {
  for (const std::int64_t size : sizes)
    if (size < 0) reject("a size of " + std::to_string(size) + "; sizes are 0 or more");
}

inline std::int64_t sum(std::int64_t a, std::int64_t b) {
  require_sizes({a, b});
  return a > no_size - b ? no_size : a + b;
}

inline std::int64_t product(std::initializer_list<std::int64_t> sizes) {
  require_sizes(sizes);
  std::int64_t result = 1;
  for (const std::int64_t size : sizes) result = size != 0 && result > no_size / size ? no_size : result * size;
  return result;
}

}  // namespace detail

// ---- settings ---------------------------------------------------------------------------------------------------

// The settings. What is not named has the value that the preset gives it:
//   Config{.preset = Preset::paper, .budget = 64}
// adamas_setting_describe, or the command `adamas info`, tells what each one means and may be.
struct Config {
  Preset preset = Preset::standard;
  Policy policy = static_cast<Policy>(detail::preset_values(preset).policy);
  Estimator estimator = static_cast<Estimator>(detail::preset_values(preset).estimator);
  std::int64_t budget = detail::preset_values(preset).budget;  // ADAMAS_BUDGET_AUTO, or tokens
  std::int64_t sinks = detail::preset_values(preset).sinks;
  std::int64_t recent = detail::preset_values(preset).recent;
  double share = detail::preset_values(preset).share;
  double max_noise = detail::preset_values(preset).max_noise;
  double min_mass = detail::preset_values(preset).min_mass;
  std::int64_t dense_layers = detail::preset_values(preset).dense_layers;
  std::int64_t min_context = detail::preset_values(preset).min_context;
  PromptMode prompt = static_cast<PromptMode>(detail::preset_values(preset).prompt);
  RowsMode rows = static_cast<RowsMode>(detail::preset_values(preset).rows);
  bool stats = detail::preset_values(preset).stats != 0;

  // The settings as the environment variables ADAMAS_* have them.
  static Config from_environment() {
    adamas_config config = detail::preset_values(Preset::standard);
    detail::check(adamas_config_from_environment(&config));
    return from_native(config);
  }

  // The same of variables that get("ADAMAS_BUDGET") gives, a null pointer where there is none.
  template <class Get>
  static Config from_variables(Get get) {
    adamas_config config = detail::preset_values(Preset::standard);
    const auto call = [](void* user, const char* name) -> const char* { return (*static_cast<Get*>(user))(name); };
    detail::check(adamas_config_from_variables(&config, call, &get));
    return from_native(config);
  }

  // What a settings file says: its general lines, or what its sections say of one layer.
  Config& load(const std::string& path, std::int32_t layer = -1) {
    adamas_config config = native();
    detail::check(adamas_config_load(&config, path.c_str(), layer));
    return *this = from_native(config);
  }

  // One setting from text: set("budget", "128"). Setting "preset" resets the fields that the preset defines.
  Config& set(const std::string& name, const std::string& value) {
    adamas_config config = native();
    detail::check(adamas_config_set(&config, name.c_str(), value.c_str()));
    return *this = from_native(config);
  }

  // One setting as text.
  std::string get(const std::string& name) const {
    const adamas_config config = native();
    char text[64];
    detail::check(adamas_config_get(&config, name.c_str(), text, sizeof text));
    return text;
  }

  // Throws, naming the range, unless each field is within its own and they are consistent with each other.
  void check() const {
    const adamas_config config = native();
    detail::check(adamas_config_check(&config));
  }

  adamas_config native() const {
    adamas_config config = detail::preset_values(preset);
    config.preset = static_cast<std::int32_t>(preset);
    config.policy = static_cast<std::int32_t>(policy);
    config.estimator = static_cast<std::int32_t>(estimator);
    config.budget = budget;
    config.sinks = sinks;
    config.recent = recent;
    config.share = share;
    config.max_noise = max_noise;
    config.min_mass = min_mass;
    config.dense_layers = dense_layers;
    config.min_context = min_context;
    config.prompt = static_cast<std::int32_t>(prompt);
    config.rows = static_cast<std::int32_t>(rows);
    config.stats = stats;
    return config;
  }

  static Config from_native(const adamas_config& config) {
    return {.preset = static_cast<Preset>(config.preset),
            .policy = static_cast<Policy>(config.policy),
            .estimator = static_cast<Estimator>(config.estimator),
            .budget = config.budget,
            .sinks = config.sinks,
            .recent = config.recent,
            .share = config.share,
            .max_noise = config.max_noise,
            .min_mass = config.min_mass,
            .dense_layers = config.dense_layers,
            .min_context = config.min_context,
            .prompt = static_cast<PromptMode>(config.prompt),
            .rows = static_cast<RowsMode>(config.rows),
            .stats = config.stats != 0};
  }
};

// ---- views ------------------------------------------------------------------------------------------------------

// Strides in elements.
struct RowsStrides {
  std::int64_t sequence = 0;
  std::int64_t head = 0;
  std::int64_t token = 0;
};
struct QueryStrides {
  std::int64_t batch = 0;
  std::int64_t row = 0;
  std::int64_t head = 0;
};
struct MaskStrides {
  std::int64_t batch = 0;
  std::int64_t row = 0;
};

namespace detail {

// Elements of one type: a block of `count`, or, when count is unbounded, wherever strides lead.
struct Elements {
  static constexpr std::int64_t unbounded = -1;

  const void* data = nullptr;
  std::int64_t count = unbounded;
  std::int64_t size = sizeof(float);
  std::int32_t dtype = ADAMAS_F32;

  template <ElementRange R>
  static Elements of(const R& range) {
    return of(std::ranges::data(range), std::ssize(range));
  }
  template <Element T>
  static Elements of(const T* data, std::int64_t count = unbounded) {
    return {data, count, sizeof(T), dtype_of<T>::value};
  }

  void require(const char* name, std::int64_t expected, const char* shape) const {
    if (count != expected)
      reject(std::string(name) + ": " + std::to_string(count) + " elements; expected " + std::to_string(expected) + ", " +
             shape);
  }

  std::int64_t bytes(std::int64_t stride) const {
    const std::int64_t most = no_size / size;
    if (stride > most || stride < -most) reject("a stride of " + std::to_string(stride) + " elements");
    return stride * size;
  }
};

// Of what may be left out.
inline void require(const char* name, std::size_t size, std::int64_t expected, const char* shape) {
  if (size != 0) Elements{nullptr, static_cast<std::int64_t>(size)}.require(name, expected, shape);
}

}  // namespace detail

// K or V of every sequence; head_dim is contiguous. From a range: [sequences, kv_heads, tokens, head_dim], where the
// number of tokens follows from the size. RowsView::tokens_first(range): [sequences, tokens, kv_heads, head_dim].
class RowsView {
 public:
  RowsView() = default;

  template <ElementRange R>
  RowsView(const R& range) : elements_(detail::Elements::of(range)) {}

  template <Element T>
  RowsView(const T* data, RowsStrides strides) : elements_(detail::Elements::of(data)), strides_(strides) {}

  template <ElementRange R>
  static RowsView tokens_first(const R& range) {
    RowsView view(range);
    view.tokens_first_ = true;
    return view;
  }

  // Paged: strides of a head and a token inside a page, and from a page to the next. `pages` lives as long as the view.
  template <Element T>
  static RowsView paged(const T* data, std::int64_t stride_page, std::int64_t stride_head, std::int64_t stride_token,
                        const adamas_pages& pages) {
    RowsView view(data, {0, stride_head, stride_token});
    view.pages_ = &pages;
    view.page_stride_ = stride_page;
    return view;
  }

  bool empty() const { return elements_.data == nullptr; }

  // The C view, once the shape is known. `tokens`: how many each sequence has to hold.
  adamas_rows native(const char* name, std::int64_t sequences, std::int64_t kv_heads, std::int64_t tokens,
                     std::int64_t head_dim) const {
    RowsStrides strides = strides_;
    if (elements_.count != detail::Elements::unbounded) {
      const std::int64_t token = detail::product({sequences, kv_heads, head_dim});  // one token of every sequence
      const std::int64_t held = elements_.count / token;
      if (elements_.count % token != 0 || held < tokens)
        detail::reject(std::string(name) + ": " + std::to_string(elements_.count) + " elements; expected sequences " +
                       std::to_string(sequences) + " x kv_heads " + std::to_string(kv_heads) + " x tokens " +
                       std::to_string(tokens) + " or more x head_dim " + std::to_string(head_dim));
      strides = tokens_first_ ? RowsStrides{held * kv_heads * head_dim, head_dim, kv_heads * head_dim}
                              : RowsStrides{kv_heads * held * head_dim, held * head_dim, head_dim};
    }
    return {elements_.data,
            elements_.dtype,
            elements_.bytes(strides.sequence),
            elements_.bytes(strides.head),
            elements_.bytes(strides.token),
            pages_,
            elements_.bytes(page_stride_)};
  }

 private:
  detail::Elements elements_;
  RowsStrides strides_;
  bool tokens_first_ = false;
  const adamas_pages* pages_ = nullptr;
  std::int64_t page_stride_ = 0;
};

// q, from a range: [batch, rows, q_heads, head_dim].
class QueryView {
 public:
  QueryView() = default;

  template <ElementRange R>
  QueryView(const R& range) : elements_(detail::Elements::of(range)) {}

  template <Element T>
  QueryView(const T* data, QueryStrides strides) : elements_(detail::Elements::of(data)), strides_(strides) {}

  const void* data() const { return elements_.data; }
  std::int32_t dtype() const { return elements_.dtype; }

  // The strides in bytes, once the shape is known.
  QueryStrides bytes(const char* name, std::int64_t batch, std::int64_t rows, std::int64_t q_heads,
                     std::int64_t head_dim) const {
    QueryStrides strides = strides_;
    if (elements_.count != detail::Elements::unbounded) {
      elements_.require(name, detail::product({batch, rows, q_heads, head_dim}), "[batch, rows, q_heads, head_dim]");
      strides = {detail::product({rows, q_heads, head_dim}), detail::product({q_heads, head_dim}), head_dim};
    }
    return {elements_.bytes(strides.batch), elements_.bytes(strides.row), elements_.bytes(strides.head)};
  }

 private:
  detail::Elements elements_;
  QueryStrides strides_;
};

// out, in the same layouts as q; floats that are written.
class OutView {
 public:
  OutView() = default;

  template <class R>
  requires std::is_convertible_v<R&&, std::span<float>> OutView(R&& range)
      : data_(std::span<float>(range).data()), layout_(std::span<const float>(range)) {}

  OutView(float* data, QueryStrides strides) : data_(data), layout_(data, strides) {}

  float* data() const { return data_; }
  const QueryView& layout() const { return layout_; }

 private:
  float* data_ = nullptr;
  QueryView layout_;
};

// Added to the scores, -inf hides a token. From a range: [batch, rows, tokens], and the step has to name its lengths.
class MaskView {
 public:
  MaskView() = default;

  template <ElementRange R>
  MaskView(const R& range) : elements_(detail::Elements::of(range)) {}

  template <Element T>
  MaskView(const T* data, MaskStrides strides) : elements_(detail::Elements::of(data)), strides_(strides) {}

  const void* data() const { return elements_.data; }
  std::int32_t dtype() const { return elements_.dtype; }

  // The strides in bytes, once the shape is known. `tokens`: how many a row has to hold; 0: not known.
  MaskStrides bytes(std::int64_t batch, std::int64_t rows, std::int64_t tokens) const {
    MaskStrides strides = strides_;
    if (elements_.count != detail::Elements::unbounded) {
      if (tokens == 0) detail::reject("mask: as a range it needs lengths");
      const std::int64_t all_rows = detail::product({batch, rows});
      const std::int64_t held = all_rows > 0 ? elements_.count / all_rows : 0;
      elements_.require("mask", detail::product({all_rows, std::max(held, tokens)}), "[batch, rows, tokens]");
      strides = {detail::product({rows, held}), held};
    }
    return {elements_.bytes(strides.batch), elements_.bytes(strides.row)};
  }

 private:
  detail::Elements elements_;
  MaskStrides strides_;
};

// ---- cache: the codes of one layer ------------------------------------------------------------------------------

struct CacheParams {
  std::int32_t layer = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int64_t sequences = 1;
  std::int64_t capacity = 0;  // tokens of each sequence
  std::int64_t rotated = 0;   // ADAMAS_ROTATED_KEYS: the caller has done so
  std::int32_t device = ADAMAS_DEVICE_CPU;
  bool by_page = false;                        // codes lie by the pages of K
  std::int64_t blocks = 0;                     // places for blocks of codes; 0: for as many as the sequences can have
  const adamas_code_memory* memory = nullptr;  // where codes lie; nullptr: in the cache's own memory
  std::int64_t origin = 0;                     // the sequences begin at this token; another cache has what is before it
};

// Tokens [first, first + count) of a sequence.
struct TokenRange {
  std::int64_t sequence = 0;
  std::int64_t first = 0;
  std::int64_t count = 0;
};

// The newest rows of each of a batch of sequences. On a GPU every pointer is one of its memory, and is read when the call's
// work runs in `stream`.
struct NewRows {
  RowsView k{};
  RowsView v{};
  std::int64_t batch = 1;
  std::int64_t rows = 1;                      // of each sequence
  std::span<const std::int64_t> sequences{};  // [batch]; empty: 0, 1, 2, ...
  std::span<const std::int64_t> lengths{};    // [batch] tokens, these rows included
  void* stream = nullptr;                     // a cudaStream_t; nullptr: the default stream
};

class Cache {
 public:
  explicit Cache(const CacheParams& params, const Config& config = {}) : params_(params) {
    const adamas_config native_config = config.native();
    const adamas_cache_params native_params{.struct_size = sizeof(adamas_cache_params),
                                            .layer = params.layer,
                                            .kv_heads = params.kv_heads,
                                            .head_dim = params.head_dim,
                                            .sequences = params.sequences,
                                            .capacity = params.capacity,
                                            .rotated = params.rotated,
                                            .device = params.device,
                                            .by_page = params.by_page ? 1 : 0,
                                            .blocks = params.blocks,
                                            .memory = params.memory,
                                            .origin = params.origin};
    adamas_cache* cache = nullptr;
    detail::check(adamas_cache_create(&native_config, &native_params, &cache));
    cache_.reset(cache);
  }

  // Rows were written to K (and V): appended or overwritten. Their blocks are encoded now.
  void append(const TokenRange& range, const RowsView& k, const RowsView& v = {}) {
    const std::int64_t tokens = detail::sum(range.first, range.count);
    const adamas_rows native_k = native("k", k, tokens);
    const adamas_rows native_v = native("v", v, tokens);
    append(range, k.empty() ? nullptr : &native_k, v.empty() ? nullptr : &native_v);
  }

  // The same, but their blocks are encoded by the next step that shows them.
  void append(const TokenRange& range) { append(range, nullptr, nullptr); }

  // The newest rows of each of a batch of sequences were written.
  void append(const NewRows& rows) {
    detail::require("sequences", rows.sequences.size(), rows.batch, "[batch]");
    detail::Elements{nullptr, std::ssize(rows.lengths)}.require("lengths", rows.batch, "[batch]");
    const std::int64_t tokens = longest_of(rows.lengths);
    const adamas_append_params params{.struct_size = sizeof params,
                                      .batch = rows.batch,
                                      .rows = rows.rows,
                                      .sequences = rows.sequences.data(),
                                      .lengths = rows.lengths.data(),
                                      .k = native("k", rows.k, tokens),
                                      .v = native("v", rows.v, tokens),
                                      .stream = rows.stream};
    detail::check(adamas_append_rows(get(), &params));
    longest_ = std::max(longest_, tokens);
  }

  // Rows [length, ...) of a sequence are gone.
  void truncate(std::int64_t sequence, std::int64_t length) { detail::check(adamas_truncate(get(), sequence, length)); }
  void clear(std::int64_t sequence) { detail::check(adamas_clear(get(), sequence)); }
  void clear_all() {
    detail::check(adamas_clear(get(), -1));
    longest_ = 0;
  }

  // Sequence `to` becomes the first `length` tokens of `from`, whose blocks of codes it shares.
  void share(std::int64_t from, std::int64_t to, std::int64_t length) {
    detail::check(adamas_share(get(), from, to, length));
  }

  // K changed without append: every row's codes are made anew when they are next used.
  void invalidate() { detail::check(adamas_invalidate(get())); }

  // Memory of the codes when every place is used.
  std::uint64_t bytes() const {
    std::uint64_t bytes = 0;
    detail::check(adamas_cache_bytes(get(), &bytes));
    return bytes;
  }

  // Places that hold a block, and all there are.
  struct Places {
    std::int64_t used, all;
  };
  Places places() const {
    Places places{};
    detail::check(adamas_cache_places(get(), &places.used, &places.all));
    return places;
  }

  // The codes of one block, as docs/codes.md lays them out.
  std::vector<std::byte> block_bytes(std::int64_t sequence, std::int32_t kv_head, std::int64_t block) const {
    std::size_t size = 0;
    detail::check(adamas_block_bytes(get(), sequence, kv_head, block, nullptr, 0, &size));
    std::vector<std::byte> bytes(size);
    detail::check(adamas_block_bytes(get(), sequence, kv_head, block, bytes.data(), bytes.size(), &size));
    return bytes;
  }

  const CacheParams& params() const { return params_; }
  adamas_cache* get() const { return cache_.get(); }

  // Tokens of the longest of a batch. Lengths in a GPU's memory are not known here.
  std::int64_t longest_of(std::span<const std::int64_t> lengths) const {
    return lengths.empty() || params_.device == ADAMAS_DEVICE_CUDA ? 0 : std::ranges::max(lengths);
  }

  // A view of K or V with this cache's shape, which holds `tokens` and all that were appended so far.
  adamas_rows native(const char* name, const RowsView& rows, std::int64_t tokens) const {
    return rows.native(name, params_.sequences, params_.kv_heads, std::max(tokens, longest_), params_.head_dim);
  }

 private:
  void append(const TokenRange& range, const adamas_rows* k, const adamas_rows* v) {
    detail::check(adamas_append(get(), range.sequence, range.first, range.count, k, v));
    longest_ = std::max(longest_, range.first + range.count);
  }

  struct Destroy {
    void operator()(adamas_cache* cache) const { adamas_cache_destroy(cache); }
  };
  std::unique_ptr<adamas_cache, Destroy> cache_;
  CacheParams params_;
  std::int64_t longest_ = 0;  // tokens appended to the longest sequence since it was last cleared
};

// ---- step -------------------------------------------------------------------------------------------------------

struct PlanParams {
  std::int32_t q_heads = 0;
  std::int32_t kv_heads = 0;  // divides q_heads
  std::int32_t head_dim = 0;
  std::int64_t max_tokens = 0;  // the longest context of a step
  std::int32_t max_threads = 1;
  std::int32_t device = ADAMAS_DEVICE_CPU;  // the cache's
  std::int64_t max_rows = 0;                // on a GPU: query rows of a step, of all sequences; 0: one
};

// Attention of `rows` query rows of each of `batch` sequences; adamas_step_params has the formula. On a GPU every pointer is
// one of its memory, and a step returns before its work has run.
struct Step {
  QueryView q{};
  RowsView k{};
  RowsView v{};
  OutView out{};
  std::span<float> lse{};    // [batch, rows, q_heads], natural log; empty: not wanted
  std::span<float> mass{};   // [batch, rows, q_heads] share of the softmax in the selected tokens; empty: not wanted
  std::span<float> noise{};  // [batch, rows, q_heads] variance of the estimated scores; empty: not wanted
  std::int64_t batch = 1;
  std::int64_t rows = 1;
  std::span<const std::int64_t> sequences{};  // [batch]; empty: 0, 1, 2, ...
  std::span<const std::int64_t> lengths{};    // [batch] tokens in view; empty: as many as were appended
  bool causal = true;                         // row r sees tokens [0, length - rows + r]
  float scale = 0;                            // 0: 1 / sqrt(head_dim)
  float softcap = 0;                          // 0: none
  MaskView mask{};
  std::span<const float> slopes{};       // [q_heads] ALiBi
  std::span<const float> sink_logits{};  // [q_heads] one more logit of the softmax, with value 0
  std::int32_t threads = 1;              // 1 to the plan's max_threads
  bool verify = false;                   // check the hashes of the key rows that are read ...
  std::int64_t verify_rows = 0;          // ... and of this many more
  adamas_step_times* times = nullptr;    // where the time went, with its struct_size; null: not wanted
  void* stream = nullptr;                // on a GPU: a cudaStream_t; nullptr: the default stream
  std::span<std::byte> workspace{};      // on a GPU: workspace_bytes() of it, at a multiple of 256
  float k_scale = 0, v_scale = 0;        // what K's and V's elements are multiplied by; 0: 1
  adamas_step_stats* stats = nullptr;    // on a GPU: memory of its own that a step adds to when it runs; null: not wanted
};

class Plan {
 public:
  explicit Plan(const PlanParams& params, const Config& config = {}) : params_(params) {
    const adamas_config native_config = config.native();
    const adamas_plan_params native_params{.struct_size = sizeof(adamas_plan_params),
                                           .q_heads = params.q_heads,
                                           .kv_heads = params.kv_heads,
                                           .head_dim = params.head_dim,
                                           .max_tokens = params.max_tokens,
                                           .max_threads = params.max_threads,
                                           .device = params.device,
                                           .max_rows = params.max_rows};
    adamas_plan* plan = nullptr;
    detail::check(adamas_plan_create(&native_config, &native_params, &plan));
    plan_.reset(plan);
  }

  // Of the GPU's memory, for Step::workspace; 0 on a CPU.
  std::size_t workspace_bytes() const {
    std::size_t bytes = 0;
    detail::check(adamas_plan_workspace(get(), &bytes));
    return bytes;
  }

  // Allocates nothing. Of a GPU, which adds to Step::stats, the stats are zeros.
  adamas_step_stats step(Cache& cache, const Step& step);

  // The tokens that the last step attended to for its last sequence and row, ascending.
  std::vector<std::int64_t> selection(std::int32_t q_head) const {
    std::int64_t count = 0;
    detail::check(adamas_selection(get(), q_head, nullptr, 0, &count));
    std::vector<std::int64_t> indices(static_cast<std::size_t>(count));
    detail::check(adamas_selection(get(), q_head, indices.data(), count, &count));
    return indices;
  }

  const PlanParams& params() const { return params_; }
  adamas_plan* get() const { return plan_.get(); }

 private:
  struct Destroy {
    void operator()(adamas_plan* plan) const { adamas_plan_destroy(plan); }
  };
  std::unique_ptr<adamas_plan, Destroy> plan_;
  PlanParams params_;
};

inline adamas_step_stats Plan::step(Cache& cache, const Step& step) {
  using detail::require;
  require("lse", step.lse.size(), detail::product({step.batch, step.rows, params_.q_heads}), "[batch, rows, q_heads]");
  require("mass", step.mass.size(), detail::product({step.batch, step.rows, params_.q_heads}), "[batch, rows, q_heads]");
  require("noise", step.noise.size(), detail::product({step.batch, step.rows, params_.q_heads}), "[batch, rows, q_heads]");
  require("sequences", step.sequences.size(), step.batch, "[batch]");
  require("lengths", step.lengths.size(), step.batch, "[batch]");
  require("slopes", step.slopes.size(), params_.q_heads, "[q_heads]");
  require("sink_logits", step.sink_logits.size(), params_.q_heads, "[q_heads]");

  const std::int64_t tokens = cache.longest_of(step.lengths);  // in view

  const QueryStrides q = step.q.bytes("q", step.batch, step.rows, params_.q_heads, params_.head_dim);
  const QueryStrides out = step.out.layout().bytes("out", step.batch, step.rows, params_.q_heads, params_.head_dim);
  const MaskStrides mask = step.mask.bytes(step.batch, step.rows, tokens);

  adamas_step_stats stats{};
  stats.struct_size = sizeof stats;
  adamas_step_params native{};
  native.struct_size = sizeof native;
  native.threads = step.threads;
  native.batch = step.batch;
  native.rows = step.rows;
  native.sequences = step.sequences.data();
  native.lengths = step.lengths.data();
  native.causal = step.causal;
  native.q_dtype = step.q.dtype();
  native.q = step.q.data();
  native.q_stride_batch = q.batch;
  native.q_stride_row = q.row;
  native.q_stride_head = q.head;
  native.k = cache.native("k", step.k, tokens);
  native.v = cache.native("v", step.v, tokens);
  native.out = step.out.data();
  native.out_stride_batch = out.batch;
  native.out_stride_row = out.row;
  native.out_stride_head = out.head;
  native.lse = step.lse.data();
  native.mass = step.mass.data();
  native.noise = step.noise.data();
  native.scale = step.scale;
  native.softcap = step.softcap;
  native.mask = step.mask.data();
  native.mask_dtype = step.mask.dtype();
  native.mask_stride_batch = mask.batch;
  native.mask_stride_row = mask.row;
  native.verify = step.verify;
  native.verify_rows = step.verify_rows;
  native.slopes = step.slopes.data();
  native.sink_logits = step.sink_logits.data();
  native.stats = params_.device == ADAMAS_DEVICE_CUDA ? step.stats : &stats;
  native.times = step.times;
  native.stream = step.stream;
  native.workspace = step.workspace.data();
  native.workspace_bytes = step.workspace.size();
  native.k_scale = step.k_scale;
  native.v_scale = step.v_scale;
  detail::check(adamas_step(get(), cache.get(), &native));
  return stats;
}

// ---- the machine ------------------------------------------------------------------------------------------------

inline std::string version() { return adamas_version(); }

// The instruction sets that this machine can run, best first.
inline std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (std::int32_t i = 0; i < adamas_isa_count(); ++i) names.emplace_back(adamas_isa_name(i));
  return names;
}
inline std::string isa_in_use() { return adamas_isa_in_use(); }

// The GPUs that ADAMAS_DEVICE_CUDA can use; why there are none, where there are none.
inline std::vector<std::string> gpus() {
  std::vector<std::string> names;
  for (std::int32_t i = 0; i < adamas_gpu_count(); ++i) names.emplace_back(adamas_gpu_name(i));
  return names;
}
inline std::string why_no_gpu() { return adamas_gpu_reason(); }

// By name, or "auto"; for the whole process, before steps run.
inline void force_isa(const std::string& name) { detail::check(adamas_isa_force(name.c_str())); }

// The head_dims that are served, ascending.
inline std::vector<std::int32_t> head_dims() {
  std::vector<std::int32_t> dims;
  for (std::int32_t i = 0; i < adamas_head_dim_count(); ++i) dims.push_back(adamas_head_dim(i));
  return dims;
}

// The types that K and V may have, by their adamas_dtype.
inline std::vector<std::string> dtypes() {
  std::vector<std::string> names;
  for (std::int32_t i = 0; i < adamas_dtype_count(); ++i) names.emplace_back(adamas_dtype_name(i));
  return names;
}

inline std::vector<adamas_setting> settings() {
  std::vector<adamas_setting> all(static_cast<std::size_t>(adamas_setting_count()));
  for (std::size_t i = 0; i < all.size(); ++i) detail::check(adamas_setting_describe(static_cast<std::int32_t>(i), &all[i]));
  return all;
}

}  // namespace v0
}  // namespace adamas
