// What an attention step was about, seen from outside: the true scores of its last row, and what was selected for it.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml-adamas.h"

namespace cli {

using Scores = std::vector<std::vector<float>>;  // [query heads of one KV head][tokens in view]

// The scores as adamas.h defines them, bias included, from q and K as the step saw them; -inf for a token that the mask
// hides. Of the last row, the one that adamas_selection tells of.
Scores scores_of(const adamas_observation& observation, std::int32_t kv_head);

// The tokens that the last row attended to, ascending.
std::vector<std::int64_t> selection_of(const adamas_observation& observation, std::int32_t q_head);

}  // namespace cli
