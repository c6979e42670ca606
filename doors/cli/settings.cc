#include "settings.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "failure.h"
#include "suggest.h"

namespace cli {
namespace {

constexpr const char* isa_environment = "ADAMAS_ISA";
constexpr const char* config_environment = "ADAMAS_CONFIG";

constexpr const char* isa_range = "auto | an instruction set";
constexpr const char* isa_meaning = "what the kernels run with";
constexpr const char* config_range = "a file";
constexpr const char* config_meaning =
    "settings in lines name = value, and [layers 0,3-5] for some; flags and variables win over its general lines";

}  // namespace

std::string flag_name(std::string setting) {
  std::replace(setting.begin(), setting.end(), '_', '-');
  return "--" + setting;
}

adamas_config engine_only() {
  adamas_config config;
  adamas::detail::check(adamas_config_init(&config));
  config.policy = ADAMAS_POLICY_FULL;
  config.min_context = std::numeric_limits<std::int32_t>::max();
  return config;
}

std::string settings_file() {
  const char* file = std::getenv(config_environment);
  return file != nullptr ? file : "";
}

void refuse_settings_file(const char* command) {
  if (const std::string file = settings_file(); !file.empty())
    throw Failure(exit_usage, fmt::format("{} is {}; {} works with settings of a whole model, by flags and variables",
                                          config_environment, file, command));
}

void warn_of_misspelt_variables() {
  constexpr std::string_view prefix = "ADAMAS_";
  // Of the build, the tools and the tests.
  constexpr std::string_view others[] = {"BACKEND", "BARE_HOST",     "COMMAND", "CONTEXTS",   "EVAL_CONTEXT", "FAKE_HOST",
                                         "FAULT",   "FAULT_LIBRARY", "GRAPHS",  "HAS_READER", "LIBRARY",      "LLAMA_BIN",
                                         "MODELS",  "MODELS_DIR",    "OPS",     "PYTHON",     "TEST_MODELS",  "WRITE_PAGE"};
  std::vector<std::string> known{"CACHE", "CONFIG", "DEVICE"};
  for (const adamas_setting& setting : adamas::settings())
    known.push_back(std::string(setting.environment).substr(prefix.size()));
  for (char** variable = environ; *variable != nullptr; ++variable) {
    std::string_view name(*variable);
    name = name.substr(0, name.find('='));
    if (!name.starts_with(prefix)) continue;
    name.remove_prefix(prefix.size());
    if (std::ranges::count(known, name) + std::ranges::count(others, name) > 0) continue;
    if (const std::string word = nearest(std::string(name), known); !word.empty())
      fmt::print(stderr, "adamas: the variable ADAMAS_{} is not known and does nothing; did you mean ADAMAS_{}?\n", name,
                 word);
  }
}

Settings::Settings(CLI::App& command) {
  const auto add = [&](const std::string& name, const std::string& range, const std::string& meaning) {
    options_[name] = command.add_option(flag_name(name), flags_[name], fmt::format("{} ({})", meaning, range))
                         ->type_name("VALUE")
                         ->take_last()
                         ->group("Settings");
  };
  for (const adamas_setting& setting : adamas::settings()) add(setting.name, setting.range, setting.meaning);
  add("isa", isa_range, isa_meaning);
  add("config", config_range, config_meaning);
}

adamas::Config Settings::load() {
  const auto carry = [&](const std::string& name, const char* environment) {
    if (options_.at(name)->count() > 0) setenv(environment, flags_.at(name).c_str(), 1);
  };
  for (const adamas_setting& setting : adamas::settings()) {
    if (options_.at(setting.name)->count() > 0) adamas::Config{}.set(setting.name, flags_.at(setting.name));
    carry(setting.name, setting.environment);
  }
  carry("isa", isa_environment);
  carry("config", config_environment);

  config_ = adamas::Config::from_environment();
  config_.check();
  if (const std::string file = settings_file(); !file.empty()) file_ = adamas::Config{}.load(file);
  if (const char* isa = std::getenv(isa_environment)) adamas::force_isa(isa);
  return config_;
}

std::string Settings::source(const std::string& name, const std::string& environment) const {
  if (options_.at(name)->count() > 0) return "flag";
  if (std::getenv(environment.c_str()) != nullptr) return "environment";
  if (name == "isa" || config_.get(name) == adamas::Config{}.get(name)) return "default";
  if (file_ && config_.get(name) == file_->get(name)) return "file " + settings_file();
  return "preset " + config_.get("preset");
}

std::vector<ShownSetting> Settings::shown() const {
  std::vector<ShownSetting> all;
  for (const adamas_setting& setting : adamas::settings())
    all.push_back({setting.name, setting.environment, config_.get(setting.name), source(setting.name, setting.environment),
                   setting.range, setting.meaning});
  const char* isa = std::getenv(isa_environment);
  all.push_back(
      {"isa", isa_environment, isa != nullptr ? isa : "auto", source("isa", isa_environment), isa_range, isa_meaning});
  return all;
}

}  // namespace cli
