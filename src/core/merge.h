// Where the parts of a context meet: what each of them has becomes what the whole has. Without anybody to meet, a part is
// the whole.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"

namespace adamas {

class Merge {
 public:
  Merge(adamas_merge_fn call, void* user) : call_(call), user_(user) {}

  bool alone() const { return call_ == nullptr; }
  Status max(std::vector<double>& values) const { return all(ADAMAS_MERGE_MAX, values); }
  Status sum(std::vector<double>& values) const { return all(ADAMAS_MERGE_SUM, values); }
  Status behind(std::vector<double>& values) const {
    if (alone()) values.assign(values.size(), 0);
    return all(ADAMAS_MERGE_BEHIND, values);
  }

 private:
  Status all(int32_t op, std::vector<double>& values) const {
    if (alone()) return {};
    const int32_t failed = call_(user_, op, values.data(), int64_t(values.size()));
    if (failed == 0) return {};
    return invalid("merge gave " + std::to_string(failed) + ": the parts of the context did not meet");
  }

  adamas_merge_fn call_;
  void* user_;
};

}  // namespace adamas
