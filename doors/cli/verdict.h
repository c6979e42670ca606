// Whether a layer runs sparse, and the reason when it does not: the rules of the llama.cpp back end in words.
#pragma once

#include <adamas/adamas.hpp>
#include <string>

#include "model.h"

namespace cli {

// Empty when layer `index` runs sparse at a full context of that many tokens.
std::string why_dense(const Model& model, std::size_t index, std::int64_t context, const adamas::Config& config);

// The tokens that a layer's cache holds.
std::int64_t cached_tokens(const Layer& layer, std::int64_t context);

}  // namespace cli
