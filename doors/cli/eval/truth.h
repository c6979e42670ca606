// What an attention step should have selected: the true scores of every token, beside what it did select.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml-adamas.h"

namespace cli {

struct HeadTruth {
  double top_found = 0;  // share of the tokens with the highest true scores, as many as were selected, that are selected
  double mass_true = 0;  // share of the softmax in the selection
  double mass_estimated = 0;  // what the step thought that it was; NaN: it did not say
  double noise = 0;           // variance of an estimated score, as the step thought; NaN: it did not say
  double tokens = 0;          // selected
  double needed = 0;          // tokens of the highest true scores that hold `enough` of the softmax
};

// Of the last row of the step, by query head.
std::vector<HeadTruth> truth_of(const adamas_observation& observation, double enough);

}  // namespace cli
