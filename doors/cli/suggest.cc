#include "suggest.h"

#include <algorithm>
#include <numeric>

namespace cli {
namespace {

// Letters to insert, remove, change or swap with their neighbour (optimal string alignment).
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before, above(b.size() + 1), row(b.size() + 1);
  std::iota(above.begin(), above.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before = above;
    above = row;
  }
  return above.back();
}

}  // namespace

std::string nearest(const std::string& typed, const std::vector<std::string>& known) {
  const auto is_nearer = [&](const std::string& a, const std::string& b) { return distance(typed, a) < distance(typed, b); };
  const auto found = std::min_element(known.begin(), known.end(), is_nearer);
  if (found == known.end() || distance(typed, *found) > std::max<size_t>(2, found->size() / 3)) return "";
  return *found;
}

std::string suggestion(const std::string& typed, const std::vector<std::string>& known) {
  const std::string word = nearest(typed, known);
  return word.empty() ? "" : "; did you mean " + word + "?";
}

}  // namespace cli
