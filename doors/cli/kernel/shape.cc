#include "shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include <adamas/adamas.hpp>

#include "../failure.h"

namespace cli::kernel {

std::string Shape::name() const { return fmt::format("{}/{}x{}", q_heads, kv_heads, head_dim); }

Shape parse_shape(const std::string& text) {
  const auto refuse = [&](const std::string& why) {
    throw Failure(exit_usage, fmt::format("bench: --shape {}: {}", text, why));
  };
  Shape shape{};
  const char* at = text.data();
  const char* const end = at + text.size();
  for (auto [number, mark] : {std::pair{&shape.q_heads, '/'}, {&shape.kv_heads, 'x'}, {&shape.head_dim, '\0'}}) {
    const auto [next, error] = std::from_chars(at, end, *number);
    if (error != std::errc() || *number < 1 || *number > 1024 || (mark == '\0' ? next != end : next == end || *next != mark))
      refuse("a shape is query heads, KV heads and head_dim, like 9/3x64, up to 1024 heads");
    at = next + 1;
  }
  if (shape.q_heads % shape.kv_heads != 0) refuse("the KV heads do not divide the query heads");
  const std::vector<std::int32_t> dims = adamas::head_dims();
  if (std::find(dims.begin(), dims.end(), shape.head_dim) == dims.end())
    refuse(fmt::format("a head_dim is one of {}", fmt::join(dims, ", ")));
  return shape;
}

}  // namespace cli::kernel
