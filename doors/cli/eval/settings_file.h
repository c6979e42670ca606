// Settings as a file that `adamas run --config` and ADAMAS_CONFIG read: lines `name = value`, and sections `[layers 0,3-5]`
// of what is different there.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cases.h"

namespace cli {

// Belongs before the sections, which do not take it.
bool is_of_whole_model(const std::string& setting);

// `by_layer`: what each layer runs with; those that a layer of most others has stand first, without a section.
// What is of the whole model is one value in all of them. `comments`: lines that say where the file comes from.
std::string settings_text(const std::map<std::size_t, Case>& by_layer, const std::vector<std::string>& comments);

}  // namespace cli
