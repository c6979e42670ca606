// adamas bench --kernel: what a decoding step of one attention layer takes, stage by stage, beside dense attention, our own and ggml's.
// Layers take turns, so that K, V and codes come from memory as they do in a model; cases take turns, so that a machine that slows down
// slows all of them.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "bench.h"
#include "eval/progress.h"
#include "eval/table.h"
#include "failure.h"
#include "kernel/data.h"
#include "kernel/ggml_attention.h"
#include "kernel/machine.h"
#include "kernel/stages.h"
#include "pages.h"
#include "plot.h"

namespace cli {
namespace {

using kernel::Layer;
using kernel::Shape;
using kernel::stages;

constexpr std::int64_t fewest_tokens = 1024, verify_rows = 64;  // the back end for llama.cpp checks so many
constexpr double setup_rounds = 8;                              // making K, V and codes takes about as long as so many rounds

struct Setting {
  std::string name;
  adamas::Config config;
};

// What the steps of one setting took, of a layer each. Medians, where nothing else is said.
struct Measured {
  std::string name;
  std::vector<double> seconds;
  std::array<std::vector<double>, stages.size()> stage_seconds;  // processor time over threads: shares of the step
  std::vector<double> waiting;                                   // the rest of the step
  kernel::StageBytes bytes{};                                    // sums over the steps
  adamas_step_stats stats{};                                     // the same; those that are shown
  std::vector<float> out;                                        // of the last step

  double steps() const { return static_cast<double>(seconds.size()); }
  double step() const { return median(seconds); }
  double stage(std::size_t i) const { return median(stage_seconds[i]); }
  double stage_bytes(std::size_t i) const { return bytes[i] / steps(); }
  double all_bytes() const {
    double sum = 0;
    for (const double one : bytes) sum += one / steps();
    return sum;
  }
};

// One shape and length.
struct Point {
  Shape shape;
  std::int64_t tokens;
  int layers, threads;
  double bandwidth;  // bytes a second
  std::vector<Measured> ours;      // settings as they were given, the dense one last
  std::vector<double> ggml;        // seconds; empty: no engine

  const Measured& first() const { return ours.front(); }
  const Measured& dense() const { return ours.back(); }
  double over_dense(const Measured& one) const { return dense().step() / one.step(); }
  double over_ggml(const Measured& one) const { return ggml.empty() ? NAN : median(ggml) / one.step(); }
  // Of the scan, by one processor in a second.
  double scores_per_second(const Measured& one) const {
    const auto estimate = std::find_if(stages.begin(), stages.end(), [](const auto& stage) { return stage.time == &adamas_step_times::estimate; });
    return static_cast<double>(one.stats.tokens_visible) / one.steps() / (one.stage(static_cast<std::size_t>(estimate - stages.begin())) * threads);
  }
};

// One setting of ours over all layers: their codes, and what the steps took.
class Ours {
 public:
  Ours(const Setting& setting, const Shape& shape, std::int64_t tokens, int layers, int threads)
      : setting_(setting), shape_(shape), threads_(threads),
        plan_({.q_heads = shape.q_heads, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .max_tokens = tokens, .max_threads = threads},
              setting.config) {
    measured_.name = setting.name;
    measured_.out.resize(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
    for (int layer = 0; layer < layers; layer++)
      caches_.emplace_back(adamas::CacheParams{.layer = layer, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .capacity = tokens}, setting.config);
  }

  // A token was appended, its K and V written: `tokens` with it. The first step of a layer finds all of them new.
  void step(const Layer& layer, std::size_t index, std::int64_t tokens, const std::vector<float>& q, bool first) {
    adamas::Cache& cache = caches_[index];
    cache.append(first ? adamas::TokenRange{.count = tokens} : adamas::TokenRange{.first = tokens - 1, .count = 1});
    adamas_step_times times{};
    times.struct_size = sizeof times;
    const adamas::RowsStrides strides{.head = shape_.head_dim, .token = std::int64_t{shape_.kv_heads} * shape_.head_dim};
    const auto start = std::chrono::steady_clock::now();
    const adamas_step_stats stats = plan_.step(cache, {.q = q, .k = {layer.k(), strides}, .v = {layer.v(), strides}, .out = measured_.out,
                                                       .lengths = {&tokens, 1}, .threads = threads_, .verify = true, .verify_rows = verify_rows,
                                                       .times = &times});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!first) note(seconds, times, stats, tokens);
  }

  Measured& measured() { return measured_; }

 private:
  void note(double seconds, const adamas_step_times& times, const adamas_step_stats& stats, std::int64_t tokens) {
    measured_.seconds.push_back(seconds);
    double rest = seconds;
    const kernel::StageBytes bytes = kernel::bytes_of({shape_, setting_.config.native(), tokens, verify_rows, stats});
    for (std::size_t i = 0; i < stages.size(); i++) {
      const double share = static_cast<double>(times.*stages[i].time) / 1e9 / threads_;
      measured_.stage_seconds[i].push_back(share);
      measured_.bytes[i] += bytes[i];
      rest -= share;
    }
    measured_.waiting.push_back(rest);
    measured_.stats.tokens_visible += stats.tokens_visible;
    measured_.stats.heads_sparse += stats.heads_sparse;
    measured_.stats.heads_guarded += stats.heads_guarded;
    measured_.stats.tokens_selected += stats.tokens_selected;
    measured_.stats.tokens_sketched += stats.tokens_sketched;
    measured_.stats.keys_read += stats.keys_read;
    measured_.stats.mass += stats.mass;
  }

  Setting setting_;
  Shape shape_;
  int threads_;
  adamas::Plan plan_;
  std::vector<adamas::Cache> caches_;
  Measured measured_;
};

// Layers, so that no cache holds what the next turn needs.
int layers_of(const Shape& shape, std::int64_t tokens) {
  const std::int64_t wanted = std::max(4 * kernel::last_level_cache(), std::int64_t{512} << 20);
  const std::int64_t layer = 2 * tokens * shape.row_bytes();
  return static_cast<int>((wanted + layer - 1) / layer);
}

// With the codes of every setting, which are at most a sixth of K and V.
double memory_of(const Shape& shape, std::int64_t tokens, std::size_t settings) {
  return 2.0 * static_cast<double>(tokens * shape.row_bytes()) * layers_of(shape, tokens) * (1 + static_cast<double>(settings) / 6);
}

// Each layer gives so many steps.
std::int64_t rounds_of(const Shape& shape, std::int64_t tokens, std::int64_t repeat) {
  const std::int64_t layers = layers_of(shape, tokens);
  return (repeat + layers - 1) / layers;
}

double work_of(const Shape& shape, std::int64_t tokens, std::int64_t rounds) {
  return static_cast<double>(layers_of(shape, tokens) * tokens * shape.row_bytes()) * (setup_rounds + static_cast<double>(rounds));
}

// The same attention twice, or the times mean nothing. ggml adds up in f16.
void require_equal(const std::vector<float>& ours, const std::vector<float>& ggml) {
  float largest = 0, difference = 0;
  for (std::size_t i = 0; i < ours.size(); i++) {
    largest = std::max(largest, std::abs(ours[i]));
    difference = std::max(difference, std::abs(ours[i] - ggml[i]));
  }
  if (!(difference <= 0.05f * largest))
    throw Failure(exit_failed, fmt::format("our dense attention and ggml's differ by {:g} where the largest value is {:g}", difference, largest));
}

Point measure(const Shape& shape, std::int64_t tokens, const std::vector<Setting>& settings, const BenchOptions& options,
              kernel::GgmlAttention* ggml, Progress& progress) {
  Point point{shape, tokens, layers_of(shape, tokens), options.threads, kernel::memory_bandwidth(options.threads), {}, {}};
  const std::int64_t rounds = rounds_of(shape, tokens, options.repeat);
  const double round_work = work_of(shape, tokens, 1) - work_of(shape, tokens, 0);
  const std::string where = fmt::format("{}, {} tokens", shape.name(), tokens);

  std::vector<Layer> layers;
  for (int layer = 0; layer < point.layers; layer++) {
    layers.emplace_back(shape, tokens, static_cast<std::uint64_t>(layer), options.threads);
    progress.advance(setup_rounds / 2 * round_work / point.layers, where);
  }
  std::vector<std::unique_ptr<Ours>> ours;
  for (const Setting& setting : settings) ours.push_back(std::make_unique<Ours>(setting, shape, tokens, point.layers, options.threads));
  // Dense attention stands between sparse ones: it reads all of K and V, and leaves nothing of theirs in a cache.
  std::vector<float> ggml_out(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
  const auto turn = [&](std::int64_t round) {
    // Layers differ by up to a block, so that the open ones are half full on the average.
    const auto length_of = [&](std::size_t layer) { return tokens - rounds + round - static_cast<std::int64_t>((16 + 11 * layer) % ADAMAS_BLOCK_TOKENS); };
    const auto all_layers = [&](const auto& step) {
      for (std::size_t layer = 0; layer < layers.size(); layer++) step(layer, length_of(layer), layers[layer].query(round));
    };
    const auto ggml_steps = [&] {
      if (ggml == nullptr) return;
      all_layers([&](std::size_t layer, std::int64_t length, const std::vector<float>& q) {
        const double seconds = ggml->step(q.data(), layers[layer].k(), layers[layer].v(), length, ggml_out.data());
        if (round > 0) point.ggml.push_back(seconds);
      });
    };
    const auto our_steps = [&](Ours& one) {
      all_layers([&](std::size_t layer, std::int64_t length, const std::vector<float>& q) { one.step(layers[layer], layer, length, q, round == 0); });
    };
    for (std::size_t i = 0; i + 1 < ours.size(); i++) {
      our_steps(*ours[i]);
      if (i == 0) our_steps(*ours.back());
      if (i == 1) ggml_steps();
    }
    if (ours.size() < 3) ggml_steps();
  };
  turn(0);  // warms up, and makes all codes
  progress.advance(setup_rounds / 2 * round_work, where);
  for (std::int64_t round = 1; round <= rounds; round++) {
    turn(round);
    progress.advance(round_work, where);
  }
  for (const auto& one : ours) point.ours.push_back(std::move(one->measured()));
  if (ggml != nullptr) require_equal(point.dense().out, ggml_out);
  return point;
}

// ---- what is said of it -----------------------------------------------------------------------------------------------

std::string microseconds(double seconds) { return fmt::format("{:.1f}", seconds * 1e6); }
std::string percent(double share) { return fmt::format("{:.1f}%", 100 * share); }
std::string times_text(double ratio) { return std::isnan(ratio) ? "-" : fmt::format("{:.1f}x", ratio); }

void print_stages(const Point& point) {
  const Measured& one = point.first();
  const auto per_head = [&](std::int64_t count) { return static_cast<double>(count) / std::max(1.0, static_cast<double>(one.stats.heads_sparse)); };
  fmt::print("{}, {} tokens: a head reads {:.0f} keys and {:.0f} values in full, {:.0f} values through codes; {:.2f} of the softmax is read in full\n"
             "{} layers in turn; memory {:.1f} GB/s\n\n",
             point.shape.name(), point.tokens, per_head(one.stats.keys_read), per_head(one.stats.tokens_selected), per_head(one.stats.tokens_sketched),
             one.stats.mass / std::max(1.0, static_cast<double>(one.stats.heads_sparse)), point.layers, point.bandwidth / 1e9);
  Table table({"stage", "us", "of the step", "bytes", "GB/s", "of memory"}, 1);
  const auto add = [&](const std::string& name, double seconds, double bytes) {
    const bool rated = bytes > 0 && seconds > 0;
    table.add({name, microseconds(seconds), percent(seconds / one.step()), fmt::format("{:.0f}", bytes),
               rated ? fmt::format("{:.2f}", bytes / seconds / 1e9) : "-", rated ? percent(bytes / seconds / point.bandwidth) : "-"});
  };
  for (std::size_t i = 0; i < stages.size(); i++)
    if (one.stage(i) > 0) add(stages[i].name, one.stage(i), one.stage_bytes(i));
  add("waiting", median(one.waiting), 0);
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
    line.insert(line.end(), {point.ggml.empty() ? "-" : microseconds(ggml), times_text(point.over_dense(point.first())), times_text(point.over_ggml(point.first())),
                             percent(point.dense().all_bytes() / point.dense().step() / point.bandwidth),
                             point.ggml.empty() ? "-" : percent(point.dense().all_bytes() / ggml / point.bandwidth),
                             fmt::format("{:.2f}e9", point.scores_per_second(point.first()) / 1e9)});
    table.add(line);
  }
  fmt::print("a step in microseconds, the median of {} and more\n\n", static_cast<std::int64_t>(any.first().steps()));
  table.print();
}

Json json_number(double value) { return std::isnan(value) ? Json(nullptr) : Json(value); }

Json json_of(const Point& point) {
  Json cases = Json::array();
  for (const Measured& one : point.ours) {
    Json rows = Json::array();
    const auto add = [&](const char* name, double seconds, double bytes) {
      rows.push_back({{"stage", name}, {"microseconds", seconds * 1e6}, {"share", seconds / one.step()}, {"bytes", bytes},
                      {"bandwidth_share", seconds > 0 ? bytes / seconds / point.bandwidth : 0}});
    };
    for (std::size_t i = 0; i < stages.size(); i++) add(stages[i].name, one.stage(i), one.stage_bytes(i));
    add("waiting", median(one.waiting), 0);
    const bool sparse = one.stats.heads_sparse > 0;
    const double heads = static_cast<double>(one.stats.heads_sparse);
    cases.push_back({{"case", one.name},
                     {"microseconds", one.step() * 1e6},
                     {"steps", one.seconds.size()},
                     {"bytes", one.all_bytes()},
                     {"bandwidth_share", one.all_bytes() / one.step() / point.bandwidth},
                     {"over_dense", point.over_dense(one)},
                     {"over_ggml", json_number(point.over_ggml(one))},
                     {"keys_read", sparse ? Json(static_cast<double>(one.stats.keys_read) / heads) : Json(nullptr)},
                     {"tokens_read", sparse ? Json(static_cast<double>(one.stats.tokens_selected) / heads) : Json(nullptr)},
                     {"tokens_sketched", sparse ? Json(static_cast<double>(one.stats.tokens_sketched) / heads) : Json(nullptr)},
                     {"guarded", sparse ? Json(static_cast<double>(one.stats.heads_guarded) / heads) : Json(nullptr)},
                     {"mass", sparse ? json_number(one.stats.mass / heads) : Json(nullptr)},
                     {"scores_per_second_and_core", sparse ? Json(point.scores_per_second(one)) : Json(nullptr)},
                     {"stages", rows}});
  }
  return {{"shape", point.shape.name()}, {"q_heads", point.shape.q_heads}, {"kv_heads", point.shape.kv_heads}, {"head_dim", point.shape.head_dim},
          {"tokens", point.tokens}, {"layers", point.layers}, {"bandwidth", point.bandwidth}, {"cases", cases},
          {"ggml_microseconds", point.ggml.empty() ? Json(nullptr) : Json(median(point.ggml) * 1e6)}};
}

// Times as fast as ggml, or as dense where there is no engine, over the tokens, a curve for each shape.
std::string plot_of_points(const std::vector<Point>& points, const std::vector<std::int64_t>& depths, bool has_ggml) {
  std::vector<Curve> curves;
  for (const Point& point : points) {
    if (curves.empty() || curves.back().name != point.shape.name())
      curves.push_back({point.shape.name(), std::vector<double>(depths.size(), std::numeric_limits<double>::quiet_NaN())});
    const auto at = std::find(depths.begin(), depths.end(), point.tokens) - depths.begin();
    curves.back().values[static_cast<std::size_t>(at)] = has_ggml ? point.over_ggml(point.first()) : point.over_dense(point.first());
  }
  return plot_of(depths, curves, fmt::format("how many times as fast as {} attention a step is, over the tokens", has_ggml ? "ggml's" : "our own dense"));
}

std::vector<Setting> settings_of(const std::vector<Case>& cases) {
  std::vector<Setting> settings;
  for (const Case& one : cases) {
    if (one.full()) continue;
    if (one.config.policy != ADAMAS_POLICY_ADAMAS)
      throw Failure(exit_usage, fmt::format("bench: --kernel measures the stages of the policy adamas; --policy {} has none of them", one.policy));
    settings.push_back({name_of(one, cases), adamas::Config::from_native(one.config)});
  }
  if (settings.empty()) throw Failure(exit_usage, "bench: --kernel measures the stages of the policy adamas; dense attention is always beside it");
  if (settings.size() == 1) {  // what the second tier and the tail cost
    adamas::Config alone = settings[0].config;
    alone.sketch = 0;
    alone.tail = false;
    alone.rerank = adamas::Rerank::off;
    settings.push_back({"budget alone", alone});
  }
  settings.push_back({"dense", adamas::Config{.policy = adamas::Policy::full}});
  for (Setting& setting : settings) setting.config.min_context = setting.config.dense_layers = 0;  // it is this step that is measured
  return settings;
}

}  // namespace

int bench_kernel(BenchOptions options, const std::vector<Case>& cases) {
  if (options.depths.empty()) options.depths = {8192, 32768, 131072};
  if (options.repeat == 0) options.repeat = 30;
  if (options.shapes.empty()) options.shapes = {"9/3x64", "12/2x128", "32/32x128", "32/8x128"};
  const std::vector<Setting> settings = settings_of(cases);
  std::vector<Shape> shapes;
  for (const std::string& shape : options.shapes) shapes.push_back(kernel::parse_shape(shape));
  for (const std::int64_t tokens : options.depths)
    for (const Setting& setting : settings)
      if (tokens < std::max(fewest_tokens, 2 * setting.config.budget))
        throw Failure(exit_usage, fmt::format("bench: --depth {}: with --kernel at least {} tokens, and twice the budget", tokens, fewest_tokens));
  require_writable(options.plot);

  struct Place {
    Shape shape;
    std::int64_t tokens;
  };
  std::vector<Place> places;
  Json left_out = Json::array();
  double work = 0;
  for (const Shape& shape : shapes)
    for (const std::int64_t tokens : options.depths) {
      const double memory = memory_of(shape, tokens, settings.size()), free = static_cast<double>(kernel::free_memory()) / 2;
      if (memory <= free) {
        places.push_back({shape, tokens});
        work += work_of(shape, tokens, rounds_of(shape, tokens, options.repeat));
      } else {
        left_out.push_back({{"shape", shape.name()}, {"tokens", tokens},
                            {"why", fmt::format("it needs {}, half of the free memory is {}", bytes_text(memory), bytes_text(free))}});
      }
    }
  const auto say_left_out = [&](std::FILE* to) {
    for (const Json& one : left_out)
      fmt::print(to, "{}, {} tokens is left out: {}\n", one["shape"].get<std::string>(), one["tokens"].get<std::int64_t>(), one["why"].get<std::string>());
  };
  if (places.empty()) throw Failure(exit_failed, fmt::format("bench: nothing fits: {}", left_out[0]["why"].get<std::string>()));

  std::string no_ggml;
  std::vector<Point> points;
  auto progress = std::make_unique<Progress>(work);
  for (const auto& [shape, tokens] : places) {
    const auto ggml = kernel::load_ggml_attention(shape, tokens, options.threads, no_ggml);
    points.push_back(measure(shape, tokens, settings, options, ggml.get(), *progress));
  }
  progress.reset();

  if (!options.plot.empty()) write_file(options.plot, plot_of_points(points, options.depths, no_ggml.empty()));
  if (options.json) {
    Json list = Json::array();
    for (const Point& point : points) list.push_back(json_of(point));
    print_json({{"threads", options.threads}, {"instruction_set", adamas::device_in_use()}, {"ggml_left_out", no_ggml.empty() ? Json(nullptr) : Json(no_ggml)},
                {"points", list}, {"left_out", left_out}});
    return exit_ok;
  }
  fmt::print("one step of one attention layer, {}, {} threads, {}\n\n", points.front().first().name, options.threads, adamas::device_in_use());
  for (const Point& point : points) print_stages(point);
  print_steps(points);
  if (!no_ggml.empty()) fmt::print("\nggml's attention is not measured: {}\n", no_ggml);
  if (!left_out.empty()) fmt::print("\n");
  say_left_out(stdout);
  return exit_ok;
}

}  // namespace cli
