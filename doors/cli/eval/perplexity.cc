// adamas eval perplexity: how much worse a model predicts a text when each query head reads only its budget of tokens.
//
// All cases read the same tokens in lockstep, each in a context of its own, batch after batch, `full` first: while its
// logits of a batch are at hand, every other case is compared with it token by token. So the differences are paired, and the
// error of a ratio is that of their mean and not that of two perplexities. The first tokens, whose attention is dense
// in every case (min_context), are read once.
//
// With --as-prompt the text is read as a prompt is, by the setting `prompt`, instead of with each row selecting for itself.
//
// A window is as llama-perplexity has it: `context` tokens of the text, the first replaced by the token that the model wants
// before a text, if it wants one; tokens behind `score_from` are scored.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include <adamas/adamas.hpp>

#include "options.h"
#include "progress.h"
#include "results.h"
#include "logit_stats.h"
#include "table.h"
#include "../failure.h"

namespace cli {
namespace {

// What one case did on the scored tokens; sums, so that windows add up.
struct Sums {
  double scored = 0;
  double loss = 0;        // negative log likelihood
  double difference = 0;  // of it, to full
  double difference_squared = 0;
  double kl = 0;
  double same_top = 0;
  double heads = 0;        // query heads of the sparse rows
  double tokens_read = 0;  // by these
  double mass = 0, guarded = 0, widened = 0;
  double seconds = 0;

  static constexpr double Sums::*fields[] = {&Sums::scored, &Sums::loss,     &Sums::difference, &Sums::difference_squared,
                                             &Sums::kl,     &Sums::same_top, &Sums::heads,      &Sums::tokens_read,
                                             &Sums::mass,   &Sums::guarded,  &Sums::widened,    &Sums::seconds};

  void add(const Sums& other) {
    for (const auto field : fields) this->*field += other.*field;
  }
};

Json json_of(const std::vector<Sums>& all) {
  Json lists = Json::array();
  for (const Sums& sums : all) {
    Json list = Json::array();
    for (const auto field : Sums::fields) list.push_back(sums.*field);
    lists.push_back(list);
  }
  return lists;
}

std::vector<Sums> sums_of(const Json& lists) {
  std::vector<Sums> all;
  for (const Json& list : lists) {
    Sums sums;
    for (std::size_t i = 0; i < std::size(Sums::fields); ++i)  // what is no number was written as null
      sums.*Sums::fields[i] = list.at(i).is_number() ? list.at(i).get<double>() : std::numeric_limits<double>::quiet_NaN();
    all.push_back(sums);
  }
  return all;
}

// As many rows as have 64 MiB of logits; the engine holds them twice. The numbers move in their last digits with the size of
// a batch, so it depends on the model alone.
std::int64_t rows_with_logits(const LoadedModel& model) {
  const std::int64_t fitting = (std::int64_t{64} << 20) / (model.vocabulary() * 4);
  return std::clamp<std::int64_t>(fitting / 64 * 64, 64, 512);
}

constexpr std::int64_t batch = 512;

class Measurement {
 public:
  Measurement(const LoadedModel& model, const EvalOptions& options, const PerplexityOptions& what)
      : model_(model),
        cases_(options.cases),
        what_(what),
        rows_(rows_with_logits(model)),
        threads_(options.threads),
        observer_([this](const adamas_observation& observation) { see(observation); }) {
    for (std::size_t i = 0; i < cases_.size(); ++i)
      contexts_.push_back(std::make_unique<Context>(
          model, ContextParams{.tokens = what.context, .batch = batch, .outputs = rows_, .threads = options.threads}));
    if (what.as_prompt) return;
    for (Case& one : cases_) one.config.rows = ADAMAS_ROWS_ALL;
    shared_prefix_ = what.score_from;
    for (const Case& one : cases_)
      shared_prefix_ = std::min(shared_prefix_, dense_rows(one) / ADAMAS_BLOCK_TOKENS * ADAMAS_BLOCK_TOKENS);
  }

  std::vector<Sums> window(std::span<const Token> text, Progress& progress, const std::string& doing) {
    Tokens tokens(text.begin(), text.end());
    if (const auto first = model_.first_token()) tokens.front() = *first;
    sums_.assign(cases_.size(), {});
    for (auto& context : contexts_) context->clear();

    // The last token predicts nothing that is in the window.
    const std::int64_t end = what_.context - 1;
    current_ = 0;
    for (std::int64_t first = 0; first < shared_prefix_; first += batch) {
      const std::int64_t size = std::min(batch, shared_prefix_ - first);
      read(std::span(tokens).subspan(first, size), false);
      progress.advance(static_cast<double>(size * std::ssize(cases_)), doing);
    }
    for (std::size_t i = 1; i < contexts_.size() && shared_prefix_ > 0; ++i) {
      contexts_[i]->copy(*contexts_[0]);
      sums_[i].seconds = sums_[0].seconds;  // it needs them as well
    }
    for (std::int64_t first = shared_prefix_; first < end;) {
      const bool scored = first >= what_.score_from;
      const std::int64_t size = scored ? std::min(rows_, end - first) : std::min(batch, what_.score_from - first);
      for (current_ = 0; current_ < cases_.size(); ++current_) {
        read(std::span(tokens).subspan(first, size), scored);
        if (scored) score(std::span(tokens).subspan(first + 1, size));
        progress.advance(static_cast<double>(size), doing);
      }
      first += size;
    }
    return sums_;
  }

 private:
  // So many first rows are dense in every layer.
  std::int64_t dense_rows(const Case& one) const {
    if (one.full()) return what_.context;
    std::int64_t least = one.config.min_context;
    for (std::int32_t layer = 0; layer < model_.layers() && !one.file.empty(); ++layer) {
      adamas_config config = one.config;
      adamas::detail::check(adamas_config_load(&config, one.file.c_str(), layer));
      least = std::min(least, config.min_context);
    }
    return std::max<std::int64_t>(0, least - 1);
  }

  void read(std::span<const Token> tokens, bool scored) {
    counting_ = scored;
    configure(cases_[current_].config, cases_[current_].file);
    const auto begin = std::chrono::steady_clock::now();
    contexts_[current_]->decode(tokens, scored ? std::ssize(tokens) : 0);
    sums_[current_].seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  // `targets`: the tokens that came after those of the batch.
  void score(std::span<const Token> targets) {
    const auto rows = std::ssize(targets);
    if (current_ == 0) full_.resize(targets.size());
    std::vector<std::span<const float>> logits, full_logits;  // the engine answers one at a time
    for (std::int64_t row = 0; row < rows; ++row) {
      logits.push_back(contexts_[current_]->logits(row));
      full_logits.push_back(contexts_[0]->logits(row));
    }
    std::vector<Sums> of_row(targets.size());
#pragma omp parallel for num_threads(threads_) schedule(static)
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto row = static_cast<std::size_t>(i);
      const auto token = static_cast<std::size_t>(targets[row]);
      const Prediction prediction = prediction_of(logits[row]);
      if (current_ == 0) full_[row] = prediction;
      Sums& sums = of_row[row];
      sums.scored = 1;
      sums.loss = -prediction.log_probability(logits[row][token]);
      sums.difference = sums.loss + full_[row].log_probability(full_logits[row][token]);
      sums.difference_squared = sums.difference * sums.difference;
      sums.kl = current_ == 0 ? 0 : divergence(full_logits[row], full_[row], logits[row], prediction);
      sums.same_top = prediction.top == full_[row].top;
    }
    for (const Sums& sums : of_row) sums_[current_].add(sums);
  }

  void see(const adamas_observation& observation) {
    if (!counting_) return;
    const adamas_step_stats& stats = *observation.stats;
    Sums& sums = sums_[current_];
    sums.tokens_read += static_cast<double>(stats.tokens_selected);
    sums.heads += static_cast<double>(stats.heads_sparse);
    sums.mass += stats.mass;
    sums.guarded += static_cast<double>(stats.heads_guarded);
    sums.widened += static_cast<double>(stats.heads_widened);
  }

  const LoadedModel& model_;
  std::vector<Case> cases_;
  const PerplexityOptions& what_;
  const std::int64_t rows_;
  const int threads_;
  std::int64_t shared_prefix_ = 0;  // first tokens that are read alike in every case
  std::vector<std::unique_ptr<Context>> contexts_;
  std::vector<Sums> sums_;        // of this window, by case
  std::vector<Prediction> full_;  // of this batch, by row
  std::size_t current_ = 0;       // the case whose turn it is
  bool counting_ = false;
  Observer observer_;
};

// ---- output ---------------------------------------------------------------------------------------------------------

double perplexity_of(const Sums& sums) { return std::exp(sums.loss / sums.scored); }
double ratio_of(const Sums& sums) { return std::exp(sums.difference / sums.scored); }

// Of the ratio, from the paired differences d of the scored tokens: ratio * sd(d) / sqrt(n).
double ratio_error(const Sums& sums) {
  const double mean = sums.difference / sums.scored;
  const double variance = std::max(0.0, sums.difference_squared / sums.scored - mean * mean);
  return ratio_of(sums) * std::sqrt(variance / std::max(1.0, sums.scored - 1));
}

// A share of nothing is unknown.
Json share(double part, double whole) {
  return whole > 0 && std::isfinite(part / whole) ? Json(part / whole) : Json(nullptr);
}

Json row_of(const Case& one, const std::vector<Case>& all, const Sums& sums) {
  Json row = json_of(one, all);
  row.update({{"perplexity", perplexity_of(sums)},
              {"ratio", ratio_of(sums)},
              {"ratio_error", ratio_error(sums)},
              {"kl", sums.kl / sums.scored},
              {"same_top", sums.same_top / sums.scored},
              {"mass", share(sums.mass, sums.heads)},
              {"tokens_read", share(sums.tokens_read, sums.heads)},
              {"seconds", sums.seconds},
              {"guarded", share(sums.guarded, sums.heads)},
              {"widened", share(sums.widened, sums.heads)},
              {"scored", sums.scored}});
  return row;
}

std::string text_of(const Json& value, int digits) {
  return value.is_number() ? fmt::format("{:.{}f}", value.get<double>(), digits) : "-";
}

std::string word_of(const Json& value) {
  return value.is_string()   ? value.get<std::string>()
         : value.is_number() ? fmt::format("{}", value.get<std::int64_t>())
                             : "-";
}

std::string windows_text(const PerplexityOptions& what) {
  return what.chunks == 1 ? "a window" : fmt::format("{} windows", what.chunks);
}

void print_text(const Json& rows, const PerplexityOptions& what) {
  Table table(
      {"policy", "estimator", "budget", "perplexity", "ratio", "+-", "KL", "same top", "mass", "tokens read", "seconds", ""},
      2);
  for (const Json& row : rows)
    table.add({word_of(row["policy"]), word_of(row["estimator"]), word_of(row["budget"]), text_of(row["perplexity"], 4),
               text_of(row["ratio"], 4), text_of(row["ratio_error"], 4), text_of(row["kl"], 4), text_of(row["same_top"], 3),
               text_of(row["mass"], 3), text_of(row["tokens_read"], 1), text_of(row["seconds"], 1),
               row["label"].is_null() ? "" : row["label"].get<std::string>()});
  fmt::print("{}: {} of {}, {} scored, those behind the first {} of each\n\n", rows[0]["file"].get<std::string>(),
             windows_text(what), counted(what.context, "token"),
             counted(static_cast<std::int64_t>(rows[0]["scored"].get<double>()), "token"), what.score_from + 1);
  table.print();
  fmt::print("\n");
}

std::string why_dense(const Case& one, std::int64_t tokens) {
  const std::string why = why_all_dense(one.config, one.file, tokens);
  return why.empty() ? no_layer_sparse : why;
}

void check(const PerplexityOptions& what) {
  if (what.files.empty()) throw Failure(exit_usage, "eval perplexity: the text is missing; for example: --file book.txt");
  if (what.score_from >= what.context - 1)
    throw Failure(exit_usage,
                  fmt::format("--score-from {} leaves nothing to score in a context of {} tokens; it is at most {}",
                              what.score_from, what.context, what.context - 2));
}

}  // namespace

int perplexity(const EvalOptions& options, const PerplexityOptions& asked) {
  PerplexityOptions what = asked;
  if (what.score_from == 0) what.score_from = what.context / 2;
  check(what);
  std::vector<std::string> texts, parts;
  Json text_hashes = Json::array();
  for (const std::string& file : what.files) {
    texts.push_back(read_text(file));
    text_hashes.push_back(hash_of(texts.back()));
    for (std::int64_t chunk = 0; chunk < what.chunks; ++chunk)
      parts.push_back(fmt::format("{} {}", text_hashes.size() - 1, chunk));
  }

  const LoadedModel model(options.model);
  std::vector<Tokens> tokens;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    tokens.push_back(model.tokenize(texts[i]));
    if (std::ssize(tokens[i]) < what.context * what.chunks)
      throw Failure(exit_failed,
                    fmt::format("{} has {} tokens; {} of {} tokens: {} are needed", what.files[i], tokens[i].size(),
                                windows_text(what), what.context, what.context * what.chunks));
  }
  Finished finished = finished_of(options, {text_hashes, what.context, what.score_from, what.as_prompt}, parts);
  const double part_work = static_cast<double>((what.context - 1) * std::ssize(options.cases));
  auto progress = std::make_unique<Progress>(part_work * static_cast<double>(parts.size()));
  std::unique_ptr<Measurement> measurement;  // made when there is something to measure
  std::vector<Json> rows;                    // by file
  std::vector<std::string> reasons(options.cases.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::vector<Sums> sums(options.cases.size());
    for (std::int64_t chunk = 0; chunk < what.chunks; ++chunk) {
      const std::string part = fmt::format("{} {}", i, chunk);
      if (finished.find(part) != nullptr) {
        progress->skip(part_work);
      } else {
        if (!measurement) {
          check_room(model, std::ssize(options.cases), what.context);
          measurement = std::make_unique<Measurement>(model, options, what);
        }
        const auto text = std::span(tokens[i]).subspan(static_cast<std::size_t>(chunk * what.context),
                                                       static_cast<std::size_t>(what.context));
        finished.add(part, json_of(measurement->window(text, *progress, short_name(what.files[i]))));
      }
      const std::vector<Sums> done = sums_of(*finished.find(part));
      for (std::size_t k = 0; k < sums.size(); ++k) sums[k].add(done.at(k));
    }
    rows.push_back(Json::array());
    for (std::size_t k = 0; k < sums.size(); ++k) {
      if (sums[k].heads == 0)  // alike in every file
        reasons[k] = what.as_prompt ? "the text was read as a prompt" : why_dense(options.cases[k], what.context - 1);
      Json row{{"file", short_name(what.files[i])}, {"model", model.name()}, {"context", what.context}};
      row.update(row_of(options.cases[k], options.cases, sums[k]));
      rows.back().push_back(row);
    }
  }
  progress.reset();  // its line goes before the table comes

  Json all = Json::array();
  for (const Json& of_file : rows) {
    if (!options.json) print_text(of_file, what);
    all.insert(all.end(), of_file.begin(), of_file.end());
  }
  print_dense(options, reasons);
  deliver(options, model, all);
  return exit_ok;
}

}  // namespace cli
