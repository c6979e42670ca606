// write_page explain|report DOCUMENT.json OUT.html: a page of any document, without a model.
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>

#include "pages.h"
#include "report.h"

int main(int count, char** arguments) {
  if (count != 4) return 2;
  try {
    std::ifstream file(arguments[2]);
    const cli::Json document = cli::Json::parse(file);
    if (std::string(arguments[1]) == "report")
      cli::write_report(arguments[3], document);
    else
      cli::write_file(arguments[3], cli::page(cli::Template::explain, document));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "write_page: %s\n", error.what());
    return 1;
  }
}
