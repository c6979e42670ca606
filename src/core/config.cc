#include "core/config.h"

#include <charconv>
#include <cstdlib>

#include "core/config_file.h"

namespace adamas {
namespace {

using Field64 = int64_t adamas_config::*;
using Field32 = int32_t adamas_config::*;
using FieldReal = double adamas_config::*;

// A setting is a number within a range (a whole one may also be the word `auto`, kept as -1), or one of a few words.
struct Entry {
  adamas_setting shown;
  Scope scope = Scope::layer;
  Field64 number = nullptr;
  int64_t lowest = 0, highest = 0;
  bool or_auto = false;
  FieldReal real = nullptr;
  double least = 0, most = 0;  // of `real`
  Field32 choice = nullptr;
  std::vector<const char*> words = {};  // word i sets the field to i
};

void apply_preset(adamas_config& config) {
  const bool paper = config.preset == ADAMAS_PRESET_PAPER;
  config.estimator = paper ? ADAMAS_ESTIMATOR_MANHATTAN : ADAMAS_ESTIMATOR_DOT;
  config.dense_layers = paper ? 2 : 0;
  config.sinks = paper ? 0 : 4;
  config.budget = paper ? ADAMAS_AUTO_TOKENS : ADAMAS_BUDGET_AUTO;
  config.max_noise = paper ? 0 : 8;
}

const std::vector<Entry>& table() {
  static const std::vector<Entry> entries{
      {.shown = {"preset", "ADAMAS_PRESET", "default | paper",
                 "default: codes by the block; paper: exactly as published (resets the settings that it defines)"},
       .scope = Scope::model,
       .choice = &adamas_config::preset,
       .words = {"default", "paper"}},
      {.shown = {"policy", "ADAMAS_POLICY", "adamas | full | quest | streaming | oracle",
                 "which tokens a query attends to (oracle: the top ones by true score, a bound for selecting alone)"},
       .choice = &adamas_config::policy,
       .words = {"adamas", "full", "quest", "streaming", "oracle"}},
      {.shown = {"estimator", "ADAMAS_ESTIMATOR", "dot | manhattan", "how the policy adamas scores tokens from their codes"},
       .choice = &adamas_config::estimator,
       .words = {"dot", "manhattan"}},
      {.shown = {"budget", "ADAMAS_BUDGET", "auto | 1 to 2147483647",
                 "auto: every token that may matter is read in full, the rest counts through block means (128, for the "
                 "other policies); a number: so many tokens a query head, and nothing else"},
       .number = &adamas_config::budget,
       .lowest = 1,
       .highest = max_tokens,
       .or_auto = true},
      {.shown = {"share", "ADAMAS_SHARE", "0.000001 to 1",
                 "with budget = auto: what a token may weigh in a head's softmax to be read in full"},
       .real = &adamas_config::share,
       .least = 1e-6,
       .most = 1},
      {.shown = {"sinks", "ADAMAS_SINKS", "0 to 2147483647", "first tokens, always attended to, inside a fixed budget"},
       .number = &adamas_config::sinks,
       .lowest = 0,
       .highest = max_tokens},
      {.shown = {"recent", "ADAMAS_RECENT", "0 to 2147483647",
                 "most recent tokens, always attended to, inside a fixed budget"},
       .number = &adamas_config::recent,
       .lowest = 0,
       .highest = max_tokens},
      {.shown = {"max_noise", "ADAMAS_MAX_NOISE", "0 to 1000000",
                 "variance of an estimated score above which a head is read densely; 0: never"},
       .real = &adamas_config::max_noise,
       .most = 1e6},
      {.shown = {"min_mass", "ADAMAS_MIN_MASS", "0 to 1",
                 "share of the softmax below which a head reads more tokens, at last all; 0: never"},
       .real = &adamas_config::min_mass,
       .most = 1},
      {.shown = {"dense_layers", "ADAMAS_DENSE_LAYERS", "0 to 2147483647", "the first layers of a model, left dense"},
       .scope = Scope::model,
       .number = &adamas_config::dense_layers,
       .lowest = 0,
       .highest = max_tokens},
      {.shown = {"min_context", "ADAMAS_MIN_CONTEXT", "0 to 2147483647", "tokens in view below which a step is dense"},
       .scope = Scope::model,
       .number = &adamas_config::min_context,
       .lowest = 0,
       .highest = max_tokens},
      {.shown = {"prompt", "ADAMAS_PROMPT", "dense | engine | sparse",
                 "how prompts are read, 64 query rows and more at once: dense: by our kernel for many rows; engine: by "
                 "llama.cpp; "
                 "sparse: by our kernel, without the blocks that are next to nothing of the softmax to every row near"},
       .scope = Scope::model,
       .choice = &adamas_config::prompt,
       .words = {"dense", "engine", "sparse"}},
      {.shown = {"rows", "ADAMAS_ROWS", "decode | all",
                 "decode: 64 query rows and more at once, a prompt, are read densely; all: every row of a batch selects for "
                 "itself"},
       .scope = Scope::door,
       .choice = &adamas_config::rows,
       .words = {"decode", "all"}},
      {.shown = {"stats", "ADAMAS_STATS", "0 | 1", "1: a summary at exit"},
       .scope = Scope::door,
       .choice = &adamas_config::stats,
       .words = {"0", "1"}},
  };
  return entries;
}

const Entry* find(const std::string& name) {
  for (const Entry& entry : table())
    if (name == entry.shown.name) return &entry;
  return nullptr;
}

// Settings of versions before 0.2, and what to say to who still has one.
struct Gone {
  const char* name;
  const char* environment;
};
constexpr Gone gone[] = {{"sketch", "ADAMAS_SKETCH"}, {"tail", "ADAMAS_TAIL"}, {"rerank", "ADAMAS_RERANK"}};
Status no_more(const std::string& name) {
  return invalid("'" + name +
                 "' is no setting any more: budget = auto reads what may matter in full and counts the rest through block "
                 "means (share says what matters); budget = N is N tokens and nothing else");
}

Status unknown(const std::string& name) {
  for (const Gone& setting : gone)
    if (name == setting.name) return no_more(name);
  std::string list;
  for (const Entry& entry : table()) list += (list.empty() ? "" : ", ") + std::string(entry.shown.name);
  return invalid("'" + name + "' is not a setting; there are " + list);
}

Status out_of_its_range(const Entry& entry, const std::string& value) {
  return invalid(std::string(entry.shown.name) + ": " + value + " is not in its range: " + entry.shown.range);
}

// As short as it can be read back exactly.
std::string text_of(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

Status check_entry(const Entry& entry, const adamas_config& config) {
  if (entry.number != nullptr) {
    const int64_t value = config.*entry.number;
    if (entry.or_auto && value == -1) return {};
    if (value < entry.lowest || value > entry.highest) return out_of_its_range(entry, std::to_string(value));
  } else if (entry.real != nullptr) {
    const double value = config.*entry.real;
    if (!(value >= entry.least && value <= entry.most)) return out_of_its_range(entry, text_of(value));
  } else {
    const int32_t value = config.*entry.choice;
    if (value < 0 || value >= static_cast<int32_t>(entry.words.size()))
      return out_of_its_range(entry, std::to_string(value));
  }
  return {};
}

bool equal(const Entry& entry, const adamas_config& a, const adamas_config& b) {
  if (entry.number != nullptr) return a.*entry.number == b.*entry.number;
  return entry.real != nullptr ? a.*entry.real == b.*entry.real : a.*entry.choice == b.*entry.choice;
}

}  // namespace

bool is_of_a_layer(const std::string& name) {
  const Entry* entry = find(name);
  return entry == nullptr || entry->scope == Scope::layer;
}

bool same_steps(const adamas_config& a, const adamas_config& b) {
  for (const Entry& entry : table())
    if (entry.scope != Scope::door && !equal(entry, a, b)) return false;
  return true;
}

adamas_config default_config() {
  adamas_config config{};
  config.struct_size = sizeof config;
  config.share = 0.0004;
  config.min_context = 2048;
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
    if (entry->or_auto && value == "auto") {
      config.*entry->number = -1;
      return {};
    }
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc{} || end != value.data() + value.size() || number < entry->lowest || number > entry->highest)
      return out_of_its_range(*entry, value.empty() ? "an empty value" : value);
    config.*entry->number = number;
    return {};
  }
  if (entry->real != nullptr) {
    double real = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), real);
    if (error != std::errc{} || end != value.data() + value.size() || !(real >= entry->least && real <= entry->most))
      return out_of_its_range(*entry, value.empty() ? "an empty value" : value);
    config.*entry->real = real;
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
  if (entry->choice != nullptr)
    value = entry->words[config.*entry->choice];
  else if (entry->real != nullptr)
    value = text_of(config.*entry->real);
  else
    value = entry->or_auto && config.*entry->number == -1 ? "auto" : std::to_string(config.*entry->number);
  return {};
}

Status from_variables(adamas_config& config, const Variables& get) {
  adamas_config changed = config;
  if (const char* path = get(config_file_environment); path != nullptr && *path != '\0') {
    if (Status status = load(changed, path, -1); !status.ok()) {
      status.sentence = std::string(config_file_environment) + ": " + status.sentence;
      return status;
    }
  }
  for (const Gone& setting : gone)
    if (get(setting.environment) != nullptr) return no_more(setting.environment);
  for (const Entry& entry : table()) {  // the preset comes first
    const char* value = get(entry.shown.environment);
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
  if (config.budget != ADAMAS_BUDGET_AUTO && config.sinks + config.recent > config.budget)
    return invalid("sinks + recent: " + std::to_string(config.sinks) + " + " + std::to_string(config.recent) +
                   " is not in its range: 0 to budget, " + std::to_string(config.budget));
  return {};
}

}  // namespace adamas
