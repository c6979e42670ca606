// The report of an evaluation as a page of tables and curves (pages/report.html says which fields it draws).
#pragma once

#include <string>

#include "output.h"

namespace cli {

void write_report(const std::string& path, const Json& report);

}  // namespace cli
