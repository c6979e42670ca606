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

// "the context of 256 tokens is below min_context, 2048; a smaller --min-context lets it run sparse": why the settings leave
// every layer dense with so many tokens in view; "" when they do not. Sections of `file` have budgets of their own.
std::string why_all_dense(const adamas_config& config, const std::string& file, std::int64_t tokens);

inline constexpr const char* no_layer_sparse = "no layer of this model ran sparse; `adamas check` says why";

// Says why nothing ran sparse: of each case a reason, or "" when it did. Below the table; with --json on standard error.
void print_dense(const EvalOptions& options, const std::vector<std::string>& reasons);

// Prints the rows as JSON, when that is asked for, and writes the page, when that is.
void deliver(const EvalOptions& options, const LoadedModel& model, const Json& rows);

}  // namespace cli
