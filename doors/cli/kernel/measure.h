// Steps of one attention layer, measured. Layers take turns, so that K, V and codes come from memory as they do in a model;
// cases take turns, so that a machine that slows down slows all of them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <adamas/adamas.hpp>

#include "../eval/progress.h"
#include "../median.h"
#include "ggml_attention.h"
#include "shape.h"
#include "stages.h"

namespace cli::kernel {

struct Setting {
  std::string name;
  adamas::Config config;
};

// What the steps of one setting took, of a layer each. Medians, where nothing else is said.
struct Measured {
  std::string name;
  std::vector<double> seconds;
  std::array<std::vector<double>, stages.size()> stage_seconds;  // processor time over threads: shares of the step
  StageBytes bytes{};                                            // sums over the steps
  adamas_step_stats stats{};                                     // the same; those that are shown
  std::vector<float> out;                                        // of the last step

  double steps() const { return static_cast<double>(seconds.size()); }
  double step() const { return median(seconds); }
  double stage(std::size_t i) const { return median(stage_seconds[i]); }
  double waiting() const {  // the rest
    double rest = step();
    for (std::size_t i = 0; i < stages.size(); i++) rest -= stage(i);
    return rest;
  }
  double stage_bytes(std::size_t i) const { return bytes[i] / steps(); }
  double all_bytes() const {
    double sum = 0;
    for (const double one : bytes) sum += one / steps();
    return sum;
  }
};

// One shape and length.
struct Point {
  Shape shape;
  std::int64_t tokens;
  int layers, threads;
  double bandwidth;            // bytes a second
  std::vector<Measured> ours;  // settings as they were given, the dense one last
  std::vector<double> ggml;    // seconds; empty: no engine

  const Measured& first() const { return ours.front(); }
  const Measured& dense() const { return ours.back(); }
  double over_dense(const Measured& one) const { return dense().step() / one.step(); }
  double over_ggml(const Measured& one) const { return ggml.empty() ? NAN : median(ggml) / one.step(); }
  // Of the scan, by one processor in a second.
  double scores_per_second(const Measured& one) const;
};

// Where to measure, and how much.
struct Place {
  Shape shape;
  std::int64_t tokens;
  std::int64_t repeat;  // steps of each setting, at least
  int threads;

  int layers() const;           // so many that no cache holds what the next turn needs
  std::int64_t rounds() const;  // each layer gives so many steps
  double memory(std::size_t settings) const;
  double work() const;  // about as the time goes
};

// `settings`: two that are sparse, or more, and the dense one last. ggml: NULL when there is no engine. Throws when its
// attention is not ours.
Point measure(const Place& place, const std::vector<Setting>& settings, GgmlAttention* ggml, Progress& progress);

// The same attention twice, or the times mean nothing: throws when they differ by more than ggml's sums in f16 do.
void require_equal(const std::vector<float>& ours, const std::vector<float>& ggml);

}  // namespace cli::kernel
