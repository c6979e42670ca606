// adamas eval recall and tune: what the selections of a model's layers and heads hold of what they should.
//
// The text is read densely, so every setting sees the same K. At each sample one token is decoded with every setting in
// turn, the context cut back in between; the observer computes the true scores of that step from q and K and compares.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>

#include "../failure.h"
#include "../pages.h"
#include "../settings.h"
#include "options.h"
#include "progress.h"
#include "results.h"
#include "settings_file.h"
#include "table.h"
#include "truth.h"

namespace cli {
namespace {

constexpr double HeadTruth::*measures[] = {&HeadTruth::top_found, &HeadTruth::mass_true, &HeadTruth::mass_estimated,
                                           &HeadTruth::noise,     &HeadTruth::tokens,    &HeadTruth::needed};
constexpr const char* measure_names[] = {"top_found", "mass_true", "mass_estimated", "noise", "tokens", "needed"};

// The mean of what is a number.
class Mean {
 public:
  void add(double value) {
    if (std::isnan(value)) return;
    sum_ += value;
    count_ += 1;
  }
  double value() const { return count_ > 0 ? sum_ / count_ : std::numeric_limits<double>::quiet_NaN(); }

 private:
  double sum_ = 0;
  double count_ = 0;
};

Json number(double value) { return std::isnan(value) ? Json(nullptr) : Json(value); }

// Means over the samples, [layers seen][q_heads][measures].
using Heads = std::vector<std::array<Mean, std::size(measures)>>;
using Layers = std::map<std::size_t, Heads>;

// Decodes one token and forgets it.
void measure(const Case& one, Context& context, Token token, double enough, Layers& layers) {
  const Observer observer([&](const adamas_observation& observation) {
    if (observation.stats->rows_sparse == 0) return;  // nothing was selected: the context is still below min_context
    const std::vector<HeadTruth> truths = truth_of(observation, enough);
    Heads& heads = layers[static_cast<std::size_t>(observation.layer)];
    heads.resize(truths.size());
    for (std::size_t head = 0; head < truths.size(); ++head)
      for (std::size_t i = 0; i < std::size(measures); ++i) heads[head][i].add(truths[head].*measures[i]);
  });
  const std::int64_t length = context.length();
  configure(one.config, one.file);
  context.decode({&token, 1}, 1);
  context.cut(length);
}

// Of all cases: a row for each layer and head.
Json rows_of(const std::vector<Case>& cases, const std::vector<Layers>& results) {
  Json rows = Json::array();
  for (std::size_t i = 0; i < cases.size(); ++i)
    for (const auto& [layer, heads] : results[i])
      for (std::size_t head = 0; head < heads.size(); ++head) {
        Json row = json_of(cases[i], cases);
        row.update({{"layer", layer}, {"head", head}});
        for (std::size_t k = 0; k < std::size(measures); ++k) row[measure_names[k]] = number(heads[head][k].value());
        rows.push_back(row);
      }
  return rows;
}

Json measure_all(const LoadedModel& model, const EvalOptions& options, const std::vector<Case>& cases, const Tokens& tokens,
                 const RecallOptions& what) {
  Context context(model, {.tokens = what.context, .threads = options.threads});
  std::vector<Layers> results(cases.size());
  Progress progress(static_cast<double>(what.context));
  // Samples lie evenly in the second half of the context; the first token of the next stretch is the one that was sampled.
  for (std::int64_t sample = 1; sample <= what.samples; ++sample) {
    const std::int64_t next = what.context / 2 + (what.context - what.context / 2) * sample / what.samples - 1;
    const std::int64_t begin = context.length();
    configure(engine_only());
    context.decode(std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(next - begin)));
    for (std::size_t i = 0; i < cases.size(); ++i)
      measure(cases[i], context, tokens[static_cast<std::size_t>(next)], what.enough, results[i]);
    progress.advance(static_cast<double>(next - begin), fmt::format("sample {} of {}", sample, what.samples));
  }
  return rows_of(cases, results);
}

// ---- a layer: the mean of its heads, and the worst of them ----------------------------------------------------------

struct LayerMeans {
  std::map<std::string, Mean> mean;
  double worst_found = 1, worst_mass = 1;
};

std::map<std::size_t, LayerMeans> by_layer(const Json& rows, const Case& one, const std::vector<Case>& cases) {
  const Json description = json_of(one, cases);
  std::map<std::size_t, LayerMeans> layers;
  for (const Json& row : rows) {
    bool is_ours = true;
    for (const auto& [name, value] : description.items()) is_ours &= row.at(name) == value;
    if (!is_ours) continue;
    LayerMeans& layer = layers[row["layer"].get<std::size_t>()];
    for (const char* name : measure_names)
      if (row[name].is_number()) layer.mean[name].add(row[name].get<double>());
    layer.worst_found = std::min(layer.worst_found, row["top_found"].get<double>());
    layer.worst_mass = std::min(layer.worst_mass, row["mass_true"].get<double>());
  }
  return layers;
}

std::string title_of(const Case& one, const std::vector<Case>& cases) {
  std::string title = one.policy;
  if (!one.estimator.empty()) title += " " + one.estimator;
  title += one.budget > 0 ? fmt::format(", {} tokens", one.budget) : std::string(", an automatic budget");
  if (const std::string label = label_of(one, cases); !label.empty()) title += ", " + label;
  return title;
}

void print_text(const Json& rows, const std::vector<Case>& cases, const RecallOptions& what) {
  const auto text = [](double value, int digits) { return std::isnan(value) ? "-" : fmt::format("{:.{}f}", value, digits); };
  for (const Case& one : cases) {
    fmt::print("{}\n\n", title_of(one, cases));
    Table table({"layer", "top found", "worst head", "mass", "worst head", "estimated", "noise", "tokens read", "needed"},
                0);
    std::vector<std::size_t> poor;
    double needed = 0;
    auto layers = by_layer(rows, one, cases);
    for (auto& [index, layer] : layers) {
      const auto mean = [&, &means = layer.mean](const char* name) { return means[name].value(); };
      table.add({std::to_string(index), text(mean("top_found"), 3), text(layer.worst_found, 3), text(mean("mass_true"), 3),
                 text(layer.worst_mass, 3), text(mean("mass_estimated"), 3), text(mean("noise"), 2), text(mean("tokens"), 1),
                 text(mean("needed"), 1)});
      if (mean("mass_true") >= what.enough) continue;
      poor.push_back(index);
      needed = std::max(needed, mean("needed"));
    }
    table.print();
    if (layers.empty())
      fmt::print("\nNo layer ran sparse: `adamas check` says why.\n\n");
    else if (poor.empty())
      fmt::print("\nEvery layer reads {:.0f}% of its softmax or more.\n\n", 100 * what.enough);
    else
      fmt::print(
          "\nLayer{} {}: less than {:.0f}% of the softmax is read there. The highest true scores would need up to {:.0f} "
          "tokens for "
          "it, on average; give {} a larger budget or a smaller share, or leave {} dense.\n\n",
          poor.size() == 1 ? "" : "s", ranges_text(poor), 100 * what.enough, std::ceil(needed),
          poor.size() == 1 ? "it" : "them", poor.size() == 1 ? "it" : "them");
  }
}

// ---- tune -----------------------------------------------------------------------------------------------------------

// For each layer the first case, the cheapest coming first, that reads enough there; dense if none does.
std::map<std::size_t, Case> choose(const Json& rows, const std::vector<Case>& cases, double enough) {
  std::map<std::size_t, Case> chosen;
  for (const Case& one : cases)
    for (auto& [index, layer] : by_layer(rows, one, cases)) {
      if (layer.mean["mass_true"].value() >= enough) chosen.try_emplace(index, one);
      if (&one == &cases.back()) chosen.try_emplace(index, full_case());
    }
  return chosen;
}

void write_settings(const EvalOptions& options, const LoadedModel& model, const Json& rows, const std::vector<Case>& cases,
                    const RecallOptions& what) {
  const std::map<std::size_t, Case> chosen = choose(rows, cases, what.enough);
  if (chosen.empty())
    throw Failure(exit_failed, "no layer ran sparse, so there is nothing to tune; `adamas check` says why");
  const std::string text = settings_text(
      chosen, {fmt::format("Settings for {}, written by adamas eval tune.", model.name()),
               fmt::format("Each layer reads {:.0f}% of its softmax or more, on average over its heads and {} tokens of {},",
                           100 * what.enough, what.samples, short_name(what.file)),
               fmt::format("in a context of up to {} tokens.", what.context)});
  write_file(what.config, text);
  if (options.json) return;
  Table table({"layer", "policy", "budget", "mass", "worst head"}, 2);
  for (const auto& [index, one] : chosen) {
    const LayerMeans layer = one.full() ? LayerMeans{} : by_layer(rows, one, cases).at(index);
    table.add({std::to_string(index), one.policy, one.budget_text(),
               one.full() ? "1" : fmt::format("{:.3f}", layer.mean.at("mass_true").value()),
               one.full() ? "1" : fmt::format("{:.3f}", layer.worst_mass)});
  }
  table.print();
  fmt::print("\nWritten to {}\n", what.config);
}

// What a section of a settings file cannot say has to be one value in all cases.
void require_alike(const std::vector<Case>& cases) {
  for (const Case& one : cases)
    for (const auto& [name, value] : one.others)
      if (is_of_whole_model(name) && std::find(cases.front().others.begin(), cases.front().others.end(),
                                               std::pair(name, value)) == cases.front().others.end())
        throw Failure(exit_usage, fmt::format("eval tune: {} is a setting of the whole model: give it one value", name));
}

}  // namespace

int recall(const EvalOptions& options, const RecallOptions& what) {
  if (what.file.empty())
    throw Failure(exit_usage, fmt::format("eval {}: the text is missing; for example: --file book.txt", options.kind));
  const bool tune = options.kind == "tune";
  if (tune && what.config.empty())
    throw Failure(exit_usage, "eval tune: say where the settings go; for example: --config settings.txt");
  if (what.samples > what.context / 2)
    throw Failure(exit_usage, fmt::format("--samples {}: half of a context of {} tokens has {}", what.samples, what.context,
                                          what.context / 2));
  std::vector<Case> cases = options.cases;
  std::erase_if(cases, [](const Case& one) { return one.full(); });  // which selects nothing
  if (tune)                                                          // the cheapest first
    std::stable_sort(cases.begin(), cases.end(), [](const Case& a, const Case& b) {
      return std::pair(a.budget, -a.config.share) < std::pair(b.budget, -b.config.share);
    });
  if (cases.empty())
    throw Failure(exit_usage, fmt::format("eval {}: the policy full selects nothing; name another", options.kind));

  if (tune) require_alike(cases);
  const std::string text = read_text(what.file);
  const LoadedModel model(options.model);
  const Tokens tokens = model.tokenize(text);
  if (std::ssize(tokens) < what.context)
    throw Failure(exit_failed, fmt::format("{} has {} tokens; {} are needed", what.file, tokens.size(), what.context));
  check_room(model, 1, what.context);
  if (tune && std::filesystem::is_regular_file(what.config))
    fmt::print(stderr, "adamas: {} is there already; it is replaced at the end\n", what.config);

  Finished finished = finished_of(options, {hash_of(text), what.context, what.samples, what.enough}, {"all"});
  if (finished.find("all") == nullptr) finished.add("all", measure_all(model, options, cases, tokens, what));
  Json rows = Json::array();
  for (const Json& measured : *finished.find("all")) {
    Json row{{"file", short_name(what.file)}, {"model", model.name()}, {"context", what.context}, {"samples", what.samples}};
    row.update(measured);
    rows.push_back(row);
  }
  if (!options.json && !tune) print_text(rows, cases, what);
  if (tune) write_settings(options, model, rows, cases, what);
  deliver(options, model, rows);
  return exit_ok;
}

}  // namespace cli
