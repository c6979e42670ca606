#include "ggml_attention.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../failure.h"
#include "../library.h"
#include "../paths.h"

namespace cli::kernel {
namespace {

// The functions that we call, under their own names. Made once; never unloaded.
struct Ggml {
  Library base{"libggml-base.so"}, ggml{"libggml.so"};

  FUNCTION(base, ggml_backend_dev_backend_reg);
  FUNCTION(base, ggml_backend_free);
  FUNCTION(base, ggml_backend_get_device);
  FUNCTION(base, ggml_backend_graph_compute);
  FUNCTION(base, ggml_backend_reg_get_proc_address);
  FUNCTION(base, ggml_build_forward_expand);
  FUNCTION(base, ggml_flash_attn_ext);
  FUNCTION(base, ggml_free);
  FUNCTION(base, ggml_graph_overhead);
  FUNCTION(base, ggml_init);
  FUNCTION(base, ggml_log_set);
  FUNCTION(base, ggml_new_graph);
  FUNCTION(base, ggml_new_tensor_3d);
  FUNCTION(base, ggml_permute);
  FUNCTION(base, ggml_tensor_overhead);
  FUNCTION(base, ggml_version);
  FUNCTION(ggml, ggml_backend_init_by_type);
  FUNCTION(ggml, ggml_backend_load_all_from_path);

  Ggml() {
    // We look into its structs.
    if (std::strcmp(ggml_version(), ADAMAS_GGML_VERSION) != 0)
      throw Failure(exit_failed, fmt::format("the engine's ggml is {}, this adamas was built for {}", ggml_version(),
                                             ADAMAS_GGML_VERSION));
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);  // which libraries it loads is not asked
    unsetenv("GGML_BACKEND_PATH");                                     // its own attention, not ours
    ggml_backend_load_all_from_path(engine_folder().c_str());
  }
};

const Ggml& ggml() {
  static const Ggml* const loaded = new Ggml;
  return *loaded;
}

class Attention : public GgmlAttention {
 public:
  Attention(const Shape& shape, int threads)
      : shape_(shape), backend_(ggml().ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr)) {
    if (backend_ == nullptr)
      throw Failure(exit_failed, fmt::format("the engine in {} has no CPU back end", engine_folder().string()));
    const ggml_backend_reg_t reg = ggml().ggml_backend_dev_backend_reg(ggml().ggml_backend_get_device(backend_));
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml().ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
    if (set_threads == nullptr)
      throw Failure(exit_failed, "the engine's CPU back end cannot be told how many threads to use");
    set_threads(backend_, threads);
  }
  ~Attention() override { ggml().ggml_backend_free(backend_); }

  double step(const float* q, const adamas::f16* k, const adamas::f16* v, std::int64_t tokens, std::int64_t rows,
              float* out) override {
    const Ggml& g = ggml();
    see(tokens, rows);
    ggml_context* context = g.ggml_init({16 * g.ggml_tensor_overhead() + g.ggml_graph_overhead(), nullptr, true});
    if (context == nullptr) throw std::bad_alloc();
    // ggml writes innermost first. As in the engine, a token's heads lie side by side, and the node sees head by head.
    const auto cached = [&](const adamas::f16* data) {
      ggml_tensor* all = g.ggml_new_tensor_3d(context, GGML_TYPE_F16, shape_.head_dim, shape_.kv_heads, tokens);
      all->data = const_cast<adamas::f16*>(data);
      return g.ggml_permute(context, all, 0, 2, 1, 3);
    };
    ggml_tensor* query = g.ggml_new_tensor_3d(context, GGML_TYPE_F32, shape_.head_dim, shape_.q_heads, rows);
    query->data = const_cast<float*>(q);
    ggml_tensor* mask = g.ggml_new_tensor_3d(context, GGML_TYPE_F16, tokens, rows, 1);
    mask->data = mask_.data();
    ggml_tensor* node = g.ggml_flash_attn_ext(context, g.ggml_permute(context, query, 0, 2, 1, 3), cached(k), cached(v),
                                              mask, 1 / std::sqrt(static_cast<float>(shape_.head_dim)), 0, 0);
    node->data = out;
    ggml_cgraph* graph = g.ggml_new_graph(context);
    g.ggml_build_forward_expand(graph, node);

    const auto start = std::chrono::steady_clock::now();
    const ggml_status status = g.ggml_backend_graph_compute(backend_, graph);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    g.ggml_free(context);
    if (status != GGML_STATUS_SUCCESS)
      throw Failure(exit_failed, fmt::format("ggml's FLASH_ATTN_EXT failed with status {}", static_cast<int>(status)));
    return seconds;
  }

 private:
  // The mask of a step, if it is not that of the one before.
  void see(std::int64_t tokens, std::int64_t rows) {
    if (tokens == tokens_ && rows == rows_) return;
    tokens_ = tokens;
    rows_ = rows;
    constexpr std::uint16_t minus_infinity = 0xFC00;
    mask_.assign(static_cast<std::size_t>(tokens * rows), 0);
    for (std::int64_t r = 0; r < rows; r++)
      std::fill_n(mask_.begin() + r * tokens + (tokens - rows + r + 1), rows - r - 1, minus_infinity);
  }

  Shape shape_;
  std::int64_t tokens_ = 0, rows_ = 0;
  std::vector<std::uint16_t> mask_;  // f16 [rows, tokens]
  ggml_backend_t backend_;
};

}  // namespace

std::unique_ptr<GgmlAttention> load_ggml_attention(const Shape& shape, int threads, std::string& why_not) {
  try {
    return std::make_unique<Attention>(shape, threads);
  } catch (const Failure& failure) {
    why_not = failure.what();
    return nullptr;
  }
}

}  // namespace cli::kernel
