// What CUDA has no function for: all that is written in PTX, or that a host's compiler would not take. on_cpu/ has the same
// for a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define ADAMAS_NOINLINE __noinline__

namespace adamas::cuda {

// A kernel whose predecessor in the stream may still run waits for its results here, and lets its successor start.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void launch_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The shared memory that a launch asks for.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// 16 bytes to shared memory, while the thread goes on.
__device__ inline void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }
// Until all but the last `pending` groups are there.
template <int pending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
__device__ inline void prefetch_to_l2(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

// Adds, and returns what was there before. What the block of threads wrote before its last barrier is seen by who finds the
// sum, and by its block of threads behind a barrier.
__device__ inline int add_released(int* at, int more) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(more) : "memory");
  return before;
}

__device__ inline float exp2_fast(float x) {
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x));
  return e;
}

// Two numbers of 8 bits, e4m3, as two of 16.
__device__ inline uint32_t f16_from_e4m3(uint16_t both) {
  uint32_t wide;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(both));
#else
  const uint32_t bytes = __byte_perm(both, 0, 0x1404), magnitudes = bytes >> 1 & 0x3F803F80;
  const __half2 scaled = __hmul2(*reinterpret_cast<const __half2*>(&magnitudes), __float2half2_rn(256.0f));
  wide = *reinterpret_cast<const uint32_t*>(&scaled) | (bytes & 0x80008000);
  if ((magnitudes & 0xFFFF) == 0x3F80) wide |= 0x7E00;  // no number
  if (magnitudes >> 16 == 0x3F80) wide |= 0x7E000000;
#endif
  return wide;
}

// c += a b of bytes: 16 x 32 by 32 x 8, signed (s) or not (u). A warp's; the order of elements is PTX's m16n8k32.
#define ADAMAS_MMA(name, type_a, type_b)                                                                                  \
  __device__ inline void name(int(&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) { \
    asm("mma.sync.aligned.m16n8k32.row.col.s32." type_a "." type_b                                                        \
        ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                                      \
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                                  \
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                                                          \
  }
ADAMAS_MMA(mma_ss, "s8", "s8")
ADAMAS_MMA(mma_su, "s8", "u8")
ADAMAS_MMA(mma_us, "u8", "s8")
ADAMAS_MMA(mma_uu, "u8", "u8")
#undef ADAMAS_MMA

// The same of 16-bit numbers, whose type the first argument says, with sums in f32: 16 x 16 by 16 x 8, m16n8k16.
#define ADAMAS_MMA(type, name)                                                                                              \
  __device__ inline void mma(type, float(&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,           \
                             uint32_t b1) {                                                                                 \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                                    \
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                                                            \
  }
ADAMAS_MMA(__half, "f16")
ADAMAS_MMA(__nv_bfloat16, "bf16")
#undef ADAMAS_MMA

}  // namespace adamas::cuda
