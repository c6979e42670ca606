#include "finished.h"

#include <fmt/format.h>
#include <pwd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "../failure.h"

namespace cli {
namespace {

namespace fs = std::filesystem;

fs::path cache_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? fs::path(value) : fs::path();
  };
  if (fs::path ours = variable("ADAMAS_CACHE"); !ours.empty()) return ours;
  if (const fs::path cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache / "adamas";
  if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache/adamas";
  const passwd* user = getpwuid(getuid());
  if (user == nullptr || user->pw_dir == nullptr || *user->pw_dir == '\0')
    throw Failure(
        exit_failed,
        "there is no home folder to keep finished parts in; set HOME or ADAMAS_CACHE, or name a file with --resume");
  return fs::path(user->pw_dir) / ".cache/adamas";
}

[[noreturn]] void cannot_write(const std::string& path) {
  throw Failure(exit_failed, fmt::format("{} cannot be written: {}", path, std::strerror(errno)));
}

// What add() writes; or the beginning of it, which a run leaves that is killed in the middle of a line.
bool is_record(const std::string& line, const Json& entry) {
  constexpr std::string_view start = R"({"key")";
  if (entry.is_discarded()) return line.starts_with(start) || start.starts_with(line);
  const auto is_text = [&](const char* name) { return entry.contains(name) && entry[name].is_string(); };
  return entry.is_object() && is_text("key") && is_text("part") && entry.contains("result");
}

// A run that is killed in the middle of a line leaves it without an end: the next one begins a new line.
bool ends_within_a_line(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file || file.tellg() == 0) return false;
  file.seekg(-1, std::ios::end);
  return file.get() != '\n';
}

// On one line. An answer may end in the middle of a letter, and a path be no UTF-8.
std::string line_of(const Json& document) { return document.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

Finished::Finished(const std::string& path, const Json& key, bool fresh) : path_(path), key_(hash_of(line_of(key))) {
  if (path_.empty()) {
    const fs::path folder = cache_folder() / "eval";
    std::error_code error;
    fs::create_directories(folder, error);
    path_ = folder / (key_ + ".jsonl");
  }
  read();
  if (fresh) results_.clear();
  // Opened at once: an hour of work should not end in a file that cannot be written.
  if (const std::ofstream file(path_, fresh ? std::ios::trunc : std::ios::app); !file) cannot_write(path_);
}

void Finished::read() {
  if (!fs::is_regular_file(path_)) return;  // there is none yet, or it is /dev/null
  std::ifstream file(path_);
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const Json entry = Json::parse(line, nullptr, false);
    if (!is_record(line, entry))
      throw Failure(
          exit_usage,
          fmt::format("--resume: line {} of {} is no finished part of an evaluation, and the file is left as it is; "
                      "name a new one",
                      number, path_));
    if (entry.is_object() && entry["key"] == key_) results_[entry["part"].get<std::string>()] = entry["result"];
  }
}

const Json* Finished::find(const std::string& part) const {
  const auto found = results_.find(part);
  return found == results_.end() ? nullptr : &found->second;
}

void Finished::add(const std::string& part, const Json& result) {
  results_[part] = result;
  const std::string start = ends_within_a_line(path_) ? "\n" : "";
  std::ofstream file(path_, std::ios::app);
  file << start << line_of({{"key", key_}, {"part", part}, {"result", result}}) << '\n';
  if (!file.flush()) cannot_write(path_);
}

Json identity_of(const std::string& path) {
  std::error_code error;
  const fs::path whole = fs::canonical(path, error);
  const auto size = fs::file_size(whole, error);
  const auto changed = fs::last_write_time(whole, error).time_since_epoch();
  return {whole.string(), size, std::chrono::duration_cast<std::chrono::nanoseconds>(changed).count()};
}

std::string hash_of(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : text) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

}  // namespace cli
