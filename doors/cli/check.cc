// adamas check: what of a model will run sparse, what its codes cost, and whether the kernels are right at its shapes: those
// of every instruction set, or those of a GPU.
#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <sstream>
#include <tuple>

#include <fmt/format.h>

#include "commands.h"
#include "model.h"
#include "output.h"
#include "self_test.h"
#include "verdict.h"

namespace cli {
namespace {

struct Memory {
  std::uint64_t codes = 0;   // of the layers that run sparse
  std::uint64_t kv_f16 = 0;  // K and V of the same layers
};

// What is tested: shapes with their settings. Of layers that are alike one.
using Tested = std::map<std::pair<AttentionShape, std::string>, adamas::Config>;

struct Report {
  bool has_model = false;  // the rest up to `gpu` is of it
  Model model;
  std::int64_t context = 0;
  std::vector<adamas::Config> configs;     // [layers]
  bool by_layer = false;                   // there is a settings file, which may have sections
  std::vector<std::string> dense_reasons;  // [layers]; empty: sparse
  Memory memory;
  bool gpu = false;
  std::vector<Kernels> kernels;
  std::vector<SelfTest> tests;

  std::size_t sparse_layers() const {
    return static_cast<std::size_t>(std::count(dense_reasons.begin(), dense_reasons.end(), ""));
  }
  bool passed() const {
    return std::all_of(tests.begin(), tests.end(), [](const SelfTest& test) { return test.failure.empty(); });
  }
};

std::uint64_t code_bytes(const Layer& layer, std::int64_t tokens, const adamas::Config& config) {
  return adamas::Cache({.kv_heads = static_cast<std::int32_t>(layer.kv_heads),
                        .head_dim = static_cast<std::int32_t>(layer.key_dim),
                        .capacity = tokens},
                       config)
      .bytes();
}

// All settings as one text, by which they can be ordered.
std::string text_of(const adamas::Config& config) {
  std::string text;
  for (const adamas_setting& setting : adamas::settings()) text += config.get(setting.name) + " ";
  return text;
}

Memory memory_of(const Report& report) {
  Memory memory;
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::string>, std::uint64_t> known;  // most layers are alike
  for (std::size_t i = 0; i < report.model.layers.size(); ++i) {
    const Layer& layer = report.model.layers[i];
    if (!report.dense_reasons[i].empty() || layer.shares_cache) continue;
    const std::int64_t tokens = cached_tokens(layer, report.context);
    const auto [place, is_new] = known.try_emplace({layer.kv_heads, layer.key_dim, tokens, text_of(report.configs[i])});
    if (is_new) place->second = code_bytes(layer, tokens, report.configs[i]);
    memory.codes += place->second;
    memory.kv_f16 += static_cast<std::uint64_t>(tokens * layer.kv_heads * (layer.key_dim + layer.value_dim) * 2);
  }
  return memory;
}

// The highest layer that a section names, or -1. The file was read before: its sections are as they should be.
std::int64_t highest_layer(const std::string& settings_file) {
  std::int64_t highest = -1;
  std::ifstream file(settings_file);
  for (std::string line; std::getline(file, line);) {
    line.resize(std::min(line.size(), line.find('#')));
    const std::size_t first = line.find_first_not_of(" \t");
    if (first == std::string::npos || line[first] != '[') continue;
    std::replace_if(
        line.begin(), line.end(), [](unsigned char c) { return std::isdigit(c) == 0; }, ' ');
    std::istringstream numbers(line);
    for (std::int64_t layer; numbers >> layer;) highest = std::max(highest, layer);
  }
  return highest;
}

std::vector<adamas::Config> configs_of(const adamas::Config& config, const std::string& settings_file, std::size_t layers) {
  std::vector<adamas::Config> configs(layers, config);
  if (settings_file.empty()) return configs;
  for (std::size_t i = 0; i < layers; ++i) configs[i].load(settings_file, static_cast<std::int32_t>(i));
  if (const std::int64_t highest = highest_layer(settings_file); highest >= static_cast<std::int64_t>(layers))
    fmt::print(stderr, "adamas: {} has settings for layer {}; the last layer of this model is {}\n", settings_file, highest,
               layers - 1);
  return configs;
}

// Fills in what a report says of the model.
Tested examine_model(Report& report, const CheckOptions& options, const adamas::Config& config,
                     const std::string& settings_file) {
  report.has_model = true;
  report.model = model_of(read_gguf(options.model));
  report.by_layer = !settings_file.empty();
  report.context = options.context > 0 ? options.context : report.model.context;
  if (report.context == 0)
    throw Failure(exit_usage, "the file does not say which context it was made for; give one with --context");

  report.configs = configs_of(config, settings_file, report.model.layers.size());
  Tested tested;
  for (std::size_t i = 0; i < report.model.layers.size(); ++i) {
    const Layer& layer = report.model.layers[i];
    report.dense_reasons.push_back(why_dense(report.model, i, report.context, report.configs[i]));
    if (!report.dense_reasons.back().empty() || report.configs[i].policy != adamas::Policy::adamas) continue;
    const AttentionShape shape{layer.q_heads, layer.kv_heads, layer.key_dim, report.model.softcap, report.model.alibi};
    tested.try_emplace({shape, text_of(report.configs[i])}, report.configs[i]);
  }
  report.memory = memory_of(report);
  return tested;
}

// Without a model: every head_dim.
Tested every_head_dim(const adamas::Config& config) {
  Tested tested;
  if (config.policy != adamas::Policy::adamas) return tested;
  for (const std::int32_t head_dim : adamas::head_dims())
    tested.try_emplace({{.q_heads = 8, .kv_heads = 2, .head_dim = head_dim}, text_of(config)}, config);
  return tested;
}

Report examine(const CheckOptions& options, const adamas::Config& config, const std::string& settings_file) {
  Report report;
  const Tested tested =
      options.model.empty() ? every_head_dim(config) : examine_model(report, options, config, settings_file);
  report.gpu = options.device == "cuda";
  if (report.gpu)
    report.kernels = {{ADAMAS_DEVICE_CUDA, adamas_gpu_name(0)}};
  else
    for (const std::string& isa : adamas::instruction_sets()) report.kernels.push_back({ADAMAS_DEVICE_CPU, isa});
  const std::vector<std::int64_t> page_tokens =
      report.gpu ? std::vector<std::int64_t>{0, ADAMAS_BLOCK_TOKENS} : std::vector<std::int64_t>{0};
  for (const auto& [of, its_config] : tested)
    for (const std::int64_t tokens : page_tokens)
      report.tests.push_back(self_test(of.first, its_config, report.kernels, tokens));
  return report;
}

// ---- text ----------------------------------------------------------------------------------------------------------

std::string layer_text(const Report& report, std::size_t index) {
  const Layer& layer = report.model.layers[index];
  if (!report.dense_reasons[index].empty()) return "dense: " + report.dense_reasons[index];
  std::string text = fmt::format("sparse: {}, {}, head_dim {}", counted(layer.q_heads, "query head"),
                                 counted(layer.kv_heads, "KV head"), layer.key_dim);
  if (layer.window > 0) text += fmt::format(", a sliding window of {} tokens", layer.window);
  if (layer.key_dim % 32 != 0) text += ", no quantised K and V (not a multiple of 32)";
  if (report.by_layer) text += fmt::format(", budget {}", report.configs[index].get("budget"));
  if (layer.shares_cache) text += ", with the K and V of an earlier layer";
  return text;
}

void print_layers(const Report& report) {
  std::vector<std::pair<std::string, std::vector<std::size_t>>> groups;  // alike layers, by their first
  for (std::size_t i = 0; i < report.model.layers.size(); ++i) {
    const std::string text = layer_text(report, i);
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == text; });
    if (group == groups.end()) group = groups.insert(group, {text, {}});
    group->second.push_back(i);
  }
  fmt::print("{} of {} layers run sparse at {}\n", report.sparse_layers(), report.model.layers.size(),
             counted(report.context, "token"));
  for (const auto& [text, layers] : groups)
    fmt::print("  layer{} {}: {}\n", layers.size() == 1 ? "" : "s", ranges_text(layers), text);
}

void print_model(const Report& report) {
  const Model& model = report.model;
  fmt::print("{} ({}), {} layers, context {}{}{}\n\n", model.name.empty() ? "a model" : model.name, model.architecture,
             model.layers.size(), model.context, model.softcap > 0 ? fmt::format(", softcap {}", model.softcap) : "",
             model.alibi > 0 ? fmt::format(", ALiBi up to {}", model.alibi) : "");
  print_layers(report);
  if (report.sparse_layers() == 0) return;
  fmt::print("\nmemory for their codes: {}, beside {} of K and V in f16 ({:.1f}%)\n\n",
             bytes_text(static_cast<double>(report.memory.codes)), bytes_text(static_cast<double>(report.memory.kv_f16)),
             100.0 * static_cast<double>(report.memory.codes) / static_cast<double>(report.memory.kv_f16));
}

void print_tests(const Report& report) {
  if (report.tests.empty()) {
    fmt::print("no self-test: it is one of the policy adamas\n");
    return;
  }
  std::vector<std::string> names;
  for (const Kernels& kernels : report.kernels) names.push_back(kernels.name);
  fmt::print("self-test with {}, against the definitions in double precision\n", fmt::join(names, ", "));
  for (const SelfTest& test : report.tests) {
    fmt::print("  {}, {}, head_dim {}{}: {}\n", counted(test.shape.q_heads, "query head"),
               counted(test.shape.kv_heads, "KV head"), test.shape.head_dim,
               test.page_tokens > 0 ? fmt::format(", in pages of {} tokens", test.page_tokens) : "",
               test.failure.empty() ? "passed" : "FAILED: " + test.failure);
    const auto line = [](const std::string& what, const Deviation& deviation) {
      if (deviation.bound > 0)  // else it was not compared
        fmt::print("    {:<24} largest error {:.1e}, bound {:.1e}\n", what, deviation.error, deviation.bound);
    };
    line(fmt::format("all of {} tokens", test.tokens), test.dense);
    line(fmt::format("{} of {} tokens", test.budget, test.tokens), test.sparse);
    line("a list and a rest", test.list);
  }
}

void print_text(const Report& report) {
  if (report.has_model) print_model(report);
  if (!report.has_model || report.sparse_layers() > 0) print_tests(report);
}

// ---- JSON ----------------------------------------------------------------------------------------------------------

Json json_of(const Deviation& deviation) { return {{"error", deviation.error}, {"bound", deviation.bound}}; }

Json json_of_model(const Report& report) {
  const Model& model = report.model;
  Json layers = Json::array();
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& layer = model.layers[i];
    const std::string& reason = report.dense_reasons[i];
    layers.push_back({{"layer", i},
                      {"q_heads", layer.q_heads},
                      {"kv_heads", layer.kv_heads},
                      {"key_dim", layer.key_dim},
                      {"value_dim", layer.value_dim},
                      {"window", layer.window},
                      {"sparse", reason.empty()},
                      {"why_dense", reason.empty() ? Json(nullptr) : Json(reason)}});
  }
  return {{"name", model.name},
          {"architecture", model.architecture},
          {"model_context", model.context},
          {"context", report.context},
          {"softcap", model.softcap},
          {"alibi", model.alibi},
          {"sparse_layers", report.sparse_layers()},
          {"layers", layers},
          {"memory", {{"codes_bytes", report.memory.codes}, {"kv_f16_bytes", report.memory.kv_f16}}}};
}

Json json_of(const Report& report) {
  Json document = report.has_model ? json_of_model(report) : Json::object();
  if (report.gpu)
    document["gpu"] = report.kernels.front().name;
  else
    document["instruction_sets"] = adamas::instruction_sets();
  Json tests = Json::array();
  for (const SelfTest& test : report.tests) {
    tests.push_back({{"q_heads", test.shape.q_heads},
                     {"kv_heads", test.shape.kv_heads},
                     {"head_dim", test.shape.head_dim},
                     {"tokens", test.tokens},
                     {"budget", test.budget},
                     {"dense", json_of(test.dense)},
                     {"sparse", json_of(test.sparse)},
                     {"list", test.list.bound > 0 ? json_of(test.list) : Json(nullptr)},
                     {"failure", test.failure.empty() ? Json(nullptr) : Json(test.failure)}});
    if (report.gpu) tests.back()["page_tokens"] = test.page_tokens;
  }
  document["self_tests"] = tests;
  document["passed"] = report.passed();
  return document;
}

}  // namespace

int check(Settings& settings, const CheckOptions& options) {
  const adamas::Config config = settings.load();
  const bool gpu = options.device == "cuda";
  if (gpu && adamas_gpu_count() == 0)
    throw Failure(exit_failed, fmt::format("check: --device cuda: {}", adamas_gpu_reason()));
  if (options.model.empty() && !gpu)
    throw Failure(exit_usage, "check: the model is missing; for example: adamas check MODEL.gguf");
  const Report report = examine(options, config, settings.file());
  options.json ? print_json(json_of(report)) : print_text(report);
  return report.passed() ? exit_ok : exit_failed;
}

}  // namespace cli
