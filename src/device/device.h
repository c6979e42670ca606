// A device: where codes are made and rows are attended to. Rows in, results out: what lies between is the device's own
// business, so that one may fuse what another does in stages. What a device has to keep is the stages' contracts;
// `reference` is those contracts in plain loops.
#pragma once

#include <cstdint>

#include "codes/codes.h"

namespace adamas {

struct Row;

class Device {
 public:
  virtual ~Device() = default;

  // As codes/codes.h says.
  virtual void encode_block(const Rows& rows, int head_dim, uint64_t live, bool first_block, Coding coding, bool rotate,
                            const Block& block, float* scratch) const = 0;
  virtual void encode_mean(const Rows& rows, int head_dim, uint64_t live, bool first_block, int16_t* mean, float* scale,
                           float* scratch) const = 0;

  // Attention of a row that was looked at (row.view, row.uncoded): out, lse, mass and noise of the step, and plan.results,
  // which say on entry whether the row is so short that all of it is read. Returns how many of the key rows that were read,
  // and of plan.slice, are not those that their codes were made from, where row.verify asks for it.
  virtual int64_t attend(const Row& row, int threads) const = 0;

  // Attention of every row of a prompt, whose last row this is: each reads all that it sees. False: the device has no
  // way of its own, and the rows are asked for one by one.
  virtual bool attend_prompt(const Row& /*last*/, int /*threads*/) const { return false; }
};

// Of an adamas_device.
const Device& device_of(int32_t device);

}  // namespace adamas
