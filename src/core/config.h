// The settings: one table of names, ranges and meanings that environment, flags and messages are made from.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "adamas/adamas.h"
#include "core/status.h"

namespace adamas {

inline constexpr int64_t max_tokens = 2147483647;  // 2^31 - 1

// What `budget = auto` is where a number is needed: for the policies other than adamas, and where reading all is less than
// choosing.
inline int64_t budget_of(const adamas_config& config) { return adamas_budget_tokens(config.budget); }
// Lists and a rest, instead of so many tokens a head.
constexpr bool has_rest(const adamas_config& config) {
  return config.policy == ADAMAS_POLICY_ADAMAS && config.budget == ADAMAS_BUDGET_AUTO;
}

// What a setting concerns: a layer may have its own, a whole model, or the door alone, and no step.
enum class Scope { layer, model, door };
bool is_of_a_layer(const std::string& name);  // or is none
// Steps with these settings do the same.
bool same_steps(const adamas_config& a, const adamas_config& b);

adamas_config default_config();
const std::vector<adamas_setting>& settings();
Status set(adamas_config& config, const std::string& name, const std::string& value);
Status get(const adamas_config& config, const std::string& name, std::string& value);
// Of the variables that `get` gives; NULL: there is none.
using Variables = std::function<const char*(const char* name)>;
Status from_variables(adamas_config& config, const Variables& get);
Status check(const adamas_config& config);

}  // namespace adamas
