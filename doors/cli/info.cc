// adamas info: what this machine has and what the settings are.
#include <fmt/format.h>

#include "commands.h"
#include "output.h"
#include "paths.h"

namespace cli {
namespace {

void print_text(const std::vector<ShownSetting>& settings) {
  std::vector<std::string> names = adamas::instruction_sets();
  for (std::string& name : names)
    if (name == adamas::isa_in_use()) name += " (in use)";
  const auto back_end = find_back_end();

  fmt::print("adamas {}\n\n", adamas::version());
  fmt::print("instruction sets  {}\n", fmt::join(names, ", "));
  fmt::print("head_dims         {}\n", fmt::join(adamas::head_dims(), ", "));
  fmt::print("K and V           {}\n", fmt::join(adamas::dtypes(), ", "));
  const std::vector<std::string> gpus = adamas::gpus();
  fmt::print("GPUs              {}\n",
             gpus.empty() ? "none: " + adamas::why_no_gpu() : fmt::format("{}", fmt::join(gpus, ", ")));
  fmt::print("llama.cpp         {}\n\n", back_end ? back_end->string() : "the back end libggml-adamas.so is not there");

  constexpr auto line = "{:<13} {:<10} {:<12} {:<33} {}\n";
  fmt::print(line, "setting", "value", "from", "range", "meaning");
  for (const ShownSetting& s : settings) fmt::print(line, s.name, s.value, s.source, s.range, s.meaning);
}

void print_document(const std::vector<ShownSetting>& settings) {
  const auto back_end = find_back_end();
  Json document{{"version", adamas::version()},
                {"instruction_sets", adamas::instruction_sets()},
                {"instruction_set", adamas::isa_in_use()},
                {"head_dims", adamas::head_dims()},
                {"dtypes", adamas::dtypes()},
                {"block_tokens", ADAMAS_BLOCK_TOKENS},
                {"gpus", adamas::gpus()},
                {"back_end", back_end ? Json(back_end->string()) : Json(nullptr)},
                {"settings", Json::array()}};
  for (const ShownSetting& s : settings)
    document["settings"].push_back({{"name", s.name},
                                    {"environment", s.environment},
                                    {"value", s.value},
                                    {"source", s.source},
                                    {"range", s.range},
                                    {"meaning", s.meaning}});
  print_json(document);
}

}  // namespace

int info(Settings& settings, const InfoOptions& options) {
  settings.load();
  options.json ? print_document(settings.shown()) : print_text(settings.shown());
  return exit_ok;
}

}  // namespace cli
