// Standard output that notices when it cannot be written.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cli {

using Json = nlohmann::ordered_json;

// Gives descriptors 0 to 2 a file when the caller closed them, so that no file we open becomes standard output.
void keep_standard_streams();

// Throws a Failure unless everything that fmt::print wrote to standard output has arrived.
void flush_output();

void print_json(const Json& document);

// "0-4, 6, 8-9"
std::string ranges_text(const std::vector<std::size_t>& ascending, const char* separator = ", ");

// "1 token", "2 tokens"
std::string counted(std::int64_t count, const std::string& thing);

// "17.2 MiB"
std::string bytes_text(double bytes);

}  // namespace cli
