// How an evaluation begins and ends, whatever its kind.
#pragma once

#include <string>

#include "../engine.h"
#include "../output.h"
#include "finished.h"
#include "options.h"

namespace cli {

// The value in a line "name: value" of a file under /proc; "" when there is none.
std::string value_in(const char* file, const std::string& name);

// The text of a file; a Failure with a sentence when there is none.
std::string read_text(const std::string& path);

// The name of a file without its folder.
std::string short_name(const std::string& path);

// What was finished before. `what`: all that moves a result beside model, settings, the libraries and this program. Says on
// standard error how many of `parts` there are already.
Finished finished_of(const EvalOptions& options, const Json& what, const std::vector<std::string>& parts);

// A note when a context is longer than the model was made for, and a Failure when so many contexts do not fit into memory.
void check_room(const LoadedModel& model, std::int64_t contexts, std::int64_t tokens);

// Prints the rows as JSON, when that is asked for, and writes the page, when that is.
void deliver(const EvalOptions& options, const LoadedModel& model, const Json& rows);

}  // namespace cli
