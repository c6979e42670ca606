#include "gguf.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gguf.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "failure.h"
#include "library.h"
#include "paths.h"

namespace cli {
namespace {

// Longer arrays are vocabularies; the engine has at most 512 layers.
constexpr std::size_t longest_array = 512;

// ---- the child: ggml's reader ------------------------------------------------------------------------------------

// A function of gguf.h in `library`, which is ggml's.
#define GGUF(function, ...) library.get<decltype(function)>(#function)(__VA_ARGS__)

template <class T>
Json numbers(const void* data, std::size_t count) {
  Json list = Json::array();
  for (std::size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, static_cast<const char*>(data) + i * sizeof value, sizeof value);
    list.push_back(value);
  }
  return list;
}

Json numbers(gguf_type type, const void* data, std::size_t count) {
  // clang-format off
  switch (type) {
    case GGUF_TYPE_UINT8: return numbers<std::uint8_t>(data, count);
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_BOOL: return numbers<std::int8_t>(data, count);
    case GGUF_TYPE_UINT16: return numbers<std::uint16_t>(data, count);
    case GGUF_TYPE_INT16: return numbers<std::int16_t>(data, count);
    case GGUF_TYPE_UINT32: return numbers<std::uint32_t>(data, count);
    case GGUF_TYPE_INT32: return numbers<std::int32_t>(data, count);
    case GGUF_TYPE_UINT64: return numbers<std::uint64_t>(data, count);
    case GGUF_TYPE_INT64: return numbers<std::int64_t>(data, count);
    case GGUF_TYPE_FLOAT32: return numbers<float>(data, count);
    case GGUF_TYPE_FLOAT64: return numbers<double>(data, count);
    default: return nullptr;
  }
  // clang-format on
}

Json value_of(const Library& library, const gguf_context* file, std::int64_t key) {
  const gguf_type type = GGUF(gguf_get_kv_type, file, key);
  if (type == GGUF_TYPE_STRING) return GGUF(gguf_get_val_str, file, key);
  if (type != GGUF_TYPE_ARRAY) {
    const Json one = numbers(type, GGUF(gguf_get_val_data, file, key), 1);
    return one.is_array() ? one[0] : one;
  }
  const gguf_type element = GGUF(gguf_get_arr_type, file, key);
  const std::size_t count = element == GGUF_TYPE_STRING ? 0 : GGUF(gguf_get_arr_n, file, key);
  return count == 0 || count > longest_array ? Json(nullptr) : numbers(element, GGUF(gguf_get_arr_data, file, key), count);
}

// Everything the parent wants, as JSON. ggml's reader does not look at the tensors' data: whether the file is long
// enough for them is seen here.
Json describe(const std::string& path) {
  const Library library("libggml-base.so", "; it holds the reader of models that `check` uses");
  gguf_context* file = GGUF(gguf_init_from_file, path.c_str(), gguf_init_params{.no_alloc = true, .ctx = nullptr});
  if (file == nullptr) return nullptr;

  Json values = Json::object(), tensors = Json::array();
  for (std::int64_t key = 0; key < GGUF(gguf_get_n_kv, file); ++key)
    if (Json value = value_of(library, file, key); !value.is_null()) values[GGUF(gguf_get_key, file, key)] = value;

  std::uint64_t end = GGUF(gguf_get_data_offset, file);
  const std::uint64_t start = end;
  for (std::int64_t tensor = 0; tensor < GGUF(gguf_get_n_tensors, file); ++tensor) {
    tensors.push_back(GGUF(gguf_get_tensor_name, file, tensor));
    end = std::max<std::uint64_t>(
        end, start + GGUF(gguf_get_tensor_offset, file, tensor) + GGUF(gguf_get_tensor_size, file, tensor));
  }
  return {{"values", values}, {"tensors", tensors}, {"end", end}};
}

[[noreturn]] void child(const std::string& path, int answer, int complaints) {
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  setenv("GGML_NO_BACKTRACE", "1", 1);
  dup2(complaints, STDERR_FILENO);
  Json document;
  try {
    document = describe(path);
  } catch (const std::exception& error) {
    document = {{"error", error.what()}};
  }
  const std::string text = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  _exit(write(answer, text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
}

// ---- the parent --------------------------------------------------------------------------------------------------

// A file in memory, for what the child has to say.
class Note {
 public:
  Note() : descriptor_(memfd_create("adamas", MFD_CLOEXEC)) {
    if (descriptor_ < 0) throw Failure(exit_failed, fmt::format("no memory file: {}", std::strerror(errno)));
  }
  ~Note() { close(descriptor_); }
  Note(const Note&) = delete;
  Note& operator=(const Note&) = delete;

  int descriptor() const { return descriptor_; }

  std::string text() const {
    std::string text;
    char piece[4096];
    lseek(descriptor_, 0, SEEK_SET);
    for (ssize_t got; (got = read(descriptor_, piece, sizeof piece)) > 0;) text.append(piece, static_cast<size_t>(got));
    return text;
  }

 private:
  int descriptor_;
};

std::string first_line(const std::string& text) {
  const std::string line = text.substr(0, text.find('\n'));
  return line.empty() ? "it gives no reason" : line;
}

void require_file(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw Failure(exit_failed, fmt::format("{}: there is no such file", path));
  if (!std::filesystem::is_regular_file(status)) throw Failure(exit_failed, fmt::format("{} is not a file", path));
  if (access(path.c_str(), R_OK) != 0)
    throw Failure(exit_failed, fmt::format("{} cannot be read: {}", path, std::strerror(errno)));
}

}  // namespace

Gguf read_gguf(const std::string& path) {
  require_file(path);
  const Note answer, complaints;
  const pid_t reader = fork();
  if (reader < 0) throw Failure(exit_failed, fmt::format("no process for the reader: {}", std::strerror(errno)));
  if (reader == 0) child(path, answer.descriptor(), complaints.descriptor());

  int status = 0;
  while (waitpid(reader, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status))
    throw Failure(exit_failed, fmt::format("{}: ggml's reader gave up on this file ({}): {}", path,
                                           strsignal(WTERMSIG(status)), first_line(complaints.text())));
  const Json document = Json::parse(answer.text(), nullptr, false);
  if (document.is_object() && document.contains("error")) throw Failure(exit_failed, document["error"].get<std::string>());
  if (!document.is_object())
    throw Failure(exit_failed,
                  fmt::format("{} is not a GGUF file that ggml can read: {}", path, first_line(complaints.text())));

  const auto end = document["end"].get<std::uint64_t>();
  const std::uint64_t size = std::filesystem::file_size(path);
  if (size < end)
    throw Failure(exit_failed, fmt::format("{} is cut off: it has {} bytes, and its tensors end at {}", path, size, end));
  return {document["values"], document["tensors"].get<std::vector<std::string>>()};
}

}  // namespace cli
