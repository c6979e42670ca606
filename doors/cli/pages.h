// Pages of one file: a template of pages/ with a JSON document in it. A page opens from the disk, asks the network for
// nothing, and its script draws what the document says.
#pragma once

#include <string>
#include <string_view>

#include "output.h"

namespace cli {

enum class Template { explain, report };

// The document becomes text that no HTML parser can mistake for markup, whatever its strings hold.
std::string page(Template which, const Json& document);

// Replaces the file as a whole or leaves it as it was; throws a Failure with a sentence. What is no file (/dev/stdout)
// is written to.
void write_file(const std::string& path, std::string_view content);

// Throws what write_file would throw, as far as can be told before there is anything to write.
void require_writable(const std::string& path);

}  // namespace cli
