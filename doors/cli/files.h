// The files that a command writes, seen before its work: nothing that is read is written over, no two outputs are one file,
// and each can be written.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace cli {

struct Output {
  std::string flag;
  std::string path;  // empty: there is none
};

// `read`: the files that the command reads; empty ones do not count. Throws a Failure with a sentence.
void require_outputs(const std::string& command, const std::vector<std::string>& read, const std::vector<Output>& written);

// Refuses --html "", which a variable that is not set makes of --html "$PAGE".
CLI::Validator named_file();

}  // namespace cli
