// How far a long command is, on standard error: one line that changes on a terminal, a line every ten seconds elsewhere.
#pragma once

#include <chrono>
#include <string>

namespace cli {

class Progress {
 public:
  // `work`: of any unit, in all.
  explicit Progress(double work);
  ~Progress();  // leaves an empty line on a terminal
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(double work, const std::string& doing);
  void skip(double work);  // it was done before: it tells nothing about the time left

 private:
  using Clock = std::chrono::steady_clock;

  const bool terminal_;
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point shown_ = begin_;
  double left_;
  double done_ = 0;
};

// "1 h 20 min", "3 min 5 s", "42 s"
std::string duration_text(double seconds);

}  // namespace cli
