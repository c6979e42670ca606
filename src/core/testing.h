// What the tests of all stages share: every instruction set in turn, numbers from fixed seeds, rows of any dtype that end
// at a page the process may not touch.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "core/shape.h"
#include "core/rows.h"
#include "device/isa.h"

namespace adamas::testing {

// Runs the tests of a suite once for each instruction set of the machine, forced by name.
class OnEveryIsa : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(force_isa(GetParam()).ok()); }
  void TearDown() override { force_isa("auto"); }
};

#define ADAMAS_ON_EVERY_ISA(suite)                                                 \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, ::testing::ValuesIn(::adamas::isa_names()), \
                           [](const auto& info) { return info.param; })

inline constexpr DType plain_dtypes[] = {DType::f32, DType::f16, DType::bf16};
inline constexpr DType dtypes[] = {DType::f32,  DType::f16,  DType::bf16, DType::q8_0,   DType::q5_0,
                                   DType::q5_1, DType::q4_0, DType::q4_1, DType::iq4_nl, DType::f8_e4m3};
static_assert(std::size(dtypes) == dtype_count);

// What rows of a dtype need: quantised ones are whole blocks.
constexpr bool fits(DType dtype, int head_dim) { return !is_quantised(int32_t(dtype)) || head_dim % quantised_block == 0; }

// Conversions that are good enough for making test data. Plain types are cut.
inline void store_plain(std::byte* to, DType dtype, float value) {
  if (dtype == DType::f32) {
    std::memcpy(to, &value, 4);
    return;
  }
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (dtype == DType::f8_e4m3) {  // to the nearest, at most 448
    const uint8_t sign = uint8_t(bits >> 24 & 0x80);
    uint8_t nearest = 0x7F;
    if (!std::isnan(value)) {
      const float x = std::min(std::abs(value), 448.0f);
      int exponent = 0;
      std::frexp(x, &exponent);
      const int power = x == 0 ? -6 : std::max(exponent - 1, -6);
      const int steps = int(std::nearbyint(std::ldexp(x, 3 - power)));  // 8 to 16 of them, or fewer when it is denormal
      nearest = uint8_t((power + 6) * 8 + steps);
    }
    *to = std::byte(nearest | sign);
    return;
  }
  uint16_t half;
  if (dtype == DType::bf16) {
    half = uint16_t(bits >> 16);
  } else {
    const int exponent = int(bits >> 23 & 0xFF) - 127 + 15;
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
      half = sign | 0x7E00;
    else if (exponent >= 31)
      half = sign | 0x7C00;
    else if (exponent <= 0)
      half = sign;
    else
      half = uint16_t(sign | exponent << 10 | (bits >> 13 & 0x3FF));
  }
  std::memcpy(to, &half, 2);
}

// 32 values between -highest and highest steps of a scale, or of what lies above their minimum. A scale that is no number
// spoils the whole block.
template <class Block>
void store_block(Block& b, const float* x) {
  float low = x[0], high = x[0], most = 0;
  for (int i = 0; i < quantised_block; i++) {
    if (!(x[i] >= low)) low = x[i];
    if (!(x[i] <= high)) high = x[i];
    if (!(std::abs(x[i]) <= most)) most = std::abs(x[i]);
  }
  b = {};
  float scale = most, base = 0, offset = 0;
  if constexpr (requires { b.min; }) {
    store_plain(reinterpret_cast<std::byte*>(b.min), DType::f16, low);
    base = f16_at(b.min);
    scale = (high - low) / (requires { b.fifth; } ? 31 : 15);
  } else {
    const int steps = std::is_same_v<Block, Q4_0> ? 7 : std::is_same_v<Block, Q5_0> ? 15 : 127;
    offset = std::is_same_v<Block, Q4_0> ? 8 : std::is_same_v<Block, Q5_0> ? 16 : 0;
    scale = most / float(steps);
  }
  store_plain(reinterpret_cast<std::byte*>(b.scale), DType::f16, scale);
  scale = f16_at(b.scale);
  for (int i = 0; i < quantised_block; i++) {
    const float steps = scale != 0 && std::isfinite(scale) && std::isfinite(base) ? (x[i] - base) / scale : 1;
    if constexpr (std::is_same_v<Block, Q8_0>) {
      b.quants[i] = int8_t(std::clamp(std::nearbyint(steps), -127.0f, 127.0f));
    } else {
      int bits = int(std::clamp(
          std::nearbyint(steps) + offset, 0.0f, requires { b.fifth; } ? 31.0f : 15.0f));
      if constexpr (std::is_same_v<Block, Iq4Nl>)
        bits = int(std::min_element(iq4_nl_levels, iq4_nl_levels + 16,
                                    [&](int8_t l, int8_t r) { return std::abs(l - steps) < std::abs(r - steps); }) -
                   iq4_nl_levels);
      b.nibbles[i % 16] |= uint8_t((bits & 15) << (i < 16 ? 0 : 4));
      if constexpr (requires { b.fifth; }) b.fifth[i / 8] |= uint8_t(bits >> 4 << i % 8);
    }
  }
}

// values: [count], to a row.
inline void store_row(std::byte* row, DType dtype, const float* values, int count) {
  with_dtype(dtype, [&]<class T>(T) {
    if constexpr (requires(T t) { t.scale; }) {
      for (int i = 0; i < count; i += quantised_block)
        store_block(reinterpret_cast<T*>(row)[i / quantised_block], values + i);
    } else {
      for (int i = 0; i < count; i++) store_plain(row + i * int64_t(sizeof(T)), dtype, values[i]);
    }
  });
}

// One element of a row; of a quantised one its block is made anew.
inline void store(std::byte* row, DType dtype, int64_t i, float value) {
  if (!is_quantised(int32_t(dtype))) return store_plain(row + row_bytes(dtype, i), dtype, value);
  const int64_t first = i / quantised_block * quantised_block;
  float values[quantised_block];
  for (int j = 0; j < quantised_block; j++) values[j] = load_f32(row, dtype, first + j);
  values[i - first] = value;
  store_row(row + row_bytes(dtype, first), dtype, values, quantised_block);
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
      : tokens_(tokens),
        head_dim_(head_dim),
        dtype_(dtype),
        stride_(row_bytes(dtype, head_dim) + gap),
        memory_(size_t(tokens * stride_ - gap)) {}

  void set(int64_t token, int d, float value) { store(memory_.data() + token * stride_, dtype_, d, value); }
  template <class Value>
  void fill(Value&& value) {
    std::vector<float> row(head_dim_);
    for (int64_t t = 0; t < tokens_; t++) {
      for (int d = 0; d < head_dim_; d++) row[d] = value(t, d);
      store_row(memory_.data() + t * stride_, dtype_, row.data(), head_dim_);
    }
  }
  float at(int64_t token, int d) const { return load_f32(view().row(token), dtype_, d); }
  void fill_normal(std::mt19937& random, float deviation = 1) {
    std::normal_distribution<float> normal(0, deviation);
    fill([&](int64_t, int) { return normal(random); });
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
