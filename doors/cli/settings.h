// The settings as flags. A flag is an environment variable written shorter and wins over it: the library reads the variables
// through us, so there is one set of rules (its own) for what a value may be and what wins. What comes out is a value; only
// for the tool that `run` becomes the flags are written into the environment.
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

// Flags that were given, by the setting's name; "isa" and "config" (the settings file) among them.
using Flags = std::map<std::string, std::string>;

// The settings file that the flag names, else ADAMAS_CONFIG; empty: none.
std::string settings_file(const Flags& flags = {});

// The settings: flags, else variables, else the general lines of the settings file. The instruction set is in use
// afterwards. Throws, naming the range, when a value is out of it.
adamas::Config config_of(const Flags& flags);

class Settings {
 public:
  // Adds --budget, --dense-layers, ... , --isa and --config to the command.
  explicit Settings(CLI::App& command);

  adamas::Config load();

  // After load(): the settings file; empty: none.
  std::string file() const { return settings_file(flags_); }

  // Throws when there is one: a command that configures the back end for all layers at once knows no sections.
  void refuse_file(const char* command) const;

  // The flags as variables, for the tool that this process becomes.
  void write_environment() const;

  // Every setting, after load(): what it is, where that came from, what it may be and what it means.
  std::vector<ShownSetting> shown() const;

 private:
  std::string source(const std::string& name, const std::string& environment) const;

  std::map<std::string, std::string> values_;  // by the setting's name; meaningless: not given
  std::map<std::string, CLI::Option*> options_;
  Flags flags_;
  adamas::Config config_;
  std::optional<adamas::Config> file_;  // the general lines of the settings file
};

}  // namespace cli
