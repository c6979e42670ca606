// adamas bench --kernel --device cuda: what a decoding step of one attention layer takes on a GPU, kernel by kernel, beside
// full attention: ours, PyTorch's, FlashInfer's.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "bench.h"
#include "eval/progress.h"
#include "eval/table.h"
#include "failure.h"
#include "kernel/gpu.h"
#include "kernel/show.h"
#include "pages.h"
#include "plot.h"

namespace cli {

using namespace kernel;

namespace {

void print_point(const GpuPoint& point) {
  const GpuMeasured& one = point.ours.front();
  fmt::print("{}, {} tokens, batch {}: a KV head reads {:.0f} rows of K and of V\n{} layers in turn; a copy {:.0f} GB/s\n\n",
             point.place.shape.name(), point.place.tokens, point.place.batch, one.listed, point.layers,
             point.bandwidth / 1e9);
  Table table({"kernel", "us", "of the step", "bytes", "of the copy's pace"}, 1);
  for (const GpuKernel& kernel : one.kernels)
    table.add({kernel.name, microseconds(kernel.seconds), percent(kernel.seconds / one.step()), "-", "-"});
  table.add({"step", microseconds(one.step()), "100.0%", fmt::format("{:.0f}", one.bytes),
             percent(one.bytes / one.step() / point.bandwidth)});
  table.print();
  fmt::print("\n");
}

void print_points(const std::vector<GpuPoint>& points) {
  const GpuPoint& any = points.front();
  std::vector<std::string> head{"shape", "tokens", "batch"};
  for (const GpuMeasured& one : any.ours) head.push_back(one.name);
  std::vector<std::string> others;
  for (const GpuPoint& point : points)
    for (const OtherAttention& other : point.others)
      if (std::find(others.begin(), others.end(), other.name) == others.end()) others.push_back(other.name);
  head.insert(head.end(), others.begin(), others.end());
  for (std::size_t i = 0; i + 1 < any.ours.size(); i++) head.push_back(any.ours[i].name + " over full");
  Table table(head, 1);
  for (const GpuPoint& point : points) {
    std::vector<std::string> line{point.place.shape.name(), std::to_string(point.place.tokens),
                                  std::to_string(point.place.batch)};
    for (const GpuMeasured& one : point.ours) line.push_back(microseconds(one.step()));
    for (const std::string& name : others) {
      const auto at =
          std::find_if(point.others.begin(), point.others.end(), [&](const OtherAttention& o) { return o.name == name; });
      line.push_back(at == point.others.end() ? "-" : microseconds(at->seconds));
    }
    for (std::size_t i = 0; i + 1 < point.ours.size(); i++)
      line.push_back(fmt::format("{:.2f}x", point.full() / point.ours[i].step()));
    table.add(line);
  }
  fmt::print("a step in microseconds, the median of {} replays of a graph; over full: the fastest full attention\n\n",
             any.place.replays);
  table.print();
}

Json json_of(const GpuPoint& point) {
  Json cases = Json::array(), others = Json::array();
  for (const GpuMeasured& one : point.ours) {
    Json kernels = Json::array();
    for (const GpuKernel& kernel : one.kernels)
      kernels.push_back({{"kernel", kernel.name}, {"microseconds", kernel.seconds * 1e6}});
    const auto [least, most] = std::minmax_element(one.seconds.begin(), one.seconds.end());
    cases.push_back({{"case", one.name},
                     {"microseconds", one.step() * 1e6},
                     {"range", {*least * 1e6, *most * 1e6}},
                     {"rows_read", one.listed},
                     {"bytes", one.bytes},
                     {"bandwidth_share", one.bytes / one.step() / point.bandwidth},
                     {"over_full", point.full() / one.step()},
                     {"kernels", kernels}});
  }
  for (const OtherAttention& other : point.others)
    others.push_back({{"name", other.name}, {"microseconds", other.seconds * 1e6}});
  return {{"shape", point.place.shape.name()},
          {"tokens", point.place.tokens},
          {"batch", point.place.batch},
          {"layers", point.layers},
          {"bandwidth", point.bandwidth},
          {"cases", cases},
          {"others", others}};
}

std::string plot_of_points(const std::vector<GpuPoint>& points, const std::vector<std::int64_t>& depths) {
  std::vector<Curve> curves;
  for (const GpuPoint& point : points) {
    const std::string name = fmt::format("{}, batch {}", point.place.shape.name(), point.place.batch);
    auto curve = std::find_if(curves.begin(), curves.end(), [&](const Curve& one) { return one.name == name; });
    if (curve == curves.end()) {
      curves.push_back({name, std::vector<double>(depths.size(), std::numeric_limits<double>::quiet_NaN())});
      curve = curves.end() - 1;
    }
    const auto at = std::find(depths.begin(), depths.end(), point.place.tokens) - depths.begin();
    curve->values[static_cast<std::size_t>(at)] = point.full() / point.ours.front().step();
  }
  return plot_of(depths, curves, "how many times as fast as the fastest full attention a step is, over the tokens");
}

}  // namespace

int bench_gpu(const BenchOptions& options, const std::vector<Shape>& shapes, const std::vector<Setting>& settings) {
  if (adamas_gpu_count() == 0) throw Failure(exit_failed, fmt::format("bench: --device cuda: {}", adamas_gpu_reason()));
  std::vector<GpuPlace> places;
  Json left_out = Json::array();
  const double free = free_gpu_memory() * 0.9;
  for (const Shape& shape : shapes)
    for (const std::int64_t batch : options.batches)
      for (const std::int64_t tokens : options.depths) {
        const GpuPlace place{shape, tokens, batch, options.repeat, options.host};
        if (gpu_memory_of(place) <= free) {
          places.push_back(place);
          continue;
        }
        left_out.push_back(
            {{"shape", shape.name()},
             {"tokens", tokens},
             {"batch", batch},
             {"why", fmt::format("it needs {}, the GPU has {} free", bytes_text(gpu_memory_of(place)), bytes_text(free))}});
      }
  if (places.empty())
    throw Failure(exit_failed, fmt::format("bench: nothing fits: {}", left_out[0]["why"].get<std::string>()));
  std::string no_others;
  std::vector<GpuPoint> points;
  auto progress = std::make_unique<Progress>(double(places.size() * (settings.size() + 1)));
  for (const GpuPlace& place : places) {
    points.push_back(measure_on_gpu(place, settings, *progress));
    no_others.clear();
    points.back().others = measure_others(place, points.back().layers, no_others);
    progress->advance(1, "other libraries");
  }
  progress.reset();
  if (!options.plot.empty()) write_file(options.plot, plot_of_points(points, options.depths));
  if (options.json) {
    Json list = Json::array();
    for (const GpuPoint& point : points) list.push_back(json_of(point));
    print_json({{"gpu", adamas_gpu_name(0)},
                {"others_left_out", no_others.empty() ? Json(nullptr) : Json(no_others)},
                {"points", list},
                {"left_out", left_out}});
    return exit_ok;
  }
  fmt::print("one step of one attention layer, {}, {}, K and V in f16{}\n\n", settings.front().name, adamas_gpu_name(0),
             options.host ? ", in the host's memory where nothing else is said" : "");
  for (const GpuPoint& point : points) print_point(point);
  print_points(points);
  if (!no_others.empty()) fmt::print("\nNot measured: {}\n", no_others);
  if (!left_out.empty()) fmt::print("\n");
  for (const Json& one : left_out)
    fmt::print("{}, {} tokens, batch {} is left out: {}\n", one["shape"].get<std::string>(),
               one["tokens"].get<std::int64_t>(), one["batch"].get<std::int64_t>(), one["why"].get<std::string>());
  return exit_ok;
}

}  // namespace cli
