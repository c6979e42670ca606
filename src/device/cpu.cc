// The CPU: the stages' kernels, in step/sparse.cc and step/dense.cc.
#include <algorithm>

#include "device/device.h"
#include "device/reference.h"
#include "step/row.h"

namespace adamas {
namespace {

class Cpu : public Device {
 public:
  void encode_block(const Rows& rows, int head_dim, uint64_t live, bool first_block, Coding coding, bool rotate,
                    const Block& block, float* scratch) const override {
    adamas::encode_block(rows, head_dim, live, first_block, coding, rotate, block, scratch);
  }
  void encode_mean(const Rows& rows, int head_dim, uint64_t live, bool first_block, int16_t* mean, float* scale,
                   float* scratch) const override {
    adamas::encode_mean(rows, head_dim, live, first_block, mean, scale, scratch);
  }
  int64_t attend(const Row& row, int threads) const override {
    const std::vector<HeadResult>& results = row.plan.results;
    int64_t stale = 0;
    if (results.front().reading != Reading::short_context) stale = attend_sparse(row, threads);
    if (std::any_of(results.begin(), results.end(), [](const HeadResult& result) { return reads_all(result.reading); }))
      attend_dense(row, threads);
    return stale;
  }
  bool attend_prompt(const Row& last, int threads) const override {
    std::fill(last.plan.results.begin(), last.plan.results.end(), HeadResult{.reading = Reading::short_context});
    attend_prompt_rows(last, threads);
    return true;
  }
};

}  // namespace

const Device& device_of(int32_t device) {
  static const Cpu cpu;
  return device == ADAMAS_DEVICE_REFERENCE ? reference_device() : cpu;
}

}  // namespace adamas
