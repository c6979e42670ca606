// What the tests of all stages share: every instruction set in turn, numbers from fixed seeds, rows of any dtype that end
// at a page the process may not touch.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/shape.h"
#include "core/view.h"
#include "device/device.h"

namespace adamas::testing {

// Runs the tests of a suite once for each instruction set of the machine, forced by name.
class OnEveryDevice : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(force_device(GetParam()).ok()); }
  void TearDown() override { force_device("auto"); }
};

#define ADAMAS_ON_EVERY_DEVICE(suite)                                                           \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, ::testing::ValuesIn(::adamas::device_names()),           \
                           [](const auto& info) { return info.param; })

inline constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16};

inline void store(std::byte* to, DType dtype, float value) {
  if (dtype == DType::f32) {
    std::memcpy(to, &value, 4);
    return;
  }
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  uint16_t half;
  if (dtype == DType::bf16) {
    half = uint16_t(bits >> 16);
  } else {  // truncating: enough for making test data
    const int exponent = int(bits >> 23 & 0xFF) - 127 + 15;
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) half = sign | 0x7E00;
    else if (exponent >= 31) half = sign | 0x7C00;
    else if (exponent <= 0) half = sign;
    else half = uint16_t(sign | exponent << 10 | (bits >> 13 & 0x3FF));
  }
  std::memcpy(to, &half, 2);
}

// Memory between two pages that fault, at the very end of its own.
class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    size_ = (bytes + page - 1) / page * page + 2 * page;
    base_ = static_cast<std::byte*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + size_ - page, page, PROT_NONE);
    data_ = base_ + size_ - page - bytes;
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  std::byte* data() { return data_; }

 private:
  std::byte* base_;
  std::byte* data_;
  size_t size_;
};

// [tokens, head_dim] of any dtype with `gap` bytes between rows.
class Matrix {
 public:
  Matrix(int64_t tokens, int head_dim, DType dtype, int64_t gap = 0)
      : tokens_(tokens), head_dim_(head_dim), dtype_(dtype), stride_(head_dim * size_of(dtype) + gap),
        memory_(size_t(tokens * stride_ - gap)) {}

  void set(int64_t token, int d, float value) {
    store(memory_.data() + token * stride_ + d * size_of(dtype_), dtype_, value);
  }
  float at(int64_t token, int d) const { return load_f32(view().row(token), dtype_, d); }
  void fill_normal(std::mt19937& random, float deviation = 1) {
    std::normal_distribution<float> normal(0, deviation);
    for (int64_t t = 0; t < tokens_; t++)
      for (int d = 0; d < head_dim_; d++) set(t, d, normal(random));
  }
  Rows view() const { return {const_cast<Guarded&>(memory_).data(), dtype_, stride_}; }

 private:
  int64_t tokens_;
  int head_dim_;
  DType dtype_;
  int64_t stride_;
  Guarded memory_;
};

inline std::vector<float> normal_vector(std::mt19937& random, int n, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

}  // namespace adamas::testing
