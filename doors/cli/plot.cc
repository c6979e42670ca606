#include "plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace cli {
namespace {

constexpr double width = 720, height = 420, left = 64, right = 20, top = 48, bottom = 48;
constexpr const char* colors[] = {"#8a8f98", "#2f7fd6", "#d9622b", "#2f9e62",
                                  "#9a55c9", "#c23b6b", "#7a6a1f", "#2aa3a8"};  // the first is dense

// 1, 2 or 5 times a power of ten, so that at most six steps reach `most`.
double step_for(double most) {
  const double power = std::pow(10, std::floor(std::log10(most / 6)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (most / (power * factor) <= 6) return power * factor;
  return 10 * power;
}

std::string escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) safe += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
  return safe;
}

}  // namespace

std::string plot_of(const std::vector<std::int64_t>& x, const std::vector<Curve>& curves, const std::string& title) {
  double most = 0;
  for (const Curve& curve : curves)
    for (const double value : curve.values) most = std::fmax(most, value);
  const double step = step_for(std::max(most, 1e-3));
  const double highest = step * std::ceil(most / step * 1.0001);
  const auto at_x = [&](std::size_t i) {
    return x.size() == 1
               ? (left + width - right) / 2
               : left + 20 + (width - left - right - 40) * static_cast<double>(i) / static_cast<double>(x.size() - 1);
  };
  const auto at_y = [&](double value) { return height - bottom - (height - top - bottom) * value / highest; };

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<style>text{{fill:#222}}.grid{{stroke:#ddd}}.back{{fill:#fff}}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}."
      "grid{{stroke:#444}}.back{{fill:#181a1f}}}}</style>\n"
      "<rect class=\"back\" width=\"{0}\" height=\"{1}\"/>\n<text x=\"{2}\" y=\"20\" font-size=\"14\">{3}</text>\n",
      width, height, left, escaped(title));
  for (double value = 0; value <= highest * 1.0001; value += step)
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/><text x=\"{}\" y=\"{:.1f}\" "
        "text-anchor=\"end\">{:g}</text>\n",
        left, width - right, at_y(value), at_y(value), left - 8, at_y(value) + 4, value);
  for (std::size_t i = 0; i < x.size(); ++i)
    svg +=
        fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", at_x(i), height - bottom + 20, x[i]);
  double name_at = left;
  for (std::size_t c = 0; c < curves.size(); ++c) {
    const char* color = colors[c % std::size(colors)];
    std::string points;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(curves[c].values[i])) continue;
      points += fmt::format("{:.1f},{:.1f} ", at_x(i), at_y(curves[c].values[i]));
      svg +=
          fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"><title>{}, {}: {:.1f}</title></circle>\n",
                      at_x(i), at_y(curves[c].values[i]), color, escaped(curves[c].name), x[i], curves[c].values[i]);
    }
    svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", points, color);
    svg += fmt::format(
        "<rect x=\"{:.0f}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.0f}\" y=\"{}\">{}</text>\n",
        name_at, 30, color, name_at + 14, 39, escaped(curves[c].name));
    name_at += 34 + 7 * static_cast<double>(curves[c].name.size());
  }
  return svg + "</svg>\n";
}

}  // namespace cli
