#include "verdict.h"

#include <fmt/format.h>

#include <algorithm>

#include "output.h"

namespace cli {
namespace {

std::string why_not_served(const Layer& layer) {
  switch (layer.kind) {
    case LayerKind::attention: break;
    case LayerKind::latent: return "latent attention (MLA): K and V are one compressed row";
    case LayerKind::recurrent: return "recurrent: it keeps a state and no K and V";
    case LayerKind::none: return "no attention";
  }
  if (layer.key_dim != layer.value_dim)
    return fmt::format("K and V rows differ in size ({} and {})", layer.key_dim, layer.value_dim);
  const auto dims = adamas::head_dims();
  if (std::find(dims.begin(), dims.end(), layer.key_dim) == dims.end())
    return fmt::format("head_dim {} is not served; supported: {}", layer.key_dim, fmt::join(dims, ", "));
  return "";
}

}  // namespace

std::int64_t cached_tokens(const Layer& layer, std::int64_t context) {
  return layer.window > 0 ? std::min(layer.window, context) : context;
}

std::string why_dense(const Model& model, std::size_t index, std::int64_t context, const adamas::Config& config) {
  const Layer& layer = model.layers[index];
  if (std::string reason = why_not_served(layer); !reason.empty()) return reason;
  if (!model.causal) return "an encoder: the engine keeps no K and V";
  if (config.policy == adamas::Policy::full) return "policy full";
  if (static_cast<std::int64_t>(index) < config.dense_layers) return fmt::format("dense_layers is {}", config.dense_layers);

  const std::int64_t tokens = cached_tokens(layer, context);
  const std::string what =
      tokens < context ? "a sliding window of " + counted(tokens, "token") : "the context of " + counted(tokens, "token");
  if (tokens < config.min_context) return fmt::format("{} is below min_context, {}", what, config.min_context);
  if (const std::int64_t budget = adamas_budget_tokens(config.budget); tokens <= budget)
    return fmt::format("{} is within the budget, {}", what, budget);
  return "";
}

}  // namespace cli
