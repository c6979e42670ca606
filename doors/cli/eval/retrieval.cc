// adamas eval passkey and needle: is something that was said once in a long text found again at its end?
//
// The prompt is read once for all settings, densely, as the engine reads prompts. Its last token, and with `--ask sparse`
// all tokens of the question, are then decoded with each setting, and so is the answer; in between the context is cut back
// to the prompt. What two prompts have in common at their start is kept as well: going through the depths reads half of what
// they hold.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "../failure.h"
#include "../settings.h"
#include "options.h"
#include "progress.h"
#include "results.h"
#include "table.h"

namespace cli {
namespace {

constexpr std::int64_t answer_tokens = 24;

struct Place {
  std::int64_t length;  // tokens of the prompt, at most
  double depth;         // 0: at the start of the text, 1: at its end
};

struct Prompt {
  std::string before, hidden, after;  // the text
  std::string question, lead;         // `lead` begins the answer
  std::string expected;               // the answer holds it
};

// ---- the texts ------------------------------------------------------------------------------------------------------

// The task of arXiv 2305.16300, nearly in the words by which it is known: asked for the digits, a small model answers with
// them.
constexpr const char* passkey_task =
    "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize it. I will ask "
    "you "
    "about it.\n";
constexpr const char* filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

Prompt passkey(const Place& place, std::int64_t fillers, std::int64_t seed) {
  const std::string mixed = hash_of(fmt::format("{} {} {}", seed, place.length, place.depth));
  const std::uint64_t key = 10000 + std::stoull(mixed, nullptr, 16) % 90000;
  const auto ahead = std::llround(place.depth * static_cast<double>(fillers));
  Prompt prompt{.before = passkey_task,
                .hidden = fmt::format("The pass key is {}. Remember it. {} is the pass key. ", key, key),
                .after = "",
                .question = "What is the pass key? Give only its digits.",
                .lead = "The digits of the pass key are",
                .expected = std::to_string(key)};
  for (std::int64_t i = 0; i < fillers; ++i) (i < ahead ? prompt.before : prompt.after) += filler;
  return prompt;
}

// A text is cut after a sentence, where there is one, so that the needle does not stand inside another.
std::size_t sentence_end(const std::string& text, std::size_t near) {
  near = std::min(near, text.size());
  const std::size_t stop = text.find_last_of(".!?\n", near == 0 ? 0 : near - 1);
  return stop == std::string::npos ? near : stop + 1;
}

Prompt needle(const Place& place, const std::string& text, const RetrievalOptions& what) {
  const std::size_t at = sentence_end(text, static_cast<std::size_t>(place.depth * static_cast<double>(text.size())));
  return {.before = text.substr(0, at),
          .hidden = " " + what.needle + " ",
          .after = text.substr(at),
          .question = what.question,
          .lead = what.lead,
          .expected = what.answer};
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// ---- reading and answering ------------------------------------------------------------------------------------------

class Reader {
 public:
  // `text`: of `needle`.
  Reader(const LoadedModel& model, const EvalOptions& options, const RetrievalOptions& what, const std::string& text)
      : model_(model),
        options_(options),
        what_(what),
        text_(model.tokenize(text)),
        context_(model, {.tokens = what.lengths.back() + answer_tokens, .threads = options.threads}) {}

  // A row for each case.
  Json answers(const Place& place) {
    const Prompt asked = prompt(place);
    const Tokens all = whole(asked);
    const std::int64_t dense = dense_part(asked, all);
    read(std::span(all).first(static_cast<std::size_t>(dense)));
    Json rows = Json::array();
    for (const Case& one : options_.cases) {
      const std::string answer = decode(one, std::span(all).subspan(static_cast<std::size_t>(dense)));
      Json row{{"task", options_.kind}};
      row.update(json_of(one, options_.cases));
      row.update({{"length", place.length},
                  {"depth", place.depth},
                  {"tokens", all.size()},
                  {"found", lower(answer).find(lower(asked.expected)) != std::string::npos},
                  {"expected", asked.expected},
                  {"answer", answer}});
      rows.push_back(row);
    }
    return rows;
  }

 private:
  // The longest prompt of that length.
  Prompt prompt(const Place& place) const {
    if (what_.file.empty()) {
      const std::int64_t one =
          std::ssize(model_.tokenize(std::string(filler) + filler)) - std::ssize(model_.tokenize(filler));
      const std::int64_t rest = std::ssize(whole(passkey(place, 0, what_.seed)));
      const std::int64_t fillers = (place.length - rest) / one;
      if (fillers < 1) too_short(place, rest + one);
      return passkey(place, fillers, what_.seed);
    }
    const std::int64_t rest = std::ssize(whole(needle(place, "", what_)));
    if (place.length <= rest) too_short(place, rest + 1);
    // A few tokens of the text may join differently beside the needle.
    const std::int64_t tokens = place.length - rest - 8;
    if (std::ssize(text_) < tokens)
      throw Failure(exit_failed, fmt::format("{} has {} tokens; a prompt of {} needs {}", what_.file, text_.size(),
                                             place.length, tokens));
    const std::string text =
        model_.text(std::span(text_).first(static_cast<std::size_t>(std::max<std::int64_t>(0, tokens))));
    return needle(place, text.substr(0, sentence_end(text, text.size())), what_);
  }

  [[noreturn]] void too_short(const Place& place, std::int64_t needed) const {
    throw Failure(exit_usage, fmt::format("--lengths: {} tokens have no room for the question; it needs {} or more",
                                          place.length, needed));
  }

  Tokens whole(const Prompt& prompt) const {
    const std::string text = prompt.before + prompt.hidden + prompt.after + "\n\n" + prompt.question;
    return model_.tokenize(what_.chat ? model_.as_question(text) + prompt.lead : text + " " + prompt.lead, Special::parsed);
  }

  // How many of the prompt's first tokens are read densely: all but its last, or those before the question.
  std::int64_t dense_part(const Prompt& prompt, const Tokens& all) const {
    const std::int64_t but_one = std::ssize(all) - 1;
    if (what_.ask == "dense") return but_one;
    Prompt without = prompt;
    without.question = without.lead = "";
    const Tokens other = whole(without);
    const auto differs = std::mismatch(all.begin(), all.end(), other.begin(), other.end()).first;
    return std::min<std::int64_t>(differs - all.begin(), but_one);
  }

  void read(std::span<const Token> tokens) {
    const auto same = std::mismatch(tokens.begin(), tokens.end(), read_.begin(), read_.end()).first - tokens.begin();
    context_.cut(same);
    configure(engine_only());
    context_.decode(tokens.subspan(static_cast<std::size_t>(same)));
    read_.assign(tokens.begin(), tokens.end());
  }

  std::string decode(const Case& one, std::span<const Token> asked) {
    configure(one.config, one.file);
    for (const Token token : asked) context_.decode({&token, 1}, 1);
    Tokens answer;
    while (std::ssize(answer) < answer_tokens) {
      const auto logits = context_.logits(0);
      const auto token = static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      if (model_.is_end(token)) break;
      answer.push_back(token);
      if (std::ssize(answer) < answer_tokens) context_.decode({&token, 1}, 1);
    }
    context_.cut(std::ssize(read_));
    return model_.text(answer);
  }

  const LoadedModel& model_;
  const EvalOptions& options_;
  const RetrievalOptions& what_;
  const Tokens text_;
  Context context_;
  Tokens read_;  // what the context holds
};

// ---- output ---------------------------------------------------------------------------------------------------------

void print_text(const Json& rows, const EvalOptions& options, const RetrievalOptions& what) {
  std::vector<std::string> head{"found at", "", "", ""};
  for (const std::int64_t length : what.lengths) head.push_back(fmt::format("{}", length));
  head.push_back("in all");
  Table table(head, 4);
  for (const Case& one : options.cases) {
    const Json description = json_of(one, options.cases);
    std::vector<std::string> line{one.policy, one.estimator, one.budget_text(), label_of(one, options.cases)};
    int found = 0, tries = 0;
    for (const std::int64_t length : what.lengths) {
      int found_here = 0, tries_here = 0;
      for (const Json& row : rows) {
        const bool is_ours =
            row["length"] == length && std::all_of(description.items().begin(), description.items().end(),
                                                   [&](const auto& item) { return row[item.key()] == item.value(); });
        tries_here += is_ours;
        found_here += is_ours && row["found"].get<bool>();
      }
      line.push_back(fmt::format("{}/{}", found_here, tries_here));
      found += found_here;
      tries += tries_here;
    }
    line.push_back(fmt::format("{}/{}", found, tries));
    table.add(line);
  }
  table.print();
}

// Why each case was dense in every prompt, at the longest of which fewest layers are.
std::vector<std::string> reasons_of(const Json& rows, const EvalOptions& options) {
  std::int64_t longest = 0;
  for (const Json& row : rows) longest = std::max(longest, row["tokens"].get<std::int64_t>());
  std::vector<std::string> reasons;
  for (const Case& one : options.cases) reasons.push_back(why_all_dense(one.config, one.file, longest + answer_tokens - 1));
  return reasons;
}

std::vector<Place> places_of(const RetrievalOptions& what) {
  std::vector<Place> places;
  for (const std::int64_t length : what.lengths)
    for (std::int64_t i = 0; i < what.depths; ++i)
      places.push_back({length, what.depths == 1 ? 0.5 : static_cast<double>(i) / static_cast<double>(what.depths - 1)});
  return places;
}

}  // namespace

int retrieval(const EvalOptions& options, const RetrievalOptions& asked) {
  RetrievalOptions what = asked;
  std::sort(what.lengths.begin(), what.lengths.end());
  what.lengths.erase(std::unique(what.lengths.begin(), what.lengths.end()), what.lengths.end());
  if (options.kind == "needle" && what.file.empty())
    throw Failure(exit_usage, "eval needle: the text is missing; for example: --file book.txt");
  const std::string text = what.file.empty() ? "" : read_text(what.file);
  const LoadedModel model(options.model);
  check_room(model, 1, what.lengths.back() + answer_tokens);

  const std::vector<Place> places = places_of(what);
  std::vector<std::string> parts;
  double work = 0;
  for (const Place& place : places) {
    parts.push_back(fmt::format("{} {}", place.length, place.depth));
    work += static_cast<double>(place.length);
  }
  Finished finished = finished_of(
      options, {hash_of(text), what.ask, what.chat, what.seed, what.needle, what.question, what.lead, what.answer}, parts);
  Reader reader(model, options, what, text);
  Json rows = Json::array();
  {
    Progress progress(work);
    for (std::size_t i = 0; i < places.size(); ++i) {
      const auto part_work = static_cast<double>(places[i].length);
      if (finished.find(parts[i]) != nullptr) {
        progress.skip(part_work);
      } else {
        finished.add(parts[i], reader.answers(places[i]));
        progress.advance(part_work, fmt::format("{} tokens", places[i].length));
      }
      for (Json row : *finished.find(parts[i])) {
        row["model"] = model.name();
        rows.push_back(row);
      }
    }
  }
  if (!options.json) print_text(rows, options, what);
  print_dense(options, reasons_of(rows, options));
  deliver(options, model, rows);
  return exit_ok;
}

}  // namespace cli
