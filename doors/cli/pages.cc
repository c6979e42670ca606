#include "pages.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "failure.h"

namespace cli {

// Made of pages/*.html by pages/embed.cmake.
extern const std::string_view explain_template;
extern const std::string_view report_template;

namespace {

constexpr std::string_view placeholder = "{{document}}";

// JSON in a script element ends at the first "</script", and "<!--" changes how the parser reads what follows. In JSON
// `<` stands in strings alone, where \u003c is the same character; U+2028 and U+2029 once ended a line of JavaScript.
std::string safe_in_html(const Json& document) {
  const std::string text = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size() + text.size() / 64);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = std::string_view(text).substr(i, 3);
    if (text[i] == '<') {
      safe += "\\u003c";
    } else if (rest == "\u2028" || rest == "\u2029") {
      safe += rest == "\u2028" ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      safe += text[i];
    }
  }
  return safe;
}

[[noreturn]] void fail(const std::string& path, int error) {
  throw Failure(exit_failed, fmt::format("{} cannot be written: {}", path, std::strerror(error)));
}

// 0, or why not.
int write_to(int descriptor, std::string_view content) {
  while (!content.empty()) {
    const ssize_t count = write(descriptor, content.data(), content.size());
    if (count < 0 && errno != EINTR) return errno;
    if (count > 0) content.remove_prefix(static_cast<std::size_t>(count));
  }
  return 0;
}

int write_and_close(int descriptor, std::string_view content) {
  int error = write_to(descriptor, content);
  if (close(descriptor) != 0 && error == 0) error = errno;
  return error;
}

}  // namespace

std::string page(Template which, const Json& document) {
  const std::string_view text = which == Template::explain ? explain_template : report_template;
  const std::size_t mark = text.find(placeholder);
  return std::string(text.substr(0, mark)) + safe_in_html(document) + std::string(text.substr(mark + placeholder.size()));
}

void require_writable(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) fail(path, EISDIR);
    if (access(path.c_str(), W_OK) != 0) fail(path, errno);
    return;
  }
  if (errno != ENOENT) fail(path, errno);
  const std::string folder = std::filesystem::path(path).parent_path();
  if (access(folder.empty() ? "." : folder.c_str(), W_OK | X_OK) != 0) fail(path, errno);
}

void write_file(const std::string& given, std::string_view content) {
  std::error_code none;
  std::filesystem::path path = std::filesystem::canonical(given, none);  // a link stays one: what it names is replaced
  if (none) path = given;

  struct stat status {};
  if (stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    const int descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) fail(given, errno);
    if (const int error = write_and_close(descriptor, content)) fail(given, error);
    return;
  }

  // Beside the file, because a rename does not cross file systems; of this process, so that two may write at once.
  std::filesystem::path partial = path;
  partial += fmt::format(".{}.partial", getpid());
  const int descriptor = open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) fail(given, errno);
  int error = write_and_close(descriptor, content);
  if (error == 0 && rename(partial.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return;
  unlink(partial.c_str());
  fail(given, error);
}

}  // namespace cli
