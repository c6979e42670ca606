// What each head read while an answer was made: the tokens that it attended to and the weight of each, packed for the page.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml-adamas.h"
#include "output.h"

namespace cli {

// One head of one layer at one step.
struct HeadRead {
  std::vector<std::int64_t> tokens;  // ascending
  std::vector<float> weights;        // of these, softmax over them alone
  bool dense = false;                // all that the mask lets it see
  float mass = 1;                    // share of the whole softmax that they hold; what is missing was not read in full
  float estimated = 1;               // the same as the step estimated it; NaN: the policy estimates nothing
};

// Of every query head. Weights and mass are computed here, from q and all of K as the step saw them: they are no estimates.
std::vector<HeadRead> reads_of(const adamas_observation& observation);

class Reads {
 public:
  // With the heads of the model, `most_steps` decides how many tokens of a head are kept, so that a page stays below 30 MB.
  Reads(std::int32_t layers, std::int64_t most_steps);

  void see(const adamas_observation& observation);
  void end_step();

  bool empty() const { return heads_ == 0; }
  double mean_tokens() const;              // read by a head
  Json document() const;                   // the field "reads" of the page
  std::vector<std::string> notes() const;  // sentences: what was left out, what was dense

 private:
  struct Layer {
    std::int32_t heads = 0;  // 0: the engine computed this layer, and nobody saw what it read
    std::string bytes;
  };
  void add(const HeadRead& read, Layer& layer);

  std::int64_t most_steps_;
  std::size_t kept_tokens_ = 0;  // 0: nothing was seen yet
  std::vector<Layer> step_;
  std::string bytes_;
  std::int64_t steps_ = 0, heads_ = 0, dense_ = 0, tokens_ = 0, shared_ = 0;
  double weight_ = 0, weight_kept_ = 0;
};

}  // namespace cli
