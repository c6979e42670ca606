// Settings as a file: lines `name = value`, comments from `#` on, and sections `[layers 0,3-5]` whose lines hold for those
// layers.
#pragma once

#include <string>

#include "core/config.h"

namespace adamas {

inline constexpr const char* config_file_environment = "ADAMAS_CONFIG";

// Sets what the file says on top of `config`: with layer -1 its general lines, else what its sections say of that layer. The
// whole file is checked either way; on an error `config` is unchanged.
Status load(adamas_config& config, const std::string& path, int32_t layer);

}  // namespace adamas
