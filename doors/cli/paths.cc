#include "paths.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "failure.h"

namespace cli {
namespace {

namespace fs = std::filesystem;

fs::path own_folder() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::path(".") : self.parent_path();
}

bool is_program(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && access(path.c_str(), X_OK) == 0;
}

std::vector<fs::path> folders_of(const char* variable) {
  std::vector<fs::path> folders;
  std::istringstream list(variable == nullptr ? "" : variable);
  for (std::string folder; std::getline(list, folder, ':');) folders.emplace_back(folder.empty() ? "." : folder);
  return folders;
}

}  // namespace

std::optional<fs::path> find_back_end() {
  const fs::path own = own_folder();
  for (const fs::path& folder : {own / "../lib", own / ".." / ADAMAS_LIBDIR, own}) {
    std::error_code error;
    const fs::path path = fs::canonical(folder / "libggml-adamas.so", error);
    if (!error) return path;
  }
  return std::nullopt;
}

fs::path required_back_end() {
  if (const auto path = find_back_end()) return *path;
  throw Failure(exit_failed, "the llama.cpp back end libggml-adamas.so is not there; build it with -DADAMAS_GGML_DIR=...");
}

fs::path engine_folder() { return (own_folder() / "../llama/bin").lexically_normal(); }

fs::path find_tool(const std::string& name) {
  if (name.empty()) throw Failure(exit_not_found, "the tool's name is empty");
  if (name.find('/') != std::string::npos) {
    std::error_code error;
    const fs::file_status status = fs::status(name, error);
    if (!fs::exists(status)) throw Failure(exit_not_found, fmt::format("{}: there is no such file", name));
    if (fs::is_directory(status)) throw Failure(exit_cannot_run, fmt::format("{} is a folder", name));
    if (!is_program(name)) throw Failure(exit_cannot_run, fmt::format("{} is not executable", name));
    return name;
  }
  std::vector<fs::path> folders = folders_of(std::getenv("PATH"));
  folders.push_back(engine_folder());
  fs::path not_executable;
  for (const fs::path& folder : folders) {
    fs::path path = folder / name;
    if (is_program(path)) return path;
    std::error_code error;
    if (fs::is_regular_file(path, error)) not_executable = path;
  }
  if (!not_executable.empty()) throw Failure(exit_cannot_run, fmt::format("{} is not executable", not_executable.string()));
  throw Failure(exit_not_found,
                fmt::format("{}: there is no such tool, neither in PATH nor in {}", name, engine_folder().string()));
}

}  // namespace cli
