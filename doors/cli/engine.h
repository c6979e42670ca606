// The engine inside this process: llama.cpp's libraries and our back end, loaded when a command first needs them, so that
// the command itself starts without them. Every failure is a Failure with a sentence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "adamas/adamas.h"
#include "ggml-adamas.h"

struct llama_context;
struct llama_model;
struct llama_vocab;

namespace cli {

using Token = std::int32_t;
using Tokens = std::vector<Token>;

// "llama.cpp b1-abc, ggml 0.25.3"
std::string engine_version();

// The files that the engine and the back end were loaded from.
std::vector<std::string> engine_files();

// The settings of every step from now on, in all contexts, but for what the sections of a settings file say of their layers
// ("": no file). A context keeps its codes while it sees the same settings.
void configure(const adamas_config& config, const std::string& layers = {});

// While this object lives, `see` is called after each attention that the back end computed.
class Observer {
 public:
  explicit Observer(std::function<void(const adamas_observation&)> see);
  ~Observer();
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

 private:
  std::function<void(const adamas_observation&)> see_;
};

enum class Special { as_text, parsed };  // what "<|im_start|>" in a text is

class LoadedModel {
 public:
  explicit LoadedModel(const std::string& path);

  const std::string& path() const { return path_; }
  std::string name() const;         // as the file has it, else the file's own name
  std::int32_t vocabulary() const;  // tokens
  std::int32_t layers() const;
  std::int32_t trained_context() const;

  // With the first token that the model wants before a text, if it wants one.
  Tokens tokenize(const std::string& text, Special special = Special::as_text) const;
  std::string text(std::span<const Token> tokens) const;
  std::string piece(Token token) const;      // its own bytes, which may be part of a character; of a special token, its name
  std::optional<Token> first_token() const;  // nothing: the model wants none
  bool is_end(Token token) const;            // of a text or an answer

  // The text as a user's message, up to where the answer begins; without a chat template, the text and a new line.
  std::string as_question(const std::string& text) const;

 private:
  friend class Context;
  struct Free {
    void operator()(llama_model* model) const;
  };
  std::string path_;
  std::unique_ptr<llama_model, Free> model_;
  const llama_vocab* vocabulary_ = nullptr;
};

struct ContextParams {
  std::int64_t tokens = 0;
  std::int64_t batch = 512;  // tokens computed at once
  std::int64_t outputs = 1;  // of these, so many may have logits: their memory is outputs x vocabulary x 4 bytes, twice
  int threads = 1;
};

// One sequence, read from its start. Flash attention is on, K and V are f16, a sliding window keeps all its tokens, so that
// cut() is exact.
class Context {
 public:
  Context(const LoadedModel& model, const ContextParams& params);

  std::int64_t length() const { return length_; }  // tokens so far

  // Appends tokens, batch after batch. The last `outputs` of them have logits, which live until the next call.
  void decode(std::span<const Token> tokens, std::int64_t outputs = 0);
  std::span<const float> logits(std::int64_t output) const;  // [vocabulary]

  void cut(std::int64_t length);  // later tokens are forgotten
  void clear();
  void copy(const Context& other);  // what another one has read, of the same model and size

 private:
  struct Free {
    void operator()(llama_context* context) const;
  };
  const LoadedModel& model_;
  ContextParams params_;
  std::unique_ptr<llama_context, Free> context_;
  std::int64_t length_ = 0;
  std::int64_t first_output_ = 0;  // its place in the last batch
};

}  // namespace cli
