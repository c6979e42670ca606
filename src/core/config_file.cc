#include "core/config_file.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

namespace adamas {
namespace {

constexpr std::uintmax_t most_bytes = 1 << 20;
constexpr std::string_view spaces = " \t\r";

std::string_view trimmed(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(spaces), text.size()));
  text.remove_suffix(text.size() - (text.find_last_not_of(spaces) + 1));
  return text;
}

bool read_layer(std::string_view text, int32_t& layer) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  return error == std::errc{} && end == text.data() + text.size() && layer >= 0;
}

// "0,3-5": whether it is a list of layers, and whether it names `layer`.
bool read_layers(std::string_view list, int32_t layer, bool& names_it) {
  names_it = false;
  while (true) {
    const size_t comma = list.find(',');
    const std::string_view range = trimmed(list.substr(0, comma));
    const size_t dash = range.find('-');
    int32_t first, last;
    if (!read_layer(trimmed(range.substr(0, dash)), first)) return false;
    if (dash == std::string_view::npos)
      last = first;
    else if (!read_layer(trimmed(range.substr(dash + 1)), last) || last < first)
      return false;
    names_it |= layer >= first && layer <= last;
    if (comma == std::string_view::npos) return true;
    list.remove_prefix(comma + 1);
  }
}

}  // namespace

Status load(adamas_config& config, const std::string& path, int32_t layer) {
  std::ifstream file(path);
  if (!file) return invalid("the settings file " + path + " cannot be read");
  std::error_code error;  // a device or a pipe may have no end, and the file is read once for each layer
  if (!std::filesystem::is_regular_file(path, error)) return invalid("the settings file " + path + " is not a file");
  if (std::filesystem::file_size(path, error) > most_bytes)
    return invalid("the settings file " + path + " is larger than 1 MiB");
  adamas_config changed = config, scratch = default_config();
  bool in_section = false, ours = layer == -1;
  std::string line;
  for (int number = 1; std::getline(file, line); number++) {
    const auto wrong = [&](const std::string& why) {
      return invalid("line " + std::to_string(number) + " of " + path + ": " + why);
    };
    std::string_view text = line;
    text = trimmed(text.substr(0, text.find('#')));
    if (text.empty()) continue;
    if (text.front() == '[') {
      constexpr std::string_view begin = "[layers ";
      if (!text.starts_with(begin) || text.back() != ']' ||
          !read_layers(text.substr(begin.size(), text.size() - begin.size() - 1), layer, ours))
        return wrong("a section is written [layers 0,3-5]");
      in_section = true;
      continue;
    }
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos) return wrong("a line is written name = value");
    const std::string name(trimmed(text.substr(0, equals))), value(trimmed(text.substr(equals + 1)));
    if (in_section && !is_of_a_layer(name))
      return wrong(name + " is a setting of the whole model and belongs before the sections");
    if (Status status = set(ours ? changed : scratch, name, value); !status.ok()) return wrong(status.sentence);
  }
  if (file.bad()) return invalid("the settings file " + path + " cannot be read");
  if (Status status = check(changed); !status.ok()) return invalid(path + ": " + status.sentence);
  config = changed;
  return {};
}

}  // namespace adamas
