#include "report.h"

#include "pages.h"

namespace cli {

void write_report(const std::string& path, const Json& report) { write_file(path, page(Template::report, report)); }

}  // namespace cli
