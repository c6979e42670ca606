#include "model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "failure.h"

namespace cli {
namespace {

constexpr std::int64_t most_layers = 512;  // as many as llama.cpp takes
constexpr std::int64_t most_heads = 4096;
constexpr std::int64_t most_dims = 65536;
constexpr std::int64_t most_tokens = 2147483647;

// A name from the file, fit for a terminal.
std::string printable(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  return name;
}

// The keys of one architecture: "attention.head_count" is looked up as "llama.attention.head_count".
class Metadata {
 public:
  explicit Metadata(const Json& values) : values_(values) {
    const auto found = values_.find("general.architecture");
    if (found == values_.end() || !found->is_string())
      throw Failure(exit_failed, "the file does not name its architecture (general.architecture)");
    architecture_ = printable(found->get<std::string>());
  }

  const std::string& architecture() const { return architecture_; }

  const Json* find(const std::string& key) const {
    const auto found = values_.find(architecture_ + "." + key);
    return found == values_.end() ? nullptr : &*found;
  }

  std::int64_t integer(const std::string& key, std::int64_t least, std::int64_t most) const {
    const Json* value = find(key);
    if (value == nullptr) throw Failure(exit_failed, fmt::format("the file has no {}.{}", architecture_, key));
    return in_range(*value, key, least, most);
  }

  std::int64_t integer(const std::string& key, std::int64_t least, std::int64_t most, std::int64_t otherwise) const {
    return find(key) == nullptr ? otherwise : integer(key, least, most);
  }

  double number(const std::string& key) const {
    const Json* value = find(key);
    return value != nullptr && value->is_number() ? value->get<double>() : 0;
  }

  // One value for every layer, or an array with one for each.
  std::vector<std::int64_t> per_layer(const std::string& key, std::size_t layers, std::int64_t most,
                                      const std::vector<std::int64_t>& otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_array()) return std::vector<std::int64_t>(layers, in_range(*value, key, 0, most));
    if (value->size() < layers)
      throw Failure(exit_failed,
                    fmt::format("{}.{} has {} values for {} layers", architecture_, key, value->size(), layers));
    std::vector<std::int64_t> list;
    for (std::size_t i = 0; i < layers; ++i) list.push_back(in_range((*value)[i], key, 0, most));
    return list;
  }

 private:
  std::int64_t in_range(const Json& value, const std::string& key, std::int64_t least, std::int64_t most) const {
    const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                                                 : value.is_number_integer();
    if (fits && value.get<std::int64_t>() >= least && value.get<std::int64_t>() <= most) return value.get<std::int64_t>();
    throw Failure(exit_failed, fmt::format("{}.{} is {}; expected {} to {}", architecture_, key, value.dump(), least, most));
  }

  const Json& values_;
  std::string architecture_;
};

// Which layers have a sliding window. Most files say how wide it is and leave the pattern to llama.cpp, whose periods
// these are: of `period` layers one sees everything, the last of them or the first. An architecture that is not here
// has no window in llama.cpp unless the file gives the pattern, layer by layer.
struct WindowPattern {
  const char* architecture;
  std::int64_t period;
  bool whole_first = false;
  std::int64_t width = 0;  // when the file does not say
};
constexpr std::array window_patterns{
    WindowPattern{"afmoe", 4},
    WindowPattern{"cohere2", 4},
    WindowPattern{"cohere2moe", 4, true},
    WindowPattern{"exaone4", 4},
    WindowPattern{"exaone-moe", 4},
    WindowPattern{"gemma-embedding", 6},
    WindowPattern{"gemma2", 2, false, 4096},
    WindowPattern{"gemma3", 6},
    WindowPattern{"gemma3n", 5},
    WindowPattern{"gpt-oss", 2},
    WindowPattern{"laguna", 4, true},
    WindowPattern{"llama4", 4, false, 8192},
    WindowPattern{"mellum", 4},
    WindowPattern{"modern-bert", 3, true},
    WindowPattern{"olmo2", 4},
    WindowPattern{"plamo3", 8},
    WindowPattern{"smallthinker", 4, true},
};

std::vector<std::int64_t> windows_of(const Metadata& metadata, std::size_t layers) {
  const auto known = std::find_if(window_patterns.begin(), window_patterns.end(), [&](const WindowPattern& pattern) {
    return metadata.architecture() == pattern.architecture;
  });
  const bool is_known = known != window_patterns.end();
  const std::int64_t width = metadata.integer("attention.sliding_window", 0, most_tokens, is_known ? known->width : 0);

  std::vector<std::int64_t> windows(layers, 0);
  const Json* given = metadata.find("attention.sliding_window_pattern");
  if (given != nullptr && given->is_array()) {
    const auto flags = metadata.per_layer("attention.sliding_window_pattern", layers, 1, {});
    for (std::size_t i = 0; i < layers; ++i) windows[i] = flags[i] != 0 ? width : 0;
  } else if (is_known) {
    const std::int64_t period = metadata.integer("attention.sliding_window_pattern", 0, most_layers, known->period);
    for (std::size_t i = 0; i < layers; ++i) {
      const std::int64_t place = period == 0 ? -1 : static_cast<std::int64_t>(i) % period;
      windows[i] = place == (known->whole_first ? 0 : period - 1) ? 0 : width;
    }
  }
  return windows;
}

// What a layer is made of shows in its tensors. A part of a split model lacks most of them; then the heads decide.
LayerKind kind_of(const std::set<std::string>& tensors, std::size_t layer, bool has_heads) {
  const auto has = [&](const char* part) {  // a tensor blk.<layer>.<part>...
    const std::string prefix = fmt::format("blk.{}.{}", layer, part);
    const auto found = tensors.lower_bound(prefix);
    return found != tensors.end() && found->starts_with(prefix);
  };
  if (has("attn_kv_a_mqa.") || has("attn_kv_latent.")) return LayerKind::latent;
  const bool recurrent = has("ssm_") || has("time_mix_") || has("shortconv.");
  if (!has_heads) return recurrent ? LayerKind::recurrent : LayerKind::none;
  if (has("attn_k.") || !has("")) return LayerKind::attention;
  if (recurrent) return LayerKind::recurrent;  // some have a fused attn_qkv of linear attention
  return has("attn_qkv.") || has("attn_q.") ? LayerKind::attention : LayerKind::none;
}

}  // namespace

Model model_of(const Gguf& file) {
  const Metadata metadata(file.values);
  const auto name = file.values.find("general.name");
  Model model{.name = name != file.values.end() && name->is_string() ? printable(name->get<std::string>()) : "",
              .architecture = metadata.architecture(),
              .context = metadata.integer("context_length", 0, most_tokens, 0),
              .softcap = metadata.number("attn_logit_softcapping"),
              .alibi = metadata.number("attention.max_alibi_bias"),
              .causal = metadata.integer("attention.causal", 0, 1, 1) != 0,
              .layers = {}};

  const auto layers = static_cast<std::size_t>(metadata.integer("block_count", 1, most_layers));
  const std::int64_t embedding = metadata.integer("embedding_length", 1, most_tokens);
  const auto q_heads = metadata.per_layer("attention.head_count", layers, most_heads, std::vector<std::int64_t>(layers, 0));
  const auto kv_heads = metadata.per_layer("attention.head_count_kv", layers, most_heads, q_heads);
  const auto windows = windows_of(metadata, layers);
  const std::int64_t shared = metadata.integer("attention.shared_kv_layers", 0, static_cast<std::int64_t>(layers), 0);
  const std::set<std::string> tensors(file.tensors.begin(), file.tensors.end());

  const std::int64_t by_heads = *std::max_element(q_heads.begin(), q_heads.end()) > 0
                                    ? embedding / *std::max_element(q_heads.begin(), q_heads.end())
                                    : 0;
  const std::int64_t key_dim = metadata.integer("attention.key_length", 0, most_dims, by_heads);
  const std::int64_t value_dim = metadata.integer("attention.value_length", 0, most_dims, by_heads);

  for (std::size_t i = 0; i < layers; ++i) {
    Layer layer{.kind = kind_of(tensors, i, q_heads[i] > 0 && kv_heads[i] > 0),
                .q_heads = q_heads[i],
                .kv_heads = kv_heads[i],
                .key_dim = key_dim,
                .value_dim = value_dim,
                .window = windows[i],
                .shares_cache = static_cast<std::int64_t>(layers - i) <= shared};
    if (layer.window > 0) {
      layer.key_dim = metadata.integer("attention.key_length_swa", 0, most_dims, key_dim);
      layer.value_dim = metadata.integer("attention.value_length_swa", 0, most_dims, value_dim);
    }
    if (layer.kind == LayerKind::attention && layer.q_heads % layer.kv_heads != 0)
      throw Failure(exit_failed, fmt::format("layer {} has {} query heads and {} KV heads, which do not divide them", i,
                                             layer.q_heads, layer.kv_heads));
    model.layers.push_back(layer);
  }
  return model;
}

}  // namespace cli
