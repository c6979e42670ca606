// What was done and what was left to the engine; ADAMAS_STATS=1 prints it once, when the process ends.
#pragma once

#include "adamas/adamas.h"
#include "nodes.h"

namespace adamas_ggml {

// An attention node was left to the engine. Says why, once for each reason.
void note_left(Reason reason);
void note_step(const adamas_step_stats& step, int32_t layer, int32_t q_heads, int64_t rotated);
void note_forgotten();              // a cache's codes were dropped, its keys having changed unseen
void note_seconds(double seconds);  // spent in the back end
void print_stats_at_exit();

}  // namespace adamas_ggml
