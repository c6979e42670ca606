# cmake -D NAME=report -D FILE=report.html -D OUT=report.cc -P embed.cmake: a text file as a constant of a C++ file. A page has a
# place for its document.
file(READ ${FILE} content)
string(FIND "${content}" ")page\"" end)
string(REPLACE "{{document}}" "" without "${content}")
string(LENGTH "${content}" whole)
string(LENGTH "${without}" rest)
math(EXPR marks "(${whole} - ${rest}) / 12")
if(NOT FILE MATCHES "[.]html$")
  set(marks 1)
endif()
if(NOT end EQUAL -1 OR NOT marks EQUAL 1)
  message(FATAL_ERROR "${FILE}: has to hold {{document}} once, and )page\" nowhere")
endif()
file(WRITE ${OUT} "// Made of ${FILE}.
#include <string_view>

namespace cli {
extern const std::string_view ${NAME}_template;
const std::string_view ${NAME}_template = R\"page(${content})page\";
}  // namespace cli
")
