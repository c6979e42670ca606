// Which instruction set the kernels run with. Highway compiles every kernel for all of them and picks the best that the
// machine has; tests and users can force another by its name.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"

namespace adamas {

std::vector<std::string> isa_names();  // that this machine can run, best first
std::string isa_in_use();
Status force_isa(const std::string& name);  // "auto" undoes it; any case

}  // namespace adamas
