// Where things are: the back end, the tools of llama.cpp, ggml's library. All of it is found from the place of the
// command itself, so that a build folder and an installation both work where they lie.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

namespace cli {

// libggml-adamas.so: in lib/ beside the command's folder, in the installation's library folder, or beside the command.
std::optional<std::filesystem::path> find_back_end();

// The folder of the llama.cpp that this build made, whether or not it is there.
std::filesystem::path engine_folder();

// Every name under which ggml's base library may be loaded, best first; the last ones are left to the loader.
std::vector<std::filesystem::path> ggml_library_names();

// The program of that name: as a path when it has a slash, else in PATH, else among the engine's tools.
// Throws a Failure that says why there is none.
std::filesystem::path find_tool(const std::string& name);

}  // namespace cli
