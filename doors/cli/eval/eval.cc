#include "eval.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <thread>

#include <adamas/adamas.hpp>

#include "../failure.h"
#include "../files.h"

namespace cli {
namespace {

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

constexpr const char* perplexity_details = R"(
All settings read the same tokens in lockstep, in one process, with one model. `full` is always
measured, by the engine's own attention; each other one is compared with it token by token: ratio of
the perplexities with its standard error, KL divergence, and how often the same token is the likeliest.
A window is as llama-perplexity has it. Every query row selects for itself.
)";

constexpr const char* passkey_details = R"(
A number is hidden in a long text of a few sentences, at several depths, and asked for at its end. The
prompt is read once for all settings, densely; the answer is decoded with each of them.
)";

constexpr const char* needle_details = R"(
A sentence is hidden in a real text, at several depths, and asked about at its end. The prompt is read
once for all settings, densely; the answer is decoded with each of them.
)";

constexpr const char* recall_details = R"(
At some tokens of a text, for every layer and query head: which share of the truly highest scores the
selection holds, which share of the softmax, and which share the step itself thought that it held.
)";

constexpr const char* tune_details = R"(
As `recall`; then writes settings for this model, by layer, so that each reads enough of the softmax.
`adamas run --config FILE` and ADAMAS_CONFIG take them.
)";

CLI::Option* number(CLI::App* app, const std::string& flag, std::int64_t& value, std::int64_t lowest,
                    const std::string& meaning) {
  return app->add_option(flag, value, meaning)->check(CLI::Range(lowest, most).description(""))->type_name("N");
}

void add_places(CLI::App* app, RetrievalOptions& options) {
  app->add_option("--lengths", options.lengths, "Tokens of a prompt, one length or a list (default 2048,4096,8000)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(std::int64_t{1}, most).description(""))
      ->type_name("LIST");
  app->add_option("--depths", options.depths, "Places in the text, from its start to its end (default 10)")
      ->check(CLI::Range(1, 1000).description(""))
      ->type_name("N");
  app->add_option("--ask", options.ask,
                  "How the question is read: dense, with the prompt, or sparse, token by token (default dense)")
      ->check(CLI::IsMember({"dense", "sparse"}).description(""))
      ->type_name("HOW");
  app->add_flag("--chat", options.chat,
                "Ask as a user does, by the model's chat template; without it, the model goes on with the text");
}

void add_samples(CLI::App* app, RecallOptions& options) {
  app->add_option("--file", options.file, "Text")->type_name("TEXT");
  number(app, "--context", options.context, 64, "Tokens of it (default 8192)");
  number(app, "--samples", options.samples, 1, "Tokens that are looked at, in the second half (default 32)");
  app->add_option("--enough", options.enough, "Share of the softmax that a layer should read (default 0.9)")
      ->check(CLI::Range(0.0, 1.0).description(""))
      ->type_name("SHARE");
}

}  // namespace

Eval::Kind& Eval::add(const char* name, const char* description, const std::string& details) {
  CLI::App* app = eval_.add_subcommand(name, description);
  app->allow_extras();
  app->footer(details + footer_);
  kinds_.push_back(std::make_unique<Kind>(Kind{.app = app, .options = {}, .cases = nullptr}));
  Kind& kind = *kinds_.back();
  EvalOptions& options = kind.options;
  options.kind = name;
  options.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 512u));
  app->add_option("--model", options.model, "A model in the GGUF format")->type_name("MODEL.gguf");
  app->add_option("--threads", options.threads, "Threads of the engine; without it, one for each processor")
      ->check(CLI::Range(1, 512).description(""))
      ->type_name("N");
  app->add_flag("--json", options.json, "Print JSON");
  app->add_option("--html", options.html, "Write a page of the results as well")
      ->check(named_file())
      ->type_name("PAGE.html");
  app->add_option("--resume", options.resume, "Where finished parts are kept; without it, in the cache")
      ->check(named_file())
      ->type_name("FILE");
  app->add_flag("--fresh", options.fresh, "Forget what was finished before");
  kind.cases = std::make_unique<CaseFlags>(*app);
  return kind;
}

Eval::Eval(CLI::App& eval, const std::string& footer) : eval_(eval), footer_(footer) {
  eval_.require_subcommand(0, 1);

  CLI::App* app = add("perplexity", "How much worse a model predicts a text with each setting", perplexity_details).app;
  app->add_option("--file", perplexity_.files, "Text, one or several files")->type_name("TEXT");
  number(app, "--context", perplexity_.context, 2, "Tokens of a window (default 8192)");
  number(app, "--score-from", perplexity_.score_from, 1, "Tokens of a window that are not scored; without it, half of them");
  number(app, "--chunks", perplexity_.chunks, 1, "Windows of each file, one after the other (default 1)");
  app->add_flag("--as-prompt", perplexity_.as_prompt,
                "Read the text as a prompt is read (the setting prompt), not row by row as a token is decoded");

  app = add("passkey", "Whether a number in a long text is found again", passkey_details).app;
  add_places(app, passkey_);
  number(app, "--seed", passkey_.seed, 0, "Another number, other pass keys (default 1)");

  app = add("needle", "Whether a sentence in a real text is found again", needle_details).app;
  add_places(app, needle_);
  app->add_option("--file", needle_.file, "The text around the sentence")->type_name("TEXT");
  app->add_option("--needle", needle_.needle, fmt::format("The sentence (default: {})", needle_.needle))
      ->type_name("SENTENCE");
  app->add_option("--question", needle_.question, fmt::format("Asks for it (default: {})", needle_.question))
      ->type_name("TEXT");
  app->add_option("--lead", needle_.lead, "How the answer begins, which helps small models; may be empty")
      ->type_name("TEXT");
  app->add_option("--answer", needle_.answer, fmt::format("What the answer has to hold (default: {})", needle_.answer))
      ->type_name("TEXT");

  app = add("recall", "What each layer and head selects of what it should", recall_details).app;
  add_samples(app, recall_);

  Kind& tune = add("tune", "Write settings by layer for a model", tune_details);
  add_samples(tune.app, tune_);
  tune.app->add_option("--config", tune_.config, "The settings file to write")->check(named_file())->type_name("FILE");
  tune.cases->set_default("share", {"0.01", "0.004", "0.002", "0.001", "0.0004", "0.0002", "0.0001"});
}

int Eval::run(const std::vector<std::string>& command) {
  const auto kind = std::find_if(kinds_.begin(), kinds_.end(), [](const auto& one) { return one->app->parsed(); });
  if (kind == kinds_.end()) {
    std::vector<std::string> names;
    for (const auto& one : kinds_) names.push_back(one->options.kind);
    throw Failure(exit_usage,
                  fmt::format("eval: say what to evaluate: {}; `adamas eval --help` explains them", fmt::join(names, ", ")));
  }
  EvalOptions& options = (*kind)->options;
  options.command = command;
  options.cases = (*kind)->cases->cases();
  std::vector<std::string> read = (*kind)->cases->files();
  if (options.model.empty())
    throw Failure(exit_usage, fmt::format("eval {}: the model is missing; for example: --model MODEL.gguf", options.kind));
  read.insert(read.end(), {options.model, needle_.file, recall_.file, tune_.file});
  read.insert(read.end(), perplexity_.files.begin(), perplexity_.files.end());
  require_outputs("eval " + options.kind, read,
                  {{"--html", options.html}, {"--config", tune_.config}, {"--resume", options.resume}});
  if (options.kind == "passkey") return retrieval(options, passkey_);
  if (options.kind == "needle") return retrieval(options, needle_);
  if (options.kind == "recall") return recall(options, recall_);
  if (options.kind == "tune") return recall(options, tune_);
  return perplexity(options, perplexity_);
}

}  // namespace cli
