#include "show.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../eval/table.h"
#include "../plot.h"

namespace cli::kernel {
namespace {

std::string times_text(double ratio) { return std::isnan(ratio) ? "-" : fmt::format("{:.1f}x", ratio); }

Json json_number(double value) { return std::isnan(value) ? Json(nullptr) : Json(value); }

}  // namespace

std::string microseconds(double seconds) { return fmt::format("{:.1f}", seconds * 1e6); }
std::string percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

void print_stages(const Point& point) {
  const Measured& one = point.first();
  const auto per_head = [&](std::int64_t count) {
    return static_cast<double>(count) / std::max(1.0, static_cast<double>(one.stats.heads_sparse));
  };
  const double heads_of_group = static_cast<double>(point.shape.q_heads) / static_cast<double>(point.shape.kv_heads);
  fmt::print(
      "{}, {} tokens: a query head attends to {:.0f} tokens in full, a KV head reads {:.0f} rows of K and of V; {:.2f} of "
      "the "
      "softmax is read in full\n"
      "{} layers in turn; memory {:.1f} GB/s\n\n",
      point.shape.name(), point.tokens, per_head(one.stats.tokens_selected), per_head(one.stats.rows_read) * heads_of_group,
      one.stats.mass / std::max(1.0, static_cast<double>(one.stats.heads_sparse)), point.layers, point.bandwidth / 1e9);
  Table table({"stage", "us", "of the step", "bytes", "GB/s", "of memory"}, 1);
  const auto add = [&](const std::string& name, double seconds, double bytes) {
    const bool rated = bytes > 0 && seconds > 0;
    table.add({name, microseconds(seconds), percent(seconds / one.step()), fmt::format("{:.0f}", bytes),
               rated ? fmt::format("{:.2f}", bytes / seconds / 1e9) : "-",
               rated ? percent(bytes / seconds / point.bandwidth) : "-"});
  };
  for (std::size_t i = 0; i < stages.size(); i++)
    if (one.stage(i) > 0) add(stages[i].name, one.stage(i), one.stage_bytes(i));
  add("waiting", one.waiting(), 0);
  add("step", one.step(), one.all_bytes());
  table.print();
  fmt::print("\n");
}

void print_steps(const std::vector<Point>& points) {
  const Point& any = points.front();
  std::vector<std::string> head{"shape", "tokens"};
  for (const Measured& one : any.ours) head.push_back(one.name);
  head.insert(head.end(), {"ggml", "over dense", "over ggml", "dense of memory", "ggml of memory", "scores/s a core"});
  Table table(head, 1);
  for (const Point& point : points) {
    std::vector<std::string> line{point.shape.name(), std::to_string(point.tokens)};
    for (const Measured& one : point.ours) line.push_back(microseconds(one.step()));
    const double ggml = point.ggml.empty() ? 0 : median(point.ggml);
    line.insert(line.end(), {point.ggml.empty() ? "-" : microseconds(ggml), times_text(point.over_dense(point.first())),
                             times_text(point.over_ggml(point.first())),
                             percent(point.dense().all_bytes() / point.dense().step() / point.bandwidth),
                             point.ggml.empty() ? "-" : percent(point.dense().all_bytes() / ggml / point.bandwidth),
                             fmt::format("{:.2f}e9", point.scores_per_second(point.first()) / 1e9)});
    table.add(line);
  }
  std::size_t fewest = any.first().seconds.size();
  for (const Point& point : points) fewest = std::min(fewest, point.first().seconds.size());
  fmt::print("a step in microseconds, the median of {} or more\n\n", fewest);
  table.print();
  if (std::any_of(points.begin(), points.end(),
                  [](const Point& point) { return point.first().waiting() > 0.3 * point.first().step(); }))
    fmt::print(
        "\nThreads waited for a third of a step and more: something else runs on this machine, and the ratios mean "
        "little.\n");
}

Json json_of(const Point& point) {
  Json cases = Json::array();
  for (const Measured& one : point.ours) {
    Json rows = Json::array();
    const auto add = [&](const char* name, double seconds, double bytes) {
      rows.push_back({{"stage", name},
                      {"microseconds", seconds * 1e6},
                      {"share", seconds / one.step()},
                      {"bytes", bytes},
                      {"bandwidth_share", seconds > 0 ? bytes / seconds / point.bandwidth : 0}});
    };
    for (std::size_t i = 0; i < stages.size(); i++) add(stages[i].name, one.stage(i), one.stage_bytes(i));
    add("waiting", one.waiting(), 0);
    const bool sparse = one.stats.heads_sparse > 0;
    const double heads = static_cast<double>(one.stats.heads_sparse);
    cases.push_back({{"case", one.name},
                     {"microseconds", one.step() * 1e6},
                     {"steps", one.seconds.size()},
                     {"bytes", one.all_bytes()},
                     {"bandwidth_share", one.all_bytes() / one.step() / point.bandwidth},
                     {"over_dense", point.over_dense(one)},
                     {"over_ggml", json_number(point.over_ggml(one))},
                     {"tokens_read", sparse ? Json(static_cast<double>(one.stats.tokens_selected) / heads) : Json(nullptr)},
                     {"rows_read", sparse ? Json(static_cast<double>(one.stats.rows_read) / heads) : Json(nullptr)},
                     {"guarded", sparse ? Json(static_cast<double>(one.stats.heads_guarded) / heads) : Json(nullptr)},
                     {"mass", sparse ? json_number(one.stats.mass / heads) : Json(nullptr)},
                     {"scores_per_second_and_core", sparse ? Json(point.scores_per_second(one)) : Json(nullptr)},
                     {"stages", rows}});
  }
  return {{"shape", point.shape.name()},
          {"q_heads", point.shape.q_heads},
          {"kv_heads", point.shape.kv_heads},
          {"head_dim", point.shape.head_dim},
          {"tokens", point.tokens},
          {"layers", point.layers},
          {"bandwidth", point.bandwidth},
          {"cases", cases},
          {"ggml_microseconds", point.ggml.empty() ? Json(nullptr) : Json(median(point.ggml) * 1e6)}};
}

std::string plot_of_points(const std::vector<Point>& points, const std::vector<std::int64_t>& depths, bool has_ggml) {
  std::vector<Curve> curves;
  for (const Point& point : points) {
    if (curves.empty() || curves.back().name != point.shape.name())
      curves.push_back({point.shape.name(), std::vector<double>(depths.size(), std::numeric_limits<double>::quiet_NaN())});
    const auto at = std::find(depths.begin(), depths.end(), point.tokens) - depths.begin();
    curves.back().values[static_cast<std::size_t>(at)] =
        has_ggml ? point.over_ggml(point.first()) : point.over_dense(point.first());
  }
  return plot_of(depths, curves,
                 fmt::format("how many times as fast as {} attention a step is, over the tokens",
                             has_ggml ? "ggml's" : "our own dense"));
}

}  // namespace cli::kernel
