// What was measured, for people and as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../output.h"
#include "measure.h"

namespace cli::kernel {

std::string microseconds(double seconds);  // "12.5"
std::string percent(double share);         // "43.2%"

void print_stages(const Point& point);               // of its first setting
void print_steps(const std::vector<Point>& points);  // a line for each
Json json_of(const Point& point);

// An SVG file: how many times as fast as ggml's attention the first setting is, or as our dense one, over the tokens; a
// curve for each shape.
std::string plot_of_points(const std::vector<Point>& points, const std::vector<std::int64_t>& depths, bool has_ggml);

}  // namespace cli::kernel
