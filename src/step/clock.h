// Where a step's time goes. Each thread has a clock of its own (HeadScratch::clock); a step adds them up at its end.
#pragma once

#include <chrono>

#include "adamas/adamas.h"

namespace adamas {

using Times = adamas_step_times;

class Clock {
 public:
  // What follows is work, what went before was not: waiting for other threads, say. Without a wish for times lap() does
  // nothing.
  void start(bool wanted) {
    wanted_ = wanted;
    if (wanted) last_ = now();
  }
  // The time since the last lap, or the start, was the stage's: clock.lap(&Times::select).
  void lap(int64_t Times::*stage) {
    if (!wanted_) return;
    const int64_t time = now();
    times_.*stage += time - last_;
    last_ = time;
  }
  // Adds all laps since the last call to `total`.
  void move_to(Times& total) {
    for (int64_t Times::*stage : {&Times::look, &Times::encode, &Times::prepare, &Times::estimate, &Times::select,
                                  &Times::exact, &Times::check, &Times::attend, &Times::rest, &Times::dense})
      total.*stage += times_.*stage;
    times_ = {};
  }
  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

 private:
  bool wanted_ = false;
  int64_t last_ = 0;
  Times times_{};
};

}  // namespace adamas
