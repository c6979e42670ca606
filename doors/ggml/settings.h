// The settings of this process: read from the environment when the engine loads us, or given by a program that runs the
// engine itself (ggml-adamas.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ggml-adamas.h"

namespace adamas_ggml {

bool read_settings();                           // false: adamas_last_error() has the sentence
const adamas_config& config();                  // of the process
const adamas_config& config_of(int32_t layer);  // with what the settings file says of that layer
// The struct has no padding but behind its last field.
inline bool same(const adamas_config& a, const adamas_config& b) {
  return std::memcmp(&a, &b, offsetof(adamas_config, prompt) + sizeof a.prompt) == 0;
}
bool observed();
void observe(const adamas_observation& observation);  // tells the observer, if there is one

}  // namespace adamas_ggml
