#include <fmt/format.h>

#include <cstdio>
#include <string_view>

#include "../output.h"
#include "gpu.h"

namespace cli {
extern const std::string_view gpu_others_template;
}

namespace cli::kernel {

std::vector<OtherAttention> measure_others(const GpuPlace& place, int layers, std::string& why) {
  const std::string command =
      fmt::format("python3 -c '{}' {} {} {} {} {} {} {} 2>/dev/null", gpu_others_template, place.shape.q_heads,
                  place.shape.kv_heads, place.shape.head_dim, place.tokens, place.batch, layers, place.replays);
  std::string text;
  if (FILE* child = popen(command.c_str(), "r")) {
    char piece[4096];
    while (const std::size_t count = std::fread(piece, 1, sizeof piece, child)) text.append(piece, count);
    pclose(child);
  }
  const Json answer = Json::parse(text, nullptr, false);
  if (!answer.is_object()) {
    why = "python3 does not run, or broke off";
    return {};
  }
  std::vector<OtherAttention> others;
  for (const auto& [of, microseconds] : answer["times"].items()) others.push_back({of, microseconds.get<double>() * 1e-6});
  for (const auto& [of, sentence] : answer["missing"].items())
    why += fmt::format("{}{}: {}", why.empty() ? "" : "; ", of, sentence.get<std::string>());
  return others;
}

}  // namespace cli::kernel
