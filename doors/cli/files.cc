#include "files.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "failure.h"
#include "pages.h"

namespace cli {
namespace {

namespace fs = std::filesystem;

// By whatever path, or link. What is no file (/dev/stdout) holds nothing that could be lost.
bool is_same_file(const std::string& a, const std::string& b) {
  std::error_code error;
  if (fs::exists(a, error) || fs::exists(b, error)) return fs::is_regular_file(a, error) && fs::equivalent(a, b, error);
  return fs::weakly_canonical(fs::absolute(a), error) == fs::weakly_canonical(fs::absolute(b), error);
}

}  // namespace

void require_outputs(const std::string& command, const std::vector<std::string>& read, const std::vector<Output>& written) {
  for (auto one = written.begin(); one != written.end(); ++one) {
    if (one->path.empty()) continue;
    for (const std::string& input : read)
      if (!input.empty() && is_same_file(one->path, input))
        throw Failure(exit_usage, fmt::format("{}: {} is read, and would be written over", command, one->path));
    for (auto other = written.begin(); other != one; ++other)
      if (!other->path.empty() && is_same_file(one->path, other->path))
        throw Failure(exit_usage,
                      fmt::format("{}: {} cannot be both {} and {}", command, one->path, other->flag, one->flag));
    require_writable(one->path);
  }
}

CLI::Validator named_file() {
  return CLI::Validator([](std::string& path) { return path.empty() ? "the name of the file is empty" : ""; }, "");
}

}  // namespace cli
