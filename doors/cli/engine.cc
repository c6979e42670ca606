#include "engine.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>

#include <adamas/adamas.hpp>

#include "failure.h"
#include "gguf.h"
#include "library.h"
#include "paths.h"
#include "settings.h"

namespace cli {
namespace {

namespace fs = std::filesystem;

// ---- the engine's log: nobody reads it, but its last error says why a call failed -----------------------------------

std::string& last_error() {
  static std::string line;
  return line;
}

void listen(ggml_log_level level, const char* text, void*) {
  if (level != GGML_LOG_LEVEL_ERROR) return;
  const std::string said(text);
  if (const std::string line = said.substr(0, said.find('\n')); !line.empty()) last_error() = line;
}

std::string because() { return last_error().empty() ? "" : ": " + last_error(); }

// ---- the libraries --------------------------------------------------------------------------------------------------

std::string file_of(const void* address) {
  Dl_info info;
  return dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

// The functions of the engine that we call, under their own names. Made once; never unloaded.
struct Engine {
  Library base{"libggml-base.so"}, ggml{"libggml.so"}, llama{"libllama.so"};

  FUNCTION(base, ggml_version);
  FUNCTION(ggml, ggml_backend_load);
  FUNCTION(ggml, ggml_backend_load_all_from_path);
  FUNCTION(llama, llama_batch_free);
  FUNCTION(llama, llama_batch_init);
  FUNCTION(llama, llama_chat_apply_template);
  FUNCTION(llama, llama_context_default_params);
  FUNCTION(llama, llama_decode);
  FUNCTION(llama, llama_detokenize);
  FUNCTION(llama, llama_free);
  FUNCTION(llama, llama_get_logits_ith);
  FUNCTION(llama, llama_get_memory);
  FUNCTION(llama, llama_init_from_model);
  FUNCTION(llama, llama_log_set);
  FUNCTION(llama, llama_memory_clear);
  FUNCTION(llama, llama_memory_seq_rm);
  FUNCTION(llama, llama_model_chat_template);
  FUNCTION(llama, llama_model_default_params);
  FUNCTION(llama, llama_model_free);
  FUNCTION(llama, llama_model_get_vocab);
  FUNCTION(llama, llama_model_load_from_file);
  FUNCTION(llama, llama_model_meta_val_str);
  FUNCTION(llama, llama_model_n_ctx_train);
  FUNCTION(llama, llama_model_n_layer);
  FUNCTION(llama, llama_state_seq_get_data);
  FUNCTION(llama, llama_state_seq_get_size);
  FUNCTION(llama, llama_state_seq_set_data);
  FUNCTION(llama, llama_token_to_piece);
  FUNCTION(llama, llama_tokenize);
  FUNCTION(llama, llama_version);
  FUNCTION(llama, llama_vocab_bos);
  FUNCTION(llama, llama_vocab_get_add_bos);
  FUNCTION(llama, llama_vocab_is_eog);
  FUNCTION(llama, llama_vocab_n_tokens);

  const fs::path path = required_back_end();
  Library back_end = Library::of(path);
  FUNCTION(back_end, adamas_configure);
  FUNCTION(back_end, adamas_observe);

  Engine() {
    // Structs go by value between us and the engine: they are those of one version.
    if (std::strcmp(ggml_version(), ADAMAS_GGML_VERSION) != 0)
      throw Failure(exit_failed, fmt::format("the engine's ggml is {}, this adamas was built for {}", ggml_version(),
                                             ADAMAS_GGML_VERSION));
    llama_log_set(listen, nullptr);
    unsetenv("GGML_BACKEND_PATH");  // the back end that is measured is the one of this build
    // A graph that is used again was split between the engine and the back end as the settings of its first use wanted it.
    setenv("LLAMA_GRAPH_REUSE_DISABLE", "1", 1);
    ggml_backend_load_all_from_path(fs::path(file_of(reinterpret_cast<void*>(llama_decode))).parent_path().c_str());

    // Its settings are ours, from the first on: of the environment a command has read what no flag says otherwise.
    const adamas_config config = engine_only();
    adamas::detail::check(adamas_configure(&config, nullptr));
    if (ggml_backend_load(path.c_str()) == nullptr)
      throw Failure(exit_failed, fmt::format("{} did not load{}", path.string(), because()));
  }
};

const Engine& engine() {
  static const Engine* const loaded = new Engine;
  return *loaded;
}

}  // namespace

std::string engine_version() {
  return fmt::format("llama.cpp {}, ggml {}", engine().llama_version(), engine().ggml_version());
}

std::vector<std::string> engine_files() {
  return {file_of(reinterpret_cast<void*>(engine().llama_decode)),
          file_of(reinterpret_cast<void*>(engine().adamas_configure)), file_of(reinterpret_cast<void*>(adamas_step))};
}

void configure(const adamas_config& config, const std::string& layers) {
  adamas::detail::check(engine().adamas_configure(&config, layers.empty() ? nullptr : layers.c_str()));
}

Observer::Observer(std::function<void(const adamas_observation&)> see) : see_(std::move(see)) {
  engine().adamas_observe(
      [](void* user, const adamas_observation* observation) { static_cast<Observer*>(user)->see_(*observation); }, this);
}

Observer::~Observer() { engine().adamas_observe(nullptr, nullptr); }

// ---- model ----------------------------------------------------------------------------------------------------------

void LoadedModel::Free::operator()(llama_model* model) const { engine().llama_model_free(model); }

LoadedModel::LoadedModel(const std::string& path) : path_(path) {
  read_gguf(path);  // the engine's loader trusts the file more than a child process of ours does
  last_error().clear();
  llama_model_params params = engine().llama_model_default_params();
  params.n_gpu_layers = 0;
  model_.reset(engine().llama_model_load_from_file(path.c_str(), params));
  if (!model_) throw Failure(exit_failed, fmt::format("the engine cannot load {}{}", path, because()));
  vocabulary_ = engine().llama_model_get_vocab(model_.get());
}

std::string LoadedModel::name() const {
  char name[256];
  const bool named = engine().llama_model_meta_val_str(model_.get(), "general.name", name, sizeof name) > 0;
  return named ? name : fs::path(path_).stem().string();
}

std::int32_t LoadedModel::vocabulary() const { return engine().llama_vocab_n_tokens(vocabulary_); }
std::int32_t LoadedModel::layers() const { return engine().llama_model_n_layer(model_.get()); }
std::int32_t LoadedModel::trained_context() const { return engine().llama_model_n_ctx_train(model_.get()); }

Tokens LoadedModel::tokenize(const std::string& text, Special special) const {
  if (text.size() > std::numeric_limits<std::int32_t>::max() - 16)
    throw Failure(exit_failed, fmt::format("a text of {} bytes is more than the engine can take", text.size()));
  Tokens tokens(text.size() + 16);
  const std::int32_t count =
      engine().llama_tokenize(vocabulary_, text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                              static_cast<std::int32_t>(tokens.size()), true, special == Special::parsed);
  if (count < 0) throw Failure(exit_failed, fmt::format("the engine cannot make tokens of the text{}", because()));
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string LoadedModel::text(std::span<const Token> tokens) const {
  std::string text(tokens.size() * 16 + 16, '\0');
  for (;;) {
    const std::int32_t length =
        engine().llama_detokenize(vocabulary_, tokens.data(), static_cast<std::int32_t>(tokens.size()), text.data(),
                                  static_cast<std::int32_t>(text.size()), false, false);
    text.resize(static_cast<std::size_t>(std::abs(length)));  // negative: the room that it needs
    if (length >= 0) return text;
  }
}

std::string LoadedModel::piece(Token token) const {
  std::string text(64, '\0');
  for (;;) {
    const std::int32_t length =
        engine().llama_token_to_piece(vocabulary_, token, text.data(), static_cast<std::int32_t>(text.size()), 0, true);
    text.resize(static_cast<std::size_t>(std::abs(length)));  // negative: the room that it needs
    if (length >= 0) return text;
  }
}

std::optional<Token> LoadedModel::first_token() const {
  if (!engine().llama_vocab_get_add_bos(vocabulary_)) return std::nullopt;
  return engine().llama_vocab_bos(vocabulary_);
}

bool LoadedModel::is_end(Token token) const { return engine().llama_vocab_is_eog(vocabulary_, token); }

std::string LoadedModel::as_question(const std::string& text) const {
  const char* chat = engine().llama_model_chat_template(model_.get(), nullptr);
  if (chat == nullptr) return text + "\n";
  const llama_chat_message message{"user", text.c_str()};
  std::string prompt(text.size() + 1024, '\0');
  const std::int32_t length =
      engine().llama_chat_apply_template(chat, &message, 1, true, prompt.data(), static_cast<std::int32_t>(prompt.size()));
  if (length < 0 || static_cast<std::size_t>(length) > prompt.size())
    return text + "\n";  // a template that the engine does not know
  prompt.resize(static_cast<std::size_t>(length));
  return prompt;
}

// ---- context --------------------------------------------------------------------------------------------------------

void Context::Free::operator()(llama_context* context) const { engine().llama_free(context); }

Context::Context(const LoadedModel& model, const ContextParams& params) : model_(model), params_(params) {
  llama_context_params native = engine().llama_context_default_params();
  native.n_ctx = static_cast<std::uint32_t>(params.tokens);
  native.n_batch = native.n_ubatch = static_cast<std::uint32_t>(params.batch);
  native.n_outputs_max = static_cast<std::uint32_t>(std::max<std::int64_t>(1, params.outputs));
  native.n_threads = native.n_threads_batch = params.threads;
  native.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  native.swa_full = true;
  native.no_perf = true;
  last_error().clear();
  context_.reset(engine().llama_init_from_model(model.model_.get(), native));
  if (!context_)
    throw Failure(exit_failed, fmt::format("the engine has no room for a context of {} tokens{}", params.tokens, because()));
}

void Context::decode(std::span<const Token> tokens, std::int64_t outputs) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t first = 0; first < count; first += params_.batch) {
    const std::int64_t size = std::min(params_.batch, count - first);
    llama_batch batch = engine().llama_batch_init(static_cast<std::int32_t>(size), 0, 1);
    for (std::int64_t i = 0; i < size; ++i) {
      batch.token[i] = tokens[static_cast<std::size_t>(first + i)];
      batch.pos[i] = static_cast<llama_pos>(length_ + i);
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = first + i >= count - outputs;
    }
    batch.n_tokens = static_cast<std::int32_t>(size);
    last_error().clear();
    const std::int32_t status = engine().llama_decode(context_.get(), batch);
    engine().llama_batch_free(batch);
    if (status != 0)
      throw Failure(exit_failed, fmt::format("the engine failed at token {} of a context of {}{}", length_, params_.tokens,
                                             status == 1 ? ": the context is full" : because()));
    length_ += size;
    first_output_ = std::max<std::int64_t>(0, size - outputs);
  }
}

std::span<const float> Context::logits(std::int64_t output) const {
  const float* row = engine().llama_get_logits_ith(context_.get(), static_cast<std::int32_t>(first_output_ + output));
  if (row == nullptr) throw Failure(exit_failed, fmt::format("the engine has no logits of output {}{}", output, because()));
  return {row, static_cast<std::size_t>(model_.vocabulary())};
}

void Context::cut(std::int64_t length) {
  if (length >= length_) return;
  if (!engine().llama_memory_seq_rm(engine().llama_get_memory(context_.get()), 0, static_cast<llama_pos>(length), -1))
    throw Failure(exit_failed, "this model's memory cannot be cut back to an earlier token: it is not a plain KV cache");
  length_ = length;
}

void Context::clear() {
  engine().llama_memory_clear(engine().llama_get_memory(context_.get()), true);
  length_ = 0;
}

void Context::copy(const Context& other) {
  clear();
  std::vector<std::uint8_t> state(engine().llama_state_seq_get_size(other.context_.get(), 0));
  const std::size_t size = engine().llama_state_seq_get_data(other.context_.get(), state.data(), state.size(), 0);
  if (size == 0 || engine().llama_state_seq_set_data(context_.get(), state.data(), size, 0) == 0)
    throw Failure(exit_failed, fmt::format("the engine cannot copy a sequence of {} tokens{}", other.length_, because()));
  length_ = other.length_;
}

}  // namespace cli
