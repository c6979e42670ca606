// adamas bench --kernel --prompt-rows N: what attention of a prompt takes, N rows of one layer at a time, beside ggml's.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "bench.h"
#include "eval/table.h"
#include "failure.h"
#include "kernel/data.h"
#include "kernel/ggml_attention.h"
#include "kernel/show.h"
#include "median.h"
#include "output.h"

namespace cli {
namespace {

using namespace kernel;

struct PromptTimes {
  Shape shape;
  std::int64_t tokens, rows;
  std::vector<double> ours, ggml;  // seconds of a step, in turn; ggml: empty where there is none

  // A product and a sum are two, of every token that a row sees; two products a dimension.
  double operations() const {
    const double seen = static_cast<double>(rows) * (static_cast<double>(tokens) - (static_cast<double>(rows) - 1) / 2);
    return 4 * seen * shape.q_heads * shape.head_dim;
  }
  double ratio() const { return ggml.empty() ? NAN : median(ggml) / median(ours); }
};

// The last `rows` rows of a context of so many tokens.
PromptTimes measure(const Shape& shape, std::int64_t tokens, const BenchOptions& options, GgmlAttention* ggml) {
  const std::int64_t rows = std::min(options.prompt_rows, tokens);
  PromptTimes measured{shape, tokens, rows, {}, {}};
  const Layer layer(shape, tokens, 0, options.threads);
  std::vector<float> q;
  for (std::int64_t row = 0; row < rows; row++) {
    const std::vector<float> one = layer.query(row);
    q.insert(q.end(), one.begin(), one.end());
  }
  std::vector<float> out(q.size()), ggml_out(q.size());
  const adamas::Config config{.policy = adamas::Policy::full};
  adamas::Cache cache({.kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .capacity = tokens}, config);
  adamas::Plan plan({.q_heads = shape.q_heads,
                     .kv_heads = shape.kv_heads,
                     .head_dim = shape.head_dim,
                     .max_tokens = tokens,
                     .max_threads = options.threads},
                    config);
  const adamas::RowsStrides strides{.head = shape.head_dim, .token = std::int64_t{shape.kv_heads} * shape.head_dim};
  for (std::int64_t i = 0; i <= options.repeat; i++) {  // the first warms up
    const auto start = std::chrono::steady_clock::now();
    plan.step(cache, {.q = q,
                      .k = {layer.k(), strides},
                      .v = {layer.v(), strides},
                      .out = out,
                      .rows = rows,
                      .lengths = {&tokens, 1},
                      .causal = true,
                      .threads = options.threads});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double theirs = ggml != nullptr ? ggml->step(q.data(), layer.k(), layer.v(), tokens, rows, ggml_out.data()) : 0;
    if (i == 0) continue;
    measured.ours.push_back(seconds);
    if (ggml != nullptr) measured.ggml.push_back(theirs);
  }
  if (ggml != nullptr) require_equal(out, ggml_out);
  return measured;
}

}  // namespace

int bench_prompt(const BenchOptions& options, const std::vector<Shape>& shapes) {
  if (!options.plot.empty()) throw Failure(exit_usage, "bench: --plot is not drawn of a prompt (--prompt-rows)");
  if (options.device != "cpu") throw Failure(exit_usage, "bench: --prompt-rows is measured on a CPU");
  for (const std::int64_t tokens : options.depths)
    if (tokens == 0) throw Failure(exit_usage, "bench: --depth 0: with --prompt-rows at least 1 token");
  std::string no_ggml;
  std::vector<PromptTimes> all;
  for (const Shape& shape : shapes)
    for (const std::int64_t tokens : options.depths) {
      const auto ggml = load_ggml_attention(shape, options.threads, no_ggml);
      all.push_back(measure(shape, tokens, options, ggml.get()));
    }
  if (options.json) {
    Json list = Json::array();
    for (const PromptTimes& one : all)
      list.push_back({{"shape", one.shape.name()},
                      {"tokens", one.tokens},
                      {"rows", one.rows},
                      {"operations", one.operations()},
                      {"microseconds", median(one.ours) * 1e6},
                      {"ggml_microseconds", one.ggml.empty() ? Json(nullptr) : Json(median(one.ggml) * 1e6)},
                      {"over_ggml", one.ggml.empty() ? Json(nullptr) : Json(one.ratio())}});
    print_json({{"threads", options.threads},
                {"instruction_set", adamas::isa_in_use()},
                {"ggml_left_out", no_ggml.empty() ? Json(nullptr) : Json(no_ggml)},
                {"points", list}});
    return exit_ok;
  }
  fmt::print("attention of {} rows of a prompt, one layer, {} threads, {}; medians of {}\n\n", options.prompt_rows,
             options.threads, adamas::isa_in_use(), options.repeat);
  Table table({"shape", "tokens", "ms", "G/s", "ggml, ms", "G/s", "over ggml"}, 1);
  for (const PromptTimes& one : all) {
    const auto milliseconds = [](double seconds) { return fmt::format("{:.2f}", seconds * 1e3); };
    const auto rate = [&](double seconds) { return fmt::format("{:.0f}", one.operations() / seconds / 1e9); };
    const bool theirs = !one.ggml.empty();
    table.add({one.shape.name(), std::to_string(one.tokens), milliseconds(median(one.ours)), rate(median(one.ours)),
               theirs ? milliseconds(median(one.ggml)) : "-", theirs ? rate(median(one.ggml)) : "-",
               theirs ? fmt::format("{:.2f}x", one.ratio()) : "-"});
  }
  table.print();
  fmt::print("\nG/s: 10^9 products and sums a second, of the tokens that a row sees.\n");
  if (!no_ggml.empty()) fmt::print("ggml's attention is not measured: {}\n", no_ggml);
  return exit_ok;
}

}  // namespace cli
