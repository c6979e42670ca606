// How the command ends. Every command either returns an exit code or throws a Failure: main prints its sentence.
#pragma once

#include <stdexcept>
#include <string>

namespace cli {

enum ExitCode {
  exit_ok = 0,
  exit_failed = 1,        // a model that cannot be read, a self-test that fails, output that cannot be written
  exit_usage = 2,         // an unknown flag or command, a setting out of its range
  exit_cannot_run = 126,  // `run`: the tool was found but cannot be executed
  exit_not_found = 127,   // `run`: there is no such tool
};

class Failure : public std::runtime_error {
 public:
  Failure(ExitCode code, const std::string& sentence) : std::runtime_error(sentence), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

}  // namespace cli
