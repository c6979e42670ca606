#include "settings_file.h"

#include <fmt/format.h>

#include <algorithm>

namespace cli {
namespace {

// name and value, in the library's order: a preset resets the settings that it defines.
std::vector<std::pair<std::string, std::string>> settings_of(const Case& one) {
  std::vector<std::pair<std::string, std::string>> settings;
  for (const auto& [name, value] : one.others)
    if (name == "preset") settings.emplace_back(name, value);
  settings.emplace_back("policy", one.policy);
  if (!one.estimator.empty()) settings.emplace_back("estimator", one.estimator);
  if (one.budget != 0) settings.emplace_back("budget", one.budget_text());
  for (const auto& [name, value] : one.others)
    if (name != "preset") settings.emplace_back(name, value);
  return settings;
}

}  // namespace

bool is_of_whole_model(const std::string& setting) {
  return setting == "preset" || setting == "dense_layers" || setting == "min_context" || setting == "prompt";
}

std::string settings_text(const std::map<std::size_t, Case>& by_layer, const std::vector<std::string>& comments) {
  std::vector<std::pair<Case, std::vector<std::size_t>>> groups;
  for (const auto& [layer, one] : by_layer) {
    auto group = std::find_if(groups.begin(), groups.end(), [&one = one](const auto& known) { return known.first == one; });
    if (group == groups.end()) group = groups.insert(group, {one, {}});
    group->second.push_back(layer);
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });

  std::string text;
  for (const std::string& comment : comments) text += "# " + comment + "\n";
  if (groups.empty()) return text;
  auto base = settings_of(groups.front().first);
  for (const auto& group : groups)  // of all layers, and still not known to a dense base
    for (const auto& [name, value] : group.first.others)
      if (is_of_whole_model(name) && std::find(base.begin(), base.end(), std::pair(name, value)) == base.end())
        base.emplace(name == "preset" ? base.begin() : base.end(), name, value);
  for (const auto& [name, value] : base) text += fmt::format("{} = {}\n", name, value);
  for (auto group = groups.begin() + 1; group != groups.end(); ++group) {
    text += fmt::format("\n[layers {}]\n", ranges_text(group->second, ","));
    for (const auto& setting : settings_of(group->first))
      if (std::find(base.begin(), base.end(), setting) == base.end())
        text += fmt::format("{} = {}\n", setting.first, setting.second);
  }
  return text;
}

}  // namespace cli
