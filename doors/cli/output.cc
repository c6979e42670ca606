#include "output.h"

#include <fmt/format.h>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "failure.h"

namespace cli {

void keep_standard_streams() {
  // Opened the wrong way round on purpose: writing to a closed standard output stays an error.
  for (int descriptor : {0, 1, 2})
    if (fcntl(descriptor, F_GETFD) < 0 && errno == EBADF)
      (void)open("/dev/null", (descriptor == 0 ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
}

void flush_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout))
    throw Failure(exit_failed, fmt::format("standard output cannot be written: {}", std::strerror(errno)));
}

void print_json(const Json& document) {
  // A model's name may hold bytes that are not UTF-8. Whether it can be written is flush_output's to say.
  const std::string text = document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
}

std::string ranges_text(const std::vector<std::size_t>& ascending, const char* separator) {
  std::string text;
  for (std::size_t i = 0; i < ascending.size(); ++i) {
    const std::size_t first = ascending[i];
    while (i + 1 < ascending.size() && ascending[i + 1] == ascending[i] + 1) ++i;
    text += fmt::format("{}{}", text.empty() ? "" : separator, first);
    if (ascending[i] != first) text += fmt::format("-{}", ascending[i]);
  }
  return text;
}

std::string counted(std::int64_t count, const std::string& thing) {
  return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

std::string bytes_text(double bytes) {
  static constexpr std::array units{"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < units.size(); ++unit) bytes /= 1024;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, units[unit]);
}

}  // namespace cli
