// Curves as a picture: one SVG file, light and dark.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cli {

struct Curve {
  std::string name;
  std::vector<double> values;  // at each x, 0 or more; NaN: there is none
};

// x: as labels, at equal distances.
std::string plot_of(const std::vector<std::int64_t>& x, const std::vector<Curve>& curves, const std::string& title);

}  // namespace cli
