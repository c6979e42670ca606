// The stages of a step, and how many bytes each reads.
#pragma once

#include <array>
#include <cstdint>

#include <adamas/adamas.hpp>

#include "shape.h"

namespace cli::kernel {

struct Stage {
  const char* name;
  std::int64_t adamas_step_times::*time;
};
inline constexpr std::array stages{
    Stage{"look", &adamas_step_times::look},       Stage{"encode", &adamas_step_times::encode},
    Stage{"prepare", &adamas_step_times::prepare}, Stage{"estimate", &adamas_step_times::estimate},
    Stage{"select", &adamas_step_times::select},   Stage{"exact", &adamas_step_times::exact},
    Stage{"check", &adamas_step_times::check},     Stage{"attend", &adamas_step_times::attend},
    Stage{"rest", &adamas_step_times::rest},       Stage{"dense", &adamas_step_times::dense}};
using StageBytes = std::array<double, stages.size()>;

// One step of one query row without a mask.
struct StepDone {
  Shape shape;
  adamas_config config;
  std::int64_t tokens;       // in view
  std::int64_t verify_rows;  // as the step had it
  adamas_step_stats stats;
};

// What every stage reads of q, K, V and codes, and of the scores, which are too many for the nearest cache. What heads of a
// group read of the same KV head counts once: one of them brings it into a cache for all.
StageBytes bytes_of(const StepDone& step);

}  // namespace cli::kernel
