// The command `adamas`: reads the flags, calls the command, and turns whatever went wrong into one sentence and an exit
// code.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>

#include "bench.h"
#include "commands.h"
#include "eval/eval.h"
#include "files.h"
#include "output.h"
#include "suggest.h"

namespace cli {
namespace {

constexpr const char* run_details = R"(
Sets GGML_BACKEND_PATH and the ADAMAS_* variables, adds `-fa on` unless the arguments or
LLAMA_ARG_FLASH_ATTN choose, and becomes the tool: exit codes and signals are the tool's own.
TOOL is a path, or is looked up in PATH and then among the tools that were built with adamas.
)";

constexpr const char* check_details = R"(
Tells what of a model will run sparse, and why not the rest; the memory for the codes; and tests the
kernels of every instruction set at the model's shapes, against their definitions in double precision. With
--device cuda the kernels of the GPU, K and V contiguous and in pages; without a model at every head_dim.
)";

constexpr const char* explain_details = R"(
Reads TEXT and the question as a chat message, answers greedily with sparse attention, and writes a page
of one file that shows what every word of the answer was read from, by layer and head.
)";

constexpr const char* bench_details = R"(
Runs llama-bench at each depth, without the back end and with each setting in turn, and prints tokens a
second of decoding and the ratio. A list of values of a setting is so many cases.

--kernel needs no model: it times every stage of a step of one attention layer, and what bytes it reads, beside
dense attention, our own and ggml's. A shape is query heads, KV heads and head_dim. With --device cuda a step
runs on a GPU, beside our dense kernel and, where python3 has them, PyTorch's and FlashInfer's. With
--prompt-rows 512 it is attention of a prompt that is read so many rows at a time, beside ggml's.
)";

constexpr const char* settings_details = R"(
Every setting is also a variable: --budget 64 is ADAMAS_BUDGET=64. A flag wins over the variable.
)";

constexpr const char* exit_codes = R"(
Exit codes: 0 done; 1 failed; 2 wrong usage or setting; of `run`: the tool's own, 126 it cannot be
executed, 127 there is no such tool.)";

// CLI11's help, with usage lines that say what belongs where.
class Help : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string) const override {
    const std::string& name = app->get_name();
    if (name == "run") return "Usage: adamas run [SETTINGS] -- TOOL ARGS...\n";
    if (name == "info") return "Usage: adamas info [SETTINGS] [--json]\n";
    if (name == "eval") return "Usage: adamas eval KIND --model MODEL.gguf ... [SETTINGS]\n";
    if (app->get_parent() != nullptr && app->get_parent()->get_name() == "eval")
      return "Usage: adamas eval " + name + " --model MODEL.gguf [OPTIONS] [SETTINGS]\n";
    if (name == "bench")
      return "Usage: adamas bench --model MODEL.gguf [OPTIONS] [SETTINGS]\n       adamas bench --kernel [OPTIONS] "
             "[SETTINGS]\n";
    if (name == "check")
      return "Usage: adamas check [SETTINGS] [--context N] [--json] MODEL.gguf\n       adamas check --device cuda "
             "[SETTINGS] [--context N] [--json] [MODEL.gguf]\n";
    if (name == "explain")
      return "Usage: adamas explain [SETTINGS] --model MODEL.gguf --file TEXT --ask QUESTION --html OUT [OPTIONS]\n";
    return "Usage: adamas COMMAND ...\n";
  }
};

// The command line up to the first `--`, and what follows it: the tool's own arguments, which are not ours to parse.
struct CommandLine {
  std::vector<std::string> own;
  std::vector<std::string> tool;
  bool has_mark = false;

  CommandLine(int argc, char** argv) {
    const std::vector<std::string> all(argv + std::min(argc, 1), argv + argc);
    const auto mark = std::find(all.begin(), all.end(), "--");
    own.assign(all.begin(), mark);
    has_mark = mark != all.end();
    if (has_mark) tool.assign(mark + 1, all.end());
  }
};

std::vector<std::string> flags_of(const CLI::App& command) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  return flags;
}

std::vector<std::string> commands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

// "adamas eval passkey": a command as it is typed.
std::string typed(const CLI::App& app) {
  return app.get_parent() == nullptr ? app.get_name() : typed(*app.get_parent()) + " " + app.get_name();
}

bool is_given_twice(const CLI::App& app, const std::string& flag) {
  if (const CLI::Option* option = app.get_option_no_throw(flag); option != nullptr && option->results().size() > 1)
    return true;
  const auto chosen = app.get_subcommands();
  return std::any_of(chosen.begin(), chosen.end(), [&](const CLI::App* command) { return is_given_twice(*command, flag); });
}

// What CLI11 could not place: a sentence for it.
void refuse_rest(const CLI::App& app, const CLI::App* command) {
  const std::vector<std::string> rest = command != nullptr ? command->remaining() : app.remaining();
  if (rest.empty()) return;
  const std::string& word = rest.front();
  if (word.starts_with("-")) {
    const CLI::App& place = command != nullptr ? *command : app;
    throw Failure(exit_usage, fmt::format("{} is not a flag of {}{}", word, typed(place),
                                          suggestion(word.substr(0, word.find('=')), flags_of(place))));
  }
  if (command == nullptr)
    throw Failure(exit_usage, fmt::format("{} is not a command{}", word, suggestion(word, commands_of(app))));
  if (command->get_name() == "eval")
    throw Failure(exit_usage,
                  fmt::format("eval: {} is nothing to evaluate{}", word, suggestion(word, commands_of(*command))));
  if (command->get_name() == "run")
    throw Failure(exit_usage, fmt::format("run: write -- before the tool: adamas run -- {} ...", word));
  throw Failure(exit_usage, fmt::format("{}: {} is one argument too many", command->get_name(), word));
}

int dispatch(int argc, char** argv) {
  CommandLine line(argc, argv);
  CLI::App app("Sparse attention for long contexts in llama.cpp.", "adamas");
  app.formatter(std::make_shared<Help>());
  app.require_subcommand(0, 1);
  app.allow_extras();  // refuse_rest has better sentences
  app.set_help_flag("-h,--help", "Print this help");
  app.set_version_flag("--version", "adamas " + adamas::version(), "Print the version");
  app.footer(std::string("\n`adamas COMMAND --help` explains a command.\n") + exit_codes);

  const auto add_command = [&](const char* name, const char* description, const std::string& details) {
    CLI::App* command = app.add_subcommand(name, description);
    command->allow_extras();
    command->footer(details + settings_details + exit_codes);
    return command;
  };

  CLI::App* run_command = add_command("run", "Run a tool of llama.cpp with sparse attention", run_details);
  Settings run_settings(*run_command);

  CLI::App* info_command = add_command("info", "Print the instruction sets and where each setting comes from", "");
  Settings info_settings(*info_command);
  InfoOptions info_options;
  info_command->add_flag("--json", info_options.json, "Print JSON");

  CLI::App* check_command = add_command("check", "Tell what of a model will run sparse, and test it", check_details);
  Settings check_settings(*check_command);
  CheckOptions check_options;
  check_command->add_option("MODEL", check_options.model, "A model in the GGUF format")->type_name("");
  check_command->add_option("--context", check_options.context, "Tokens of context; without it, the model's own")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{2147483647}).description(""))
      ->type_name("N");
  check_command->add_option("--device", check_options.device, "Whose kernels are tested: cpu or cuda (cpu)")
      ->check(CLI::IsMember({"cpu", "cuda"}).description(""))
      ->type_name("DEVICE");
  check_command->add_flag("--json", check_options.json, "Print JSON");

  CLI::App* bench_command =
      add_command("bench", "Measure how fast a model decodes, over the depth of the context", bench_details);
  BenchOptions bench_options;
  bench_options.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 512u));
  const auto bench_number = [&](const char* flag, auto& value, std::int64_t largest, const char* meaning) {
    return bench_command->add_option(flag, value, meaning)
        ->check(CLI::Range(std::int64_t{1}, largest).description(""))
        ->type_name("N");
  };
  CLI::Option* bench_model =
      bench_command->add_option("--model", bench_options.model, "A model in the GGUF format")->type_name("MODEL.gguf");
  CLI::Option* bench_kernel_flag =
      bench_command->add_flag("--kernel", bench_options.kernel, "Measure the stages of a step instead of a model")
          ->excludes(bench_model);
  bench_command
      ->add_option("--shape", bench_options.shapes,
                   "Heads to measure, with --kernel; may be repeated (9/3x64, 12/2x128, 32/32x128, 32/8x128)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->needs(bench_kernel_flag)
      ->type_name("Q/KVxDIM");
  bench_number("--prompt-rows", bench_options.prompt_rows, 1 << 20,
               "Attention of so many rows of a prompt at once, with --kernel, instead of one that is decoded")
      ->needs(bench_kernel_flag);
  CLI::Option* bench_device =
      bench_command->add_option("--device", bench_options.device, "Where a step runs, with --kernel: cpu or cuda (cpu)")
          ->check(CLI::IsMember({"cpu", "cuda"}).description(""))
          ->needs(bench_kernel_flag)
          ->type_name("DEVICE");
  bench_command->add_option("--batch", bench_options.batches, "Sequences of a step, on a GPU (1)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{4096}).description(""))
      ->needs(bench_device)
      ->type_name("LIST");
  bench_command
      ->add_flag(
          "--host", bench_options.host,
          "K and V lie in the host's memory, and what a step reads comes over the bus; full attention has them on the GPU")
      ->needs(bench_device);
  bench_command
      ->add_option("--depth", bench_options.depths,
                   "Tokens of context at which is measured (0,512,8192; with --kernel 8192,32768,131072)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{2147483647}).description(""))
      ->type_name("LIST");
  bench_number("--tokens", bench_options.tokens, 1000000, "Tokens decoded at each (64)")->excludes(bench_kernel_flag);
  bench_number("--repeat", bench_options.repeat, 1000, "Runs of each, whose median counts (1; with --kernel 30 steps)");
  bench_number("--threads", bench_options.threads, 512, "Threads of the engine; without it, one for each processor");
  bench_command->add_flag("--json", bench_options.json, "Print JSON");
  bench_command->add_option("--plot", bench_options.plot, "Draw the speed over the depth")
      ->check(named_file())
      ->type_name("OUT.svg");
  CaseFlags bench_cases(*bench_command);

  CLI::App* eval_command = add_command("eval", "Measure what each setting costs a model, and what it reads", "");
  Eval eval(*eval_command, settings_details + std::string(exit_codes));

  CLI::App* explain_command = add_command("explain", "Show what an answer was read from, as a page", explain_details);
  Settings explain_settings(*explain_command);
  explain_command->get_option("--config")->group("");  // not in the help: it is refused, with a sentence
  ExplainOptions explain_options;
  const auto explain_text = [&](const char* flag, std::string& value, const char* type, const char* meaning) {
    return explain_command->add_option(flag, value, meaning)->type_name(type);
  };
  const auto explain_number = [&](const char* flag, std::int64_t& value, std::int64_t largest, const char* meaning) {
    explain_command->add_option(flag, value, meaning)
        ->check(CLI::Range(std::int64_t{1}, largest).description(""))
        ->type_name("N");
  };
  explain_text("--model", explain_options.model, "MODEL.gguf", "A model in the GGUF format");
  explain_text("--file", explain_options.file, "TEXT", "The document");
  explain_text("--ask", explain_options.ask, "QUESTION", "The question about it");
  explain_text("--lead", explain_options.lead, "WORDS", "First words of the answer, for a model that needs them");
  explain_text("--html", explain_options.html, "OUT", "The page to write")->check(named_file());
  explain_text("--json", explain_options.json, "OUT", "What the page shows, as JSON too")->check(named_file());
  explain_number("--tokens", explain_options.tokens, 4096, "Tokens of the answer, at most (64)");
  explain_number("--context", explain_options.context, 2147483647, "Tokens of context; without it, as many as are needed");
  explain_number("--threads", explain_options.threads, 512, "Threads; without it, one a processor, at most 8");

  std::reverse(line.own.begin(), line.own.end());  // CLI11 takes them last first
  try {
    app.parse(line.own);
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());  // of the command, when there is one
    return exit_ok;
  } catch (const CLI::CallForVersion& version) {
    fmt::print("{}\n", version.what());
    return exit_ok;
  } catch (const CLI::ArgumentMismatch& error) {  // "--budget: 1 required VALUE missing"
    const std::string what = error.what(), flag = what.substr(0, what.find(':'));
    throw Failure(exit_usage, flag + (is_given_twice(app, flag) ? " is given twice" : " needs a value"));
  } catch (const CLI::ParseError& error) {
    throw Failure(exit_usage, error.what());
  }

  const auto chosen = app.get_subcommands();
  const CLI::App* command = chosen.empty() ? nullptr : chosen.front();
  const auto kinds = command != nullptr ? command->get_subcommands() : std::vector<CLI::App*>();
  refuse_rest(app, kinds.empty() ? command : kinds.front());
  warn_of_misspelt_variables();
  if (line.has_mark && command != run_command) throw Failure(exit_usage, "only `adamas run` takes -- and a tool after it");
  if (command == run_command) return run(run_settings, line.tool);
  if (command == info_command) return info(info_settings, info_options);
  if (command == check_command) return check(check_settings, check_options);
  if (command == explain_command) return explain(explain_settings, explain_options);
  if (command == bench_command) {
    bench_options.settings_files = bench_cases.files();
    return bench(bench_options, bench_cases.cases());
  }
  if (command == eval_command) return eval.run({argv, argv + argc});
  throw Failure(exit_usage, "a command is missing: run, info, check, bench, eval or explain; `adamas --help` explains them");
}

int complain(const std::string& sentence, int code) {
  fmt::print(stderr, "adamas: {}\n", sentence);
  return code;
}

// The library's sentences begin with the function that was called, which means nothing on a command line.
std::string without_function(const std::string& sentence) {
  const size_t mark = sentence.find(": ");
  return sentence.starts_with("adamas_") && mark != std::string::npos ? sentence.substr(mark + 2) : sentence;
}

}  // namespace
}  // namespace cli

int main(int argc, char** argv) {
  cli::keep_standard_streams();
  try {
    const int code = cli::dispatch(argc, argv);
    cli::flush_output();
    return code;
  } catch (const cli::Failure& failure) {
    return cli::complain(failure.what(), failure.code());
  } catch (const adamas::Error& error) {
    const bool usage = error.status() == adamas::Status::invalid_argument;
    return cli::complain(cli::without_function(error.what()), usage ? cli::exit_usage : cli::exit_failed);
  } catch (const std::filesystem::filesystem_error& error) {
    return cli::complain(error.what(), cli::exit_failed);
  } catch (const std::system_error& error) {  // of fmt::print, when what it prints is more than the stream holds back
    return cli::complain("standard output cannot be written: " + error.code().message(), cli::exit_failed);
  } catch (const std::bad_alloc&) {
    return cli::complain("there is not enough memory", cli::exit_failed);
  } catch (const std::exception& error) {
    return cli::complain(error.what(), cli::exit_failed);
  }
}
