// A model's attention layers, as its GGUF metadata describes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf.h"

namespace cli {

enum class LayerKind {
  attention,
  latent,     // multi-head latent attention: one compressed row instead of K and V
  recurrent,  // state-space, linear attention, convolution
  none,       // no attention and no state: feed-forward only
};

struct Layer {
  LayerKind kind = LayerKind::attention;
  std::int64_t q_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t key_dim = 0;
  std::int64_t value_dim = 0;
  std::int64_t window = 0;    // tokens of a sliding window; 0: the whole context
  bool shares_cache = false;  // reads the K and V of an earlier layer
};

struct Model {
  std::string name;
  std::string architecture;
  std::int64_t context = 0;  // tokens it was made for; 0: the file does not say
  double softcap = 0;
  double alibi = 0;  // the largest bias; 0: none
  bool causal = true;
  std::vector<Layer> layers;
};

// Throws a Failure that names the key when one is missing or out of its range.
Model model_of(const Gguf& file);

}  // namespace cli
