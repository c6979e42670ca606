// ../../../ptx.cuh on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>

#include "core/dtype.h"

#define ADAMAS_NOINLINE __attribute__((noinline))

namespace adamas::cuda {

inline void wait_for_previous() {}
inline void launch_next() {}
inline unsigned char* shared_memory() { return on_cpu::shared; }
inline void copy16(void* to, const void* from) { std::memcpy(to, from, 16); }
inline void commit_copies() {}
template <int pending>
void wait_for_copies() {}
inline void prefetch_to_l2(const void*) {}
inline int add_released(int* at, int more) { return atomicAdd(at, more); }
inline float exp2_fast(float x) { return std::exp2(x); }

inline uint32_t f16_from_e4m3(uint16_t both) {
  const auto wide = [](unsigned byte) {
    const F8E4M3 one{uint8_t(byte)};
    return uint32_t{__float2half_rn(element(&one, 0)).bits};
  };
  return wide(both) | wide(both >> 8) << 16;
}

// PTX's fragments: lane l has of A the rows l / 4 and l / 4 + 8, of B the column l / 4, of C the rows of A and the columns
// 2 (l % 4) and the next; `each` elements of a word of A and B lie in line.
struct Operands {
  std::array<uint32_t, 4> a;
  std::array<uint32_t, 2> b;
};
template <int each, class C, class A, class B>
void multiply(C (&c)[4], const Operands& own, A&& a_of, B&& b_of) {
  const on_cpu::Lanes<Operands> lanes(own);
  const int lane = on_cpu::lane_index();
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4, half = i / 2, column = 2 * (lane % 4) + i % 2;
    C sum = c[i];
    for (int word = 0; word < 8; word++) {  // of a row and of a column, in two halves
      const uint32_t a = lanes[4 * row + word % 4].a[size_t(2 * (word / 4) + half)],
                     b = lanes[4 * column + word % 4].b[size_t(word / 4)];
      for (int e = 0; e < each; e++) sum += C(a_of(a >> 32 / each * e)) * C(b_of(b >> 32 / each * e));
    }
    c[i] = sum;
  }
}
template <class A, class B>
void multiply_bytes(int (&c)[4], const Operands& own) {
  multiply<4>(
      c, own, [](uint32_t x) { return A(x); }, [](uint32_t x) { return B(x); });
}
inline void mma_ss(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  multiply_bytes<int8_t, int8_t>(c, {{a0, a1, a2, a3}, {b0, b1}});
}
inline void mma_su(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  multiply_bytes<int8_t, uint8_t>(c, {{a0, a1, a2, a3}, {b0, b1}});
}
inline void mma_us(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  multiply_bytes<uint8_t, int8_t>(c, {{a0, a1, a2, a3}, {b0, b1}});
}
inline void mma_uu(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  multiply_bytes<uint8_t, uint8_t>(c, {{a0, a1, a2, a3}, {b0, b1}});
}
inline void mma(__half, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const auto of = [](uint32_t x) { return __half2float({uint16_t(x)}); };
  multiply<2>(c, {{a0, a1, a2, a3}, {b0, b1}}, of, of);
}
inline void mma(__nv_bfloat16, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const auto of = [](uint32_t x) { return __bfloat162float({uint16_t(x)}); };
  multiply<2>(c, {{a0, a1, a2, a3}, {b0, b1}}, of, of);
}

}  // namespace adamas::cuda
