// adamas explain: reads a document and a question, answers with sparse attention, and makes a page that shows what each word
// of the answer was read from.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "commands.h"
#include "engine.h"
#include "eval/progress.h"
#include "eval/results.h"
#include "files.h"
#include "output.h"
#include "pages.h"
#include "reads.h"

namespace cli {
namespace {

// ---- what goes in ---------------------------------------------------------------------------------------------------

// On average over a text: most tokens are parts of words, some are long runs of spaces.
constexpr std::int64_t most_bytes_of_a_token = 64;

const char* context_name(const ExplainOptions& options) { return options.context > 0 ? "--context" : "the model's context"; }

std::string document_of(const std::string& path) {
  std::string text = read_text(path);
  text.erase(text.find_last_not_of(" \t\r\n") + 1);
  if (text.empty()) throw Failure(exit_failed, fmt::format("{} is empty: there is nothing to read an answer from", path));
  return text;
}

struct Part {
  std::string role;  // template, document, question, lead
  std::int64_t begin, end;
};

struct Prompt {
  Tokens tokens;
  std::vector<Part> parts;
};

// The document, the question and the chat template are made tokens one by one: so it is known which token is of which, and
// nothing in the document can pass for a mark of the template.
class PromptMaker {
 public:
  explicit PromptMaker(const LoadedModel& model) : model_(model) {}

  void add(const std::string& role, const std::string& text, Special special = Special::as_text) {
    Tokens tokens = model_.tokenize(text, special);
    const auto first = model_.first_token();
    if (!prompt_.tokens.empty() && first && !tokens.empty() && tokens.front() == *first) tokens.erase(tokens.begin());
    std::int64_t begin = std::ssize(prompt_.tokens);
    prompt_.tokens.insert(prompt_.tokens.end(), tokens.begin(), tokens.end());
    if (begin == 0 && first && !tokens.empty() && tokens.front() == *first)
      prompt_.parts.push_back({"template", 0, ++begin});
    if (std::ssize(prompt_.tokens) > begin) prompt_.parts.push_back({role, begin, std::ssize(prompt_.tokens)});
  }
  Prompt take() { return std::move(prompt_); }

 private:
  const LoadedModel& model_;
  Prompt prompt_;
};

Prompt make_prompt(const LoadedModel& model, const std::string& document, const std::string& question,
                   const std::string& lead) {
  const std::string mark = "document-and-question";
  const std::string form = model.as_question(mark);
  const std::size_t at = form.find(mark);
  const bool has_template = at != std::string::npos && form != mark + "\n";  // which is what comes back without one
  PromptMaker maker(model);
  if (has_template) maker.add("template", form.substr(0, at), Special::parsed);
  maker.add("document", document + "\n\n");
  maker.add("question", (has_template ? question : "Question: " + question + "\nAnswer:"));
  if (has_template) maker.add("template", form.substr(at + mark.size()), Special::parsed);
  if (!lead.empty()) maker.add("lead", has_template ? lead : " " + lead);
  return maker.take();
}

// ---- what comes out -------------------------------------------------------------------------------------------------

// Bytes that begin a character of UTF-8 and do not end it.
bool is_cut_character(const std::string& bytes) {
  for (std::size_t back = 1; back <= std::min<std::size_t>(3, bytes.size()); ++back) {
    const auto byte = static_cast<unsigned char>(bytes[bytes.size() - back]);
    if (byte >= 0xC0) return back < (byte >= 0xF0 ? 4u : byte >= 0xE0 ? 3u : 2u);
    if (byte < 0x80) return false;
  }
  return false;
}

// The text of each token. A character that several tokens share is the last one's; the others' text is empty.
Json texts_of(const LoadedModel& model, const Tokens& tokens) {
  Json texts = Json::array();
  std::string bytes;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    bytes += model.piece(tokens[i]);
    const bool wait = is_cut_character(bytes) && i + 1 < tokens.size();
    texts.push_back(wait ? "" : bytes);
    if (!wait) bytes.clear();
  }
  return texts;
}

std::string now() {
  const std::time_t time = std::time(nullptr);
  char text[64];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M %Z", std::localtime(&time));
  return text;
}

std::string processor() {
  const std::string model = value_in("/proc/cpuinfo", "model name");
  return model.empty() ? "unknown" : model;
}

// What was typed, so that a shell reads it back.
std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string command;
  for (std::string word; std::getline(file, word, '\0');) {
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                            "_-./:=,+@%") == std::string::npos;
    if (!plain) {
      for (std::size_t at = 0; (at = word.find('\'', at)) != std::string::npos; at += 4) word.replace(at, 1, "'\\''");
      word = "'" + word + "'";
    }
    command += (command.empty() ? "" : " ") + (command.empty() ? std::filesystem::path(word).filename().string() : word);
  }
  return command;
}

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// ---- the answer -----------------------------------------------------------------------------------------------------

struct Answer {
  Tokens tokens;
  bool ended = false;  // by the model, and not by --tokens
  double seconds_reading = 0, seconds_answering = 0;
};

// The prompt is read densely. Its last token is the first step of the answer: what that step reads decides the first word.
Answer make_answer(const LoadedModel& model, Context& context, const Prompt& prompt, const adamas_config& config,
                   std::int64_t most, Reads& reads) {
  Answer answer;
  const Clock reading;
  configure(engine_only());
  const std::span<const Token> before = std::span(prompt.tokens).first(prompt.tokens.size() - 1);
  constexpr std::size_t piece = 256;  // a batch; small enough for the progress to move
  // A token attends to all before it: at about 4,000 that costs as much as the rest of it.
  const auto work = [](double tokens) { return tokens + tokens * tokens / 8000; };
  {
    Progress progress(work(static_cast<double>(before.size())));
    for (std::size_t first = 0; first < before.size(); first += piece) {
      const std::size_t end = std::min(first + piece, before.size());
      context.decode(before.subspan(first, end - first));
      progress.advance(work(static_cast<double>(end)) - work(static_cast<double>(first)),
                       fmt::format("reading {} tokens", prompt.tokens.size()));
    }
  }
  answer.seconds_reading = reading.seconds();

  const Clock answering;
  configure(config);
  const Observer observer([&](const adamas_observation& observation) { reads.see(observation); });
  Progress progress(static_cast<double>(most));
  Token token = prompt.tokens.back();
  while (std::ssize(answer.tokens) < most && !answer.ended) {
    context.decode(std::span(&token, 1), 1);
    reads.end_step();
    const auto logits = context.logits(0);
    token = static_cast<Token>(std::ranges::max_element(logits) - logits.begin());
    answer.tokens.push_back(token);
    answer.ended = model.is_end(token);
    progress.advance(1, "answering");
  }
  answer.seconds_answering = answering.seconds();
  return answer;
}

std::string why_nothing(const adamas_config& config, std::int64_t tokens) {
  const std::string why = why_all_dense(config, "", tokens);
  return "nothing was selected: " + (why.empty() ? no_layer_sparse : why);
}

// ---- the document of the page ---------------------------------------------------------------------------------------

Json parts_of(const Prompt& prompt) {
  Json parts = Json::array();
  for (const Part& part : prompt.parts) parts.push_back({{"role", part.role}, {"begin", part.begin}, {"end", part.end}});
  return parts;
}

Json settings_of(const Settings& settings) {
  Json values = Json::object();
  for (const ShownSetting& setting : settings.shown()) values[setting.name] = setting.value;
  return values;
}

}  // namespace

int explain(Settings& settings, const ExplainOptions& options) {
  const adamas_config config = settings.load().native();
  settings.refuse_file("explain");
  for (const auto& [flag, value] :
       {std::pair{"--model", options.model}, {"--file", options.file}, {"--ask", options.ask}, {"--html", options.html}})
    if (value.empty())
      throw Failure(exit_usage, fmt::format("explain: {} is missing; for example: adamas explain --model MODEL.gguf --file "
                                            "TEXT --ask 'QUESTION' --html OUT.html",
                                            flag));
  require_outputs("explain", {options.model, options.file}, {{"--html", options.html}, {"--json", options.json}});

  const std::string document = document_of(options.file);
  const LoadedModel model(options.model);
  const std::int64_t limit = options.context > 0 ? options.context : model.trained_context();
  if (std::ssize(document) / most_bytes_of_a_token > limit)  // seen before the minutes in which it is made tokens
    throw Failure(exit_failed, fmt::format("{} has {} bytes, which cannot fit into the {} tokens of {}", options.file,
                                           document.size(), limit, context_name(options)));
  const Prompt prompt = make_prompt(model, document, options.ask, options.lead);
  const std::int64_t needed = std::ssize(prompt.tokens) + options.tokens;
  if (needed > limit)
    throw Failure(exit_failed,
                  fmt::format("{} and the question are {} tokens, with an answer of {} more than the {} of {}", options.file,
                              prompt.tokens.size(), options.tokens, limit, context_name(options)));

  const int threads = options.threads > 0 ? static_cast<int>(options.threads)
                                          : static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 8u));
  Context context(model, {.tokens = options.context > 0 ? options.context : (needed + 255) / 256 * 256, .threads = threads});
  Reads reads(model.layers(), options.tokens);
  const Answer answer = make_answer(model, context, prompt, config, options.tokens, reads);

  Json notes = Json::array();
  for (const std::string& sentence : reads.notes()) notes.push_back(sentence);
  const std::string nothing = reads.empty() ? why_nothing(config, context.length()) : "";
  const Json explained{{"meta",
                        {{"command", command_line()},
                         {"version", adamas::version()},
                         {"engine", engine_version()},
                         {"instruction_set", adamas::isa_in_use()},
                         {"cpu", processor()},
                         {"threads", threads},
                         {"date", now()},
                         {"model", model.name()},
                         {"file", std::filesystem::path(options.file).filename().string()},
                         {"context", context.length()},
                         {"seconds_reading", answer.seconds_reading},
                         {"seconds_answering", answer.seconds_answering},
                         {"tokens_read", reads.mean_tokens()},
                         {"settings", settings_of(settings)}}},
                       {"question", options.ask},
                       {"nothing", nothing.empty() ? Json(nullptr) : Json(nothing)},
                       {"notes", notes},
                       {"prompt", {{"tokens", texts_of(model, prompt.tokens)}, {"parts", parts_of(prompt)}}},
                       {"answer", {{"tokens", texts_of(model, answer.tokens)}, {"ended", answer.ended}}},
                       {"reads", reads.document()}};

  write_file(options.html, page(Template::explain, explained));
  if (!options.json.empty()) write_file(options.json, explained.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");

  std::span<const Token> said(answer.tokens);
  if (answer.ended) said = said.first(said.size() - 1);
  fmt::print("{}{}\n", options.lead, model.text(said));
  if (!nothing.empty()) fmt::print(stderr, "adamas: {}\n", nothing);
  fmt::print(stderr, "adamas: {} shows what it was read from\n", options.html);
  return exit_ok;
}

}  // namespace cli
