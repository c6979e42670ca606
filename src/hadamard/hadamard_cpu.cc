#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hadamard/hadamard_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once for each instruction set

#include "hadamard/hadamard-inl.h"
#include "hadamard/hadamard.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

void Rotate(float* row, int head_dim) { rotate_row(row, head_dim); }

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {

HWY_EXPORT(Rotate);
void rotate(float* row, int head_dim) { HWY_DYNAMIC_DISPATCH(Rotate)(row, head_dim); }

}  // namespace adamas
#endif
