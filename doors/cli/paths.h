// Where things are: the back end, the tools and libraries of llama.cpp. All of it is found from the place of the
// command itself, so that a build folder and an installation both work where they lie.
#pragma once

#include <filesystem>
#include <optional>

namespace cli {

// libggml-adamas.so: in lib/ beside the command's folder, in the installation's library folder, or beside the command.
std::optional<std::filesystem::path> find_back_end();
// The same, or a Failure that says how to build it.
std::filesystem::path required_back_end();

// The folder of the llama.cpp that this build made, whether or not it is there.
std::filesystem::path engine_folder();

// The program of that name: as a path when it has a slash, else in PATH, else among the engine's tools.
// Throws a Failure that says why there is none.
std::filesystem::path find_tool(const std::string& name);

}  // namespace cli
