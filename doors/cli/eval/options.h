// What the flags of `adamas eval` said.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cases.h"

namespace cli {

// Of every kind of evaluation.
struct EvalOptions {
  std::string kind;  // perplexity | passkey | needle | recall | tune
  std::vector<std::string> command;
  std::string model;
  int threads = 0;
  bool json = false;
  std::string html;    // empty: no page
  std::string resume;  // empty: a file of its own in the cache
  bool fresh = false;
  std::vector<Case> cases;
};

struct PerplexityOptions {
  std::vector<std::string> files;
  std::int64_t context = 8192;
  std::int64_t score_from = 0;  // 0: half the context
  std::int64_t chunks = 1;
  bool as_prompt = false;  // the text is read as a prompt is, by the setting `prompt`; not row by row as a token is decoded
};
int perplexity(const EvalOptions& options, const PerplexityOptions& what);

struct RetrievalOptions {
  std::vector<std::int64_t> lengths{2048, 4096, 8000};
  std::int64_t depths = 10;
  std::string ask = "dense";  // how the question is read: dense, as a part of the prompt, or sparse, token by token
  bool chat = false;  // the prompt is a user's message, as the model's chat template has it, and not a text to go on with
  std::int64_t seed = 1;  // of the pass keys
  // `needle`:
  std::string file;  // the text around it
  std::string needle = "The name of the white camel of Hazor is Bartholomew.";
  std::string question = "What is the name of the white camel of Hazor?";
  std::string lead = "The name of the white camel of Hazor is";  // begins the answer, which helps small models
  std::string answer = "Bartholomew";                            // it has to hold this
};
int retrieval(const EvalOptions& options, const RetrievalOptions& what);

struct RecallOptions {
  std::string file;
  std::int64_t context = 8192;
  std::int64_t samples = 32;
  double enough = 0.9;  // share of the softmax that a layer should read
  std::string config;   // `tune`: the settings file that is written
};
int recall(const EvalOptions& options, const RecallOptions& what);

}  // namespace cli
