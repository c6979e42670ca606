// "Did you mean": the known word nearest to a mistyped one.
#pragma once

#include <string>
#include <vector>

namespace cli {

// The known word nearest to a mistyped one, or "" when no word is near.
std::string nearest(const std::string& typed, const std::vector<std::string>& known);

// "; did you mean --budget?", or nothing when no word is near.
std::string suggestion(const std::string& typed, const std::vector<std::string>& known);

}  // namespace cli
