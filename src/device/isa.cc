#include "device/isa.h"

#include <strings.h>

#include "hwy/highway.h"

namespace adamas {
namespace {

constexpr int64_t compiled = HWY_TARGETS;

// Lower bits are better in Highway's numbering.
std::vector<int64_t> runnable() {
  std::vector<int64_t> targets;
  const int64_t all = compiled & (hwy::SupportedTargets() | HWY_STATIC_TARGET);
  for (int64_t rest = all; rest != 0; rest &= rest - 1) targets.push_back(rest & -rest);
  return targets;
}

}  // namespace

std::vector<std::string> isa_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (int64_t target : runnable()) list.push_back(hwy::TargetName(target));
    return list;
  }();
  return names;
}

std::string isa_in_use() {
  hwy::ChosenTarget& chosen = hwy::GetChosenTarget();
  if (!chosen.IsInitialized()) chosen.Update(hwy::SupportedTargets());
  const size_t index = chosen.GetIndex();  // in a table that begins with an entry for "not yet chosen"
  for (int64_t target : runnable())
    if (static_cast<int64_t>(HWY_CHOSEN_TARGET_SHIFT(target)) >> index & 1) return hwy::TargetName(target);
  return hwy::TargetName(HWY_STATIC_TARGET);
}

Status force_isa(const std::string& name) {
  const std::vector<std::string> names = isa_names();  // before anything is hidden
  static const std::vector<int64_t> targets = runnable();
  if (strcasecmp(name.c_str(), "auto") == 0) {
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return {};
  }
  std::string list;
  for (size_t i = 0; i < names.size(); i++) {
    if (strcasecmp(name.c_str(), names[i].c_str()) == 0) {
      hwy::GetChosenTarget().Update(targets[i]);
      return {};
    }
    list += ", " + names[i];
  }
  return invalid("isa: '" + name + "' is not among the instruction sets of this machine: auto" + list);
}

}  // namespace adamas
