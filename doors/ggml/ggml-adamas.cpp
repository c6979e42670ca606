// The llama.cpp back end: a device of type ACCEL that lives in the CPU's own memory and takes, of the engine's graph, the
// attention over a long KV cache and the writes into that cache. Everything else stays with the CPU.
//   host       the engine that loaded us, and whether it is the one that we were built for
//   nodes      which nodes of a graph we can read
//   claims     which of them we take
//   registry   the caches, and what happened to them meanwhile; hooks: what no graph shows
//   compute    the work: writes stores rows; codes, plans and arguments are what a step takes
//   stats      what was done
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "claims.h"
#include "compute.h"
#include "host.h"
#include "settings.h"
#include "stats.h"

namespace adamas_ggml {
namespace {

adamas_config settings{};
bool configured = false;    // by a program: the environment says nothing
std::string settings_file;  // "": none
std::map<int32_t, adamas_config> layer_settings;
std::mutex layer_mutex;
adamas_observer_fn observer = nullptr;
void* observer_user = nullptr;

}  // namespace

bool observed() { return observer != nullptr; }

void observe(const adamas_observation& observation) {
  if (observer) observer(observer_user, &observation);
}

const adamas_config& config() { return settings; }

const adamas_config& config_of(int32_t layer) {
  const std::lock_guard lock(layer_mutex);
  if (settings_file.empty()) return settings;
  const auto [entry, is_new] = layer_settings.try_emplace(layer, settings);
  // The file was whole when the process began. Should it be gone, or be wrong with a variable that came after it: the
  // general settings hold.
  if (is_new && adamas_config_load(&entry->second, settings_file.c_str(), layer) != ADAMAS_OK) {
    say(GGML_LOG_LEVEL_WARN,
        std::string(adamas_last_error()) + "; layer " + std::to_string(layer) + " runs with the general settings");
    entry->second = settings;
  }
  return entry->second;
}

bool read_settings() {
  if (configured) return true;
  if (adamas_config_init(&settings) != ADAMAS_OK || adamas_config_from_environment(&settings) != ADAMAS_OK) return false;
  if (const char* file = std::getenv("ADAMAS_CONFIG")) settings_file = file;  // empty: none
  return true;
}

namespace {

// ---- back end: one for each context of the engine ----

const char* backend_name(ggml_backend_t) { return "Adamas"; }

void backend_free(ggml_backend_t backend) {
  delete static_cast<Compute*>(backend->context);
  delete backend;
}

// A node's outcome; nothing may be thrown into the engine.
enum ggml_status compute(Compute& c, const ggml_tensor* node) {
  try {
    switch (node->op) {
      case GGML_OP_NONE:
      case GGML_OP_RESHAPE:
      case GGML_OP_VIEW:
      case GGML_OP_PERMUTE:
      case GGML_OP_TRANSPOSE: return GGML_STATUS_SUCCESS;
      case GGML_OP_SET_ROWS: return c.set_rows(node);
      case GGML_OP_FLASH_ATTN_EXT: return c.attention(node);
      default: break;
    }
    say(GGML_LOG_LEVEL_ERROR, "operation " + std::to_string(node->op) + " is not computed here");
    return GGML_STATUS_FAILED;
  } catch (const std::bad_alloc&) {
    return GGML_STATUS_ALLOC_FAILED;
  } catch (...) {
    return GGML_STATUS_FAILED;
  }
}

enum ggml_status backend_graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  auto& c = *static_cast<Compute*>(backend->context);
  const auto begin = std::chrono::steady_clock::now();
  enum ggml_status status = GGML_STATUS_SUCCESS;
  const int nodes = host().graph_n_nodes(graph);
  for (int i = 0; i < nodes && status == GGML_STATUS_SUCCESS; ++i) {
    const ggml_tensor* node = host().graph_node(graph, i);
    if (!node) return GGML_STATUS_FAILED;
    if (node->flags & GGML_TENSOR_FLAG_COMPUTE) status = compute(c, node);
  }
  note_seconds(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return status;
}

ggml_guid_t backend_guid() {
  static ggml_guid guid = {0x61, 0x64, 0x61, 0x6d, 0x61, 0x73, 0x2d, 0x32, 0x62, 0x69, 0x74, 0x2d, 0x6b, 0x65, 0x79, 0x73};
  return &guid;
}

void set_n_threads(ggml_backend_t backend, int threads) {
  static_cast<Compute*>(backend->context)->threads = threads < 1 ? 1 : threads > 512 ? 512 : threads;
}

// ---- device ----

const char* device_name(ggml_backend_dev_t) { return "Adamas"; }
const char* device_description(ggml_backend_dev_t) { return "sparse attention over 2-bit codes of the KV cache"; }
void device_memory(ggml_backend_dev_t, size_t* free, size_t* total) { *free = *total = 0; }  // the CPU's; none to report
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  props->name = device_name(device);
  props->description = device_description(device);
  props->type = device_type(device);
  device_memory(device, &props->memory_free, &props->memory_total);
  props->caps = {};
}

ggml_backend_t device_init(ggml_backend_dev_t device, const char*) {
  try {
    ggml_backend_i functions{};
    functions.get_name = backend_name;
    functions.free = backend_free;
    functions.graph_compute = backend_graph_compute;
    auto compute = std::make_unique<Compute>();
    auto* backend = new ggml_backend{backend_guid(), functions, device, compute.get()};
    (void)compute.release();  // the back end's
    return backend;
  } catch (...) {
    return nullptr;
  }
}

// The same buffer type as the CPU's: the scheduler then moves every node here that we say we support, and copies nothing.
ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t) { return host().cpu_buffer_type(); }
bool device_supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t buft) { return host().buft_is_host(buft); }

bool device_supports_op(ggml_backend_dev_t, const ggml_tensor* node) {
  try {
    return claims(node);
  } catch (...) {
    return false;
  }
}

// ---- registry ----

const char* reg_name(ggml_backend_reg_t) { return "Adamas"; }
size_t reg_device_count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t reg_device(ggml_backend_reg_t reg, size_t index);

void* reg_proc_address(ggml_backend_reg_t, const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) return reinterpret_cast<void*>(set_n_threads);
  return nullptr;
}

ggml_backend_reg reg{GGML_BACKEND_API_VERSION, {reg_name, reg_device_count, reg_device, reg_proc_address}, nullptr};

ggml_backend_device make_device() {
  ggml_backend_device_i functions{};
  functions.get_name = device_name;
  functions.get_description = device_description;
  functions.get_memory = device_memory;
  functions.get_type = device_type;
  functions.get_props = device_props;
  functions.init_backend = device_init;
  functions.get_buffer_type = device_buffer_type;
  functions.supports_op = device_supports_op;
  functions.supports_buft = device_supports_buft;
  return {functions, &reg, nullptr};
}

ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t index) {
  static ggml_backend_device device = make_device();
  return index == 0 ? &device : nullptr;
}

// Loading twice gives the same registry; being refused twice says why once (this library is never unloaded).
bool start() {
  std::string why;
  if (!find_host(why)) {
    std::fprintf(stderr, "adamas: %s. The engine goes on without it.\n", why.c_str());
    return false;
  }
  if (!read_settings()) {
    std::fprintf(stderr, "adamas: %s. The engine goes on without it.\n", adamas_last_error());
    return false;
  }
  if (config().stats) print_stats_at_exit();
  return true;
}

}  // namespace
}  // namespace adamas_ggml

extern "C" {
GGML_BACKEND_API ggml_backend_reg_t ggml_backend_init(void);
GGML_BACKEND_API int ggml_backend_score(void);
}

ggml_backend_reg_t ggml_backend_init(void) {
  try {
    static const bool started = adamas_ggml::start();
    return started ? &adamas_ggml::reg : nullptr;
  } catch (...) {
    return nullptr;
  }
}

int ggml_backend_score(void) { return 1; }

adamas_status adamas_configure(const adamas_config* config, const char* layers) {
  using namespace adamas_ggml;
  adamas_status status = adamas_config_check(config);
  adamas_config with_general_lines = *config;
  if (status == ADAMAS_OK && layers != nullptr)
    status = adamas_config_load(&with_general_lines, layers, -1);  // is it whole?
  if (status != ADAMAS_OK) return status;
  const std::lock_guard lock(layer_mutex);
  settings = *config;
  settings_file = layers != nullptr ? layers : "";  // a program's settings are all there is
  layer_settings.clear();
  configured = true;
  if (settings.stats) print_stats_at_exit();
  return status;
}

void adamas_observe(adamas_observer_fn observer, void* user) {
  adamas_ggml::observer = observer;
  adamas_ggml::observer_user = user;
}
