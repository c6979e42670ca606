#include "results.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include <adamas/adamas.hpp>

#include "../failure.h"
#include "../gguf.h"
#include "../model.h"
#include "../report.h"

namespace cli {
namespace {

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  return fmt::format("{:%Y-%m-%d %H:%M}", fmt::localtime(seconds));
}

}  // namespace

std::string value_in(const char* file, const std::string& name) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(name))
      if (const auto mark = line.find(": "); mark != std::string::npos) return line.substr(mark + 2);
  return "";
}

std::string read_text(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw Failure(exit_failed, fmt::format("{}: there is no such file", path));
  if (std::filesystem::is_directory(status)) throw Failure(exit_failed, fmt::format("{} is a folder", path));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Failure(exit_failed, fmt::format("{} cannot be read: {}", path, std::strerror(errno)));
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string short_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

Finished finished_of(const EvalOptions& options, const Json& what, const std::vector<std::string>& parts) {
  Json cases = Json::array(), libraries = Json::array();
  for (const Case& one : options.cases) cases.push_back(one.words());
  for (const std::string& file : engine_files()) libraries.push_back(identity_of(file));
  libraries.push_back(identity_of("/proc/self/exe"));
  const Json key{options.kind, what, cases, identity_of(options.model), libraries};
  Finished finished(options.resume, key, options.fresh);
  const auto known =
      std::count_if(parts.begin(), parts.end(), [&](const std::string& part) { return finished.find(part) != nullptr; });
  if (known > 0)
    fmt::print(stderr, "adamas: {} of {} parts were finished before ({}; --fresh measures them again)\n", known,
               parts.size(), finished.path());
  return finished;
}

void check_room(const LoadedModel& model, std::int64_t contexts, std::int64_t tokens) {
  if (model.trained_context() > 0 && tokens > model.trained_context())
    fmt::print(stderr, "adamas: {} tokens are more than the {} that the model was made for\n", tokens,
               model.trained_context());
  double needed = 0;
  for (const Layer& layer : model_of(read_gguf(model.path())).layers)
    needed += static_cast<double>(contexts * tokens * layer.kv_heads * (layer.key_dim + layer.value_dim) * 2);
  const double free = 1024 * std::strtod(value_in("/proc/meminfo", "MemAvailable").c_str(), nullptr);
  if (free > 0 && needed > free)
    throw Failure(exit_failed,
                  fmt::format("the K and V of {} contexts of {} tokens take {}, and {} are free; try fewer settings "
                              "at a time or a shorter context",
                              contexts, tokens, bytes_text(needed), bytes_text(free)));
}

std::string why_all_dense(const adamas_config& config, const std::string& file, std::int64_t tokens) {
  if (tokens < config.min_context)
    return fmt::format("the context of {} is below min_context, {}; a smaller --min-context lets it run sparse",
                       counted(tokens, "token"), config.min_context);
  const std::int64_t budget = adamas_budget_tokens(config.budget);
  if (file.empty() && tokens <= budget)
    return fmt::format("the context of {} tokens is within the budget, {}; a smaller --budget lets it run sparse", tokens,
                       budget);
  return "";
}

void print_dense(const EvalOptions& options, const std::vector<std::string>& reasons) {
  std::map<std::string, std::vector<std::string>> cases;  // by their reason
  for (std::size_t i = 0; i < reasons.size(); ++i)
    if (!options.cases[i].full()) cases[reasons[i]].push_back(name_of(options.cases[i], options.cases));
  for (const auto& [reason, names] : cases) {
    if (reason.empty()) continue;
    const std::string with = cases.size() == 1 ? "" : fmt::format(" with {}", fmt::join(names, ", "));
    fmt::print(options.json ? stderr : stdout, "{}nothing ran sparse{}: {}\n", options.json ? "adamas: " : "", with, reason);
  }
}

void deliver(const EvalOptions& options, const LoadedModel& model, const Json& rows) {
  if (options.json) print_json(rows);
  if (options.html.empty()) return;
  const Json meta{{"command", options.command},
                  {"version", adamas::version()},
                  {"engine", engine_version()},
                  {"instruction_set", adamas::isa_in_use()},
                  {"processor", value_in("/proc/cpuinfo", "model name")},
                  {"threads", options.threads},
                  {"date", now()},
                  {"model", model.name()}};
  write_report(options.html, {{"meta", meta}, {options.kind == "tune" ? "recall" : options.kind, rows}});
}

}  // namespace cli
