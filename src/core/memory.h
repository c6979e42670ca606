// Arrays aligned to a cache line and left as the system hands them out: pages that nobody touches cost nothing.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace adamas {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Array = std::unique_ptr<T[], Free>;

inline constexpr int64_t largest_array = int64_t{1} << 46;  // bytes; more is a mistake of the caller

// Uninitialised. Throws std::bad_alloc, also when count elements are more than any machine has.
template <class T>
Array<T> make_array(int64_t count) {
  int64_t bytes;
  if (__builtin_mul_overflow(count, int64_t(sizeof(T)), &bytes) || count < 0 || bytes > largest_array)
    throw std::bad_alloc();
  void* p = std::aligned_alloc(64, (size_t(bytes) + 127) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return Array<T>(static_cast<T*>(p));
}

// The product of sizes, or a throw instead of a wrap.
template <class... Sizes>
int64_t product(Sizes... sizes) {
  int64_t result = 1;
  for (int64_t size : {int64_t(sizes)...})
    if (__builtin_mul_overflow(result, size, &result) || result > largest_array) throw std::bad_alloc();
  return result;
}

}  // namespace adamas
