// adamas run: prepares the environment and becomes the tool. After execv there is no process of ours in between, so
// exit codes, signals, terminal and job control are the tool's own.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "commands.h"
#include "paths.h"

namespace cli {
namespace {

constexpr const char* back_end_variable = "GGML_BACKEND_PATH";

void set_back_end() {
  if (const char* chosen = std::getenv(back_end_variable); chosen != nullptr && *chosen != '\0') {
    fmt::print(stderr, "adamas: {} is set; the back end is {}\n", back_end_variable, chosen);
    return;
  }
  const auto back_end = find_back_end();
  if (!back_end)
    throw Failure(exit_failed, fmt::format("the llama.cpp back end libggml-adamas.so is not there; build it with "
                                           "-DADAMAS_GGML_DIR=..., or name it in {}",
                                           back_end_variable));
  setenv(back_end_variable, back_end->c_str(), 1);
}

// Without flash attention the engine computes attention in pieces that no back end can take over, and `auto` turns it
// off when it sees ours.
void add_flash_attention(std::vector<std::string>& command) {
  const auto is_choice = [](const std::string& argument) {
    return argument == "-fa" || argument == "--flash-attn" || argument.starts_with("--flash-attn=");
  };
  if (std::any_of(command.begin() + 1, command.end(), is_choice)) return;
  const bool bench = std::filesystem::path(command[0]).filename().string().starts_with("llama-bench");
  if (!bench && std::getenv("LLAMA_ARG_FLASH_ATTN") != nullptr) return;  // llama-bench does not read it
  command.insert(command.end(), {"-fa", bench ? "1" : "on"});
}

}  // namespace

int run(Settings& settings, const std::vector<std::string>& given) {
  settings.load();
  settings.write_environment();
  if (given.empty())
    throw Failure(exit_usage, "run: the tool is missing; for example: adamas run -- llama-completion -m MODEL.gguf");
  const std::string tool = find_tool(given[0]).string();
  set_back_end();

  std::vector<std::string> command = given;
  add_flash_attention(command);
  std::vector<char*> arguments;
  for (std::string& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  execvp(tool.c_str(), arguments.data());
  throw Failure(exit_cannot_run, fmt::format("{} cannot be started: {}", tool, std::strerror(errno)));
}

}  // namespace cli
