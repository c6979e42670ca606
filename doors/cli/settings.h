// The settings as flags. A flag is an environment variable written shorter: it sets the variable, for this process and
// for the tool that `run` becomes. So there is one set of rules (the library's) for what a value may be and what wins.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <adamas/adamas.hpp>

namespace cli {

std::string flag_name(std::string setting);  // "--dense-layers" of "dense_layers"

// Settings with which the llama.cpp back end claims nothing: the engine's own dense attention.
adamas_config engine_only();

struct ShownSetting {
  std::string name;
  std::string environment;
  std::string value;
  std::string source;  // flag | environment | file NAME | preset paper | default
  std::string range;
  std::string meaning;
};

// A word on standard error for each variable that is nearly one of ours: nothing else would tell of ADAMAS_BUDGTE.
void warn_of_misspelt_variables();

// The settings file that ADAMAS_CONFIG names; empty: none. `--config` is there once its Settings are loaded.
std::string settings_file();

// Throws when there is one: a command that configures the back end for all layers at once knows no sections.
void refuse_settings_file(const char* command);

class Settings {
 public:
  // Adds --budget, --dense-layers, ... , --isa and --config to the command.
  explicit Settings(CLI::App& command);

  // Carries the flags into the environment and reads all of it; throws, naming the range, when a value is out of it.
  adamas::Config load();

  // Every setting, after load(): what it is, where that came from, what it may be and what it means.
  std::vector<ShownSetting> shown() const;

 private:
  std::string source(const std::string& name, const std::string& environment) const;

  std::map<std::string, std::string> flags_;  // by the setting's name; empty: not given
  std::map<std::string, CLI::Option*> options_;
  adamas::Config config_;
  std::optional<adamas::Config> file_;  // the general lines of the settings file
};

}  // namespace cli
