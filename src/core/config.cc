#include "core/config.h"

#include <charconv>
#include <cstdlib>

namespace adamas {
namespace {

using Field64 = int64_t adamas_config::*;
using Field32 = int32_t adamas_config::*;

// A setting is a number within a range, or one of a few words.
struct Entry {
  adamas_setting shown;
  Field64 number = nullptr;
  int64_t lowest = 0, highest = 0;
  Field32 choice = nullptr;
  std::vector<const char*> words = {};  // word i sets the field to i
};

void apply_preset(adamas_config& config) {
  const bool paper = config.preset == ADAMAS_PRESET_PAPER;
  config.estimator = paper ? ADAMAS_ESTIMATOR_MANHATTAN : ADAMAS_ESTIMATOR_DOT;
  config.dense_layers = paper ? 2 : 0;
  config.sinks = paper ? 0 : 4;
}

const std::vector<Entry>& table() {
  static const std::vector<Entry> entries{
      {.shown = {"preset", "ADAMAS_PRESET", "default | paper",
                 "default: codes by the block; paper: exactly as published (resets estimator, dense_layers and sinks)"},
       .choice = &adamas_config::preset, .words = {"default", "paper"}},
      {.shown = {"policy", "ADAMAS_POLICY", "adamas | full | quest | streaming", "which tokens a query attends to"},
       .choice = &adamas_config::policy, .words = {"adamas", "full", "quest", "streaming"}},
      {.shown = {"estimator", "ADAMAS_ESTIMATOR", "dot | manhattan", "how the policy adamas scores tokens from their codes"},
       .choice = &adamas_config::estimator, .words = {"dot", "manhattan"}},
      {.shown = {"budget", "ADAMAS_BUDGET", "1 to 2147483647", "tokens that a query attends to, per head"},
       .number = &adamas_config::budget, .lowest = 1, .highest = max_tokens},
      {.shown = {"sinks", "ADAMAS_SINKS", "0 to 2147483647", "first tokens, always attended to, inside the budget"},
       .number = &adamas_config::sinks, .lowest = 0, .highest = max_tokens},
      {.shown = {"recent", "ADAMAS_RECENT", "0 to 2147483647", "most recent tokens, always attended to, inside the budget"},
       .number = &adamas_config::recent, .lowest = 0, .highest = max_tokens},
      {.shown = {"dense_layers", "ADAMAS_DENSE_LAYERS", "0 to 2147483647", "the first layers of a model, left dense"},
       .number = &adamas_config::dense_layers, .lowest = 0, .highest = max_tokens},
      {.shown = {"min_context", "ADAMAS_MIN_CONTEXT", "0 to 2147483647", "tokens in view below which a step is dense"},
       .number = &adamas_config::min_context, .lowest = 0, .highest = max_tokens},
      {.shown = {"rows", "ADAMAS_ROWS", "decode | all",
                 "decode: only decoding is sparse; all: every query row of a batch selects for itself"},
       .choice = &adamas_config::rows, .words = {"decode", "all"}},
      {.shown = {"stats", "ADAMAS_STATS", "0 | 1", "1: a summary at exit"},
       .choice = &adamas_config::stats, .words = {"0", "1"}},
  };
  return entries;
}

const Entry* find(const std::string& name) {
  for (const Entry& entry : table())
    if (name == entry.shown.name) return &entry;
  return nullptr;
}

Status unknown(const std::string& name) {
  std::string list;
  for (const Entry& entry : table()) list += (list.empty() ? "" : ", ") + std::string(entry.shown.name);
  return invalid("'" + name + "' is not a setting; there are " + list);
}

Status out_of_its_range(const Entry& entry, const std::string& value) {
  return invalid(std::string(entry.shown.name) + ": " + value + " is not in its range: " + entry.shown.range);
}

Status check_entry(const Entry& entry, const adamas_config& config) {
  if (entry.number != nullptr) {
    const int64_t value = config.*entry.number;
    if (value < entry.lowest || value > entry.highest) return out_of_its_range(entry, std::to_string(value));
  } else {
    const int32_t value = config.*entry.choice;
    if (value < 0 || value >= static_cast<int32_t>(entry.words.size()))
      return out_of_its_range(entry, std::to_string(value));
  }
  return {};
}

}  // namespace

adamas_config default_config() {
  adamas_config config{};
  config.struct_size = sizeof config;
  config.budget = 128;
  config.min_context = 1024;
  apply_preset(config);
  return config;
}

const std::vector<adamas_setting>& settings() {
  static const std::vector<adamas_setting> list = [] {
    std::vector<adamas_setting> shown;
    for (const Entry& entry : table()) shown.push_back(entry.shown);
    return shown;
  }();
  return list;
}

Status set(adamas_config& config, const std::string& name, const std::string& value) {
  const Entry* entry = find(name);
  if (entry == nullptr) return unknown(name);
  if (entry->number != nullptr) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc{} || end != value.data() + value.size() || number < entry->lowest || number > entry->highest)
      return out_of_its_range(*entry, value.empty() ? "an empty value" : value);
    config.*entry->number = number;
    return {};
  }
  for (size_t i = 0; i < entry->words.size(); i++) {
    if (value != entry->words[i]) continue;
    config.*entry->choice = static_cast<int32_t>(i);
    if (entry->choice == &adamas_config::preset) apply_preset(config);
    return {};
  }
  return out_of_its_range(*entry, value.empty() ? "an empty value" : value);
}

Status get(const adamas_config& config, const std::string& name, std::string& value) {
  const Entry* entry = find(name);
  if (entry == nullptr) return unknown(name);
  if (Status status = check_entry(*entry, config); !status.ok()) return status;
  value = entry->number != nullptr ? std::to_string(config.*entry->number) : entry->words[config.*entry->choice];
  return {};
}

Status from_environment(adamas_config& config) {
  adamas_config changed = config;
  for (const Entry& entry : table()) {  // the preset comes first
    const char* value = std::getenv(entry.shown.environment);
    if (value == nullptr) continue;
    Status status = set(changed, entry.shown.name, value);
    if (!status.ok()) {
      status.sentence = std::string(entry.shown.environment) + ": " + status.sentence;
      return status;
    }
  }
  if (Status status = check(changed); !status.ok()) return status;
  config = changed;
  return {};
}

Status check(const adamas_config& config) {
  for (const Entry& entry : table())
    if (Status status = check_entry(entry, config); !status.ok()) return status;
  if (config.sinks + config.recent > config.budget)
    return invalid("sinks + recent: " + std::to_string(config.sinks) + " + " + std::to_string(config.recent) +
                   " is not in its range: 0 to budget, " + std::to_string(config.budget));
  return {};
}

}  // namespace adamas
