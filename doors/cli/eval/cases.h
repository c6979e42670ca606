// The settings as lists: --policy adamas,quest --budget 64,128 are four cases, each of which is measured.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../output.h"
#include "adamas/adamas.h"

namespace cli {

struct Case {
  adamas_config config;
  std::string policy;
  std::string estimator;                                    // empty: the policy has none
  std::int64_t budget = 0;                                  // 0: the policy has none; ADAMAS_BUDGET_AUTO
  std::vector<std::pair<std::string, std::string>> others;  // the further settings that mean something to the policy
  std::string file, file_text;  // settings file, whose sections hold for their layers; empty: none

  // Dense in every layer: a settings file that is dense in general is no such case, its sections are for other layers.
  bool full() const { return config.policy == ADAMAS_POLICY_FULL && file.empty(); }
  std::vector<std::string> words() const;  // everything that tells it from another case
  std::string budget_text() const;         // "auto", "128", or ""
  bool operator==(const Case& other) const;
};

// Not `rows` and `stats`: the commands decide which rows run sparse, and print their own summaries.
bool is_of_case(const std::string& setting);

// The engine's own dense attention.
Case full_case();

// "share=0.001 sinks=0": the further settings by which it differs from other cases of its policy.
std::string label_of(const Case& one, const std::vector<Case>& all);

// "adamas dot auto share=0.001", or "without": what a table of one column calls the case.
std::string name_of(const Case& one, const std::vector<Case>& all);

// policy, estimator, budget and the other settings, with which every row of results begins.
Json json_of(const Case& one, const std::vector<Case>& all);

class CaseFlags {
 public:
  // Adds --policy, --budget, --share, ..., --settings and --isa: every setting that a case has.
  explicit CaseFlags(CLI::App& command);

  // What a setting is without a flag or a variable, instead of the library's own.
  void set_default(const std::string& setting, const std::vector<std::string>& values);

  // Every combination, `full` first (it is the reference, asked for or not), and none twice: the estimator only tells cases
  // of the policy adamas apart, and nothing tells cases of the policy full apart. A setting without a flag has the value of
  // its environment variable. Throws, naming the range, when a value is out of it.
  std::vector<Case> cases() const;

  // The settings files that the cases are made of.
  std::vector<std::string> files() const;

 private:
  std::vector<std::string> given_files() const;  // of the flag, else of the variable; `none` among them

  std::map<std::string, std::vector<std::string>> values_;  // by the setting's name; empty: not given
  std::map<std::string, std::vector<std::string>> defaults_;
  std::string isa_;
};

}  // namespace cli
