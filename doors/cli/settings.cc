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

// The flags under the names of their variables.
std::map<std::string, std::string> variables_of(const Flags& flags) {
  std::map<std::string, std::string> variables;
  const auto add = [&](const std::string& name, const char* environment) {
    if (const auto flag = flags.find(name); flag != flags.end()) variables[environment] = flag->second;
  };
  for (const adamas_setting& setting : adamas::settings()) add(setting.name, setting.environment);
  add("isa", isa_environment);
  add("config", config_environment);
  return variables;
}

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
  config.prompt = ADAMAS_PROMPT_ENGINE;
  return config;
}

std::string settings_file(const Flags& flags) {
  if (const auto flag = flags.find("config"); flag != flags.end()) return flag->second;
  const char* file = std::getenv(config_environment);
  return file != nullptr ? file : "";
}

adamas::Config config_of(const Flags& flags) {
  for (const adamas_setting& setting : adamas::settings())  // what is wrong with a flag is said without its variable
    if (const auto flag = flags.find(setting.name); flag != flags.end()) adamas::Config{}.set(setting.name, flag->second);
  const auto variables = variables_of(flags);
  return adamas::Config::from_variables([&](const char* name) -> const char* {
    const auto flag = variables.find(name);
    return flag != variables.end() ? flag->second.c_str() : std::getenv(name);
  });
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
    options_[name] = command.add_option(flag_name(name), values_[name], fmt::format("{} ({})", meaning, range))
                         ->type_name("VALUE")
                         ->take_last()
                         ->group("Settings");
  };
  for (const adamas_setting& setting : adamas::settings()) add(setting.name, setting.range, setting.meaning);
  add("isa", isa_range, isa_meaning);
  add("config", config_range, config_meaning);
}

adamas::Config Settings::load() {
  for (const auto& [name, option] : options_)
    if (option->count() > 0) flags_[name] = values_.at(name);
  config_ = config_of(flags_);
  if (!file().empty()) file_ = adamas::Config{}.load(file());
  return config_;
}

void Settings::refuse_file(const char* command) const {
  if (!file().empty())
    throw Failure(exit_usage, fmt::format("{} is {}; {} works with settings of a whole model, by flags and variables",
                                          config_environment, file(), command));
}

void Settings::write_environment() const {
  for (const auto& [name, value] : variables_of(flags_)) setenv(name.c_str(), value.c_str(), 1);
}

std::string Settings::source(const std::string& name, const std::string& environment) const {
  if (flags_.contains(name)) return "flag";
  if (std::getenv(environment.c_str()) != nullptr) return "environment";
  if (name == "isa" || config_.get(name) == adamas::Config{}.get(name)) return "default";
  if (file_ && config_.get(name) == file_->get(name)) return "file " + file();
  return "preset " + config_.get("preset");
}

std::vector<ShownSetting> Settings::shown() const {
  std::vector<ShownSetting> all;
  for (const adamas_setting& setting : adamas::settings())
    all.push_back({setting.name, setting.environment, config_.get(setting.name), source(setting.name, setting.environment),
                   setting.range, setting.meaning});
  const auto flag = flags_.find("isa");
  const char* variable = std::getenv(isa_environment);
  const std::string isa = flag != flags_.end() ? flag->second : variable != nullptr ? variable : "auto";
  all.push_back({"isa", isa_environment, isa, source("isa", isa_environment), isa_range, isa_meaning});
  return all;
}

}  // namespace cli
