// `adamas eval`: its kinds of evaluation and their flags.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "options.h"

namespace cli {

class Eval {
 public:
  // `footer`: what stands at the end of each help text.
  Eval(CLI::App& eval, const std::string& footer);

  // Of the kind that was asked for; throws a Failure when there is none. `command`: all that was typed.
  int run(const std::vector<std::string>& command);

 private:
  struct Kind {  // one subcommand
    CLI::App* app;
    EvalOptions options;
    std::unique_ptr<CaseFlags> cases;
  };
  Kind& add(const char* name, const char* description, const std::string& details);

  CLI::App& eval_;
  std::string footer_;
  std::vector<std::unique_ptr<Kind>> kinds_;
  PerplexityOptions perplexity_;
  RetrievalOptions passkey_, needle_;
  RecallOptions recall_, tune_;
};

}  // namespace cli
