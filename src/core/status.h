// An outcome: a code and, when it is not ok, a sentence that says what was wrong and what would be right.
#pragma once

#include <string>
#include <utility>

#include "adamas/adamas.h"

namespace adamas {

struct Status {
  adamas_status code = ADAMAS_OK;
  std::string sentence;

  bool ok() const { return code == ADAMAS_OK; }
};

inline Status invalid(std::string sentence) { return {ADAMAS_INVALID_ARGUMENT, std::move(sentence)}; }
inline Status unsupported(std::string sentence) { return {ADAMAS_UNSUPPORTED, std::move(sentence)}; }
inline Status out_of_range(std::string sentence) { return {ADAMAS_OUT_OF_RANGE, std::move(sentence)}; }
inline Status out_of_memory(std::string sentence) { return {ADAMAS_OUT_OF_MEMORY, std::move(sentence)}; }

}  // namespace adamas
