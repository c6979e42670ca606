// adamas bench --kernel: what a decoding step of one attention layer takes, stage by stage, beside dense attention, our own
// and ggml's.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "bench.h"
#include "eval/progress.h"
#include "failure.h"
#include "files.h"
#include "kernel/ggml_attention.h"
#include "kernel/machine.h"
#include "kernel/measure.h"
#include "kernel/show.h"
#include "pages.h"

namespace cli {
namespace {

using namespace kernel;

constexpr std::int64_t fewest_tokens =
    2048;  // and twice a fixed budget: a step is sparse however many were asked for before it

std::vector<Setting> settings_of(const std::vector<Case>& cases) {
  std::vector<Setting> settings;
  for (const Case& one : cases) {
    if (one.full()) continue;
    if (one.config.policy != ADAMAS_POLICY_ADAMAS)
      throw Failure(
          exit_usage,
          fmt::format("bench: --kernel measures the stages of the policy adamas; --policy {} has none of them", one.policy));
    settings.push_back({name_of(one, cases), adamas::Config::from_native(one.config)});
  }
  if (settings.empty())
    throw Failure(exit_usage,
                  "bench: --kernel measures the stages of the policy adamas; dense attention is always beside it");
  if (settings.size() == 1 && settings[0].config.budget == ADAMAS_BUDGET_AUTO) {  // what the rest costs
    adamas::Config alone = settings[0].config;
    alone.budget = adamas_budget_tokens(alone.budget);
    settings.push_back({fmt::format("{} alone", alone.budget), alone});
  }
  settings.push_back({"dense", adamas::Config{.policy = adamas::Policy::full}});
  for (Setting& setting : settings)
    setting.config.min_context = setting.config.dense_layers = 0;  // it is this step that is measured
  return settings;
}

}  // namespace

int bench_kernel(BenchOptions options, const std::vector<Case>& cases) {
  if (options.depths.empty())
    options.depths = options.prompt_rows > 0 ? std::vector<std::int64_t>{512, 2048, 8192, 16384}
                                             : std::vector<std::int64_t>{8192, 32768, 131072};
  const bool gpu = options.device == "cuda", prompt = options.prompt_rows > 0;
  if (options.repeat == 0) options.repeat = gpu || prompt ? 11 : 30;
  if (options.shapes.empty())
    options.shapes = gpu ? std::vector<std::string>{"32/32x128", "32/8x128"}
                         : std::vector<std::string>{"9/3x64", "12/2x128", "32/32x128", "32/8x128"};
  std::vector<Shape> shapes;
  for (const std::string& shape : options.shapes) shapes.push_back(parse_shape(shape));
  if (prompt) return bench_prompt(options, shapes);
  const std::vector<Setting> settings = settings_of(cases);
  for (const std::int64_t tokens : options.depths)
    for (const Setting& setting : settings)
      if (const std::int64_t fewest = fewest_tokens + 2 * std::max<std::int64_t>(0, setting.config.budget); tokens < fewest)
        throw Failure(exit_usage, fmt::format("bench: --depth {}: with --kernel and a budget of {} at least {} tokens",
                                              tokens, setting.config.budget, fewest));
  require_outputs("bench", options.settings_files, {{"--plot", options.plot}});
  if (gpu) return bench_gpu(options, shapes, settings);

  std::vector<Place> places;
  Json left_out = Json::array();
  double work = 0;
  for (const Shape& shape : shapes)
    for (const std::int64_t tokens : options.depths) {
      const Place place{shape, tokens, options.repeat, options.threads};
      const double memory = place.memory(settings.size()), free = static_cast<double>(free_memory()) / 2;
      if (memory <= free) {
        places.push_back(place);
        work += place.work();
      } else {
        left_out.push_back(
            {{"shape", shape.name()},
             {"tokens", tokens},
             {"why", fmt::format("it needs {}, half of the free memory is {}", bytes_text(memory), bytes_text(free))}});
      }
    }
  if (places.empty())
    throw Failure(exit_failed, fmt::format("bench: nothing fits: {}", left_out[0]["why"].get<std::string>()));

  std::string no_ggml;
  std::vector<Point> points;
  auto progress = std::make_unique<Progress>(work);
  for (const Place& place : places) {
    const auto ggml = load_ggml_attention(place.shape, place.threads, no_ggml);
    points.push_back(measure(place, settings, ggml.get(), *progress));
  }
  progress.reset();

  if (!options.plot.empty()) write_file(options.plot, plot_of_points(points, options.depths, no_ggml.empty()));
  if (options.json) {
    Json list = Json::array();
    for (const Point& point : points) list.push_back(json_of(point));
    print_json({{"threads", options.threads},
                {"instruction_set", adamas::isa_in_use()},
                {"ggml_left_out", no_ggml.empty() ? Json(nullptr) : Json(no_ggml)},
                {"points", list},
                {"left_out", left_out}});
    return exit_ok;
  }
  fmt::print("one step of one attention layer, {}, {} threads, {}\n\n", points.front().first().name, options.threads,
             adamas::isa_in_use());
  for (const Point& point : points) print_stages(point);
  print_steps(points);
  if (!no_ggml.empty()) fmt::print("\nggml's attention is not measured: {}\n", no_ggml);
  if (!left_out.empty()) fmt::print("\n");
  for (const Json& one : left_out)
    fmt::print("{}, {} tokens is left out: {}\n", one["shape"].get<std::string>(), one["tokens"].get<std::int64_t>(),
               one["why"].get<std::string>());
  return exit_ok;
}

}  // namespace cli
