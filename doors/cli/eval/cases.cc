#include "cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>

#include <adamas/adamas.hpp>

#include "../failure.h"
#include "../settings.h"

namespace cli {
namespace {

// Beside the settings of the library, a list of settings files: general lines below flags and variables, sections above all.
constexpr const char* file_flag = "settings";
constexpr const char* no_file = "none";

// The settings that the policy reads. Those of the estimate mean nothing without one.
bool matters(std::int32_t policy, const std::string& name) {
  static const std::set<std::string> without_estimate{"policy",       "budget",      "sinks", "recent",
                                                      "dense_layers", "min_context", "prompt"};
  if (policy == ADAMAS_POLICY_FULL) return name == "policy";
  return policy == ADAMAS_POLICY_ADAMAS || without_estimate.contains(name);
}

std::string value_of(const adamas_config& config, const std::string& name) {
  char text[64];
  adamas::detail::check(adamas_config_get(&config, name.c_str(), text, sizeof text));
  return text;
}

using Values = Flags;  // and a settings file, or none

Case case_of(const Values& values) {
  Case one{};
  Flags flags = values;
  flags["config"] = "";
  if (const auto file = flags.extract(file_flag); !file.empty() && file.mapped() != no_file)
    flags["config"] = one.file = file.mapped();
  one.config = config_of(flags).native();
  std::ifstream text(one.file);
  one.file_text.assign(std::istreambuf_iterator<char>(text), std::istreambuf_iterator<char>());
  const bool asked_for = flags.contains("policy") || std::getenv("ADAMAS_POLICY") != nullptr;
  const bool has_sections = one.file_text.find('[') != std::string::npos;
  if (one.config.policy == ADAMAS_POLICY_FULL && (asked_for || !has_sections)) {
    one.config = engine_only();  // nothing else matters to it
    one.file.clear();
    one.file_text.clear();
  }
  one.config.rows = ADAMAS_ROWS_DECODE;  // whatever the file or a variable says
  one.config.stats = 0;

  for (const adamas_setting& setting : adamas::settings()) {
    const std::string name = setting.name;
    if (!is_of_case(name) || !matters(one.config.policy, name)) continue;
    const std::string value = value_of(one.config, name);
    if (name == "policy")
      one.policy = value;
    else if (name == "estimator")
      one.estimator = value;
    else if (name == "budget")  // for the baselines the automatic one is a number
      one.budget = one.config.policy == ADAMAS_POLICY_ADAMAS ? one.config.budget : adamas_budget_tokens(one.config.budget);
    else
      one.others.emplace_back(name, value);
  }
  return one;
}

// Every choice of one value a setting, the last setting changing fastest.
void combine(const std::map<std::string, std::vector<std::string>>& lists, std::size_t setting, Values& chosen,
             std::vector<Values>& all) {
  const auto settings = adamas::settings();
  if (setting > settings.size()) return all.push_back(chosen);
  const auto list = lists.find(setting < settings.size() ? settings[setting].name : file_flag);
  if (list == lists.end() || list->second.empty()) return combine(lists, setting + 1, chosen, all);
  for (const std::string& value : list->second) {
    chosen[list->first] = value;
    combine(lists, setting + 1, chosen, all);
  }
}

}  // namespace

bool is_of_case(const std::string& setting) { return setting != "rows" && setting != "stats"; }

bool Case::operator==(const Case& other) const { return words() == other.words(); }

std::string Case::budget_text() const {
  return budget == 0 ? "" : budget == ADAMAS_BUDGET_AUTO ? "auto" : std::to_string(budget);
}

std::vector<std::string> Case::words() const {
  std::vector<std::string> words{policy, estimator, budget_text()};
  for (const auto& [name, value] : others) words.push_back(name + " " + value);
  words.insert(words.end(), {file, file_text});
  return words;
}

Case full_case() {
  Case full{};
  full.config = engine_only();
  full.policy = "full";
  return full;
}

std::string label_of(const Case& one, const std::vector<Case>& all) {
  std::string label;
  const auto tell = [&](const std::string& name, const std::string& value) {
    label += fmt::format("{}{}={}", label.empty() ? "" : " ", name, value);
  };
  for (const auto& setting : one.others) {
    const bool tells_apart = std::any_of(all.begin(), all.end(), [&](const Case& other) {
      return other.policy == one.policy &&
             std::find(other.others.begin(), other.others.end(), setting) == other.others.end();
    });
    if (tells_apart) tell(setting.first, setting.second);
  }
  const bool file_tells_apart =
      std::any_of(all.begin(), all.end(), [&](const Case& other) { return !other.full() && other.file != one.file; });
  if (file_tells_apart && !one.full()) tell(file_flag, one.file.empty() ? no_file : one.file);
  return label;
}

std::string name_of(const Case& one, const std::vector<Case>& all) {
  if (one.full()) return "without";
  std::string name = one.policy;
  for (const std::string& word : {one.estimator, one.budget_text(), label_of(one, all)})
    if (!word.empty()) name += " " + word;
  return name;
}

Json json_of(const Case& one, const std::vector<Case>& all) {
  Json others = Json::object();
  for (const auto& [name, value] : one.others) others[name] = value;
  if (!one.file.empty()) others[file_flag] = one.file;
  const std::string label = label_of(one, all);
  return {{"policy", one.policy},
          {"estimator", one.estimator.empty() ? Json(nullptr) : Json(one.estimator)},
          {"budget", one.budget > 0    ? Json(one.budget)
                     : one.budget == 0 ? Json(nullptr)
                                       : Json(one.budget_text())},
          {"label", label.empty() ? Json(nullptr) : Json(label)},
          {"settings", others}};
}

CaseFlags::CaseFlags(CLI::App& command) {
  constexpr const char* group = "Settings, each one value or a list: 32,64";
  const auto add_list = [&](const std::string& name, const std::string& meaning) {
    command.add_option(flag_name(name), values_[name], meaning)
        ->type_name("LIST")
        ->delimiter(',')
        ->allow_extra_args(false)
        ->group(group);
  };
  for (const adamas_setting& setting : adamas::settings())
    if (is_of_case(setting.name)) add_list(setting.name, fmt::format("{} ({})", setting.meaning, setting.range));
  add_list(file_flag,
           "settings files, with sections for layers, as `adamas eval tune` writes them; none: without one (FILE | none)");
  command.add_option("--isa", isa_, "what the kernels run with (auto | an instruction set)")
      ->type_name("VALUE")
      ->group(group);
}

void CaseFlags::set_default(const std::string& setting, const std::vector<std::string>& values) {
  defaults_[setting] = values;
}

std::vector<std::string> CaseFlags::given_files() const {
  const std::vector<std::string>& given = values_.at(file_flag);
  const std::string file = settings_file();
  return given.empty() && !file.empty() ? std::vector<std::string>{file} : given;
}

std::vector<std::string> CaseFlags::files() const {
  std::vector<std::string> files = given_files();
  std::erase(files, no_file);
  return files;
}

std::vector<Case> CaseFlags::cases() const {
  auto lists = values_;
  lists[file_flag] = given_files();
  for (const adamas_setting& setting : adamas::settings())
    if (const auto list = defaults_.find(setting.name);
        list != defaults_.end() && lists[setting.name].empty() && std::getenv(setting.environment) == nullptr)
      lists[setting.name] = list->second;

  std::vector<Values> choices;
  Values chosen;
  if (!isa_.empty()) chosen["isa"] = isa_;
  combine(lists, 0, chosen, choices);
  std::vector<Case> cases{full_case()};
  for (const Values& choice : choices)
    if (const Case one = case_of(choice); std::find(cases.begin(), cases.end(), one) == cases.end()) cases.push_back(one);
  return cases;
}

}  // namespace cli
