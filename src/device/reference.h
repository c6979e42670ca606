// A device made of the stages' references alone: plain loops in double precision, on one thread. Slow, and right: what the
// others are compared with.
#pragma once

#include "device/device.h"

namespace adamas {

const Device& reference_device();

}  // namespace adamas
