// adamas bench: tokens a second over the depth of the context, without us and with each setting. llama-bench measures; we
// ask it, one process after the other, in turn, so that a machine that slows down slows all of them.
#include "bench.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include <adamas/adamas.hpp>

#include "eval/progress.h"
#include "eval/table.h"
#include "failure.h"
#include "files.h"
#include "median.h"
#include "pages.h"
#include "paths.h"
#include "plot.h"

extern char** environ;

namespace cli {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

std::string text_of(std::FILE* file) {
  std::rewind(file);
  std::string text;
  char part[4096];
  for (std::size_t size; (size = std::fread(part, 1, sizeof part, file)) > 0;) text.append(part, size);
  return text;
}

// The last line that says something, for people.
std::string last_line(std::string text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.pop_back();
  return text.substr(text.find_last_of('\n') + 1);
}

// 126 and 127 are those of `run`.
std::string llama_bench() {
  try {
    return find_tool("llama-bench").string();
  } catch (const Failure& failure) {
    throw Failure(exit_failed,
                  fmt::format("{}; `make build` builds it, and any llama.cpp of that version has it", failure.what()));
  }
}

// What the program writes to standard output. Throws when it fails, with its last words.
std::string output_of(std::vector<std::string> command, std::vector<std::string> environment) {
  const File out(std::tmpfile()), err(std::tmpfile());
  if (!out || !err)
    throw Failure(exit_failed, fmt::format("there is no room for a temporary file: {}", std::strerror(errno)));
  const auto pointers = [](std::vector<std::string>& strings) {
    std::vector<char*> list;
    for (std::string& string : strings) list.push_back(string.data());
    list.push_back(nullptr);
    return list;
  };
  const std::vector<char*> arguments = pointers(command), variables = pointers(environment);
  const pid_t parent = getpid(), child = fork();
  if (child < 0) throw Failure(exit_failed, fmt::format("{} cannot be started: {}", command[0], std::strerror(errno)));
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // when we are ended, so is it
    if (getppid() != parent) _exit(exit_failed);
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    dup2(fileno(out.get()), STDOUT_FILENO);
    dup2(fileno(err.get()), STDERR_FILENO);
    execve(arguments[0], arguments.data(), variables.data());
    dprintf(STDERR_FILENO, "it cannot be started: %s", std::strerror(errno));
    _exit(exit_cannot_run);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const std::string words = last_line(text_of(err.get()));
  if (status != 0)
    throw Failure(
        exit_failed,
        fmt::format("{} {} {}{}", command[0], WIFSIGNALED(status) ? "was ended by signal" : "failed with exit code",
                    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), words.empty() ? "" : ": " + words));
  return text_of(out.get());
}

// The process's own environment without any setting of ours, and what turns this case on.
std::vector<std::string> environment_of(const Case& one, const std::string& back_end) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    if (!text.starts_with("ADAMAS_") && !text.starts_with("GGML_BACKEND_PATH=")) variables.push_back(text);
  }
  if (one.full()) return variables;
  variables.push_back("GGML_BACKEND_PATH=" + back_end);
  if (!one.file.empty()) variables.push_back("ADAMAS_CONFIG=" + one.file);
  for (const adamas_setting& setting : adamas::settings()) {
    if (!is_of_case(setting.name)) continue;
    char value[64];
    adamas::detail::check(adamas_config_get(&one.config, setting.name, value, sizeof value));
    variables.push_back(fmt::format("{}={}", setting.environment, value));
  }
  variables.push_back(fmt::format("ADAMAS_ISA={}", adamas_isa_in_use()));  // what --isa or its variable chose
  return variables;
}

double tokens_per_second(const std::string& json) {
  const Json results = Json::parse(json, nullptr, false);
  if (!results.is_array() || results.empty() || !results[0].contains("avg_ts") || !results[0]["avg_ts"].is_number())
    throw Failure(exit_failed, "llama-bench printed something else than its results in JSON");
  return results[0]["avg_ts"].get<double>();
}

// About as the time goes: reading the context is quadratic in it.
double work_of(const BenchOptions& options, std::int64_t depth) {
  const auto tokens = static_cast<double>(depth);
  return tokens + tokens * tokens / 8192 + 8 * static_cast<double>(options.tokens) + 200;
}

}  // namespace

int bench(BenchOptions options, const std::vector<Case>& cases) {
  if (options.kernel) return bench_kernel(std::move(options), cases);
  if (options.depths.empty()) options.depths = {0, 512, 8192};
  if (options.repeat == 0) options.repeat = 1;
  if (options.model.empty())
    throw Failure(exit_usage, "bench: the model is missing; for example: --model MODEL.gguf; --kernel needs none");
  const std::string tool = llama_bench();
  const std::string back_end = required_back_end().string();
  std::vector<std::string> read = options.settings_files;
  read.push_back(options.model);
  require_outputs("bench", read, {{"--plot", options.plot}});

  double work = 0;
  for (const std::int64_t depth : options.depths)
    work += work_of(options, depth) * static_cast<double>(options.repeat * std::ssize(cases));
  auto progress = std::make_unique<Progress>(work);
  std::vector<std::vector<std::vector<double>>> runs(options.depths.size(), std::vector<std::vector<double>>(cases.size()));
  for (std::size_t d = 0; d < options.depths.size(); ++d)
    for (std::int64_t round = 0; round < options.repeat; ++round)
      for (std::size_t c = 0; c < cases.size(); ++c) {
        const std::vector<std::string> command{tool,
                                               "-m",
                                               options.model,
                                               "-fa",
                                               "1",
                                               "-p",
                                               "0",
                                               "-r",
                                               "1",
                                               "-o",
                                               "json",
                                               "-t",
                                               std::to_string(options.threads),
                                               "-n",
                                               std::to_string(options.tokens),
                                               "-d",
                                               std::to_string(options.depths[d])};
        runs[d][c].push_back(tokens_per_second(output_of(command, environment_of(cases[c], back_end))));
        progress->advance(work_of(options, options.depths[d]),
                          fmt::format("depth {}, {}", options.depths[d], name_of(cases[c], cases)));
      }
  progress.reset();

  Json rows = Json::array();
  std::vector<std::string> head{"depth"};
  std::vector<Curve> curves;
  for (const Case& one : cases) {
    head.push_back(name_of(one, cases));
    if (!one.full()) head.push_back("");
    curves.push_back({name_of(one, cases), {}});
  }
  Table table(head, 0);
  for (std::size_t d = 0; d < options.depths.size(); ++d) {
    std::vector<std::string> line{std::to_string(options.depths[d])};
    const double without = median(runs[d][0]);
    for (std::size_t c = 0; c < cases.size(); ++c) {
      const double speed = median(runs[d][c]);
      line.push_back(fmt::format("{:.1f}", speed));
      if (!cases[c].full()) line.push_back(fmt::format("{:.2f}x", speed / without));
      curves[c].values.push_back(speed);
      Json row{{"depth", options.depths[d]}};
      row.update(json_of(cases[c], cases));
      row.update({{"tokens_per_second", speed},
                  {"ratio", speed / without},
                  {"runs", runs[d][c]},
                  {"tokens", options.tokens},
                  {"threads", options.threads}});
      rows.push_back(row);
    }
    table.add(line);
  }
  if (!options.plot.empty())
    write_file(options.plot, plot_of(options.depths, curves, "tokens a second of decoding, over the tokens of context"));
  if (options.json) {
    print_json(rows);
    return exit_ok;
  }
  fmt::print("tokens a second of decoding {}, {}, {}\n\n", counted(options.tokens, "token"),
             options.repeat == 1 ? "one run" : fmt::format("median of {} runs", options.repeat),
             counted(options.threads, "thread"));
  table.print();
  return exit_ok;
}

}  // namespace cli
