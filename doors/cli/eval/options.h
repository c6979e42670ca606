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
};
int perplexity(const EvalOptions& options, const PerplexityOptions& what);

struct RetrievalOptions {
  std::vector<std::int64_t> lengths{2048, 4096, 8000};
  std::int64_t depths = 10;
  std::string asked = "dense";  // how the question is read: dense, as a part of the prompt, or sparse, token by token
  std::int64_t seed = 1;        // of the pass keys
  std::string file;             // `needle`: the text around it
  std::string needle, question, lead, answer;
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
