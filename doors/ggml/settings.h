// The settings of this process: read from the environment when the engine loads us, or given by a program that runs the
// engine itself (ggml-adamas.h).
#pragma once

#include <cstdint>

#include "ggml-adamas.h"

namespace adamas_ggml {

bool read_settings();                           // false: adamas_last_error() has the sentence
const adamas_config& config();                  // of the process
const adamas_config& config_of(int32_t layer);  // with what the settings file says of that layer
bool observed();
void observe(const adamas_observation& observation);  // tells the observer, if there is one

}  // namespace adamas_ggml
