// A table for people: columns as wide as they need, words to the left, numbers to the right.
#pragma once

#include <string>
#include <vector>

namespace cli {

class Table {
 public:
  // `words`: how many of the first columns are words.
  Table(std::vector<std::string> head, std::size_t words) : rows_{std::move(head)}, words_(words) {}

  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void print() const;  // to standard output

 private:
  std::vector<std::vector<std::string>> rows_;
  std::size_t words_;
};

}  // namespace cli
